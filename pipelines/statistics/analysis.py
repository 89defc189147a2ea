"""A whole table analysed: what is best, and is the difference real?"""

import difflib
import math
from dataclasses import replace

import numpy as np

from pipelines.statistics.bootstrap import Bootstrap, bootstrap
from pipelines.statistics.mean_difference import least_patients
from pipelines.statistics.paired import Comparison, Omnibus, all_pairs, compare_with
from pipelines.statistics.results import Analysis, MetricAnalysis, Ranked, Reach, least_difference
from pipelines.statistics.scores import DIGITS, EMPTY, Scores, misses, scores
from pipelines.statistics.table import CaseTable
from pipelines.statistics.verdict_text import caveats, verdict_sentence
from pipelines.utils import UserError


def analyse(
    table: CaseTable,
    *,
    metric: str = "dice",
    reference: str | None,
    margin: float = 0.01,
    empty: str = "one",
    non_inferior: bool = False,
    bootstraps: int = 10_000,
    seed: int = 0,
) -> Analysis:
    """Compare the losses of a table.

    Args:
        table: a row per loss and case, checked.
        metric: the primary measure, named before training.
        reference: the loss to compare with, named before training; `None`: only all with all.
        margin: of equivalence, in the primary measure's unit.
        empty: what counts where the reference has nothing of a class: `one`, `exclude` or `worst`, as `scores` says.
        non_inferior: whether *non-inferior* takes the place of *equivalent*.
        bootstraps: replicates.
        seed: of their draws and of drawn sign patterns; the same table and seed give the same numbers.

    Raises:
        UserError: the table has no such measure or loss; margin or bootstraps make no sense.
    """
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
    if empty not in EMPTY:
        raise UserError(f"empty: got {empty}; expected one of {', '.join(EMPTY)}")
    if bootstraps < 1:
        raise UserError(f"bootstraps: got {bootstraps}; expected at least 1")

    def one(name: str, class_name: str | None = None) -> tuple[Scores, MetricAnalysis] | None:
        found = scores(table, name, class_name, empty=empty)
        if not found.patients:
            return None
        # The margin was named for the primary measure alone: 0.01 of specificity would be nearly all there is.
        known = margin if name == metric else None
        comparisons: tuple[Comparison, ...] = ()
        if reference is not None:
            comparisons = compare_with(found, reference, margin=known, non_inferior=non_inferior, seed=seed)
        primary = name == metric and class_name is None
        resampled = bootstrap(found, bootstraps=bootstraps, seed=seed)
        return found, _analysed(
            found, class_name, primary, comparisons, all_pairs(found, seed=seed), resampled, misses(table, class_name)
        )

    main = one(metric)
    if main is None:
        raise UserError(f"metric {metric}: no loss has a value of any case; expected some")
    found, primary = main
    several = table.classes if len(table.classes) > 1 else ()
    classes = {name: own[1] for name in several if (own := one(metric, name)) is not None}
    secondary = {name: own[1] for name in table.metrics if name != metric and (own := one(name)) is not None}
    folds, seeds = int(found.folds.max(initial=0)) + 1, found.values.shape[-1]
    analysis = Analysis(
        verdict="",
        caveats=(),
        reference=reference,
        margin=margin,
        empty=empty,
        non_inferior=non_inferior,
        unit=_unit(table),
        folds=folds,
        seeds=seeds,
        bootstraps=bootstraps,
        seed=seed,
        trainings=folds * seeds,
        patients=found.patients,
        scores={loss: tuple(own) for loss, own in zip(found.losses, found.by_patient.tolist(), strict=True)},
        primary=primary,
        classes=classes,
        secondary=secondary,
        metrics=table.metrics,
    )
    return replace(analysis, verdict=verdict_sentence(analysis), caveats=caveats(table, found, analysis))


def _unit(table: CaseTable) -> str:
    """Whether patients are known: by other names than their cases, or several cases of one."""
    about = table.frame[["case", "patient"]].drop_duplicates()
    named = about["patient"].str.split(n=1).str[1] != about["case"]
    return "patient" if "patient" in table.given and named.any() else "case"


def _analysed(
    found: Scores,
    class_name: str | None,
    primary: bool,
    comparisons: tuple[Comparison, ...],
    omnibus: Omnibus,
    resampled: Bootstrap,
    missed: dict[str, tuple[int, int]],
) -> MetricAnalysis:
    ranking = _ranking(found, omnibus, missed)
    place = {ranked.loss: i for i, ranked in enumerate(ranking)}
    return MetricAnalysis(
        metric=found.metric.name,
        class_name=class_name,
        primary=primary,
        patients=len(found.patients),
        excluded=found.excluded,
        empty=found.empty,
        ranking=ranking,
        comparisons=tuple(sorted(comparisons, key=lambda comparison: place[comparison.loss])),
        omnibus=omnibus,
        bootstrap=resampled,
        reach=_reach(found, comparisons),
    )


def _ranking(found: Scores, omnibus: Omnibus, missed: dict[str, tuple[int, int]]) -> tuple[Ranked, ...]:
    average = dict(zip(omnibus.losses, omnibus.average_ranks, strict=True))
    means = np.round(found.values.mean((1, 2)), DIGITS)
    gains = found.metric.sign * means
    ranked = [
        Ranked(
            loss=loss,
            rank=float(1 + (gains > gain).sum() + ((gains == gain).sum() - 1) / 2),
            mean=float(mean),
            median=float(np.median(values)),
            sd=float(values.std(ddof=1)) if len(values) > 1 else None,
            average_rank=average[loss],
            rank_set=omnibus.rank_sets[loss],
            failed=found.failed.get(loss, 0),
            lacking=found.lacking.get(loss, ()),
            missed=missed[loss][0],
            false_alarms=missed[loss][1],
        )
        for loss, gain, mean, values in zip(found.losses, gains, means, found.by_patient, strict=True)
    ]
    return tuple(sorted(ranked, key=lambda place: (place.rank, place.loss)))


def _reach(found: Scores, comparisons: tuple[Comparison, ...]) -> Reach:
    patients, one = len(found.patients), found.values.shape[-1] == 1 and not found.folds.any()
    deviations = [comparison.sd for comparison in comparisons if comparison.sd is not None]
    sd = float(np.median(deviations)) if deviations else None
    known = sd is not None and one
    return Reach(
        cases=patients,
        least_cases=least_patients(),
        sd=sd,
        difference=least_difference(sd, patients) if known and sd is not None else None,
        difference_family=least_difference(sd, patients, comparisons=len(comparisons))
        if known and sd is not None
        else None,
    )
