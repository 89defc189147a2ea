"""The reliability diagram: whether a probability of 0.8 means that 80 % of such voxels belong to the class."""

from math import ceil

import numpy as np
from matplotlib.figure import Figure

from pipelines.evaluation.calibration import AROUND_MM, BINS
from pipelines.report.collect import Collected
from pipelines.report.plots.base import BLUE, GREY, PALE, WIDTH, register, short
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure

_COLUMNS = 4
#: Smallest share of voxels of a bin that is drawn: a few voxels show nothing.
_LEAST = 1e-5


@register(
    "reliability",
    title="Reliability diagram: are the probabilities calibrated?",
    link="Calibration",
    note=f"Of the voxels within {AROUND_MM:g} mm of the reference's bounding box, all cases and classes together, in "
    f"{BINS} bins of their probability: mean probability, and share of voxels that belong to the class. On the "
    "diagonal a probability means what it says; below it the network is overconfident. Larger points: more voxels. "
    "ECE: the mean distance from the diagonal over all these voxels, so large cases count more than in tables, "
    "which average over cases. Most voxels lie in the outermost bins.",
    applies=lambda analysis, collected: bool(collected.calibration),
)
def draw_reliability(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a panel per loss, best mean first: its curve in front of those of all others, which are grey."""
    losses = [ranked.loss for ranked in analysis.primary.ranking if ranked.loss in collected.calibration]
    columns = min(_COLUMNS, len(losses))
    rows = ceil(len(losses) / columns)
    drawn = figure(WIDTH, 0.6 + (2.2 if columns > 2 else 3.4) * rows)
    panels = drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for panel in panels[len(losses) :]:
        panel.remove()
    curves = {}
    for loss in losses:
        found = collected.calibration[loss]
        share = found.voxels / found.voxels.sum()
        kept = share >= _LEAST
        voxels = found.voxels[kept]
        curves[loss] = (found.probability[kept] / voxels, found.present[kept] / voxels, share[kept])
    for panel, loss in zip(panels, losses, strict=False):
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":", zorder=1)
        for other, (probability, present, _) in curves.items():
            if other != loss:
                panel.plot(probability, present, color=PALE, linewidth=0.7, zorder=1)
        probability, present, share = curves[loss]
        panel.plot(probability, present, color=BLUE, linewidth=1.3, zorder=2)
        panel.scatter(probability, present, s=6 + 90 * np.sqrt(share), color=BLUE, alpha=0.6, linewidths=0, zorder=3)
        name = short(loss, 30 if columns > 2 else 50)
        panel.set_title(f"{name}\nECE {collected.calibration[loss].ece:.4f}", fontsize=8)
        panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
        panel.tick_params(labelsize=7.5, labelbottom=losses.index(loss) + columns >= len(losses))
    drawn.supxlabel("mean probability of the voxels in a bin", fontsize=9)
    drawn.supylabel("share that belongs to the class", fontsize=9)
    return drawn
