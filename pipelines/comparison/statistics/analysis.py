"""A whole table analysed: what is best, and is the difference real?"""

import difflib
import math

import numpy as np
import pandas as pd

from pipelines.comparison.statistics.bootstrap import bootstrap
from pipelines.comparison.statistics.caveats import caveats
from pipelines.comparison.statistics.omnibus import all_pairs
from pipelines.comparison.statistics.paired import Comparison, compare_with
from pipelines.comparison.statistics.power import least_cases, least_difference
from pipelines.comparison.statistics.results import Analysis, MetricAnalysis, Ranked, Reach
from pipelines.comparison.statistics.scores import DIGITS, Scores, scores
from pipelines.comparison.statistics.sentence import verdict_sentence
from pipelines.comparison.statistics.table import CaseTable, check_table
from pipelines.errors import UserError


def analyse(
    table: CaseTable | pd.DataFrame,
    *,
    metric: str = "dice",
    reference: str | None,
    margin: float = 0.01,
    bootstraps: int = 10_000,
    seed: int = 0,
) -> Analysis:
    """Compare the losses of a table.

    Args:
        table: a row a loss and case, as `table` says.
        metric: the primary measure, named before training.
        reference: the loss to compare with, named before training; `None`: only all with all.
        margin: of equivalence, in the primary measure's unit.
        bootstraps: replicates.
        seed: of their draws; the same table and seed give the same numbers.

    Raises:
        UserError: the table is wrong, or has no such measure or loss; margin or bootstraps make no sense.
    """
    if not isinstance(table, CaseTable):
        table = check_table(table)
    if metric not in table.metrics:
        raise UserError(
            f"metric {metric}: no such column; the table has {', '.join(table.metrics)}: name one of them (--metric)"
        )
    if reference is not None and reference not in table.losses:
        near = difflib.get_close_matches(reference, table.losses, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"reference {reference}: not in the table; its losses are {', '.join(table.losses)}{hint}")
    if not (math.isfinite(margin) and margin >= 0):
        raise UserError(f"margin: got {margin}; expected 0 or more, in the unit of {metric}")
    if bootstraps < 1:
        raise UserError(f"bootstraps: got {bootstraps}; expected at least 1")

    def one(name: str, class_name: str | None = None) -> tuple[Scores, MetricAnalysis] | None:
        found = scores(table, name, class_name)
        if not found.patients:
            return None
        # The margin was named for the primary measure alone: 0.01 of specificity would be nearly all there is.
        own_margin = margin if name == metric else None
        primary = name == metric and class_name is None
        return found, _analysed(found, class_name, primary, reference, own_margin, bootstraps, seed)

    main = one(metric)
    if main is None:
        raise UserError(f"metric {metric}: no loss has a value of any case; expected some")
    found, primary = main
    several = table.classes if len(table.classes) > 1 else ()
    classes = {name: own[1] for name in several if (own := one(metric, name)) is not None}
    secondary = {name: own[1] for name in table.metrics if name != metric and (own := one(name)) is not None}
    trainings = found.values.shape[-1]
    return Analysis(
        verdict=verdict_sentence(primary, reference, trainings, margin),
        caveats=caveats(table, found, primary, classes, secondary),
        reference=reference,
        margin=margin,
        bootstraps=bootstraps,
        seed=seed,
        trainings=trainings,
        patients=found.patients,
        scores={loss: tuple(own) for loss, own in zip(found.losses, found.by_patient.tolist(), strict=True)},
        primary=primary,
        classes=classes,
        secondary=secondary,
    )


def _analysed(
    found: Scores,
    class_name: str | None,
    primary: bool,
    reference: str | None,
    margin: float | None,
    bootstraps: int,
    seed: int,
) -> MetricAnalysis:
    omnibus = all_pairs(found)
    average = dict(zip(omnibus.losses, omnibus.average_ranks, strict=True))
    ranking = _ranking(found, average)
    place = {ranked.loss: i for i, ranked in enumerate(ranking)}
    comparisons = () if reference is None else compare_with(found, reference, margin=margin)
    return MetricAnalysis(
        metric=found.metric.name,
        class_name=class_name,
        primary=primary,
        patients=len(found.patients),
        excluded=found.excluded,
        ranking=ranking,
        comparisons=tuple(sorted(comparisons, key=lambda comparison: place[comparison.loss])),
        omnibus=omnibus,
        bootstrap=bootstrap(found, bootstraps=bootstraps, seed=seed),
        reach=_reach(len(found.patients), len(found.losses), comparisons),
    )


def _ranking(found: Scores, average: dict[str, float]) -> tuple[Ranked, ...]:
    values = found.by_patient
    means = np.round(found.values.mean((1, 2)), DIGITS)
    gains = found.metric.sign * means
    ranked = [
        Ranked(
            loss=loss,
            rank=float(1 + (gains > gain).sum() + ((gains == gain).sum() - 1) / 2),
            mean=float(mean),
            median=float(np.median(own)),
            sd=float(own.std(ddof=1)) if len(own) > 1 else None,
            average_rank=average[loss],
            failed=found.failed.get(loss, 0),
            lacking=found.lacking.get(loss, ()),
        )
        for loss, gain, mean, own in zip(found.losses, gains, means, values, strict=True)
    ]
    return tuple(sorted(ranked, key=lambda place: (place.rank, place.loss)))


def _reach(patients: int, losses: int, comparisons: tuple[Comparison, ...]) -> Reach:
    deviations = [comparison.sd for comparison in comparisons if comparison.sd is not None]
    sd = float(np.median(deviations)) if deviations else None
    k = losses - 1
    return Reach(
        cases=patients,
        least_cases=least_cases(k) if comparisons else None,
        least_cases_pairs=least_cases(k * losses // 2),
        sd=sd,
        difference=None if sd is None else least_difference(sd, patients),
        difference_holm=None if sd is None else least_difference(sd, patients, comparisons=k),
    )
