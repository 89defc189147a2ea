"""`PLOTS`: every plot of the report by name. A new plot is a new file, and one line here."""

# These lines are in the order of the page and must not be sorted.
# isort: off
from pipelines.report.plots.verdict import draw_boxes as draw_boxes
from pipelines.report.plots.verdict import draw_forest as draw_forest
from pipelines.report.plots.verdict import draw_significance as draw_significance
from pipelines.report.plots.verdict import draw_critical as draw_critical
from pipelines.report.plots.verdict import draw_first as draw_first
from pipelines.report.plots.subgroups import draw_subgroups as draw_subgroups
from pipelines.report.plots.training import draw_curves as draw_curves
from pipelines.report.plots.training import draw_cost as draw_cost

# isort: on
from pipelines.report.plots.base import REGISTERED, PlotEntry

#: Plots by name, in the order of the page.
PLOTS: dict[str, PlotEntry] = REGISTERED
