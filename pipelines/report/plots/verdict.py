"""Plots of the verdict: scores, ranks, shares of first place, differences from the reference, every pair."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from pipelines.report.collect import Collected
from pipelines.report.plots.base import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    VERDICT_STYLE,
    WIDTH,
    name_rows,
    p_text,
    register,
    short,
    unit,
)
from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.paired import Comparison
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure, plain

# Box plots of the primary measure, every patient a point.

#: Of fewer patients quartiles say nothing that the points do not.
_LEAST = 5
#: Where the points reach so many times as far as the whiskers, these are shown closer in a second panel.
_STRETCHED = 2.5


class _Box(NamedTuple):
    low: float
    quartile: float
    median: float
    third: float
    high: float


def _title(analysis: Analysis) -> str:
    return f"Every {analysis.unit}"


def _boxes_note(analysis: Analysis) -> str:
    averaged = ", trainings averaged" if analysis.seeds > 1 else ""
    boxes = "Of so few no box is drawn."
    if analysis.primary.patients >= _LEAST:
        boxes = (
            "Box: the middle half; whiskers: the last point within one and a half boxes. Where single points stretch "
            "the axis, the right panel shows the middle closer."
        )
    return f"Each {analysis.unit}'s {analysis.metric.label} by loss, best mean first{averaged}. {boxes}"


@register("boxes", title=_title, note=_boxes_note)
def draw_boxes(analysis: Analysis, collected: Collected) -> Figure:
    """A row a loss, best mean first: points, quartiles, whiskers (the last point within 1.5 boxes), median, mean."""
    losses = [ranked.loss for ranked in analysis.primary.ranking]
    values = [np.array(analysis.scores[loss]) for loss in losses]
    boxes = [_box(own) for own in values]
    drawn = figure(WIDTH, 0.9 + 0.38 * len(losses))
    low, high = min(box.low for box in boxes), max(box.high for box in boxes)
    reach = max(own.max() for own in values) - min(own.min() for own in values)
    closer = len(analysis.patients) >= _LEAST and high > low and reach > _STRETCHED * (high - low)
    panels = drawn.subplots(1, 2, sharey=True, width_ratios=[1, 1.6]) if closer else [drawn.add_subplot()]
    for axes in panels:
        for row, (own, box) in enumerate(zip(values, boxes, strict=True)):
            _draw_row(axes, row, own, box)
    name_rows(panels[0], losses, analysis.reference)
    told = f"{unit(analysis)}, a point per {analysis.unit}; line: median, diamond: mean"
    if closer:
        panels[0].set_xlabel("all")
        panels[1].set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        panels[1].tick_params(axis="y", length=0, labelleft=False)
        panels[1].grid(False, axis="y")
    panels[-1].set_xlabel(told)
    return drawn


def _box(values: NDArray[np.float64]) -> _Box:
    quartile, median, third = (float(value) for value in np.percentile(values, [25, 50, 75]))
    reach = 1.5 * (third - quartile)
    low, high = values[values >= quartile - reach].min(), values[values <= third + reach].max()
    return _Box(float(low), quartile, median, third, float(high))


def _draw_row(axes: Axes, row: int, values: NDArray[np.float64], box: _Box) -> None:
    n = len(values)
    # Spread the same way each time, and evenly.
    jitter = ((np.arange(n) * 0.618034) % 1 - 0.5) * 0.46
    size = 20 if n <= 20 else 11 if n <= 100 else 6
    axes.scatter(values, row + jitter, s=size, color=BLUE, alpha=0.45, linewidths=0, zorder=2)
    if n >= _LEAST:
        for start, end in ((box.low, box.quartile), (box.third, box.high)):
            axes.plot([start, end], [row, row], color=GREY, linewidth=1, zorder=3)
        corner, width = (box.quartile, row - 0.3), box.third - box.quartile
        axes.add_patch(Rectangle(corner, width, 0.6, fill=False, edgecolor=GREY, linewidth=1, zorder=3))
    axes.plot([box.median, box.median], [row - 0.3, row + 0.3], color="black", linewidth=1.6, zorder=4)
    axes.scatter([values.mean()], [row], s=34, marker="D", facecolor="white", edgecolor=ORANGE, zorder=5)


# The forest plot: each loss's paired difference from the reference, and the margin of equivalence.

#: Intervals so many times as wide as the middle one are cut off, where they would press the others to dots.
_WIDE = 6


def _forest_note(analysis: Analysis) -> str:
    test = "by sign flips, max-T over the comparisons"
    if analysis.trainings > 1:
        test = "by sign flips (max-T over the comparisons) and over trainings (Holm)"
    alike = "Equivalent: not that, and shown to lie inside the margin."
    if analysis.non_inferior:
        alike = "Non-inferior: not that, and not worse than by the margin."
    return (
        f"Mean over {analysis.unit}s of loss minus reference, with its 95 % interval. Better or worse: the mean "
        f"difference, tested {test}, adjusted p at most 0.05 and an interval that leaves out 0. {alike} Undecided: all "
        "else, which is not the same as equal. An arrow: the interval continues beyond the plot; the table has all of "
        "it."
    )


def _applies(analysis: Analysis, collected: Collected) -> bool:
    return bool(analysis.primary.comparisons)


@register("forest", title="Against the reference", note=_forest_note, applies=_applies)
def draw_forest(analysis: Analysis, collected: Collected) -> Figure:
    """A row a loss, best mean first."""
    compared = analysis.primary.comparisons
    drawn = figure(WIDTH, 1.25 + 0.3 * len(compared))
    axes = drawn.add_subplot()
    band = axes.axvspan(-analysis.margin, analysis.margin, color=GREEN, alpha=0.13, linewidth=0)
    band.set_label(f"margin of equivalence, ±{analysis.margin:g}")
    axes.axvline(0, color="black", linewidth=0.9)
    low, high = forest_limits(compared, analysis.margin)
    axes.set_xlim(low, high)
    for row, own in enumerate(compared):
        colour, marker = VERDICT_STYLE[own.verdict]
        if own.interval is not None:
            ends = max(own.interval[0], low), min(own.interval[1], high)
            axes.plot(ends, [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            for end, beyond, arrow in ((low, own.interval[0] < low, 4), (high, own.interval[1] > high, 5)):
                if beyond:
                    axes.plot([end], [row], marker=arrow, color=colour, markersize=8, clip_on=False)
        axes.plot([own.difference], [row], marker=marker, color=colour, markersize=7, linestyle="none")
        words = own.words.replace(", within the margin", " (within margin)")
        told = f" {words}, p {p_text(own.p_adjusted)}"
        axes.text(1.01, row, told, transform=axes.get_yaxis_transform(), va="center", color="#222222")
    name_rows(axes, [own.loss for own in compared], None)
    better = "right" if analysis.metric.higher_is_better else "left"
    axes.set_xlabel(f"difference in {unit(analysis)} from {analysis.reference}, 95 % interval ({better} is better)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return drawn


def forest_limits(compared: Sequence[Comparison], margin: float) -> tuple[float, float]:
    """What the plot shows: 0, the margin, all differences, and all intervals but those that are wide beyond measure."""
    intervals = [own.interval for own in compared if own.interval is not None]
    widest = _WIDE * float(np.median([high - low for low, high in intervals])) if intervals else 0.0
    # Of few losses, or narrow ones, the margin is the measure.
    widest = max(widest, _WIDE * margin)
    shown = [bound for low, high in intervals if high - low <= widest for bound in (low, high)]
    shown += [-margin, 0.0, margin, *(own.difference for own in compared)]
    if margin == 0 and len(intervals) == 1:
        shown += intervals[0]
    low, high = min(shown), max(shown)
    room = 0.05 * (high - low) or 0.01
    return low - room, high + room


# The significance matrix: every loss against every other.

_PALE_BLUE, _PALE_ORANGE, _NONE = "#A9CDE6", "#F4C3A0", "#F5F5F5"


@register(
    "significance",
    title="All pairs",
    note="Adjusted p of every pair's mean difference, over all pairs together, by the same rule as the words; losses "
    "ordered by average rank.",
)
def draw_significance(analysis: Analysis, collected: Collected) -> Figure:
    """Adjusted p of all pairs; losses by average rank; colours show whether the row's mean is better or worse."""
    matrix = analysis.primary.omnibus
    size = len(matrix.losses)
    means = {ranked.loss: ranked.mean for ranked in analysis.primary.ranking}
    sign = analysis.metric.sign
    side = min(WIDTH, max(6.2, 3.6 + 0.36 * size))
    drawn = figure(side, 1.9 + 0.27 * size + (0.6 if size > 6 else 0))
    axes = drawn.add_subplot()
    for row, first in enumerate(matrix.losses):
        for column, second in enumerate(matrix.losses):
            if row == column:
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color="#BBBBBB", linewidth=0))
                continue
            p = matrix.p_adjusted[row][column]
            style = _style(p, sign * (means[first] - means[second]))
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **style))
            weight = "bold" if p <= ALPHA else "normal"
            size_pt = 9 if size <= 8 else 6.5
            axes.text(column, row, p_text(p), ha="center", va="center", fontsize=size_pt, weight=weight)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_yticks(range(size), [short(loss, 30) for loss in matrix.losses])
    axes.set_xticks(range(size), [short(loss, 24) for loss in matrix.losses], rotation=40, ha="left")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    plain(axes)
    keys: list[Artist] = [
        Patch(facecolor=_PALE_BLUE, edgecolor=BLUE, label="the row is better"),
        Patch(facecolor=_PALE_ORANGE, edgecolor=ORANGE, label="the row is worse"),
        Patch(facecolor=_NONE, edgecolor="#999999", label=f"no significant difference (p > {ALPHA})"),
    ]
    drawn.legend(handles=keys, loc="outside lower center", ncols=3)
    return drawn


