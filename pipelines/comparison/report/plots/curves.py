"""Learning curves: the validation measure over the epochs, a small panel a loss; of nnU-Net its pseudo Dice."""

from math import ceil

import numpy as np
from matplotlib.figure import Figure

from pipelines.comparison.report.collect import Collected, Curve
from pipelines.comparison.report.plots.entry import register
from pipelines.comparison.report.plots.render import BLUE, ORANGE, PALE, WIDTH, short, unit
from pipelines.comparison.statistics import Analysis
from pipelines.gallery.style import figure

_COLUMNS = 4
Points = tuple[list[float], list[float]]


def _applies(analysis: Analysis, collected: Collected) -> bool:
    """Some run was validated more than once."""
    return any(len(_points(curve, analysis.primary.metric)[0]) > 1 for curve in collected.curves)


@register(
    "learning_curves",
    title="Learning curves",
    note="Validation over the epochs: a loss's own runs (blue; failed ones dashed, orange) before those of all others "
    "(grey). A curve that still rises at the end would gain from more epochs.",
    applies=_applies,
)
def draw_curves(analysis: Analysis, collected: Collected) -> Figure:
    """In each panel the loss's own runs, before all others' in grey; failed ones dashed."""
    curves = collected.curves
    drawn_curves = [(curve, _points(curve, analysis.primary.metric)) for curve in curves]
    drawn_curves = [(curve, points) for curve, points in drawn_curves if points[0]]
    order = [ranked.loss for ranked in analysis.primary.ranking]
    losses = [loss for loss in order if any(curve.loss == loss for curve, _ in drawn_curves)]
    columns = min(_COLUMNS, len(losses))
    rows = ceil(len(losses) / columns)
    drawn = figure(WIDTH, 0.6 + (1.6 if columns > 2 else 2.4) * rows)
    panels = np.atleast_1d(drawn.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)).ravel()
    for panel in panels[len(losses) :]:
        panel.remove()
    for panel, loss in zip(panels, losses, strict=False):
        for curve, points in drawn_curves:
            if curve.loss != loss and not curve.failed:
                panel.plot(*points, color=PALE, linewidth=0.7, zorder=1)
        for curve, points in drawn_curves:
            if curve.loss == loss:
                style, colour = ("--", ORANGE) if curve.failed else ("-", BLUE)
                panel.plot(*points, style, color=colour, linewidth=1.5, zorder=2)
        # The last of each column has the epochs; below it there may be no panel.
        panel.tick_params(labelbottom=losses.index(loss) + columns >= len(losses))
        panel.set_title(short(loss, 30 if columns > 2 else 50), fontsize=8)
        panel.tick_params(labelsize=7.5)
        panel.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    drawn.supxlabel("epoch", fontsize=9)
    pseudo = any(_is_pseudo(curve) for curve in curves)
    drawn.supylabel("pseudo Dice, on patches" if pseudo else f"validation {unit(analysis)}", fontsize=9)
    return drawn


def _points(curve: Curve, metric: str) -> Points:
    # Whole cases nnU-Net validates once, at the end.
    column = "pseudo_dice" if _is_pseudo(curve) else f"val_{metric}"
    pairs = [(row["epoch"], row.get(column, np.nan)) for row in curve.epochs if "epoch" in row]
    kept = [(epoch, value) for epoch, value in pairs if np.isfinite(value)]
    return [epoch for epoch, _ in kept], [value for _, value in kept]


def _is_pseudo(curve: Curve) -> bool:
    return any(np.isfinite(row.get("pseudo_dice", np.nan)) for row in curve.epochs)
