"""All plots of a report."""

from functools import partial

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.plots.registry import PLOTS
from pipelines.comparison.report.plots.render import Plot, drawn
from pipelines.comparison.statistics import Analysis


def every_plot(analysis: Analysis, collected: Collected) -> dict[str, Plot]:
    """Draw what there is something to draw of: name -> plot."""
    return {
        name: drawn(name, partial(entry.draw, analysis, collected))
        for name, entry in PLOTS.items()
        if entry.applies(analysis, collected)
    }