def _style(p: float, gain: float) -> dict[str, Any]:
    colour = _NONE if p > ALPHA else _PALE_BLUE if gain > 0 else _PALE_ORANGE
    return {"facecolor": colour, "edgecolor": "white", "linewidth": 1.5}


# The critical-difference diagram, turned upright: average ranks, and the groups without a significant difference.

#: More groups than that are told by the table alone.
_MOST = 40


@register(
    "critical_difference",
    title="Critical-difference diagram: groups without a significant difference",
    link="Groups",
    note="Average ranks, and at the right a line for each largest group of which no two losses differ significantly "
    "(the pairs above). Members carry a dot: a line that passes a loss without a dot does not include it. No "
    "significant difference is not equality.",
)
def draw_critical(analysis: Analysis, collected: Collected) -> Figure:
    """Left: a row a loss, best average rank first. Right: a line a group, with a dot on each member.

    Horizontal bars, as Demsar (2006) has them, would show a loss between two members as one of theirs.
    """
    omnibus = analysis.primary.omnibus
    losses = list(omnibus.losses)
    groups = omnibus.groups[:_MOST]
    drawn = figure(WIDTH, 1.1 + 0.29 * len(losses))
    share = min(0.5, 0.15 + 0.035 * len(groups))
    axes, right = drawn.subplots(1, 2, sharey=True, width_ratios=[1 - share, share])
    for row, rank in enumerate(omnibus.average_ranks):
        axes.plot([1, rank], [row, row], color=PALE, linewidth=1.2)
        axes.plot([rank], [row], marker="o", color=BLUE, markersize=6, linestyle="none")
        axes.annotate(f"{rank:.2f}", (rank, row), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0.9, len(losses) + 0.25)
    axes.set_xlabel(f"average rank over {analysis.unit}s (1 the best)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    for column, group in enumerate(groups):
        rows = [losses.index(loss) for loss in group]
        right.plot([column, column], [min(rows), max(rows)], color=GREY, linewidth=1.2)
        right.plot([column] * len(rows), rows, marker="o", color=GREY, markersize=6, linestyle="none")
    right.set_xlim(-0.7, max(len(groups) - 0.3, 0.7))
    right.set_xticks([])
    right.set_xlabel("no significant difference" if groups else "all differ significantly")
    right.grid(False)
    right.spines[["left", "bottom"]].set_visible(False)
    name_rows(axes, losses, analysis.reference)
    right.tick_params(axis="y", length=0, labelleft=False)
    return drawn


# How often each loss is first over the bootstraps.


def _note(analysis: Analysis) -> str:
    resampled, seeds = analysis.primary.bootstrap, " and seeds" if analysis.seeds > 1 else ""
    return (
        f"How stable first place is against the choice of {analysis.unit}s{seeds}. It is not the chance of being the "
        "best loss: the first in the sample tends to be first in its resamples. Kendall's tau between a bootstrap's "
        f"ranking and this one is {resampled.tau:.2f} in the mean, {resampled.tau_low:.2f} at the 2.5th percentile."
    )


@register("first", title="Chance of being first", note=_note)
def draw_first(analysis: Analysis, collected: Collected) -> Figure:
    """A bar a loss, best mean first."""
    losses = [ranked.loss for ranked in analysis.primary.ranking]
    chances = [analysis.primary.bootstrap.losses[loss].p_first for loss in losses]
    drawn = figure(WIDTH, 0.9 + 0.27 * len(losses))
    axes = drawn.add_subplot()
    axes.barh(range(len(losses)), chances, height=0.62, color=BLUE)
    for row, chance in enumerate(chances):
        told = "0" if chance == 0 else f"{100 * chance:.1f} %" if chance >= 0.001 else "< 0.1 %"
        axes.annotate(told, (chance, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    name_rows(axes, losses, analysis.reference)
    axes.set_xlim(0, 1.09)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("share of the bootstraps in which the loss has the best mean")
    return drawn
