"""Box plots of the primary measure, every patient a point."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.plots.entry import register
from pipelines.comparison.report.plots.render import BLUE, GREY, ORANGE, WIDTH, name_rows, unit
from pipelines.comparison.statistics import Analysis
from pipelines.gallery.style import figure

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


def _note(analysis: Analysis) -> str:
    averaged = ", trainings averaged" if analysis.seeds > 1 else ""
    boxes = "Of so few no box is drawn."
    if analysis.primary.patients >= _LEAST:
        boxes = (
            "Box: the middle half; whiskers: the last point within one and a half boxes. Where single points stretch "
            "the axis, the right panel shows the middle closer."
        )
    return f"Each {analysis.unit}'s {analysis.metric.label} by loss, best mean first{averaged}. {boxes}"


@register("boxes", title=_title, note=_note)
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
