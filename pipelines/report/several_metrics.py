"""Several primary metrics in a report: the rank table with the words per metric, and how far the rankings agree."""

from itertools import combinations
from typing import Any

from pipelines.statistics.results import Analysis, MetricAnalysis
from pipelines.statistics.several_metrics import agreement, several_margin


def rank_table(analysis: Analysis) -> dict[str, Any] | None:
    """What the section of the page shows; None with one primary metric.

    `heads`: per metric its heading, margin and number of patients; `rows`: per loss, best mean rank first, its mean
    rank and a cell per metric; `tau`: the matrix of the metrics' agreement, None on its diagonal; `agreement`: a
    sentence.
    """
    several = analysis.several
    if several is None:
        return None
    cells = {name: _cells(analysed) for name, analysed in several.analyses.items()}
    losses = sorted(several.mean_ranks, key=lambda loss: (several.mean_ranks[loss], loss))
    labels = {name: analysis.metrics[name].label for name in several.analyses}
    margins = {name: several_margin(analysis, name) for name in labels}
    return {
        "heads": [
            {
                "heading": analysis.metrics[name].heading,
                "margin": None if margins[name] is None else analysis.metrics[name].shown(margins[name] or 0.0),
                "patients": analysed.patients,
                "better": "higher" if analysis.metrics[name].higher_is_better else "lower",
            }
            for name, analysed in several.analyses.items()
        ],
        "rows": [
            {
                "loss": loss,
                "mean_rank": several.mean_ranks[loss],
                "cells": [of_metric[loss] for of_metric in cells.values()],
            }
            for loss in losses
        ],
        "tests": several.tests,
        "labels": list(labels.values()),
        "tau": [(labels[first], [several.tau[first].get(second) for second in labels]) for first in labels],
        "agreement": agreement(analysis),
    }  # fmt: skip


def _cells(analysed: MetricAnalysis) -> dict[str, dict[str, Any]]:
    compared = {comparison.loss: comparison for comparison in analysed.comparisons}
    return {
        ranked.loss: {
            "metric": analysed.metric, "rank": ranked.rank, "mean": ranked.mean, "set": ranked.rank_set,
            "compared": compared.get(ranked.loss),
        }
        for ranked in analysed.ranking
    }  # fmt: skip


def metric_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """The table `metrics`: a row per loss and primary metric; none with one metric."""
    if analysis.several is None:
        return []
    rows = []
    for name, analysed in analysis.several.analyses.items():
        compared = {comparison.loss: comparison for comparison in analysed.comparisons}
        for ranked in analysed.ranking:
            row = {"metric": name, "loss": ranked.loss, "rank": ranked.rank, "mean": ranked.mean,
                   "rank_low": ranked.rank_set[0], "rank_high": ranked.rank_set[1],
                   "mean_rank": analysis.several.mean_ranks[ranked.loss]}  # fmt: skip
            if (found := compared.get(ranked.loss)) is not None:
                low, high = found.interval or (None, None)
                row |= {"difference": found.difference, "difference_low": low, "difference_high": high, "p": found.p,
                        "p_adjusted": found.p_adjusted, "verdict": found.words}  # fmt: skip
            rows.append(row)
    return rows


def agreement_rows(analysis: Analysis) -> list[dict[str, Any]]:
    """The table `metric_agreement`: Kendall's tau-b per pair of primary metrics; none with one metric."""
    several = analysis.several
    if several is None:
        return []
    return [{"metric": first, "other": second, "tau_b": several.tau[first][second]}
            for first, second in combinations(several.analyses, 2)]  # fmt: skip
