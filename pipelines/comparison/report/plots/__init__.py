"""The report's plots, a file each; `every_plot` draws all that an analysis has something for."""

from pipelines.comparison.report.plots.every import every_plot as every_plot
from pipelines.comparison.report.plots.registry import PLOTS as PLOTS
from pipelines.comparison.report.plots.render import Plot as Plot
