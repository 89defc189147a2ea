"""The analysis of a whole table: which loss is best, and is the difference real?"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
from scipy.stats import rankdata

from pipelines.statistics.bootstrap import bootstrap
from pipelines.statistics.influence import Influence, influences
from pipelines.statistics.mean_difference import least_patients
from pipelines.statistics.paired import Comparison, Omnibus, all_pairs, compare_with
from pipelines.statistics.plain_summary import summary
from pipelines.statistics.results import Analysis, MetricAnalysis, Ranked, Reach, least_difference
from pipelines.statistics.scores import DIGITS, EMPTY, Scores, misses, scores, unlearned
from pipelines.statistics.several_metrics import as_family, several_caveats, several_verdict
from pipelines.statistics.table import CaseTable, cases_by_class
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
    further: Mapping[str, float | None] | None = None,
    bootstraps: int = 10_000,
    seed: int = 0,
) -> Analysis:
    """Compare the losses of a table.

    Args:
        table: the checked table, with one row per loss and case.
        metric: the primary metric, named before training.
        reference: the loss that the others are compared with, named before training; `None`: only pairs are compared.
        margin: equivalence margin, in the unit of the primary metric.
        empty: the rule for cases whose reference is empty for a class: `one`, `exclude` or `worst`; see `scores`.
        non_inferior: whether to test non-inferiority in place of equivalence.
        further: further primary metrics, named before training, with their margins, or `None` where equivalence is not
            tested: p-values and words are adjusted over all of them. `None`: there is only `metric`.
        bootstraps: number of bootstrap replicates.
        seed: seed of the replicates and sign patterns; the same table and seed give the same numbers.

    Raises:
        UserError: the table has no such metric or loss, or margin, `empty` or `bootstraps` is invalid.
    """
    margins: dict[str, float | None] = {metric: margin, **(further or {})}
    for name in margins:
        if name in table.metrics:
            continue
        raise UserError(
            f"metric {name}: no such column; the table has {', '.join(table.metrics)}: name one of them (--metric)"
        )
    if reference is not None and reference not in table.losses:
        near = difflib.get_close_matches(reference, table.losses, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"reference {reference}: not in the table; its losses are {', '.join(table.losses)}{hint}")
    if not (math.isfinite(margin) and margin >= 0):
        raise UserError(f"margin: got {margin}; expected 0 or more, in the unit of {metric}")
    for name, other in margins.items():
        if other is not None and not (math.isfinite(other) and other >= 0):
            raise UserError(f"margin: got {other} for {name}; expected 0 or more, in the unit of {name}")
    if empty not in EMPTY:
        raise UserError(f"empty: got {empty}; expected one of {', '.join(EMPTY)}")
    if bootstraps < 1:
        raise UserError(f"bootstraps: got {bootstraps}; expected at least 1")

    def analyse_scores(of: Scores, class_name: str | None = None) -> MetricAnalysis:
        name = of.metric.name
        # Margins were named for the primary metrics alone: no other has the same scale.
        named = margins.get(name)
        comparisons: tuple[Comparison, ...] = ()
        if reference is not None:
            comparisons = compare_with(of, reference, margin=named, non_inferior=non_inferior, seed=seed)
        pairs = all_pairs(of, seed=seed)
        ranking = _ranking(of, pairs, misses(table, class_name))
        pair = None if base is None else compare_with(of, base, margin=None, seed=seed)[0]
        place = {ranked.loss: i for i, ranked in enumerate(ranking)}
        return MetricAnalysis(
            metric=name,
            class_name=class_name,
            primary=name in margins and class_name is None,
            patients=len(of.patients),
            excluded=of.excluded,
            empty=of.empty,
            ranking=ranking,
            comparisons=tuple(sorted(comparisons, key=lambda comparison: place[comparison.loss])),
            omnibus=pairs,
            bootstrap=bootstrap(of, bootstraps=bootstraps, seed=seed),
            reach=_reach(of, comparisons if pair is None else (pair,)),
            pair=pair,
            pair_base=base,
        )

    of_primary = {name: scores(table, name, empty=empty) for name in margins}
    for name, of in of_primary.items():
        if not of.patients:
            raise UserError(f"metric {name}: no loss has a value for any case; expected some")
    found = of_primary[metric]
    base: str | None = None
    if reference is None and len(table.losses) == 2:
        base = found.losses[int(np.argmin(found.metric.sign * found.values.mean((1, 2))))]
    classes = table.classes if len(table.classes) > 1 else ()
    of_classes = {name: scores(table, metric, name, empty=empty) for name in classes}
    of_metrics = {name: scores(table, name, empty=empty) for name in table.metrics if name not in margins}
    primary, several = analyse_scores(found), None
    if further:
        analysed = {name: primary if name == metric else analyse_scores(of) for name, of in of_primary.items()}
        several = as_family(analysed, {name: table.metrics[name].sign for name in margins}, non_inferior)
        primary = several.analyses[metric]
    resting: list[Influence] = []
    for name, of_metric in ({metric: primary} if several is None else several.analyses).items():
        against = reference or of_metric.pair_base
        if against is not None:
            again = partial(compare_with, reference=against, margin=margins[name] if reference else None,
                            non_inferior=non_inferior, seed=seed)  # fmt: skip
            resting += influences(table, name, against, of_metric.contrasts, again, empty=empty, words=several is None)
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
        scores={loss: tuple(values) for loss, values in zip(found.losses, found.by_patient.tolist(), strict=True)},
        primary=primary,
        classes={name: analyse_scores(of, name) for name, of in of_classes.items() if of.patients},
        secondary={name: analyse_scores(of) for name, of in of_metrics.items() if of.patients},
        metrics=table.metrics,
        class_cases=cases_by_class(table),
        further=dict(further or {}),
        several=several,
        influences=tuple(resting),
        unlearned=unlearned(table),
    )
    several_first = () if several is None else several_caveats(analysis)
    return replace(
        analysis,
        verdict=verdict_sentence(analysis) if several is None else several_verdict(analysis),
        summary=summary(analysis),
        caveats=(*several_first, *caveats(table, found, analysis)),
    )


def _unit(table: CaseTable) -> str:
    """`patient` if the table names patients other than by their cases, else `case`."""
    pairs = table.frame[["case", "patient"]].drop_duplicates()
    named = pairs["patient"].str.split(n=1).str[1] != pairs["case"]
    return "patient" if "patient" in table.given and named.any() else "case"


def _ranking(found: Scores, omnibus: Omnibus, missed: dict[str, tuple[int, int]]) -> tuple[Ranked, ...]:
    average = dict(zip(omnibus.losses, omnibus.average_ranks, strict=True))
    means = np.round(found.values.mean((1, 2)), DIGITS)
    ranks = rankdata(-found.metric.sign * means)
    ranked = [
        Ranked(
            loss=loss,
            rank=float(rank),
            mean=float(mean),
            median=float(np.median(values)),
            sd=float(values.std(ddof=1)) if len(values) > 1 else None,
            average_rank=average[loss],
            rank_set=omnibus.rank_sets[loss],
            failed=found.failed.get(loss, 0),
            lacking=found.missing.get(loss, ()),
            missed=missed[loss][0],
            false_alarms=missed[loss][1],
        )
        for loss, rank, mean, values in zip(found.losses, ranks, means, found.by_patient, strict=True)
    ]
    return tuple(sorted(ranked, key=lambda place: (place.rank, place.loss)))


def _reach(found: Scores, comparisons: tuple[Comparison, ...]) -> Reach:
    patients, one_run = len(found.patients), found.values.shape[-1] == 1 and not found.folds.any()
    deviations = [comparison.sd for comparison in comparisons if comparison.sd is not None]
    sd = float(np.median(deviations)) if deviations else None
    alone = family = None
    if sd is not None and one_run:
        alone = least_difference(sd, patients)
        family = least_difference(sd, patients, comparisons=len(comparisons))
    return Reach(patients, least_patients(), sd, difference=alone, difference_family=family)
