"""The critical-difference diagram of Demsar (2006): average ranks, and the groups without a significant difference."""

from math import ceil

import numpy as np
from matplotlib.figure import Figure

from pipelines.report.collect import Collected
from pipelines.report.plots.base import BLUE, GREY, WIDTH, register, short
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure

#: Largest number of groups that are drawn, those with the most losses; the table has all of them.
_MOST = 16


def _note(analysis: Analysis) -> str:
    count = len(analysis.primary.omnibus.groups)
    cut = f" The {_MOST} largest of {count} groups are drawn; tables/groups.csv has all." if count > _MOST else ""
    return (
        f"Average ranks over {analysis.unit}s; the best is at the left. A bar joins each largest group of losses "
        "without a significant difference between any two of them (see the pairs). The test is of means, so a group "
        "need not be contiguous in ranks: dots mark the members, and a loss that a bar passes without a dot does not "
        f"belong to it. No significant difference does not mean equality.{cut}"
    )


@register(
    "critical_difference",
    title="Critical-difference diagram: groups without a significant difference",
    link="Groups",
    note=_note,
    # Of two losses, the ranking says it all.
    applies=lambda analysis, collected: len(analysis.scores) > 2,
)
def draw_critical(analysis: Analysis, collected: Collected) -> Figure:
    """Draw the axis of ranks on top, the names at both sides, and a bar per group below the axis."""
    omnibus = analysis.primary.omnibus
    ranks, size = np.array(omnibus.average_ranks), len(omnibus.losses)
    groups = sorted(omnibus.groups, key=lambda group: -len(group))[:_MOST]
    groups = sorted(groups, key=lambda group: min(omnibus.losses.index(loss) for loss in group))
    left = ceil(size / 2)
    bars = 0.16 * len(groups)
    drawn = figure(WIDTH, 0.75 + bars + 0.26 * left)
    axes = drawn.add_subplot()
    # In inches below the axis.
    top = bars + 0.25
    low, high = 1.0, float(size)
    span = high - low
    axes.set_xlim(low - 0.5 * span, high + 0.5 * span)
    axes.set_ylim(top + 0.26 * left, -0.4 if groups else -0.65)
    axes.axis("off")
    axes.plot([low, high], [0, 0], color="black", linewidth=1.2)
    for rank in range(1, size + 1):
        axes.plot([rank, rank], [0, -0.07], color="black", linewidth=1)
        if size <= 20 or rank % 5 == 0 or rank in (1, size):
            axes.text(rank, -0.12, str(rank), ha="center", va="bottom", fontsize=8)
    for place, (loss, rank) in enumerate(zip(omnibus.losses, ranks, strict=True)):
        at_left = place < left
        # The outermost loss of each side has the highest line, so that lines do not cross.
        level = top + 0.26 * (place if at_left else size - 1 - place) + 0.1
        side = low - 0.03 * span if at_left else high + 0.03 * span
        is_reference = loss == analysis.reference
        colour = BLUE if is_reference else "#222222"
        axes.plot([rank, rank, side], [0, level, level], color=colour, linewidth=0.9, alpha=0.8)
        name = short(loss, 30) + (" (reference)" if is_reference else "")
        text = f"{name}  {rank:.2f}" if at_left else f"{rank:.2f}  {name}"
        axes.text(side - (0.01 if at_left else -0.01) * span, level, text, ha="right" if at_left else "left",
                  va="center", fontsize=8, color=colour)  # fmt: skip
    for number, group in enumerate(groups):
        members = [ranks[omnibus.losses.index(loss)] for loss in group]
        level = 0.16 * (number + 1)
        axes.plot([min(members), max(members)], [level, level], color=GREY, linewidth=3.5, solid_capstyle="round")
        axes.plot(members, [level] * len(members), marker="o", color="black", markersize=3.5, linestyle="none")
    if not groups:
        axes.text((low + high) / 2, -0.5, "all pairs differ significantly", ha="center", va="center", fontsize=8)
    return drawn
