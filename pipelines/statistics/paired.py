"""Paired comparisons per patient: every loss with the reference, and every pair of losses.

`docs/statistics.md` describes verdicts, pairs and rank sets, and what they do not control.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.mean_difference import ALPHA, Parts, infer, least_patients, retraining_share
from pipelines.statistics.scores import DIGITS, Floats, Scores
from pipelines.statistics.significance_tests import Friedman, Indices, case_ranks, friedman, holm, signed_rank


@dataclass(frozen=True)
class Omnibus:
    """The comparison of all losses with each other.

    Attributes:
        losses: names by average rank, best first; this is also the order of the matrices.
        average_ranks: mean ranks over patients, 1 is the best.
        friedman: Friedman's test of no difference between any; `None` with one patient.
        p: unadjusted p-value of every pair `[L][L]`; 1 on the diagonal.
        p_adjusted: family-wise p-value over all pairs; at most 0.05 if the pair differs significantly.
        groups: the largest sets of two or more losses without a significant difference between any two of them. Sets
            can overlap, and a loss whose rank lies between two members may not belong to the set.
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
    """Test all losses together, and every pair; `seed` is that of the sign patterns."""
    ranks = case_ranks(scores.metric.sign * scores.by_patient)
    average = ranks.mean(1)
    order = np.argsort(np.round(average, 9), kind="stable")
    size = len(order)
    first, second = np.triu_indices(size, 1)
    found = infer(scores.metric.sign * scores.values[order], first, second, scores.folds, seed=seed)
    names = [scores.losses[i] for i in order]
    differ = found.p_adjusted <= ALPHA
    low, high = rank_sets(found.mean, differ, first, second, size)

    def matrix(of_pairs: NDArray[np.generic]) -> Floats:
        full = np.ones((size, size))
        full[first, second] = full[second, first] = of_pairs
        return full

    return Omnibus(
        losses=tuple(names),
        average_ranks=tuple(average[order].tolist()),
        friedman=friedman(ranks) if ranks.shape[1] > 1 else None,
        p=tuple(map(tuple, matrix(found.p).tolist())),
        p_adjusted=tuple(map(tuple, matrix(found.p_adjusted).tolist())),
        groups=tuple(tuple(names[i] for i in group) for group in cliques(matrix(~differ).astype(bool))),
        rank_sets=dict(zip(names, zip(low.tolist(), high.tolist(), strict=True), strict=True)),
    )


