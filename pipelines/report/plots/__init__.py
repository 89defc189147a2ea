"""`PLOTS`: every plot of the report by name. A new plot is a new file, and one line here."""

# These lines are in the order of the page and must not be sorted.
# isort: off
from pipelines.report.plots.forest import draw_forest as draw_forest
from pipelines.report.plots.differences import draw_differences as draw_differences
from pipelines.report.plots.boxes import draw_boxes as draw_boxes
from pipelines.report.plots.critical_difference import draw_critical as draw_critical
from pipelines.report.plots.significance import draw_significance as draw_significance
from pipelines.report.plots.ranks import draw_ranks as draw_ranks
from pipelines.report.plots.subgroups import draw_subgroups as draw_subgroups
from pipelines.report.plots.calibration import draw_reliability as draw_reliability
from pipelines.report.plots.volumes import draw_volumes as draw_volumes
from pipelines.report.plots.training import draw_curves as draw_curves
from pipelines.report.plots.training import draw_cost as draw_cost

# isort: on
from pipelines.report.plots.base import REGISTERED, PlotEntry

#: Plots by name, in the order of the page.
PLOTS: dict[str, PlotEntry] = REGISTERED
