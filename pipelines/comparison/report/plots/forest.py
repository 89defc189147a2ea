"""The forest plot: each loss's paired difference from the reference, and the margin of equivalence."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.plots.entry import register
from pipelines.comparison.report.plots.render import GREEN, VERDICT_STYLE, WIDTH, name_rows, p_text, unit
from pipelines.comparison.statistics import Analysis
from pipelines.comparison.statistics.paired import Comparison
from pipelines.gallery.style import figure

#: Intervals so many times as wide as the middle one are cut off, where they would press the others to dots.
_WIDE = 6


def _note(analysis: Analysis) -> str:
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


@register("forest", title="Against the reference", note=_note, applies=_applies)
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
