"""Plots of the verdict: scores, differences from the reference, all pairs, average ranks and first places."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats
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
)
from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.paired import Comparison
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure, plain

# Box plots of the primary metric, with a point per patient.

#: Smallest number of patients for a box.
_LEAST = 5
#: If the points span more than this many times the range of the whiskers, a second panel enlarges these.
_STRETCHED = 2.5


def _boxes_note(analysis: Analysis) -> str:
    averaged = ", averaged over the runs" if analysis.seeds > 1 else ""
    boxes = f"No boxes are drawn for fewer than {_LEAST} {analysis.unit}s."
    if analysis.primary.patients >= _LEAST:
        boxes = (
            "Box: the middle half; whiskers: the last point within 1.5 box lengths. If single points stretch the axis, "
            "a second panel enlarges the middle."
        )
    return f"{analysis.metric.label} per {analysis.unit} for each loss, best mean first{averaged}. {boxes}"


@register("boxes", title=lambda analysis: f"Scores per {analysis.unit}", note=_boxes_note)
def draw_boxes(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a row per loss, best mean first: points, quartiles, whiskers (within 1.5 box lengths), median and mean."""
    losses = [ranked.loss for ranked in analysis.primary.ranking]
    scores = [np.array(analysis.scores[loss]) for loss in losses]
    boxes: list[dict[str, Any]] = boxplot_stats(scores)
    drawn = figure(WIDTH, 0.9 + 0.38 * len(losses))
    low, high = min(box["whislo"] for box in boxes), max(box["whishi"] for box in boxes)
    span = max(values.max() for values in scores) - min(values.min() for values in scores)
    enlarged = len(analysis.patients) >= _LEAST and high > low and span > _STRETCHED * (high - low)
    panels = drawn.subplots(1, 2, sharey=True, width_ratios=[1, 1.6]) if enlarged else [drawn.add_subplot()]
    for axes in panels:
        for row, (values, box) in enumerate(zip(scores, boxes, strict=True)):
            _draw_row(axes, row, values, box)
    name_rows(panels[0], losses, analysis.reference)
    if enlarged:
        panels[0].set_xlabel("all")
        panels[1].set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        panels[1].tick_params(axis="y", length=0, labelleft=False)
        panels[1].grid(False, axis="y")
    panels[-1].set_xlabel(f"{analysis.metric.heading} (point: one {analysis.unit}, line: median, diamond: mean)")
    return drawn


def _draw_row(axes: Axes, row: int, values: NDArray[np.float64], box: dict[str, Any]) -> None:
    n = len(values)
    # Even and reproducible, unlike random jitter.
    jitter = ((np.arange(n) * 0.618034) % 1 - 0.5) * 0.46
    size = 20 if n <= 20 else 11 if n <= 100 else 6
    axes.scatter(values, row + jitter, s=size, color=BLUE, alpha=0.45, linewidths=0, zorder=2)
    if n >= _LEAST:
        for start, end in ((box["whislo"], box["q1"]), (box["q3"], box["whishi"])):
            axes.plot([start, end], [row, row], color=GREY, linewidth=1, zorder=3)
        corner, width = (box["q1"], row - 0.3), box["q3"] - box["q1"]
        axes.add_patch(Rectangle(corner, width, 0.6, fill=False, edgecolor=GREY, linewidth=1, zorder=3))
    axes.plot([box["med"], box["med"]], [row - 0.3, row + 0.3], color="black", linewidth=1.6, zorder=4)
    axes.scatter([box["mean"]], [row], s=34, marker="D", facecolor="white", edgecolor=ORANGE, zorder=5)


# The forest plot: the paired differences from the reference, and the equivalence margin.

#: Intervals more than this many times as wide as the median one are cut off, so that the others remain visible.
_WIDE = 6


