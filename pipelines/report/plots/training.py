"""Plots of the runs: learning curves, and time against score."""

from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.report.collect import Collected, Cost, Curve
from pipelines.report.plots.base import BLUE, GREY, ORANGE, PALE, VERDICT_STYLE, WIDTH, register, short
from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure

# Learning curves: the validation metric over the epochs, one small panel per loss; for nnU-Net its pseudo Dice.

_COLUMNS = 4


@register(
    "learning_curves",
    title="Learning curves",
    note="Validation score over the epochs: the runs of each loss (blue; failed ones dashed orange) in front of those "
    "of all other losses (grey). If a curve still rises at the end, more epochs would help.",
    # A run was validated more than once.
    applies=lambda analysis, collected: any(
        len(_points(curve, analysis.primary.metric)[0]) > 1 for curve in collected.curves
    ),
)
def draw_curves(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a panel per loss: its runs in front of all others, which are grey; failed runs are dashed."""
    drawn_curves = [(curve, _points(curve, analysis.primary.metric)) for curve in collected.curves]
    drawn_curves = [(curve, points) for curve, points in drawn_curves if points[0]]
    with_points = {curve.loss for curve, _ in drawn_curves}
    losses = [ranked.loss for ranked in analysis.primary.ranking if ranked.loss in with_points]
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
        # The lowest panel of each column has the epochs, also if the last row is not full.
        panel.tick_params(labelbottom=losses.index(loss) + columns >= len(losses))
        panel.set_title(short(loss, 30 if columns > 2 else 50), fontsize=8)
        panel.tick_params(labelsize=7.5)
        panel.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    drawn.supxlabel("epoch", fontsize=9)
    pseudo = any(_is_pseudo(curve) for curve in collected.curves)
    drawn.supylabel("pseudo Dice (on patches)" if pseudo else f"validation {analysis.metric.heading}", fontsize=9)
    return drawn


def _points(curve: Curve, metric: str) -> tuple[list[float], list[float]]:
    # nnU-Net validates whole cases only once, at the end.
    column = "pseudo_dice" if _is_pseudo(curve) else f"val_{metric}"
    kept = [row for row in curve.epochs if "epoch" in row and np.isfinite(row.get(column, np.nan))]
    return [row["epoch"] for row in kept], [row[column] for row in kept]


def _is_pseudo(curve: Curve) -> bool:
    return any(np.isfinite(row.get("pseudo_dice", np.nan)) for row in curve.epochs)


# Time against score. Means within chance of each other are no ranking: no line joins the best ones.

#: Times per epoch that differ by a smaller share are taken as equal: runs on one machine slow each other down.
_SAME_TIME = 0.1


def unbeaten(analysis: Analysis, costs: dict[str, Cost]) -> list[str]:
    """The losses that no loss of about the same time, or less, is significantly better than; best mean first.

    Significantly: by the adjusted p of the pair, over all pairs.
    """
    times, pairs, sign = _times(costs), analysis.primary.omnibus, analysis.metric.sign
    means = {ranked.loss: sign * ranked.mean for ranked in analysis.primary.ranking}
    p = {
        loss: dict(zip(pairs.losses, row, strict=True))
        for loss, row in zip(pairs.losses, pairs.p_adjusted, strict=True)
    }

    def beats(other: str, loss: str) -> bool:
        quick = times[other] <= times[loss] * (1 + _SAME_TIME)
        return quick and means[other] > means[loss] and p[other][loss] <= ALPHA

    placed = [loss for loss in means if loss in times]
    return [loss for loss in placed if not any(beats(other, loss) for other in placed if other != loss)]


def _cost_note(analysis: Analysis) -> str:
    against = (
        f"Colours and marks are the verdicts in the comparison with {analysis.reference} (diamond), as above. "
        if analysis.reference
        else ""
    )
    return (
        f"{against}Bold: losses that no loss of the same time (within {_SAME_TIME:.0%}), or less, is significantly "
        "better than (adjusted p at most 0.05, over all pairs); the order of their means may be chance. The bars are "
        "the intervals of each mean by itself: whether two losses differ is in the comparisons. The times were "
        "measured on this machine, possibly with several runs at once."
    )


@register(
    "time_and_score",
    title="Time and score",
    note=_cost_note,
    applies=lambda analysis, collected: bool(unbeaten(analysis, collected.costs)),
)
def draw_cost(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a point with its interval per loss, marked by its verdict, and its name at the side; without a line."""
    bold, times = set(unbeaten(analysis, collected.costs)), _times(collected.costs)
    sign = analysis.metric.sign
    placed = [ranked for ranked in analysis.primary.ranking if ranked.loss in times]
    means = {ranked.loss: ranked.mean for ranked in placed}
    verdicts = {compared.loss: compared.verdict for compared in analysis.primary.comparisons}
    drawn = figure(WIDTH, max(3.4, 1.0 + 0.25 * len(placed)))
    axes = drawn.add_subplot()
    for ranked in placed:
        interval, time = analysis.primary.bootstrap.losses[ranked.loss].mean_interval, times[ranked.loss]
        colour, marker = VERDICT_STYLE[verdicts.get(ranked.loss, "undecided")]
        if ranked.loss == analysis.reference:
            colour, marker = "#333333", "D"
        if interval is not None:
            axes.plot([time, time], interval, color=colour, linewidth=0.9, alpha=0.6)
        axes.plot([time], [ranked.mean], marker=marker, markersize=6, color=colour)
    axes.margins(x=0.06)
    axes.set_xlabel("seconds per epoch (median of the finished runs)")
    axes.set_ylabel(f"mean {analysis.metric.heading}, 95 % interval ({'higher' if sign > 0 else 'lower'} is better)")
    _name(axes, times, means, bold)
    return drawn


def _times(costs: dict[str, Cost]) -> dict[str, float]:
    return {loss: cost.epoch_s for loss, cost in costs.items() if cost.epoch_s is not None}


def _name(axes: Axes, times: dict[str, float], means: dict[str, float], bold: set[str]) -> None:
    """Write the names in a column at the right, in the order of the means, with a thin line to each point."""
    low, high = axes.get_ylim()
    losses = sorted(means, key=lambda loss: -means[loss])
    heights = _spread(np.array([(means[loss] - low) / (high - low) for loss in losses]))
    for loss, height in zip(losses, heights, strict=True):
        axes.annotate(
            short(loss, 34),
            (times[loss], means[loss]),
            xytext=(1.05, float(height)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color="#333333",
            weight="bold" if loss in bold else "normal",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "alpha": 0.6, "relpos": (0, 0.5)},
        )


def _spread(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move heights, sorted from the top, as little as needed for a line of text each."""
    step = min(0.075, 1.0 / max(len(heights), 1))
    steps = step * np.arange(len(heights))
    placed = np.minimum.accumulate(heights + steps) - steps
    return np.asarray(np.maximum(placed, step / 2 + steps[::-1]))
