"""Time against score, with the Pareto front: the losses that no other one beats in both."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.comparison.report.collect import Collected, Cost
from pipelines.comparison.report.plots.entry import register
from pipelines.comparison.report.plots.render import BLUE, GREY, NEIGHBOUR_GREY, WIDTH, short, unit
from pipelines.comparison.statistics import Analysis
from pipelines.gallery.style import figure


def pareto_front(analysis: Analysis, costs: dict[str, Cost]) -> list[str]:
    """Losses such that none is both at least as fast and at least as good, and better in one; the fastest first."""
    sign = analysis.metric.sign
    times = _times(costs)
    points = [(times[own.loss], sign * own.mean, own.loss) for own in analysis.primary.ranking if own.loss in times]
    front = [
        (time, gain, loss)
        for time, gain, loss in points
        if not any(t <= time and g >= gain and (t < time or g > gain) for t, g, _ in points)
    ]
    return [loss for _, _, loss in sorted(front, key=lambda point: point[:2])]


def _applies(analysis: Analysis, collected: Collected) -> bool:
    return bool(collected.costs and pareto_front(analysis, collected.costs))


@register(
    "time_and_score",
    title="Time and score",
    note="Diamonds and bold names: the Pareto front, losses that no other one beats in both time and score. Times are "
    "of this machine, and of runs that may have shared it.",
    applies=_applies,
)
def draw_cost(analysis: Analysis, collected: Collected) -> Figure:
    """A point a loss, named at the side; the front in blue."""
    costs = collected.costs or {}
    front = pareto_front(analysis, costs)
    times = _times(costs)
    sign = analysis.metric.sign
    placed = [ranked for ranked in analysis.primary.ranking if ranked.loss in times]
    means = {ranked.loss: ranked.mean for ranked in placed}
    drawn = figure(WIDTH, max(3.4, 1.0 + 0.25 * len(placed)))
    axes = drawn.add_subplot()
    axes.step([times[loss] for loss in front], [means[loss] for loss in front], where="post", color=BLUE, alpha=0.5)
    for ranked in placed:
        interval = analysis.primary.bootstrap.losses[ranked.loss].mean_interval
        own, time = ranked.loss in front, times[ranked.loss]
        colour = BLUE if own else NEIGHBOUR_GREY
        if interval is not None:
            axes.plot([time, time], interval, color=colour, linewidth=0.9, alpha=0.6)
        axes.plot([time], [ranked.mean], marker="D" if own else "o", markersize=6, color=colour)
    axes.margins(x=0.06)
    axes.set_xlabel("seconds an epoch (median of the finished runs)")
    axes.set_ylabel(f"mean {unit(analysis)}, 95 % interval ({'higher' if sign > 0 else 'lower'} is better)")
    _name(axes, times, means, set(front))
    return drawn


def _times(costs: dict[str, Cost]) -> dict[str, float]:
    return {loss: cost.epoch_s for loss, cost in costs.items() if cost.epoch_s is not None}


def _name(axes: Axes, times: dict[str, float], means: dict[str, float], front: set[str]) -> None:
    """Names in a column at the right, in the order of the means, a thin line to each point: so none lies on another."""
    low, high = axes.get_ylim()
    losses = sorted(means, key=lambda loss: -means[loss])
    heights = _apart(np.array([(means[loss] - low) / (high - low) for loss in losses]))
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


def _apart(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places from the top down, near those that are wanted, and with room for a line of text each."""
    step = min(0.075, 1.0 / max(len(heights), 1))
    placed = heights.copy()
    for i in range(1, len(placed)):
        placed[i] = min(placed[i], placed[i - 1] - step)
    floor = step / 2
    for i in reversed(range(len(placed))):
        placed[i] = max(placed[i], floor + step * (len(placed) - 1 - i))
    return placed
