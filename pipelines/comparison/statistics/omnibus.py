r"""All losses at once: Friedman's test in Iman and Davenport's form, then every pair.

With $r_{ij}$ the rank of loss j of k for patient i of N (1 the best, ties midranks) and $R_j$ its mean over patients,

$$\chi^2 = \frac{N (k - 1) \left(N \sum_j R_j^2 - C\right)}{\sum_{ij} r_{ij}^2 - C}, \quad
C = \tfrac14 N k (k+1)^2, \qquad F = \frac{(N - 1) \chi^2}{N (k - 1) - \chi^2}$$

with $k - 1$ and $(k - 1)(N - 1)$ degrees of freedom. The denominator corrects for ties; without any it is
$N k (k+1)(k-1) / 12$, which Demsar (2006) uses always.

Pairs are tested by Wilcoxon with Holm over all of them, not by Nemenyi's test of average ranks, whose verdict on two
losses depends on which others are in the pool (Benavoli et al. 2016). Holm needs no Friedman before it: the F is
reported, and decides nothing.

Not controlled: Friedman's test and the average ranks are over patients, seeds averaged; retraining is not in them.
The pairs' tests have it where there are several seeds (`difference`).
"""

from collections import Counter
from dataclasses import dataclass
from math import factorial, prod

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, fdtrc
from scipy.stats import rankdata

from pipelines.comparison.statistics.difference import difference_test
from pipelines.comparison.statistics.holm import holm
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
        p: of every pair `[L][L]`, as `difference` tests; 1 on the diagonal.
        p_holm: the same, Holm over all pairs.
        groups: the largest sets (of two and more) whose losses do not differ significantly, any from any. They can
            overlap, and a loss between two of a group may be outside it.
    """

    losses: tuple[str, ...]
    average_ranks: tuple[float, ...]
    friedman: Friedman | None
    p: tuple[tuple[float, ...], ...]
    p_holm: tuple[tuple[float, ...], ...]
    groups: tuple[tuple[str, ...], ...]


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


def all_pairs(scores: Scores, level: float = 0.05) -> Omnibus:
    """Test all losses, and every pair.

    Args:
        scores: of one measure.
        level: of the groups.
    """
    ranks = case_ranks(scores.metric.sign * scores.by_patient)
    average = ranks.mean(1)
    order = np.argsort(np.round(average, 9), kind="stable")
    values = scores.values[order]
    first, second = np.triu_indices(len(order), 1)
    p = np.array([difference_test(values[i] - values[j]).p for i, j in zip(first, second, strict=True)])
    names = [scores.losses[i] for i in order]
    adjusted = _matrix(holm(p), first, second)
    return Omnibus(
        losses=tuple(names),
        average_ranks=tuple(average[order].tolist()),
        friedman=friedman(ranks) if ranks.shape[1] > 1 else None,
        p=_rows(_matrix(p, first, second)),
        p_holm=_rows(adjusted),
        groups=tuple(tuple(names[i] for i in group) for group in cliques(adjusted > level)),
    )


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


def _matrix(p: Floats, first: NDArray[np.intp], second: NDArray[np.intp]) -> Floats:
    size = int(second.max()) + 1
    full = np.ones((size, size))
    full[first, second] = full[second, first] = p
    return full


def _rows(matrix: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