def _forest_note(analysis: Analysis) -> str:
    test = "by sign flips, max-T over the comparisons"
    if analysis.trainings > 1:
        test = "by sign flips (max-T over the comparisons) and over runs (Holm)"
    alike = "Equivalent: neither of these, and shown to lie within the margin."
    if analysis.non_inferior:
        alike = "Non-inferior: neither of these, and shown not to be worse by more than the margin."
    return (
        f"Mean over {analysis.unit}s of loss minus reference, with its 95 % interval. Better or worse: the mean "
        f"difference, tested {test}, has an adjusted p of at most 0.05 and an interval that excludes 0. {alike} "
        "Undecided: everything else, which does not mean equal. Arrow: the interval continues beyond the plot; the "
        "table has all of it."
    )


@register(
    "forest",
    title="Comparison with the reference",
    note=_forest_note,
    applies=lambda analysis, collected: bool(analysis.primary.comparisons),
)
def draw_forest(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a row per loss, best mean first."""
    comparisons = analysis.primary.comparisons
    drawn = figure(WIDTH, 1.25 + 0.3 * len(comparisons))
    axes = drawn.add_subplot()
    band = axes.axvspan(-analysis.margin, analysis.margin, color=GREEN, alpha=0.13, linewidth=0)
    band.set_label(f"equivalence margin, ±{analysis.margin:g}")
    axes.axvline(0, color="black", linewidth=0.9)
    low, high = forest_limits(comparisons, analysis.margin)
    axes.set_xlim(low, high)
    for row, compared in enumerate(comparisons):
        colour, marker = VERDICT_STYLE[compared.verdict]
        if compared.interval is not None:
            ends = max(compared.interval[0], low), min(compared.interval[1], high)
            axes.plot(ends, [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            for end, beyond, arrow in ((low, compared.interval[0] < low, 4), (high, compared.interval[1] > high, 5)):
                if beyond:
                    axes.plot([end], [row], marker=arrow, color=colour, markersize=8, clip_on=False)
        axes.plot([compared.difference], [row], marker=marker, color=colour, markersize=7, linestyle="none")
        words = compared.words.replace(", within the margin", " (within margin)")
        label = f" {words}, p {p_text(compared.p_adjusted)}"
        axes.text(1.01, row, label, transform=axes.get_yaxis_transform(), va="center", color="#222222")
    name_rows(axes, [compared.loss for compared in comparisons], None)
    better = "right" if analysis.metric.higher_is_better else "left"
    axes.set_xlabel(
        f"difference in {analysis.metric.heading} from {analysis.reference}, 95 % interval ({better} is better)"
    )
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return drawn


def forest_limits(comparisons: Sequence[Comparison], margin: float) -> tuple[float, float]:
    """The range of the forest plot: 0, the margin, all differences, and all intervals except extremely wide ones."""
    intervals = [compared.interval for compared in comparisons if compared.interval is not None]
    widest = _WIDE * float(np.median([high - low for low, high in intervals])) if intervals else 0.0
    # With few losses or narrow intervals, the margin decides.
    widest = max(widest, _WIDE * margin)
    shown = [bound for low, high in intervals if high - low <= widest for bound in (low, high)]
    shown += [-margin, 0.0, margin, *(compared.difference for compared in comparisons)]
    if margin == 0 and len(intervals) == 1:
        shown += intervals[0]
    low, high = min(shown), max(shown)
    room = 0.05 * (high - low) or 0.01
    return low - room, high + room


# The significance matrix: every loss compared with every other.

_PALE_BLUE, _PALE_ORANGE, _NONE = "#A9CDE6", "#F4C3A0", "#F5F5F5"


@register(
    "significance",
    title="All pairs of losses",
    note="Adjusted p-value of the mean difference of every pair, over all pairs, tested as in the comparison with the "
    "reference. Losses are ordered by average rank.",
)
def draw_significance(analysis: Analysis, collected: Collected) -> Figure:
    """Draw the adjusted p of all pairs, by average rank; colours show whether the row's mean is better or worse."""
    pairs = analysis.primary.omnibus
    size = len(pairs.losses)
    means = {ranked.loss: ranked.mean for ranked in analysis.primary.ranking}
    sign = analysis.metric.sign
    side = min(WIDTH, max(6.2, 3.6 + 0.36 * size))
    drawn = figure(side, 1.9 + 0.27 * size + (0.6 if size > 6 else 0))
    axes = drawn.add_subplot()
    for row, first in enumerate(pairs.losses):
        for column, second in enumerate(pairs.losses):
            if row == column:
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color="#BBBBBB", linewidth=0))
                continue
            p = pairs.p_adjusted[row][column]
            better = sign * (means[first] - means[second]) > 0
            colour = _NONE if p > ALPHA else _PALE_BLUE if better else _PALE_ORANGE
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
            weight = "bold" if p <= ALPHA else "normal"
            size_pt = 9 if size <= 8 else 6.5
            axes.text(column, row, p_text(p), ha="center", va="center", fontsize=size_pt, weight=weight)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    axes.set_yticks(range(size), [short(loss, 30) for loss in pairs.losses])
    axes.set_xticks(range(size), [short(loss, 24) for loss in pairs.losses], rotation=40, ha="left")
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    plain(axes)
    keys: list[Artist] = [
        Patch(facecolor=_PALE_BLUE, edgecolor=BLUE, label="row is better"),
        Patch(facecolor=_PALE_ORANGE, edgecolor=ORANGE, label="row is worse"),
        Patch(facecolor=_NONE, edgecolor="#999999", label=f"no significant difference (p > {ALPHA})"),
    ]
    drawn.legend(handles=keys, loc="outside lower center", ncols=3)
    return drawn


