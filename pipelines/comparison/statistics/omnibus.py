r"""All losses at once: Friedman's test in Iman and Davenport's form, then every pair.

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
"""

from collections import Counter
from dataclasses import dataclass
from math import factorial, prod

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, fdtrc
from scipy.stats import rankdata

from pipelines.comparison.statistics.inference import ALPHA, Indices, infer
from pipelines.comparison.statistics.scores import Floats, Scores


@dataclass(frozen=True)
class Friedman:
    """The test of no difference between any.

    Attributes:
        chi2: Friedman's statistic.
        chi2_p: its p-value.
        f: Iman and Davenport's statistic; none where all patients rank alike: it is infinite.
        freedom: F's degrees of freedom.
        p: F's p-value; where it is infinite the chance that all rank alike.
    """

    chi2: float
    chi2_p: float
    f: float | None
    freedom: tuple[int, int]
    p: float


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


def case_ranks(gains: Floats) -> Floats:
    """Ranks a patient, 1 the best, ties midranks.

    Args:
        gains: `[L, n]`, more is better.
    """
    return np.asarray(rankdata(-gains, axis=0))


def friedman(ranks: Floats, *, correct_ties: bool = True) -> Friedman:
    """Friedman's test.

    Args:
        ranks: `[L, n]`, a patient's 1 to L; n at least 2.
        correct_ties: as the module says; otherwise Demsar's form.
    """
    k, n = ranks.shape
    middle = n * k * (k + 1) ** 2 / 4
    spread = float((ranks**2).sum()) - middle if correct_ties else n * k * (k + 1) * (k - 1) / 12
    means = ranks.mean(1)
    chi2 = (k - 1) * n * (float((n * means**2).sum()) - middle) / spread if spread > 1e-9 else 0.0
    chi2 = max(chi2, 0.0)
    freedom = (k - 1, (k - 1) * (n - 1))
    rest = n * (k - 1) - chi2
    f = (n - 1) * chi2 / rest if rest > 1e-9 else None
    p = float(fdtrc(*freedom, f)) if f is not None else _chance_of_unison(ranks)
    return Friedman(chi2, float(chdtrc(k - 1, chi2)), f, freedom, p)


def _chance_of_unison(ranks: Floats) -> float:
    """The chance that all patients rank as the first does: one of the orders that its ranks, with their ties, have."""
    k, n = ranks.shape
    orders = factorial(k) / prod(factorial(ties) for ties in Counter(ranks[:, 0].tolist()).values())
    return float(orders) ** -(n - 1)


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
