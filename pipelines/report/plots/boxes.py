"""Box plots of the primary metric, with a point per patient."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipelines.report.collect import Collected
from pipelines.report.plots.base import (
    BLUE,
    GREY,
    ORANGE,
    WIDTH,
    extremes,
    is_crowded,
    name_rows,
    named_points,
    register,
)
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure

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
    crowded = "With so many points, only the most extreme ones per loss are drawn. " if is_crowded(analysis) else ""
    return (
        f"{analysis.metric.label} per {analysis.unit} for each loss, best mean first{averaged}. {boxes} {crowded}Every "
        f"point names its {analysis.unit}, and leads to its picture if there is one."
    )


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
    if enlarged:
        panels[1].set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    for axes in panels:
        for row, (values, box) in enumerate(zip(scores, boxes, strict=True)):
            _draw_row(axes, analysis, row, values, box)
    name_rows(panels[0], losses, analysis.reference)
    if enlarged:
        panels[0].set_xlabel("all")
        panels[1].tick_params(axis="y", length=0, labelleft=False)
        panels[1].grid(False, axis="y")
    panels[-1].set_xlabel(f"{analysis.metric.heading} (point: one {analysis.unit}, line: median, diamond: mean)")
    return drawn


def _draw_row(axes: Axes, analysis: Analysis, row: int, values: NDArray[np.float64], box: dict[str, Any]) -> None:
    n = len(values)
    # Even and reproducible, unlike random jitter.
    jitter = ((np.arange(n) * 0.618034) % 1 - 0.5) * 0.46
    size = 20 if n <= 20 else 11 if n <= 100 else 6
    shown = extremes(values, len(analysis.scores))
    if not axes.get_autoscalex_on():  # an enlarged panel
        low, high = axes.get_xlim()
        shown = shown[(values[shown] >= low) & (values[shown] <= high)]
    loss = analysis.primary.ranking[row].loss
    names = [f"{analysis.patients[case]}: {analysis.metric.shown(float(values[case]))} ({loss})" for case in shown]
    keys = [(row, int(case)) for case in shown]
    named_points(axes, values[shown], row + jitter[shown], names, keys, s=size, color=BLUE, alpha=0.45, zorder=2)
    if n >= _LEAST:
        for start, end in ((box["whislo"], box["q1"]), (box["q3"], box["whishi"])):
            axes.plot([start, end], [row, row], color=GREY, linewidth=1, zorder=3)
        corner, width = (box["q1"], row - 0.3), box["q3"] - box["q1"]
        axes.add_patch(Rectangle(corner, width, 0.6, fill=False, edgecolor=GREY, linewidth=1, zorder=3))
    axes.plot([box["med"], box["med"]], [row - 0.3, row + 0.3], color="black", linewidth=1.6, zorder=4)
    axes.scatter([box["mean"]], [row], s=34, marker="D", facecolor="white", edgecolor=ORANGE, zorder=5)