def rank_sets(
    means: Floats, differ: NDArray[np.bool_], first: Indices, second: Indices, losses: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The lowest and highest rank of each loss that the pairs leave open, each `[..., L]`; 1 is the best.

    If b losses are significantly better than a loss and w significantly worse, its rank lies between 1 + b and L - w
    (Mogstad et al. 2024).

    Args:
        means: `[..., k]`, mean of first minus second; more is better.
        differ: `[..., k]`, whether the pair differs significantly.
        first: `[k]`, index of the first loss of each pair.
        second: `[k]`, index of the second loss.
        losses: number of losses.
    """
    is_first, is_second = (np.eye(losses, dtype=np.int64)[index] for index in (first, second))
    over, under = ((differ & (sign * means > 0)).astype(np.int64) for sign in (1, -1))
    better = under @ is_first + over @ is_second
    worse = over @ is_first + under @ is_second
    return 1 + better, losses - worse


def adjusted_pairs(pairs: Omnibus, factor: int, means: Mapping[str, float], sign: int) -> Omnibus:
    """The pairs of one of several metrics: p-values times their number (Bonferroni), and what follows from them.

    Args:
        pairs: as if the metric were the only one.
        factor: the number of metrics.
        means: loss -> its mean.
        sign: 1, or -1 if less is better.
    """
    size = len(pairs.losses)
    first, second = np.triu_indices(size, 1)
    p = np.minimum(factor * np.array(pairs.p_adjusted), 1.0)
    np.fill_diagonal(p, 1.0)
    gains = sign * np.round([means[loss] for loss in pairs.losses], DIGITS)
    low, high = rank_sets(gains[first] - gains[second], p[first, second] <= ALPHA, first, second, size)
    return replace(
        pairs,
        p_adjusted=tuple(map(tuple, p.tolist())),
        groups=tuple(tuple(pairs.losses[i] for i in group) for group in cliques(p > ALPHA)),
        rank_sets=dict(zip(pairs.losses, zip(low.tolist(), high.tolist(), strict=True), strict=True)),
    )


def cliques(linked: NDArray[np.bool_]) -> list[tuple[int, ...]]:
    """All maximal cliques of two or more members, sorted; `linked` is a symmetric adjacency matrix `[L, L]`."""
    import networkx  # not above: it takes a quarter of a second

    graph = networkx.from_numpy_array(linked & ~np.eye(len(linked), dtype=bool))
    return sorted(tuple(sorted(clique)) for clique in networkx.find_cliques(graph) if len(clique) > 1)


BETTER, WORSE, EQUIVALENT, NON_INFERIOR, UNDECIDED = VERDICTS = (
    "better", "worse", "equivalent", "non-inferior", "undecided",
)  # fmt: skip


@dataclass(frozen=True)
class VarianceParts:
    """The components of the variance of a mean difference.

    Attributes:
        patient: variance over patients, with its degrees of freedom in `patient_freedom`; so for the others.
        retraining: variance over the seeds within folds; `None` with one seed.
        fold: variance over folds beyond the other two (with one seed, of retraining and folds together); `None` with
            one fold.
        outlying: those of the two losses whose runs vary far more than those of the other losses of the table: the
            variance between runs is then this comparison's alone, and not pooled over the losses.
    """

    patient: float
    patient_freedom: int
    retraining: float | None
    retraining_freedom: float | None
    fold: float | None
    fold_freedom: float | None
    outlying: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """One loss compared with the reference.

    Attributes:
        difference: mean of loss minus reference, in the metric's unit; for a distance, less is better.
        interval: 95 % interval of the mean difference; `None` with one patient.
        sd: standard deviation of the differences over patients, runs averaged; `None` with one patient.
        wins: number of patients for whom the loss is better than the reference; `losses`, worse; `ties`, neither.
        w_plus: Wilcoxon's sum of ranks in favour of the loss; `w_minus`, of the reference.
        exact: whether Wilcoxon's distribution was computed exactly.
        effect: the matched-pairs rank-biserial correlation; 1: better for every patient, -1: worse for every patient.
        p_wilcoxon: p-value of Wilcoxon's signed-rank test, two-sided, runs averaged.
        p_ranks: `p_wilcoxon`, adjusted over the comparisons (Holm).
        p: p-value of the mean difference, without adjustment.
        p_adjusted: family-wise p-value over the comparisons; at most 0.05 only if the interval excludes 0.
        p_trainings: the p-value over runs, a part of `p`; `None` with one run.
        p_equivalence: p-value of two one-sided tests against the margin; at most 0.025 if equivalence is shown; `None`
            without a margin.
        p_equivalence_holm: `p_equivalence`, adjusted over the comparisons (Holm).
        p_non_inferior: p-value of the one-sided test; `None` without a margin.
        variance: components of the variance of the mean difference; `None` with one patient.
        retraining: share of the differences' variance that lies between seeds, within patients; `None` with one seed.
        within_margin: whether the mean is shown to lie within the margin.
        unseen: the share of patients in whom an effect that none of these showed may still occur: 3 / n, at most 1.
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
        """The verdict, and `within the margin` if the difference is too small to matter."""
        limited = self.within_margin and self.verdict in (BETTER, WORSE)
        return f"{self.verdict}, within the margin" if limited else self.verdict


def compare_with(
    scores: Scores, reference: str, *, margin: float | None = None, non_inferior: bool = False, seed: int = 0
) -> tuple[Comparison, ...]:
    """Compare every loss with the reference: one comparison per other loss, in the order of `scores.losses`.

    *Better* and *worse*: the family-wise p is at most 0.05. Otherwise *equivalent* or *non-inferior*: one-sided tests
    against the margin at 2.5 %. Everything else is *undecided*, and all with fewer patients than `least_patients`.

    Args:
        scores: the scores of one metric.
        reference: the loss that the others are compared with.
        margin: the largest difference that does not matter, in the metric's unit; `None`: equivalence is not tested.
        non_inferior: whether to test non-inferiority in place of equivalence.
        seed: seed of the sign patterns.
    """
    sign = scores.metric.sign
    base = scores.losses.index(reference)
    others = np.array([i for i in range(len(scores.losses)) if i != base], np.intp)
    found = infer(sign * scores.values, others, np.full_like(others, base), scores.folds, seed=seed)
    gains = sign * (scores.values[others] - scores.values[base])
    ranks = [signed_rank(gain.mean(1)) for gain in gains]
    p_ranks = holm(np.array([rank.p for rank in ranks]))
    known = len(scores.patients) > 1
    same = above = same_holm = None
    if margin is not None:
        above = found.p_below(-margin) if known else np.ones(len(others))
        same = np.maximum(above, found.p_above(margin)) if known else above
        same_holm = holm(same)
    enough = len(scores.patients) >= least_patients()
    comparisons = []
    for i, (other, gain, rank) in enumerate(zip(others, gains, ranks, strict=True)):
        by_patient = np.round(gain.mean(1), DIGITS)
        ends = (float(found.low[i]), float(found.high[i])) if known else None
        within = same is not None and bool(same[i] <= ALPHA / 2)
        verdict = UNDECIDED
        if enough and ends is not None:
            p_non_inferior = float(above[i]) if above is not None and non_inferior else None
            verdict = word(found.mean[i], found.p_adjusted[i], within=within, p_non_inferior=p_non_inferior)
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
                p_trainings=None if np.isnan(found.p_trainings[i]) else float(found.p_trainings[i]),
                p_equivalence=None if same is None else float(same[i]),
                p_equivalence_holm=None if same_holm is None else float(same_holm[i]),
                p_non_inferior=None if above is None else float(above[i]),
                variance=_variance(found.parts, i, scores.losses, (int(other), base), *gain.shape) if known else None,
                retraining=retraining_share(gain),
                within_margin=within,
                unseen=min(1.0, 3 / len(scores.patients)),
                verdict=verdict,
            )
        )
    return tuple(comparisons)


