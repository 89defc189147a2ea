"""The forest plot: the mean differences from the reference, and the equivalence margin."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.report.collect import Collected
from pipelines.report.plots.base import GREEN, PALE, VERDICT_STYLE, WIDTH, name_rows, register
from pipelines.statistics.paired import Comparison
from pipelines.statistics.results import Analysis
from pipelines.statistics.verdict_text import interval_notes
from pipelines.utils.figures import figure

#: Intervals more than this many times as wide as the median one are cut off, so that the others remain visible.
_WIDE = 6
#: Differences more than this many times as large as the next smaller one lie beyond the scale.
_GAP = 2


def _forest_note(analysis: Analysis) -> str:
    test = "by sign flips, max-T over the comparisons"
    if analysis.trainings > 1:
        test = "by sign flips (max-T over the comparisons) and over runs (Holm)"
    alike = "Equivalent: neither of these, and shown to lie within the margin."
    if analysis.non_inferior:
        alike = "Non-inferior: neither of these, and shown not to be worse by more than the margin."
    if analysis.reference is None:
        over_runs = " and over runs" if analysis.trainings > 1 else ""
        return (
            f"Mean over {analysis.unit}s of {analysis.primary.contrasts[0].loss} minus {analysis.base}, with its 95 % "
            f"interval; tested by sign flips{over_runs}. No reference and no margin were named, so equivalence is not "
            "tested."
        )
    return (
        f"Mean over {analysis.unit}s of loss minus reference, with its 95 % interval. Better or worse: the mean "
        f"difference, tested {test}, has an adjusted p of at most 0.05 and an interval that excludes 0. {alike} "
        "Undecided: everything else, which does not mean equal. Grey strip: differences beyond the scale, with their "
        f"values. Arrow: the interval continues beyond the scale. {' '.join(interval_notes(analysis))}".rstrip()
    )


def _forest_title(analysis: Analysis) -> str:
    return "Difference between the two losses" if analysis.reference is None else "Comparison with the reference"


@register(
    "forest",
    title=_forest_title,
    link="Differences of means",
    note=_forest_note,
    applies=lambda analysis, collected: bool(analysis.primary.contrasts),
)
def draw_forest(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a row per loss, best mean first; losses far from the reference lie in a strip at the edge."""
    comparisons = analysis.primary.contrasts
    margin = analysis.margin if analysis.reference is not None else 0.0
    drawn = figure(WIDTH, 0.95 + 0.25 * len(comparisons))
    axes = drawn.add_subplot()
    if margin > 0:
        band = axes.axvspan(-margin, margin, color=GREEN, alpha=0.13, linewidth=0)
        band.set_label(f"equivalence margin, ±{margin:g}")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    axes.axvline(0, color="black", linewidth=0.9)
    low, high = forest_limits(comparisons, margin)
    strips = {
        -1: any(compared.difference < low for compared in comparisons),
        1: any(compared.difference > high for compared in comparisons),
    }
    strip = 0.17 * (high - low)
    axes.set_xlim(low - strip * strips[-1], high + strip * strips[1])
    for sign, is_there in strips.items():
        if is_there:
            start, end = (low - strip, low) if sign < 0 else (high, high + strip)
            axes.axvspan(start, end, color=PALE, alpha=0.4, linewidth=0)
    for row, compared in enumerate(comparisons):
        _draw_comparison(axes, analysis, row, compared, (low, high), strip)
    name_rows(axes, [compared.loss for compared in comparisons], None)
    ticks = axes.get_xticks()
    axes.set_xticks(ticks[(ticks >= low) & (ticks <= high)])
    better = "right" if analysis.metric.higher_is_better else "left"
    axes.set_xlabel(f"difference in {analysis.metric.heading} from {analysis.base} ({better} is better)")
    return drawn


def _draw_comparison(
    axes: Axes, analysis: Analysis, row: int, compared: Comparison, limits: tuple[float, float], strip: float
) -> None:
    """Draw the mean difference with its interval, or in the strip with its value; and both as text at the right."""
    low, high = limits
    colour, marker = VERDICT_STYLE[compared.verdict]
    decimals = analysis.metric.decimals
    difference = f"{compared.difference:+.{decimals}f}".replace("-", "−")
    if low <= compared.difference <= high:
        if compared.interval is not None:
            ends = max(compared.interval[0], low), min(compared.interval[1], high)
            axes.plot(ends, [row, row], color=colour, linewidth=2, solid_capstyle="butt")
            for end, beyond, arrow in ((low, compared.interval[0] < low, 4), (high, compared.interval[1] > high, 5)):
                if beyond:
                    axes.plot([end], [row], marker=arrow, color=colour, markersize=8, clip_on=False)
        axes.plot([compared.difference], [row], marker=marker, color=colour, markersize=6.5, linestyle="none")
    else:
        sign = -1 if compared.difference < low else 1
        edge = low if sign < 0 else high
        axes.plot([edge + sign * 0.12 * strip], [row], marker="<" if sign < 0 else ">", color=colour, markersize=6)
        axes.text(edge + sign * 0.95 * strip, row, difference, ha="left" if sign < 0 else "right", va="center",
                  fontsize=7.5, color=colour)  # fmt: skip
    words = compared.words.replace(", within the margin", " (within margin)")
    interval = ""
    if compared.interval is not None:
        interval = " [" + ", ".join(f"{bound:+.{decimals}f}" for bound in compared.interval) + "]"
    text = f" {difference}{interval.replace('-', '−')}  {words}"
    axes.text(1.01, row, text, transform=axes.get_yaxis_transform(), va="center", color="#222222", fontsize=8)


def forest_limits(comparisons: Sequence[Comparison], margin: float) -> tuple[float, float]:
    """The range of the forest plot: 0, the margin, and the differences near them, with all but very wide intervals.

    Differences beyond a gap of at least their own size, such as those of losses that failed, are outside: otherwise
    they would hide what matters, the differences near 0.
    """
    intervals = [compared.interval for compared in comparisons if compared.interval is not None]
    widths = [high - low for low, high in intervals]
    typical = float(np.median(widths)) if widths else 0.0
    sizes = sorted(abs(compared.difference) for compared in comparisons)
    near = max(3 * margin, typical, sizes[0])
    for size in sizes:
        if size <= _GAP * near:
            near = max(near, size)
    inside = [compared for compared in comparisons if abs(compared.difference) <= near]
    # With few losses or narrow intervals, the margin decides.
    widest = max(_WIDE * typical, _WIDE * margin)
    shown = [-margin, 0.0, margin, *(compared.difference for compared in inside)]
    known = [compared.interval for compared in inside if compared.interval is not None]
    shown += [bound for low, high in known if high - low <= widest for bound in (low, high)]
    low, high = min(shown), max(shown)
    room = 0.05 * (high - low) or 0.01
    return low - room, high + room
