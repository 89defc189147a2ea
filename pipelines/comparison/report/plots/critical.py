"""The critical-difference diagram, turned upright: average ranks, and the groups without a significant difference."""

from matplotlib.figure import Figure

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.plots.entry import register
from pipelines.comparison.report.plots.render import BLUE, GREY, PALE, WIDTH, name_rows
from pipelines.comparison.statistics import Analysis
from pipelines.gallery.style import figure

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