def word(gain: float, p_adjusted: float, *, within: bool, p_non_inferior: float | None) -> str:
    """The verdict on a comparison with enough patients.

    Args:
        gain: the mean difference, above 0 if the loss is better.
        p_adjusted: its family-wise p-value.
        within: whether the mean is shown to lie within the margin.
        p_non_inferior: its p-value if non-inferiority is tested in place of equivalence; else None.
    """
    if p_adjusted <= ALPHA:
        return BETTER if gain > 0 else WORSE
    if p_non_inferior is not None:
        return NON_INFERIOR if p_non_inferior <= ALPHA / 2 else UNDECIDED
    return EQUIVALENT if within else UNDECIDED


def _variance(
    parts: Parts, i: int, losses: tuple[str, ...], pair: tuple[int, int], patients: int, seeds: int
) -> VarianceParts:
    several_folds = patients - parts.patient_freedom > 1
    return VarianceParts(
        patient=float(parts.patient[i]),
        patient_freedom=parts.patient_freedom,
        retraining=float(parts.retraining[i]) if seeds > 1 else None,
        retraining_freedom=float(parts.retraining_freedom[i]) if seeds > 1 else None,
        fold=float(parts.fold[i]) if several_folds else None,
        fold_freedom=float(parts.fold_freedom[i]) if several_folds else None,
        outlying=() if parts.outlying is None else tuple(losses[place] for place in pair if parts.outlying[place]),
    )
