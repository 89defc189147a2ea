"""The Bland-Altman plot of volumes: by how much each loss over- or undersegments, and whether that depends on size."""

from math import ceil

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pipelines.report.collect import Collected
from pipelines.report.plots.base import BLUE, GREY, ORANGE, WIDTH, register, short
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure

_COLUMNS = 4
#: The columns of the table that it needs.
_ERROR, _RELATIVE = "volume_bias_ml", "volume_difference"


def volumes(frame: pd.DataFrame) -> pd.DataFrame:
    """Volumes per loss, case and class, runs averaged: `mean` of prediction and reference, and their `difference`, ml.

    The reference's volume follows from the error in ml and relative to it, of any loss whose error is not 0; it is 0
    where the relative one is undefined. Rows of failed runs, and of cases in which no loss has an error, are left out.
    """
    keys = ["loss", "case", "class"]
    known = frame[frame[_ERROR].notna()]
    error, relative = known[_ERROR], known[_RELATIVE]
    reference = (error / relative.where(relative != 0)).where(relative.notna(), 0.0)
    known = known.assign(reference=reference.to_numpy())
    # One reference per case and class: losses without an error have it from the others.
    known = known.assign(reference=known.groupby(["case", "class"])["reference"].transform("median"))
    means = known[known["reference"].notna()].groupby(keys)[[_ERROR, "reference"]].mean().reset_index()
    return means.assign(difference=means[_ERROR], mean=means["reference"] + means[_ERROR] / 2)[
        [*keys, "mean", "difference"]
    ]


def _applies(analysis: Analysis, collected: Collected) -> bool:
    frame = collected.table.frame
    return {_ERROR, _RELATIVE} <= set(frame.columns) and bool(len(volumes(frame)))


@register(
    "bland_altman",
    title="Bland-Altman plot of volumes",
    link="Volumes",
    note="A point per case and class: the volume of the prediction minus that of the reference, over the mean of the "
    "two (Bland and Altman 1986). Blue line: the mean difference, a bias; dashed: mean plus and minus 1.96 standard "
    "deviations, between which 95 % of differences lie if they are about normal and do not depend on the volume. A "
    "slope shows that large structures are cut or small ones inflated. Volumes say nothing about the place. Outside "
    "the range of the axis: points as triangles at its ends.",
    applies=_applies,
)
def draw_volumes(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a panel per loss, best mean first, all with the same axes."""
    found = volumes(collected.table.frame)
    losses = [ranked.loss for ranked in analysis.primary.ranking if ranked.loss in set(found["loss"])]
    columns = min(_COLUMNS, len(losses))
    rows = ceil(len(losses) / columns)
    drawn = figure(WIDTH, 0.6 + (2.0 if columns > 2 else 3.0) * rows)
    panels = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(losses) :]:
        panel.remove()
    largest = float(np.percentile(found["difference"].abs(), 99)) * 1.1
    for panel, loss in zip(panels, losses, strict=False):
        of_loss = found[found["loss"] == loss]
        mean, difference = of_loss["mean"].to_numpy(), of_loss["difference"].to_numpy()
        spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
        bias = float(difference.mean())
        panel.axhline(0, color=GREY, linewidth=0.8)
        panel.axhline(bias, color=BLUE, linewidth=1.3)
        for end in (bias - 1.96 * spread, bias + 1.96 * spread):
            panel.axhline(end, color=BLUE, linewidth=0.9, linestyle="--")
        shown = np.abs(difference) <= largest
        panel.scatter(mean[shown], difference[shown], s=9, color=BLUE, alpha=0.45, linewidths=0)
        for beyond, end, marker in ((difference > largest, largest, "^"), (difference < -largest, -largest, "v")):
            ends = np.full(beyond.sum(), end)
            panel.scatter(mean[beyond], ends, s=24, marker=marker, color=ORANGE, clip_on=False, linewidths=0)
        panel.set_title(f"{short(loss, 30 if columns > 2 else 50)}\n{bias:+.2f} ± {1.96 * spread:.2f} ml", fontsize=8)
        panel.tick_params(labelsize=7.5, labelbottom=losses.index(loss) + columns >= len(losses))
        if largest > 0:
            panel.set_ylim(-1.05 * largest, 1.05 * largest)
    drawn.supxlabel("mean volume of prediction and reference, ml", fontsize=9)
    drawn.supylabel("prediction minus reference, ml", fontsize=9)
    return drawn
