"""The report's tables, as data frames: what the page shows, in full, and the plots' numbers."""

from typing import Any

import pandas as pd

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.statistics import Analysis, MetricAnalysis

#: Every table that a report can have.
NAMES = (
    "ranking", "comparisons", "pairs", "groups", "classes", "secondary", "claim_check", "costs", "failures",
    "learning_curves", "learning_rates", "overlays",
)  # fmt: skip


def every_table(analysis: Analysis, collected: Collected) -> dict[str, pd.DataFrame]:
    """What there is something to tell of: name -> table."""
    tables = {
        "ranking": _ranking(analysis.primary),
        "comparisons": _comparisons(analysis.primary),
        "pairs": _pairs(analysis.primary),
        "groups": pd.DataFrame(
            [
                {"group": number, "loss": loss}
                for number, group in enumerate(analysis.primary.omnibus.groups, 1)
                for loss in group
            ]
        ),
        "classes": _others(analysis.classes.values()),
        "secondary": _others(analysis.secondary.values()),
        "claim_check": claim_check(analysis),
        "costs": pd.DataFrame(
            [
                {"loss": loss, "epoch_s": own.epoch_s, "peak_mb": own.peak_mb, "seconds": own.seconds, "runs": own.runs}
                for loss, own in (collected.costs or {}).items()
            ]
        ),
        "failures": pd.DataFrame([vars(failure) for failure in collected.failures]),
        "learning_curves": pd.DataFrame(
            [
                {"loss": curve.loss, "fold": curve.fold, "seed": curve.seed, "failed": curve.failed, **row}
                for curve in collected.curves
                for row in curve.epochs
            ]
        ),
        "learning_rates": pd.DataFrame(
            [
                {**own.model_dump(), "chosen": tuning.chosen.get(own.loss) == own.rate}
                for tuning in (collected.tuning,)
                if tuning is not None
                for own in tuning.tried
            ]
        ),
    }
    return {name: table for name, table in tables.items() if len(table)}


def claim_check(analysis: Analysis) -> pd.DataFrame:
    """A row a patient, a column a loss, as public checkers of claims read it; a failure counts as the worst."""
    columns = {f"alg_{loss}": values for loss, values in analysis.scores.items()}
    return pd.DataFrame({"case_id": analysis.patients, **columns})


def _ranking(own: MetricAnalysis) -> pd.DataFrame:
    rows = []
    for ranked in own.ranking:
        resampled = own.bootstrap.losses[ranked.loss]
        rows.append(
            {
                "loss": ranked.loss,
                "rank": ranked.rank,
                "mean": ranked.mean,
                **_interval("mean", resampled.mean_interval),
                "median": ranked.median,
                "sd": ranked.sd,
                "average_rank": ranked.average_rank,
                **_interval("rank", ranked.rank_set),
                "p_first": resampled.p_first,
                "failed": ranked.failed,
                "lacking": len(ranked.lacking),
                "missed": ranked.missed,
                "false_alarms": ranked.false_alarms,
            }
        )
    return pd.DataFrame(rows)


def _comparisons(own: MetricAnalysis) -> pd.DataFrame:
    rows = []
    for comparison in own.comparisons:
        row = dict(vars(comparison))
        row |= _interval("difference", row.pop("interval"))
        variance = row.pop("variance")
        row |= {} if variance is None else {f"variance_{name}": value for name, value in vars(variance).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _pairs(own: MetricAnalysis) -> pd.DataFrame:
    matrix = own.omnibus
    return pd.DataFrame(
        [
            {"loss": first, "other": second, "p": matrix.p[i][j], "p_adjusted": matrix.p_adjusted[i][j]}
            for i, first in enumerate(matrix.losses)
            for j, second in enumerate(matrix.losses)
            if i < j
        ]
    )


def _others(analyses: Any) -> pd.DataFrame:
    blocks = []
    for own in analyses:
        compared = _comparisons(own)
        ranking = _ranking(own)
        if len(compared):
            columns = ["loss", "difference", "difference_low", "difference_high", "p", "p_adjusted", "verdict"]
            ranking = ranking.merge(compared[columns], on="loss", how="left")
        ranking.insert(0, "class", own.class_name or "")
        ranking.insert(0, "metric", own.metric)
        blocks.append(ranking)
    return pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame()


def _interval(name: str, interval: tuple[float, float] | tuple[int, int] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
