"""How often each loss is first over the bootstraps."""

from matplotlib.figure import Figure

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.report.plots.entry import register
from pipelines.comparison.report.plots.render import BLUE, WIDTH, name_rows
from pipelines.comparison.statistics import Analysis
from pipelines.gallery.style import figure


def _note(analysis: Analysis) -> str:
    resampled, seeds = analysis.primary.bootstrap, " and seeds" if analysis.seeds > 1 else ""
    return (
        f"How stable first place is against the choice of {analysis.unit}s{seeds}. It is not the chance of being the "
        "best loss: the first in the sample tends to be first in its resamples. Kendall's tau between a bootstrap's "
        f"ranking and this one is {resampled.tau:.2f} in the mean, {resampled.tau_low:.2f} at the 2.5th percentile."
    )


@register("first", title="Chance of being first", note=_note)
def draw_first(analysis: Analysis, collected: Collected) -> Figure:
    """A bar a loss, best mean first."""
    losses = [ranked.loss for ranked in analysis.primary.ranking]
    chances = [analysis.primary.bootstrap.losses[loss].p_first for loss in losses]
    drawn = figure(WIDTH, 0.9 + 0.27 * len(losses))
    axes = drawn.add_subplot()
    axes.barh(range(len(losses)), chances, height=0.62, color=BLUE)
    for row, chance in enumerate(chances):
        told = "0" if chance == 0 else f"{100 * chance:.1f} %" if chance >= 0.001 else "< 0.1 %"
        axes.annotate(told, (chance, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    name_rows(axes, losses, analysis.reference)
    axes.set_xlim(0, 1.09)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_xlabel("share of the bootstraps in which the loss has the best mean")
    return drawn
