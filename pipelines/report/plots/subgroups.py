"""Differences from the reference by group of patients."""

import numpy as np
from matplotlib.figure import Figure

from pipelines.report.collect import Collected
from pipelines.report.plots.base import BLUE, PALE, WIDTH, register, short
from pipelines.statistics.results import Analysis
from pipelines.statistics.subgroups import LEAST, Interaction, Subgroups, subgroup_notes
from pipelines.utils.figures import NEIGHBOUR_GREY, figure

#: Panels side by side.
_COLUMNS = 3
#: Number of losses that are drawn per variable: those whose difference varies, then the best ones.
_MOST = 6


def _note(analysis: Analysis) -> str:
    tests = sum(one.p is not None for of in analysis.subgroups for one in of.interactions)
    family = f"over all {tests} losses and variables" if tests > 1 else "of one test"
    return (
        f"{' '.join(subgroup_notes(analysis.subgroups))} "
        f"Mean difference in {analysis.metric.label} from {analysis.reference} within each group, with the number of "
        f"{analysis.unit}s; dashed: in all {analysis.unit}s. The 95 % intervals are not adjusted for the number of "
        "groups and losses: that one excludes 0 and another does not shows nothing. What is tested is whether the "
        "differences vary between the groups (interaction: Welch's statistic, permutation of the groups within folds, "
        f"p adjusted {family} by Holm). Groups of fewer than {LEAST} are drawn as crosses, without interval, and are "
        "not tested. Groups that were not named before training are exploratory. tables/subgroups.csv has all numbers."
    )


@register(
    "subgroups",
    title="Differences by group",
    note=_note,
    applies=lambda analysis, collected: bool(analysis.subgroups),
)
def draw_subgroups(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a panel per variable and loss: a row per group, with its interval."""
    overall = {compared.loss: compared.difference for compared in analysis.primary.comparisons}
    panels = [(of, one) for of in analysis.subgroups for one in _shown(of)]
    rows = [[panel for panel in panels if panel[0] is of] for of in analysis.subgroups]
    lines = [(of, part) for of, row in zip(analysis.subgroups, rows, strict=True)
             for part in (row[i : i + _COLUMNS] for i in range(0, len(row), _COLUMNS))]  # fmt: skip
    columns = min(_COLUMNS, max(len(part) for _, part in lines))
    heights = [0.75 + 0.22 * len(of.interactions[0].groups) for of, _ in lines]
    drawn = figure(WIDTH, sum(heights) + 0.4)
    axes = drawn.subplots(len(lines), columns, sharex=True, squeeze=False, height_ratios=heights)
    low, high = _limits(panels, overall)
    for row, (of, part) in zip(axes, lines, strict=True):
        for place, panel in enumerate(row):
            if place >= len(part):
                panel.remove()
                continue
            one = part[place][1]
            panel.axvline(0, color="black", linewidth=0.9)
            panel.axvline(overall[one.loss], color=NEIGHBOUR_GREY, linewidth=0.9, linestyle="--")
            for height, group in enumerate(one.groups):
                if group.interval is not None:
                    ends = max(group.interval[0], low), min(group.interval[1], high)
                    panel.plot(ends, [height, height], color=BLUE, linewidth=2, solid_capstyle="butt")
                marker, colour = ("o", BLUE) if group.interval is not None else ("x", NEIGHBOUR_GREY)
                panel.plot([group.difference], [height], marker=marker, color=colour, markersize=6, linestyle="none")
            labels = [f"{short(group.group, 18)} ({group.patients})" for group in one.groups]
            panel.set_yticks(range(len(labels)), labels if place == 0 else [])
            panel.set_ylim(len(labels) - 0.4, -0.6)
            panel.set_xlim(low, high)
            panel.tick_params(axis="y", length=0, labelsize=8)
            panel.xaxis.get_major_locator().set_params(nbins=5)
            panel.grid(False, axis="y")
            varies = ", varies" if one.varies else ""
            panel.set_title(f"{short(of.variable, 14)}: {short(one.loss, 26)}{varies}", fontsize=8,
                            weight="bold" if one.varies else "normal")  # fmt: skip
            panel.set_facecolor("white" if one.p is not None else PALE)
    better = "right" if analysis.metric.higher_is_better else "left"
    drawn.supxlabel(
        f"difference in {analysis.metric.heading} from {analysis.reference} ({better} is better)", fontsize=9
    )
    return drawn


def _shown(of: Subgroups) -> list[Interaction]:
    """The losses that are drawn: those that vary, then the best ones."""
    chosen = sorted(of.interactions, key=lambda one: not one.varies)[:_MOST]
    return [one for one in of.interactions if one in chosen]


def _limits(panels: list[tuple[Subgroups, Interaction]], overall: dict[str, float]) -> tuple[float, float]:
    """The range of all panels: 0, all differences, and all intervals except extremely wide ones."""
    groups = [group for _, one in panels for group in one.groups]
    widths = [group.interval[1] - group.interval[0] for group in groups if group.interval is not None]
    widest = 3 * float(np.median(widths)) if widths else 0.0
    values = [0.0, *(group.difference for group in groups), *(overall[one.loss] for _, one in panels)]
    values += [end for group in groups if group.interval is not None for end in group.interval
               if group.interval[1] - group.interval[0] <= widest]  # fmt: skip
    room = 0.05 * (max(values) - min(values)) or 0.01
    return min(values) - room, max(values) + room
