r"""Every loss against the reference, and every pair of losses, patient by patient.

All losses at once: Friedman's test in Iman and Davenport's form, then every pair.

With $r_{ij}$ the rank of loss j of k for patient i of N (1 the best, ties midranks) and $R_j$ its mean over patients,

$$\chi^2 = \frac{N (k - 1) \left(N \sum_j R_j^2 - C\right)}{\sum_{ij} r_{ij}^2 - C}, \quad
C = \tfrac14 N k (k+1)^2, \qquad F = \frac{(N - 1) \chi^2}{N (k - 1) - \chi^2}$$

with $k - 1$ and $(k - 1)(N - 1)$ degrees of freedom. The denominator corrects for ties; without any it is
$N k (k+1)(k-1) / 12$, which Demsar (2006) uses always.

Pairs are tested like comparisons with a reference (`inference`), all of them as one family, not by Nemenyi's test of
average ranks, whose verdict on two losses depends on which others are in the pool (Benavoli et al. 2016). No Friedman
is needed before it: the F is reported, and decides nothing.

**Rank sets** (Mogstad et al. 2024): a loss of which b losses are significantly better and w significantly worse has a
rank from 1 + b to L - w. All sets hold all true ranks at once wherever no pair is falsely called different: in at least
95 % of tables.

Not controlled: Friedman's test and the average ranks are over patients, trainings averaged; retraining is not in them.

Every loss against the one reference loss, patient by patient: a difference, an interval, a test, and one word.

The words are about the mean difference (`inference` has interval and tests):

- *better*, *worse*: the family-wise p over all comparisons with the reference is at most 0.05. That asks the interval
  to leave out 0, too. Where the interval also lies inside the margin, it is *better* or *worse, within the margin*:
  certain, and smaller than what matters.
- *equivalent*: not that, and the 95 % interval, with more caution for skewness than the one that is shown, lies inside
  the margin on both sides: two one-sided tests at 2.5 % each.
- *non-inferior*, in its place and only where it was asked for: that interval's lower end lies above minus the margin.
- *undecided*: all else. Also everything with fewer patients than any test can reject with (`least_patients`): a narrow
  interval of three cases is no evidence.

On how many patients a loss is better, and Wilcoxon's test of that, are another question, with numbers of their own:
`wins`, `effect`, `p_ranks`. They decide no word.

Not controlled: *equivalent* and *non-inferior* are held at 2.5 % a comparison, not over all of them
(`p_equivalence_holm` is). Metrics and classes are families of their own. What no case of n shows may still happen in
3 / n of them (`unseen`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.mean_difference import ALPHA, Parts, infer, least_patients, retraining_share
from pipelines.statistics.scores import DIGITS, Floats, Scores
from pipelines.statistics.significance_tests import Friedman, Indices, case_ranks, friedman, holm, signed_rank


@dataclass(frozen=True)
class Omnibus:
    """All losses.

    Attributes:
        losses: in the order of the average ranks, best first; matrices have this order.
        average_ranks: over patients, 1 the best.
        friedman: the test of no difference between any; none with one patient.
        p: of every pair alone `[L][L]`, as `inference` tests; 1 on the diagonal.
        p_adjusted: the same, family-wise over all pairs; at most 0.05: the pair differs significantly.
        groups: the largest sets (of two and more) whose losses do not differ significantly, any from any. They can
            overlap, and a loss between two of a group may be outside it.
        rank_sets: loss -> the lowest and highest rank by mean that the pairs leave open.
    """

    losses: tuple[str, ...]
    average_ranks: tuple[float, ...]
    friedman: Friedman | None
    p: tuple[tuple[float, ...], ...]
    p_adjusted: tuple[tuple[float, ...], ...]
    groups: tuple[tuple[str, ...], ...]
    rank_sets: dict[str, tuple[int, int]]


def all_pairs(scores: Scores, *, seed: int = 0) -> Omnibus:
    """Test all losses, and every pair.

    Args:
        scores: of one measure.
        seed: of drawn sign patterns.
    """
    ranks = case_ranks(scores.metric.sign * scores.by_patient)
    average = ranks.mean(1)
    order = np.argsort(np.round(average, 9), kind="stable")
    size = len(order)
    first, second = np.triu_indices(size, 1)
    found = infer(scores.metric.sign * scores.values[order], first, second, scores.folds, seed=seed)
    names = [scores.losses[i] for i in order]
    differ = found.p_adjusted <= ALPHA
    low, high = rank_sets(found.mean, differ, first, second, size)
    linked = _matrix(~differ, first, second, size).astype(bool)
    return Omnibus(
        losses=tuple(names),
        average_ranks=tuple(average[order].tolist()),
        friedman=friedman(ranks) if ranks.shape[1] > 1 else None,
        p=_rows(_matrix(found.p, first, second, size)),
        p_adjusted=_rows(_matrix(found.p_adjusted, first, second, size)),
        groups=tuple(tuple(names[i] for i in group) for group in cliques(linked)),
        rank_sets=dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True)),
    )


def rank_sets(
    means: Floats, differ: NDArray[np.bool_], first: Indices, second: Indices, losses: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lowest and highest rank of each loss that pairs leave open, each `[..., L]`; 1 is the best.

    Args:
        means: `[..., k]`, of first minus second; more is better.
        differ: `[..., k]`, whether a pair differs significantly.
        first: `[k]`, numbers of losses.
        second: `[k]`, numbers of losses.
        losses: how many there are.
    """
    one, other = (np.eye(losses, dtype=np.int64)[own] for own in (first, second))
    over, under = ((differ & (sign * means > 0)).astype(np.int64) for sign in (1, -1))
    better = under @ one + over @ other
    worse = over @ one + under @ other
    return 1 + better, losses - worse


