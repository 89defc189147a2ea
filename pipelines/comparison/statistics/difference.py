r"""The mean of paired differences: its interval, and the test of no difference, over patients and over seeds.

**One training a loss.** Student's t over the n patients' differences. A bootstrap's percentile interval is narrower
by $\sqrt{(n-1)/n}$ and the normal's quantile, so it covers too seldom at few cases; t is of the mean, like the
bootstrap's, and needs no draws. With strongly skewed differences both cover somewhat less than they say below some 50
cases. It holds for these networks alone: what another seed would change is not in it.

**Several trainings.** Patients and seeds are both samples, crossed. With the mean squares of patients, seeds and
rest,

$$v_P = \max(MS_P - MS_E, 0) / nS, \qquad v_S = MS_S / nS,$$

the interval is $\bar d \pm \sqrt{t_{n-1}^2 v_P + t_{S-1}^2 v_S}$ (Howe 1974). Two or three seeds say little of how much
seeds differ: $t_1 = 12.7$, $t_2 = 4.3$ say that, a bootstrap of so few would not. In simulations it covers at least
95 %, whatever share the seeds have; five seeds or more make it narrow.

The test of no difference is then the larger of two p-values: Wilcoxon's (over patients, of these networks), and that of
a t-test of the mean over patients and seeds, with variance $\max(MS_P + MS_S - MS_E, MS_P, MS_S) / nS$ and
Satterthwaite's degrees of freedom. With two or three seeds that differ much it is somewhat liberal: a verdict asks the
interval, too.
"""

from dataclasses import dataclass, replace
from math import sqrt

from scipy.special import stdtr, stdtrit

from pipelines.comparison.statistics.scores import Floats
from pipelines.comparison.statistics.wilcoxon import SignedRank, signed_rank


@dataclass(frozen=True)
class MeanDifference:
    """A mean, and how sure it is.

    Attributes:
        mean: of the differences.
        error: its standard error; 0 with one case.
        freedom: degrees of freedom; 0 with one case.
        parts: variance and degrees of freedom of patients, and with several trainings of seeds: the interval's.
    """

    mean: float
    error: float
    freedom: float
    parts: tuple[tuple[float, float], ...]

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """The interval of the mean; none with one case."""
        if self.freedom == 0:
            return None
        half = sqrt(sum(part * float(stdtrit(freedom, (1 + level) / 2)) ** 2 for part, freedom in self.parts))
        return self.mean - half, self.mean + half

    def p_above(self, bound: float) -> float:
        """The one-sided p-value of the mean being at most `bound`."""
        if self.error == 0:
            return 0.0 if self.freedom and self.mean > bound else 1.0
        return float(stdtr(self.freedom, (bound - self.mean) / self.error))


def mean_difference(differences: Floats) -> MeanDifference:
    """The mean of `[n, S]` differences, patients by seeds."""
    n, seeds = differences.shape
    mean = float(differences.mean())
    if n == 1:
        return MeanDifference(mean, 0.0, 0.0, ())
    by_patient = differences.mean(1)
    patients = seeds * float(by_patient.var(ddof=1))
    if seeds == 1:
        return MeanDifference(mean, sqrt(patients / n), n - 1, ((patients / n, n - 1),))
    by_seed = differences.mean(0)
    retraining = n * float(by_seed.var(ddof=1))
    rest = float(((differences - by_patient[:, None] - by_seed + mean) ** 2).sum()) / ((n - 1) * (seeds - 1))
    total = max(patients + retraining - rest, patients, retraining)
    parts = patients**2 / (n - 1) + retraining**2 / (seeds - 1) + rest**2 / ((n - 1) * (seeds - 1))
    freedom = min(max(total**2 / parts, 1.0), n - 1) if parts > 0 else n - 1
    size = n * seeds
    crossed = ((max(patients - rest, 0.0) / size, n - 1), (retraining / size, seeds - 1))
    return MeanDifference(mean, sqrt(total / size), freedom, crossed)


@dataclass(frozen=True)
class DifferenceTest:
    """No difference, tested.

    Attributes:
        rank: Wilcoxon's test over patients, seeds averaged.
        mean: the mean difference over patients and seeds.
        p: Wilcoxon's p; with several seeds the larger of it and the two-sided p of the mean over patients and seeds.
    """

    rank: SignedRank
    mean: MeanDifference
    p: float


def difference_test(differences: Floats) -> DifferenceTest:
    """Test `[n, S]` paired differences, patients by seeds."""
    rank, mean = signed_rank(differences.mean(1)), mean_difference(differences)
    p = rank.p
    if differences.shape[1] > 1:
        p = max(p, min(1.0, 2 * min(mean.p_above(0.0), _mirrored(mean).p_above(0.0))))
    return DifferenceTest(rank, mean, p)


def equivalence_p(mean: MeanDifference, margin: float) -> float:
    """Two one-sided tests: the larger p-value of the mean being at most -margin, and at least margin."""
    return max(mean.p_above(-margin), _mirrored(mean).p_above(-margin))


def _mirrored(mean: MeanDifference) -> MeanDifference:
    return replace(mean, mean=-mean.mean)


def retraining_share(values: Floats) -> float | None:
    """The share of the variance of single values `[n, S]` that lies between seeds, within patients; none with one."""
    n, seeds = values.shape
    if n < 2 or seeds < 2:
        return None
    within = float(values.var(1, ddof=1).mean())
    between = max(float(values.mean(1).var(ddof=1)) - within / seeds, 0.0)
    return within / (within + between) if within + between > 0 else 0.0