# The critical-difference diagram, vertical: average ranks, and the groups without a significant difference.

#: Largest number of groups that are drawn; the table has all of them.
_MOST = 40


@register(
    "critical_difference",
    title="Critical-difference diagram: groups without a significant difference",
    link="Groups",
    note="Left: average ranks. Right: a line for each largest group of losses without a significant difference between "
    "any two of them (see the pairs above). Dots mark the members: a line that passes a loss without a dot does not "
    "include it. No significant difference does not mean equality.",
)
def draw_critical(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a row per loss, best average rank first, and at the right a line per group with a dot for each member.

    Bars without dots, as in Demsar (2006), would show a loss between two members as a member.
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
    axes.set_xlabel(f"average rank over {analysis.unit}s (1 is best)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    for column, group in enumerate(groups):
        rows = [losses.index(loss) for loss in group]
        right.plot([column, column], [min(rows), max(rows)], color=GREY, linewidth=1.2)
        right.plot([column] * len(rows), rows, marker="o", color=GREY, markersize=6, linestyle="none")
    right.set_xlim(-0.7, max(len(groups) - 0.3, 0.7))
    right.set_xticks([])
    right.set_xlabel("no significant difference" if groups else "all pairs differ significantly")
    right.grid(False)
    right.spines[["left", "bottom"]].set_visible(False)
    name_rows(axes, losses, analysis.reference)
    right.tick_params(axis="y", length=0, labelleft=False)
    return drawn


# How often each loss is first over the bootstrap replicates.


def _first_note(analysis: Analysis) -> str:
    resampled, seeds = analysis.primary.bootstrap, " and seeds" if analysis.seeds > 1 else ""
    return (
        f"The share shows how stable first place is against the choice of {analysis.unit}s{seeds}. It is not the "
        "probability of being the best loss: the first loss in the sample tends to be first in its resamples. "
        f"Kendall's tau between the ranking of a bootstrap replicate and this ranking is {resampled.tau:.2f} on "
        f"average and {resampled.tau_low:.2f} at the 2.5th percentile."
    )


@register("first", title="Stability of first place", link="First place", note=_first_note)
def draw_first(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a bar per loss, best mean first."""
    losses = [ranked.loss for ranked in analysis.primary.ranking]
    shares = [analysis.primary.bootstrap.losses[loss].p_first for loss in losses]
    drawn = figure(WIDTH, 0.9 + 0.27 * len(losses))
    axes = drawn.add_subplot()
    axes.barh(range(len(losses)), shares, height=0.62, color=BLUE)
    for row, share in enumerate(shares):
        label = "0" if share == 0 else f"{100 * share:.1f} %" if share >= 0.001 else "< 0.1 %"
        axes.annotate(label, (share, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    name_rows(axes, losses, analysis.reference)
    axes.set_xlim(0, 1.09)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("share of bootstrap replicates in which the loss has the best mean")
    return drawn
