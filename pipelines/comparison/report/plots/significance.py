"""The significance matrix: every loss against every other."""

from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.plots.entry import register
from pipelines.comparison.report.plots.render import BLUE, ORANGE, WIDTH, p_text, short
from pipelines.comparison.statistics import Analysis
from pipelines.comparison.statistics.paired import ALPHA
from pipelines.gallery.style import figure, plain

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