def cliques(linked: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """The largest sets of two and more that are linked, any with any (Bron and Kerbosch's algorithm), in their order.

    Args:
        linked: `[L, L]`, symmetric.
    """
    neighbours = [{int(j) for j in np.flatnonzero(row) if j != i} for i, row in enumerate(linked)]
    found: list[tuple[int, ...]] = []

    def grow(clique: tuple[int, ...], candidates: set[int], done: set[int]) -> None:
        if not candidates and not done and len(clique) > 1:
            found.append(tuple(sorted(clique)))
        pivot = max(candidates | done, key=lambda i: len(neighbours[i] & candidates), default=None)
        for i in sorted(candidates - (neighbours[pivot] if pivot is not None else set())):
            grow((*clique, i), candidates & neighbours[i], done & neighbours[i])
            candidates = candidates - {i}
            done = done | {i}

    grow((), set(range(len(linked))), set())
    return sorted(found)


def _matrix(p: NDArray[np.generic], first: Indices, second: Indices, size: int) -> Floats:
    full = np.ones((size, size))
    full[first, second] = full[second, first] = p
    return full


def _rows(matrix: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


BETTER, WORSE, EQUIVALENT, NON_INFERIOR, UNDECIDED = VERDICTS = (
    "better", "worse", "equivalent", "non-inferior", "undecided",
)  # fmt: skip


@dataclass(frozen=True)
class VarianceParts:
    """What the variance of a mean difference is made of.

    Attributes:
        patient: the patients' part.
        patient_freedom: its degrees of freedom.
        retraining: the part of seeds within folds; none with one seed.
        retraining_freedom: its degrees of freedom.
        fold: the part of folds beyond the other two (with one seed, of retraining and fold in one); none with one fold.
        fold_freedom: its degrees of freedom.
    """

    patient: float
    patient_freedom: int
    retraining: float | None
    retraining_freedom: float | None
    fold: float | None
    fold_freedom: float | None


@dataclass(frozen=True)
class Comparison:
    """One loss against the reference.

    Attributes:
        loss: the loss.
        difference: mean of loss minus reference, in the measure's unit; of a distance, less is better.
        interval: 95 %, of the mean; none with one patient.
        sd: standard deviation of the patients' differences (trainings averaged); none with one patient.
        wins: patients of whom the loss is better than the reference.
        losses: patients of whom it is worse.
        ties: the others.
        w_plus: the sum of ranks for the loss.
        w_minus: the sum of ranks for the reference.
        exact: whether Wilcoxon's distribution was computed exactly.
        effect: the matched-pairs rank-biserial correlation, 1: better of every patient, -1: worse of every one.
        p_wilcoxon: of Wilcoxon's signed-rank test, two-sided; trainings averaged.
        p_ranks: that, Holm over the comparisons.
        p: of the mean difference alone, without adjustment.
        p_adjusted: family-wise over the comparisons; at most 0.05 only where the interval leaves out 0.
        p_trainings: the part of p that is over trainings; none with one.
        p_equivalence: of two one-sided tests against the margin, at most 0.025 where it is shown; none without a
            margin.
        p_equivalence_holm: that, Holm over the comparisons.
        p_non_inferior: of the one-sided test; none without a margin.
        variance: of the mean difference, by source; none with one patient.
        retraining: the share of the differences' variance between trainings, within patients; none with one seed.
        within_margin: whether the mean is shown to lie inside the margin.
        unseen: the share of patients that may do something which none of these did: 3 / n, at most 1.
        verdict: one of `VERDICTS`.
    """

    loss: str
    difference: float
    interval: tuple[float, float] | None
    sd: float | None
    wins: int
    losses: int
    ties: int
    w_plus: float
    w_minus: float
    exact: bool
    effect: float
    p_wilcoxon: float
    p_ranks: float
    p: float
    p_adjusted: float
    p_trainings: float | None
    p_equivalence: float | None
    p_equivalence_holm: float | None
    p_non_inferior: float | None
    variance: VarianceParts | None
    retraining: float | None
    within_margin: bool
    unseen: float
    verdict: str

    @property
    def words(self) -> str:
        """The verdict, with what limits it."""
        limited = self.within_margin and self.verdict in (BETTER, WORSE)
        return f"{self.verdict}, within the margin" if limited else self.verdict


def compare_with(
    scores: Scores, reference: str, *, margin: float | None = None, non_inferior: bool = False, seed: int = 0
) -> tuple[Comparison, ...]:
    """Compare every loss with the reference.

    Args:
        scores: of one measure.
        reference: one of its losses.
        margin: differences up to it do not matter, in the measure's unit; `None`: no word *equivalent*.
        non_inferior: whether *non-inferior* takes the place of *equivalent*.
        seed: of drawn sign patterns.

    Returns:
        One per loss, without the reference, in the order of `scores.losses`.
    """
    sign = scores.metric.sign
    base = scores.losses.index(reference)
    others = np.array([i for i in range(len(scores.losses)) if i != base], np.intp)
    found = infer(sign * scores.values, others, np.full_like(others, base), scores.folds, seed=seed)
    gains = sign * (scores.values[others] - scores.values[base])
    ranks = [signed_rank(gain.mean(1)) for gain in gains]
    p_ranks = holm(np.array([rank.p for rank in ranks]))
    known = len(scores.patients) > 1
    same = above = None
    if margin is not None:
        above = found.p_below(-margin) if known else np.ones(len(others))
        same = np.maximum(above, found.p_above(margin)) if known else above
    same_holm = None if same is None else holm(same)
    enough = len(scores.patients) >= least_patients()
    comparisons = []
    for i, (other, gain, rank) in enumerate(zip(others, gains, ranks, strict=True)):
        by_patient = np.round(gain.mean(1), DIGITS)
        ends = (float(found.low[i]), float(found.high[i])) if known else None
        within = same is not None and bool(same[i] <= ALPHA / 2)
        verdict = UNDECIDED
        if enough and ends is not None:
            if found.p_adjusted[i] <= ALPHA:
                verdict = BETTER if found.mean[i] > 0 else WORSE
            elif above is not None and non_inferior:
                verdict = NON_INFERIOR if above[i] <= ALPHA / 2 else UNDECIDED
            elif within:
                verdict = EQUIVALENT
        comparisons.append(
            Comparison(
                loss=scores.losses[other],
                difference=float(sign * found.mean[i]),
                interval=ends if ends is None or sign > 0 else (-ends[1], -ends[0]),
                sd=float(by_patient.std(ddof=1)) if known else None,
                wins=int((by_patient > 0).sum()),
                losses=int((by_patient < 0).sum()),
                ties=int((by_patient == 0).sum()),
                w_plus=rank.positive,
                w_minus=rank.negative,
                exact=rank.exact,
                effect=rank.effect,
                p_wilcoxon=rank.p,
                p_ranks=float(p_ranks[i]),
                p=float(found.p[i]),
                p_adjusted=float(found.p_adjusted[i]),
                p_trainings=_known(found.p_trainings[i]),
                p_equivalence=None if same is None else float(same[i]),
                p_equivalence_holm=None if same_holm is None else float(same_holm[i]),
                p_non_inferior=None if above is None else float(above[i]),
                variance=_variance(found.parts, i, *gain.shape) if known else None,
                retraining=retraining_share(gain),
                within_margin=within,
                unseen=min(1.0, 3 / len(scores.patients)),
                verdict=verdict,
            )
        )
    return tuple(comparisons)


def _variance(parts: Parts, i: int, patients: int, seeds: int) -> VarianceParts:
    of_seeds, of_folds = seeds > 1, patients - parts.patient_freedom > 1
    return VarianceParts(
        patient=float(parts.patient[i]),
        patient_freedom=parts.patient_freedom,
        retraining=float(parts.retraining[i]) if of_seeds else None,
        retraining_freedom=float(parts.retraining_freedom[i]) if of_seeds else None,
        fold=float(parts.fold[i]) if of_folds else None,
        fold_freedom=float(parts.fold_freedom[i]) if of_folds else None,
    )


def _known(value: Floats) -> float | None:
    return None if np.isnan(value) else float(value)
