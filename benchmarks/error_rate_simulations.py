"""How often the statistics are wrong in simulated worlds: false verdicts, pairs, ranks and equivalences, and power.

Every world has losses that do not differ in their true mean unless said; each patient has a deviation of its own per
loss (standard deviation 1), each prediction one more (0.5, with several seeds), and each training one that all its
patients share (`RETRAINING`, with several trainings).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.statistics.mean_difference import ALPHA, Inference, infer
from pipelines.statistics.paired import rank_sets
from pipelines.statistics.results import least_difference
from pipelines.statistics.several_metrics import over_metrics
from pipelines.statistics.significance_tests import Indices, holm, signed_rank

Floats = NDArray[np.float64]
Random = np.random.Generator
#: Standard deviation of what all patients of a training share, in that of one patient's deviation.
RETRAINING = 0.3
#: Sign patterns that are drawn here: the error rate does not depend on it, and power hardly does.
FLIPS = 499
#: Values of tables at a time, for memory.
_AT_ONCE = 1_500_000


def _bounded(random: Random, shape: tuple[int, ...]) -> Floats:
    """Dice: 0 to 1, most near 1, and in 5 % of cases 0."""
    found = np.where(random.uniform(size=shape) < 0.05, 0.0, random.beta(8.0, 1.5, shape))
    return (found - 0.8) / 0.21


def _one_sided(random: Random, shape: tuple[int, ...]) -> Floats:
    """The first loss is symmetric, the others skewed: so are the differences from it, all to the same side."""
    found = 1.0 - random.exponential(size=shape)
    found[..., 0, :, :] = random.normal(0, 0.5, found[..., 0, :, :].shape)
    return found


def _lognormal(random: Random, shape: tuple[int, ...]) -> Floats:
    found = (math.exp(0.5) - random.lognormal(size=shape)) / 2.16
    found[..., 0, :, :] = 0.0
    return found


#: Deviations of patients, mean 0, standard deviation about 1: `(random, shape [M, L, n, 1])`.
DEVIATIONS: dict[str, Callable[[Random, tuple[int, ...]], Floats]] = {
    "normal": lambda random, shape: random.normal(size=shape),
    "heavy-tailed": lambda random, shape: random.standard_t(3, shape) / math.sqrt(3),
    "skewed": lambda random, shape: 1.0 - random.exponential(size=shape),
    "bounded": _bounded,
}
#: The reference alone is not skewed: the hardest there is for a mean.
SKEWED_DIFFERENCES = {"exponential": _one_sided, "lognormal": _lognormal}


@dataclass(frozen=True)
class Rate:
    """A share, and of how many simulations."""

    share: float
    count: int

    @property
    def error(self) -> float:
        """Monte Carlo standard error."""
        return math.sqrt(max(self.share * (1 - self.share), 1 / self.count**2) / self.count)

    def __str__(self) -> str:
        return f"{self.share:.3f}"


def tables(
    random: Random,
    deviation: Callable[[Random, tuple[int, ...]], Floats],
    count: int,
    losses: int,
    patients: int,
    seeds: int = 1,
    folds: int = 1,
    retraining: float = RETRAINING,
) -> Iterator[tuple[Floats, Indices]]:
    """Tables of losses that do not differ: values `[m, L, n, S]`, some at a time, and each patient's fold."""
    fold = np.arange(patients) % folds
    step = max(1, min(count, 100, _AT_ONCE // (losses * max(patients * seeds, FLIPS))))
    for start in range(0, count, step):
        m = min(step, count - start)
        values = deviation(random, (m, losses, patients, 1))
        if seeds > 1:
            values = values + random.normal(0, 0.5, (m, losses, patients, seeds))
        if seeds * folds > 1 and retraining > 0:
            values = values + random.normal(0, retraining, (m, losses, folds, seeds))[:, :, fold]
        yield values, fold


def compared(values: Floats, first: Indices, second: Indices, fold: Indices) -> Inference:
    """As `infer`, with other sign patterns for other tables: the same few for all would make errors go together."""
    return infer(values, first, second, fold, flips=FLIPS, seed=int(abs(values[0, 1, 0, 0]) * 1e9) % 2**32)


def against_reference(values: Floats, fold: Indices) -> Inference:
    """Every loss against the first."""
    others = np.arange(1, values.shape[1])
    return compared(values, others, np.zeros_like(others), fold)


def false_verdicts(count: int, deviation: str, comparisons: int, patients: int, seeds: int, folds: int) -> Rate:
    """The share of tables with any false *better* or *worse*."""
    random = np.random.default_rng([comparisons, patients, seeds, folds, len(deviation)])
    draw = (DEVIATIONS | SKEWED_DIFFERENCES)[deviation]
    worlds = tables(random, draw, count, comparisons + 1, patients, seeds, folds)
    wrong = sum(int((against_reference(*world).p_adjusted.min(-1) <= ALPHA).sum()) for world in worlds)
    return Rate(wrong / count, count)


def false_verdicts_over_metrics(
    count: int,
    deviation: str,
    metrics: int,
    comparisons: int,
    patients: int,
    seeds: int = 1,
    folds: int = 1,
    correlation: float = 0.6,
    flips: int = FLIPS,
) -> tuple[Rate, Rate]:
    """The share of tables with any false verdict in any of several metrics: as one family, and each metric alone.

    `correlation` is that of the metrics within a patient.
    """
    random = np.random.default_rng([metrics, comparisons, patients, seeds, folds, len(deviation)])
    draw, losses = (DEVIATIONS | SKEWED_DIFFERENCES)[deviation], comparisons + 1
    others = np.arange(1, losses)
    together = alone = 0
    for drawn, fold in tables(random, draw, count, (metrics + 1) * losses, patients, seeds, folds):
        values = drawn.reshape(len(drawn), metrics + 1, losses, *drawn.shape[2:])
        values = math.sqrt(correlation) * values[:, :1] + math.sqrt(1 - correlation) * values[:, 1:]
        seed = int(random.integers(2**32))
        found = infer(values, others, np.zeros_like(others), fold, flips=flips, seed=seed)
        family = over_metrics(found.p, found.p_adjusted)
        together += int((family <= ALPHA).any((-1, -2)).sum())
        alone += int((found.p_adjusted <= ALPHA).any((-1, -2)).sum())
    return Rate(together / count, count), Rate(alone / count, count)


def false_pairs(count: int, deviation: str, losses: int, patients: int, seeds: int, folds: int) -> tuple[Rate, Rate]:
    """The share of tables in which any pair differs, and in which any rank set leaves out a true rank.

    All losses are equal, so every rank from 1 to L is true of each; a set that leaves one out is wrong.
    """
    random = np.random.default_rng([losses, patients, seeds, folds, 7])
    first, second = np.triu_indices(losses, 1)
    wrong = left_out = 0
    for values, fold in tables(random, DEVIATIONS[deviation], count, losses, patients, seeds, folds):
        found = compared(values, first, second, fold)
        differ = found.p_adjusted <= ALPHA
        wrong += int(differ.any(-1).sum())
        low, high = rank_sets(found.mean, differ, first, second, losses)
        left_out += int(((low > 1) | (high < losses)).any(-1).sum())
    return Rate(wrong / count, count), Rate(1 - left_out / count, count)


def rank_coverage(count: int, patients: int, losses: int = 18) -> tuple[Rate, Rate]:
    """How often the set of ranks has the truly first of near-equal losses; and how often all sets have all truths."""
    random = np.random.default_rng([patients, losses])
    first, second = np.triu_indices(losses, 1)
    truth = -0.02 * np.arange(losses)[:, None, None]
    one = every = 0
    for values, fold in tables(random, DEVIATIONS["normal"], count, losses, patients):
        found = compared(values + truth, first, second, fold)
        low, high = rank_sets(found.mean, found.p_adjusted <= ALPHA, first, second, losses)
        ranks = np.arange(1, losses + 1)
        has = (low <= ranks) & (ranks <= high)
        one += int(has[:, 0].sum())
        every += int(has.all(-1).sum())
    return Rate(one / count, count), Rate(every / count, count)


def power(count: int, comparisons: int, patients: int) -> tuple[float, Rate, Rate]:
    """One of the losses is better, normal differences: the shift in SDs of the difference, and how often it is found.

    Here, and by Holm over Wilcoxon's tests.
    """
    random = np.random.default_rng([comparisons, patients, 3])
    shift = least_difference(1.0, patients, comparisons=comparisons) or 2.0
    here = there = 0
    for values, fold in tables(random, DEVIATIONS["normal"], count, comparisons + 1, patients):
        values[:, 1] += shift * math.sqrt(2)
        found = against_reference(values, fold)
        here += int(((found.p_adjusted[:, 0] <= ALPHA) & (found.mean[:, 0] > 0)).sum())
        d = (values[:, 1:] - values[:, :1])[..., 0]
        p = np.array([[signed_rank(own).p for own in one] for one in d])
        there += int(((holm(p)[:, 0] <= ALPHA) & (d[:, 0].mean(-1) > 0)).sum())
    return shift, Rate(here / count, count), Rate(there / count, count)


def power_of_trainings(count: int, seeds: int, folds: int, comparisons: int, shift: float) -> Rate:
    """How often a shift (in SDs of one patient's difference) is found with 104 patients and several trainings."""
    random = np.random.default_rng([comparisons, seeds, folds, 4])
    found_here = 0
    for values, fold in tables(random, DEVIATIONS["normal"], count, comparisons + 1, 104, seeds, folds):
        values[:, 1] += shift * math.sqrt(2)
        found = against_reference(values, fold)
        found_here += int(((found.p_adjusted[:, 0] <= ALPHA) & (found.mean[:, 0] > 0)).sum())
    return Rate(found_here / count, count)


def false_equivalence(count: int, deviation: str, patients: int) -> tuple[Rate, Rate]:
    """The true mean is at the margin, which is wide: how often *equivalent* is said, and *non-inferior* of a loss."""
    random = np.random.default_rng([patients, len(deviation), 5])
    draw: dict[str, Callable[[], Floats]] = {
        "normal": lambda: random.normal(size=(count, patients)),
        "exponential": lambda: random.exponential(size=(count, patients)) - 1.0,
        "lognormal": lambda: random.lognormal(size=(count, patients)) - math.exp(0.5),
        "5 % collapse": lambda: (
            np.where(random.uniform(size=(count, patients)) < 0.05, 7.6, -0.4)
            + random.normal(0, 0.3, (count, patients))
        ),
    }
    margin = 8.0
    d = draw[deviation]()
    # The tail lies beyond the margin on either side: what few cases show too little of.
    values = np.zeros((2 * count, 2, patients, 1))
    values[:count, 1, :, 0], values[count:, 1, :, 0] = d + margin, -d - margin
    found = against_reference(values, np.zeros(patients, np.intp))
    above, below = found.p_below(-margin), found.p_above(margin)
    equivalent = np.maximum(above, below) <= ALPHA / 2
    return Rate(float(equivalent[:count].mean()), count), Rate(float((above <= ALPHA / 2)[count:].mean()), count)


def rare_collapse(count: int, comparisons: int, patients: int) -> Rate:
    """Equal means: +0.01 on 95 % of cases, -0.19 on 5 %: any false verdict. No method sees what no case shows."""
    random = np.random.default_rng([comparisons, patients, 6])
    wrong = 0
    for _ in range(10):
        shape = (count // 10, comparisons + 1, patients, 1)
        values = np.where(random.uniform(size=shape) < 0.05, -0.19, 0.01) + random.normal(0, 0.01, shape)
        values[:, 0] = 0.0
        wrong += int((against_reference(values, np.zeros(patients, np.intp)).p_adjusted.min(-1) <= ALPHA).sum())
    return Rate(wrong / (count // 10 * 10), count // 10 * 10)


def unequal_trainings(count: int, folds: int, seeds: int, comparisons: int = 17) -> Rate:
    """As `false_verdicts`, of 104 patients, with one loss whose retraining varies three times as much."""
    random = np.random.default_rng([folds, seeds, 8])
    wrong = 0
    for values, fold in tables(random, DEVIATIONS["normal"], count, comparisons + 1, 104, seeds, folds):
        more = random.normal(0, RETRAINING * math.sqrt(8), (len(values), folds, seeds))
        values[:, 1] += more[:, fold]
        wrong += int((against_reference(values, fold).p_adjusted.min(-1) <= ALPHA).sum())
    return Rate(wrong / count, count)
