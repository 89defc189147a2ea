"""Whether a comparison rests on cases with a class that is empty in the reference, or of which a loss found nothing.

Such a score is 0 or 1 where others lie between, so that one case can outweigh all others. `docs/statistics.md` has the
criterion.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from pipelines.statistics.mean_difference import least_patients
from pipelines.statistics.paired import Comparison
from pipelines.statistics.scores import Scores, found_nothing, scores
from pipelines.statistics.table import ABSENT, RIGHTLY_EMPTY, CaseTable

#: A difference rests on a case that moves it by more than this number of standard errors, and by more than twice what
#: a case like the others does, about 1 over the square root of n. A case that differs where all n others agree moves it
#: by 1, each of four by 0.5: with five cases or fewer, no single case is named, though all cases with an empty
#: reference together may be.
LEAST = 0.5
#: The most cases that are left out one by one, those whose scores differ most between losses first.
_MOST = 20


@dataclass(frozen=True)
class Influence:
    """What changes in the comparison of a loss where cases are left out for all losses.

    Attributes:
        metric: the primary metric.
        cases: the cases that are left out: one, or all those whose reference is empty for a class.
        classes: the classes that are empty in the reference, or missed; none if the table names no classes.
        reference_empty: whether the reference has nothing of them.
        missed_by: the losses that found nothing of a class that the reference has.
        loss: the loss that changes most.
        others: number of other losses that change.
        difference: mean difference, in the metric's unit; `difference_without` without the cases.
        verdict: the word; `verdict_without` without the cases. The same with several primary metrics, whose words are
            decided together.
    """

    metric: str
    cases: tuple[str, ...]
    classes: tuple[str, ...]
    reference_empty: bool
    missed_by: tuple[str, ...]
    loss: str
    others: int
    difference: float
    difference_without: float
    verdict: str
    verdict_without: str


def influences(
    table: CaseTable,
    metric: str,
    base: str,
    comparisons: Sequence[Comparison],
    compare: Callable[[Scores], tuple[Comparison, ...]],
    *,
    empty: str,
    words: bool,
) -> tuple[Influence, ...]:
    r"""The cases with a class that is empty in the reference, or missed by a loss, and that a comparison rests on.

    Leaving them out moves a difference by more than $2 / \sqrt n$ standard errors, twice what a case like the others
    moves it by (Belsley, Kuh and Welsch 1980), where n cases remain; and by more than `LEAST` standard errors, or it
    changes the word, which may also change only because there are fewer cases. Only comparisons count in which one of
    the two losses missed the class, or raised a false alarm, and the other did not.

    Args:
        table: the checked table.
        metric: the primary metric.
        base: the loss that the others are compared with.
        comparisons: of all cases.
        compare: makes them from scores.
        empty: the rule for empty references, as in `scores`.
        words: whether changed words count.
    """
    found: list[Influence] = []
    for group, scored in _groups(table, metric, empty):
        if len(group.cases) > 1 and any(one.reference_empty for one in found):
            continue  # the most important of them is known
        remaining = _without(table, group.cases)
        of = None if remaining is None else scores(remaining, metric, empty=empty)
        if of is None or not of.patients:
            continue
        after = {comparison.loss: comparison for comparison in compare(of)}
        decided = words and len(of.patients) >= least_patients()
        changed = []
        for before in comparisons:
            if scored[before.loss] == scored[base]:
                continue
            without = after[before.loss]
            parts = before.variance
            error = 0.0 if parts is None else sqrt(parts.patient + (parts.retraining or 0.0) + (parts.fold or 0.0))
            moved = abs(without.difference - before.difference) / error if error > 0 else 0.0
            other_word = decided and without.verdict != before.verdict
            # With five cases, a single one reaches the bound up to rounding.
            if moved > (2 + 1e-6) / sqrt(len(of.patients)) and (moved > LEAST or other_word):
                changed.append((moved, before, without))
        if changed:
            _, before, without = max(changed, key=lambda change: change[0])
            one = replace(group, loss=before.loss, others=len(changed) - 1, difference=before.difference,
                          difference_without=without.difference, verdict=before.verdict,
                          verdict_without=without.verdict if decided else before.verdict)  # fmt: skip
            found.append(one)
    return tuple(found)


def _groups(table: CaseTable, metric: str, empty: str) -> Iterator[tuple[Influence, dict[str, tuple[float, ...]]]]:
    """What is left out and why, without what changes: case by case, and all cases with empty references.

    Next to it, for each loss what it did there: the share of its predictions that missed each class or, where the
    reference is empty, its score. Without a row for the class, it missed it, or has the worst score.
    """
    frame = table.frame.assign(missed=found_nothing(table) & ~table.frame[ABSENT])
    rule = table.metrics[metric].empty_reference
    if rule == "left out" or (rule == "option" and empty == "exclude"):  # as `scores` leaves them out
        frame[ABSENT] = False
    frame = frame[frame.groupby(["case", "class"])["missed"].transform("any") | frame[ABSENT]]
    seen = frame[metric][np.isfinite(frame[metric])]
    worst = table.metrics[metric].worst(float(seen.max()) if len(seen) else 0.0)
    groups = []
    for case, rows in frame.groupby("case"):
        values = rows[metric].where(~rows[RIGHTLY_EMPTY] | rows[metric].notna(), table.metrics[metric].best)
        values = values.where(np.isfinite(values), worst)
        by_class = values.groupby(rows["class"])
        spread = float((by_class.max() - by_class.min()).max())
        absent = bool(rows[ABSENT].any())
        why = rows[rows[ABSENT]] if absent else rows[rows["missed"]]
        classes = tuple(sorted(why["class"].unique())) if table.classes else ()
        missed = () if absent else tuple(sorted(why["loss"].unique()))
        did = values.loc[why.index] if absent else rows["missed"].astype(float)
        of_losses = did.groupby([rows["loss"].loc[did.index], rows["class"].loc[did.index]]).mean().unstack()
        of_losses = of_losses.reindex(list(table.losses)).fillna(worst if absent else 1.0)
        scored = {
            str(loss): tuple(row) for loss, row in zip(of_losses.index, of_losses.to_numpy().tolist(), strict=True)
        }
        group = Influence(metric, (str(case),), classes, absent, missed, "", 0, 0.0, 0.0, "", "")
        groups.append((spread, group, scored))
    groups.sort(key=lambda entry: -entry[0])
    yield from ((group, scored) for _, group, scored in groups[:_MOST])
    together = [(group, scored) for _, group, scored in groups if group.reference_empty]
    if len(together) > 1:
        cases = tuple(sorted(group.cases[0] for group, _ in together))
        classes = tuple(sorted({name for group, _ in together for name in group.classes}))
        joint = {loss: tuple(value for _, scored in together for value in scored[loss]) for loss in table.losses}
        yield replace(together[0][0], cases=cases, classes=classes), joint


def _without(table: CaseTable, cases: Sequence[str]) -> CaseTable | None:
    """The table without some cases; None if a loss would have no row left."""
    kept = table.frame[~table.frame["case"].isin(cases)].reset_index(drop=True)
    return replace(table, frame=kept) if set(kept["loss"]) == set(table.losses) else None
