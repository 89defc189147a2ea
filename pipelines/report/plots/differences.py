"""The paired differences, case by case: of every loss from the reference, or of two losses."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.report.collect import Collected
from pipelines.report.plots.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    WIDTH,
    extremes,
    is_crowded,
    name_rows,
    named_points,
    register,
    short,
)
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure

#: Share of all differences that lie within the limits of the plot; the others are drawn at its edge.
_SHOWN = 0.96


def _note(analysis: Analysis) -> str:
    unit = analysis.unit
    crowded = ""
    if is_crowded(analysis):
        crowded = " With so many points, only the most extreme ones per loss are drawn."
    if len(analysis.scores) == 2:
        return (
            f"Left: a line per {unit}, from its score with {analysis.base} to that with the other loss; blue where the "
            f"other is better, orange where it is worse. Right: the differences, sorted. Every point names its {unit}, "
            f"and leads to its picture if there is one.{crowded}"
        )
    return (
        f"A point per {unit}: loss minus {analysis.base}. Box: the middle half; line: median; diamond: mean. Triangles "
        f"in a grey strip: {unit}s beyond the scale, with number and farthest value. Every point names its {unit}, "
        f"and leads to its picture if there is one.{crowded}"
    )


@register(
    "differences",
    title=lambda analysis: f"Paired differences per {analysis.unit}",
    link="Differences",
    note=_note,
    applies=lambda analysis, collected: bool(analysis.primary.contrasts) and len(analysis.patients) > 1,
)
def draw_differences(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a row per loss with a point per patient; of two losses, a line per patient."""
    if len(analysis.scores) == 2:
        return _draw_two(analysis)
    losses = [compared.loss for compared in analysis.primary.comparisons]
    base = np.array(analysis.scores[str(analysis.base)])
    rows = [np.array(analysis.scores[loss]) - base for loss in losses]
    drawn = figure(WIDTH, 1.0 + 0.34 * len(losses))
    axes = drawn.add_subplot()
    every = np.concatenate(rows)
    low, high = _limits(every, analysis.margin)
    edge = 0.15 * (high - low)
    left, right = edge * bool(every.min() < low), edge * bool(every.max() > high)
    axes.set_xlim(low - left, high + right)
    for strip in ((low - left, low), (high, high + right)):
        axes.axvspan(*strip, color=PALE, alpha=0.35, linewidth=0)
    if analysis.margin > 0:
        axes.axvspan(-analysis.margin, analysis.margin, color=GREEN, alpha=0.13, linewidth=0)
    axes.axvline(0, color="black", linewidth=0.9)
    place = {ranked.loss: number for number, ranked in enumerate(analysis.primary.ranking)}
    for row, (loss, values) in enumerate(zip(losses, rows, strict=True)):
        _draw_row(axes, analysis, row, values, place[loss], (low, high))
    name_rows(axes, losses, None)
    ticks = axes.get_xticks()
    axes.set_xticks(ticks[(ticks >= low) & (ticks <= high)])
    better = "right" if analysis.metric.higher_is_better else "left"
    axes.set_xlabel(
        f"difference in {analysis.metric.heading} from {analysis.base} per {analysis.unit} ({better} is better)"
    )
    return drawn


def _limits(values: NDArray[np.float64], margin: float) -> tuple[float, float]:
    """The range that contains most differences, 0 and the margin."""
    tail = (1 - _SHOWN) / 2
    low, high = (float(bound) for bound in np.quantile(values, [tail, 1 - tail]))
    low, high = min(low, -margin, 0.0), max(high, margin, 0.0)
    # If the others are hardly farther away, none is drawn at the edge.
    room = 0.35 * (high - low) or 0.01
    return max(float(values.min()), low - room) - 0.03 * room, min(float(values.max()), high + room) + 0.03 * room


