"""`PLOTS`: every plot of the report by name. A new plot is a file of its own, and one line here."""

# The lines' order is that of the page: no sorting.
# isort: off
from pipelines.comparison.report.plots.boxes import draw_boxes as draw_boxes
from pipelines.comparison.report.plots.forest import draw_forest as draw_forest
from pipelines.comparison.report.plots.significance import draw_significance as draw_significance
from pipelines.comparison.report.plots.critical import draw_critical as draw_critical
from pipelines.comparison.report.plots.first import draw_first as draw_first
from pipelines.comparison.report.plots.curves import draw_curves as draw_curves
from pipelines.comparison.report.plots.cost import draw_cost as draw_cost

# isort: on
from pipelines.comparison.report.plots.entry import REGISTERED, PlotEntry

#: Name to plot, in the order of the page.
PLOTS: dict[str, PlotEntry] = REGISTERED
