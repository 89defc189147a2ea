"""How often each loss has each rank over the bootstrap replicates."""

import numpy as np
from matplotlib.figure import Figure

from pipelines.report.collect import Collected
from pipelines.report.plots.base import WIDTH, name_rows, register
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure

#: Shares below this are not written into their cells, and with more losses than `_MOST_WRITTEN` none is.
_LEAST_WRITTEN, _MOST_WRITTEN = 0.01, 24


def _note(analysis: Analysis) -> str:
    resampled, seeds = analysis.primary.bootstrap, " and seeds" if analysis.seeds > 1 else ""
    return (
        f"The share of bootstrap replicates, in percent, in which a loss has a rank by mean: how stable the ranking is "
        f"against the choice of {analysis.unit}s{seeds}. The share of rank 1 is not the probability of being the best "
        "loss: the first loss in the sample tends to be first in its resamples. Kendall's tau between the ranking of a "
        f"replicate and this ranking is {resampled.tau:.2f} on average and {resampled.tau_low:.2f} at the 2.5th "
        "percentile."
    )


@register(
    "ranks",
    title="Stability of the ranks",
    link="Ranks",
    note=_note,
    # Of two losses, the text below the ranking has the only share.
    applies=lambda analysis, collected: len(analysis.scores) > 2,
)
def draw_ranks(analysis: Analysis, collected: Collected) -> Figure:
    """Draw a row per loss, best mean first, and a column per rank; the darker a cell, the larger the share."""
    losses = [ranked.loss for ranked in analysis.primary.ranking]
    shares = np.array([analysis.primary.bootstrap.losses[loss].p_ranks for loss in losses])
    size = len(losses)
    drawn = figure(WIDTH, 1.0 + 0.27 * size)
    axes = drawn.add_subplot()
    edges = np.arange(size + 1) - 0.5
    axes.pcolormesh(edges, edges, shares, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
    name_rows(axes, losses, analysis.reference)
    axes.set_ylim(size - 0.5, -0.5)
    axes.grid(False)
    step = 1 if size <= 24 else 2
    axes.set_xticks(range(0, size, step), [str(rank) for rank in range(1, size + 1, step)])
    axes.set_xlabel("rank by mean (1 is best)")
    if size <= _MOST_WRITTEN:
        for row, column in np.argwhere(shares >= _LEAST_WRITTEN):
            share = shares[row, column]
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7.5,
                      color="white" if share > 0.55 else "#222222")  # fmt: skip
    return drawn