def _draw_row(
    axes: Axes, analysis: Analysis, row: int, values: NDArray[np.float64], loss: int, limits: tuple[float, float]
) -> None:
    low, high = limits
    edge = 0.15 * (high - low)
    # Even and reproducible, unlike random jitter.
    heights = row + ((np.arange(len(values)) * 0.618034) % 1 - 0.5) * 0.5
    shown = extremes(values, len(analysis.scores))
    inside = shown[(values[shown] >= low) & (values[shown] <= high)]
    size = 16 if len(values) <= 20 else 9 if len(values) <= 100 else 5
    _points(axes, analysis, values[inside], heights[inside], inside, loss, values, s=size, color=BLUE, alpha=0.5)
    first, middle, third = np.quantile(np.clip(values, low, high), [0.25, 0.5, 0.75])
    axes.plot([first, third, third, first, first], row + 0.28 * np.array([-1, -1, 1, 1, -1]), color=GREY, linewidth=0.9)
    axes.plot([middle, middle], [row - 0.28, row + 0.28], color="black", linewidth=1.5)
    if low <= values.mean() <= high:
        axes.plot([values.mean()], [row], marker="D", markersize=5, markerfacecolor="white", color=ORANGE)
    for sign, end in ((-1, low), (1, high)):
        beyond = np.flatnonzero(values < low if sign < 0 else values > high)
        if len(beyond):
            beyond = beyond[extremes(values[beyond], len(analysis.scores))]
            at, marker = np.full(len(beyond), end + sign * 0.2 * edge), "<" if sign < 0 else ">"
            _points(axes, analysis, at, heights[beyond], beyond, loss, values, s=18, color=ORANGE, marker=marker)
            farthest = analysis.metric.shown(float(sign * (sign * values).max()), signed=True)
            text = farthest if len(beyond) == 1 else f"{len(beyond)}: {farthest}"
            axes.text(
                end + sign * 0.35 * edge, row, text, fontsize=6.5, va="center", ha="right" if sign < 0 else "left"
            )


def _points(
    axes: Axes,
    analysis: Analysis,
    x: NDArray[Any],
    y: NDArray[Any],
    cases: NDArray[np.intp],
    loss: int,
    values: NDArray[np.float64],
    **style: object,
) -> None:
    name = analysis.primary.ranking[loss].loss
    names = [
        f"{analysis.patients[case]}: {analysis.metric.shown(float(values[case]), signed=True)} ({name})"
        for case in cases
    ]
    named_points(axes, x, y, names, [(loss, int(case)) for case in cases], zorder=3, **style)


# Two losses: a line per patient.


def _draw_two(analysis: Analysis) -> Figure:
    base = str(analysis.base)
    other = analysis.primary.contrasts[0].loss
    first, second = np.array(analysis.scores[base]), np.array(analysis.scores[other])
    difference = second - first
    better = analysis.metric.sign * difference > 0
    drawn = figure(WIDTH, 4.2)
    left, right = drawn.subplots(1, 2, width_ratios=[1, 1.5])
    shown = extremes(difference, 2)
    for wins, colour in ((True, BLUE), (False, ORANGE)):
        some = shown[better[shown] == wins]
        left.plot(
            [0, 1], [first[some], second[some]], color=colour, linewidth=0.7, alpha=0.5 if len(shown) < 200 else 0.2
        )
    left.plot([0, 1], [first.mean(), second.mean()], color="black", linewidth=2, marker="D", markerfacecolor="white")
    left.set_xlim(-0.15, 1.15)
    place = {ranked.loss: number for number, ranked in enumerate(analysis.primary.ranking)}
    size = 16 if len(first) <= 100 else 7
    for at, loss, values in ((0, base, first), (1, other, second)):
        names = [f"{analysis.patients[case]}: {analysis.metric.shown(float(values[case]))}" for case in shown]
        keys = [(place[loss], int(case)) for case in shown]
        x = np.full(len(shown), float(at))
        named_points(left, x, values[shown], names, keys, s=size, color=GREY, alpha=0.7, zorder=3)
    left.set_xticks([0, 1], [short(base, 24), short(other, 24)])
    left.grid(False, axis="x")
    left.set_ylabel(f"{analysis.metric.heading} (black: mean)")
    order = np.argsort(difference, kind="stable")
    places = np.argsort(order).astype(float)
    for wins, colour in ((True, BLUE), (False, ORANGE)):
        some = shown[better[shown] == wins]
        right.vlines(places[some], 0, difference[some], color=colour, linewidth=0.8, alpha=0.6)
        _points(right, analysis, places[some], difference[some], some, place[other], difference, s=size, color=colour)
    if analysis.reference is not None and analysis.margin > 0:
        right.axhspan(-analysis.margin, analysis.margin, color=GREEN, alpha=0.13, linewidth=0)
    right.axhline(0, color="black", linewidth=0.9)
    right.set_xlim(-1, len(order))
    right.set_xticks([])
    right.set_xlabel(f"{analysis.unit}s, by difference")
    right.set_ylabel(f"{short(other, 24)} minus {short(base, 24)}")
    return drawn
