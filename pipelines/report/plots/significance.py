"""The significance matrix: every loss compared with every other."""

from typing import Any

from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from pipelines.report.collect import Collected
from pipelines.report.plots.base import BLUE, ORANGE, WIDTH, p_text, register, short
from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure, plain

_PALE_BLUE, _PALE_ORANGE, _NONE = "#A9CDE6", "#F4C3A0", "#F5F5F5"


#: Up to this number of losses, p-values are written into the cells.
_MOST_WRITTEN = 20


def _any_pair_differs(analysis: Analysis) -> bool:
    """Whether there are pairs to show; without a significant one, a sentence says so."""
    pairs = analysis.primary.omnibus
    return len(pairs.losses) > 2 and any(p <= ALPHA for row in pairs.p_adjusted for p in row)


@register(
    "significance",
    title="All pairs of losses",
    note="Adjusted p-value of the mean difference of every pair, over all pairs, tested as in the comparison with the "
    f"reference. None is written above 0.99, or with more than {_MOST_WRITTEN} losses; tables/pairs.csv has all. "
    "Losses are ordered by average rank.",
    applies=lambda analysis, collected: _any_pair_differs(analysis),
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
    many = size > _MOST_WRITTEN
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
            if not many and p <= 0.99:
                size_pt = 9 if size <= 8 else 6.5
                axes.text(column, row, p_text(p), ha="center", va="center", fontsize=size_pt, weight=weight)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    axes.set_yticks(range(size), [short(loss, 30) for loss in pairs.losses])
    slanted: dict[str, Any] = {"rotation": 90, "fontsize": 7} if many else {"rotation": 40, "ha": "left"}
    axes.set_xticks(range(size), [short(loss, 24) for loss in pairs.losses], **slanted)
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
