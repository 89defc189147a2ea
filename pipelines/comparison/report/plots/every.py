"""All plots of a report."""

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.plots.boxes import draw_boxes
from pipelines.comparison.report.plots.cost import draw_cost, pareto_front
from pipelines.comparison.report.plots.critical import draw_critical
from pipelines.comparison.report.plots.curves import draw_curves, has_curves
from pipelines.comparison.report.plots.first import draw_first
from pipelines.comparison.report.plots.forest import draw_forest
from pipelines.comparison.report.plots.render import Plot, drawn
from pipelines.comparison.report.plots.significance import draw_significance
from pipelines.comparison.statistics import Analysis

#: What a report can have.
NAMES = ("boxes", "forest", "significance", "critical_difference", "first", "learning_curves", "time_and_score")


def every_plot(analysis: Analysis, collected: Collected) -> dict[str, Plot]:
    """Draw what there is something to draw of: name -> plot."""
    draw: dict[str, Callable[[], Figure]] = {"boxes": partial(draw_boxes, analysis)}
    if analysis.primary.comparisons:
        draw["forest"] = partial(draw_forest, analysis)
    draw["significance"] = partial(draw_significance, analysis)
    draw["critical_difference"] = partial(draw_critical, analysis)
    draw["first"] = partial(draw_first, analysis)
    if has_curves(analysis, collected.curves):
        draw["learning_curves"] = partial(draw_curves, analysis, collected.curves)
    if collected.costs and pareto_front(analysis, collected.costs):
        draw["time_and_score"] = partial(draw_cost, analysis, collected.costs)
    return {name: drawn(name, one) for name, one in draw.items()}
