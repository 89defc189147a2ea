"""Plots of the runs: learning curves, and time against score."""

from math import ceil

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.report.collect import Collected, Cost, Curve
from pipelines.report.plots.base import BLUE, GREY, ORANGE, PALE, WIDTH, register, short
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import NEIGHBOUR_GREY, figure

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


# Time against score, with the Pareto front: the losses that no other loss beats in both.


def pareto_front(analysis: Analysis, costs: dict[str, Cost]) -> list[str]:
    """The losses that no other loss beats in time or score without being worse in the other; the fastest first."""
    sign = analysis.metric.sign
    times = _times(costs)
    points = [(times[one.loss], sign * one.mean, one.loss) for one in analysis.primary.ranking if one.loss in times]
    return [
        loss
        for time, gain, loss in sorted(points, key=lambda point: point[:2])
        if not any(t <= time and g >= gain and (t < time or g > gain) for t, g, _ in points)
    ]


@register(
    "time_and_score",
    title="Time and score",
    note="Diamonds and bold names: the Pareto front, that is, the losses that no other loss beats in both time and "
    "score. The times were measured on this machine, possibly with several runs at once.",
    applies=lambda analysis, collected: bool(pareto_front(analysis, collected.costs)),
)
def draw_cost(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a point per loss, with its name at the side; the front is blue."""
    front, times = pareto_front(analysis, collected.costs), _times(collected.costs)
    sign = analysis.metric.sign
    placed = [ranked for ranked in analysis.primary.ranking if ranked.loss in times]
    means = {ranked.loss: ranked.mean for ranked in placed}
    drawn = figure(WIDTH, max(3.4, 1.0 + 0.25 * len(placed)))
    axes = drawn.add_subplot()
    axes.step([times[loss] for loss in front], [means[loss] for loss in front], where="post", color=BLUE, alpha=0.5)
    for ranked in placed:
        interval = analysis.primary.bootstrap.losses[ranked.loss].mean_interval
        in_front, time = ranked.loss in front, times[ranked.loss]
        colour = BLUE if in_front else NEIGHBOUR_GREY
        if interval is not None:
            axes.plot([time, time], interval, color=colour, linewidth=0.9, alpha=0.6)
        axes.plot([time], [ranked.mean], marker="D" if in_front else "o", markersize=6, color=colour)
    axes.margins(x=0.06)
    axes.set_xlabel("seconds per epoch (median of the finished runs)")
    axes.set_ylabel(f"mean {analysis.metric.heading}, 95 % interval ({'higher' if sign > 0 else 'lower'} is better)")
    _name(axes, times, means, set(front))
    return drawn


def _times(costs: dict[str, Cost]) -> dict[str, float]:
    return {loss: cost.epoch_s for loss, cost in costs.items() if cost.epoch_s is not None}


def _name(axes: Axes, times: dict[str, float], means: dict[str, float], front: set[str]) -> None:
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
            color=BLUE if loss in front else "#333333",
            weight="bold" if loss in front else "normal",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.4, "alpha": 0.6, "relpos": (0, 0.5)},
        )


def _spread(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move heights, sorted from the top, as little as needed for a line of text each."""
    step = min(0.075, 1.0 / max(len(heights), 1))
    steps = step * np.arange(len(heights))
    placed = np.minimum.accumulate(heights + steps) - steps
    return np.asarray(np.maximum(placed, step / 2 + steps[::-1]))
