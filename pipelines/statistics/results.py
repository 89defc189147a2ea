r"""What an analysis holds; and the differences that so many cases can detect at all.

What so many cases can show at all, with one training per loss.

**The least difference.** Step-down max-T over k comparisons with one reference (`inference`) rejects about where
Student's t does at the level $\alpha_k$ at which any of k equally correlated (one half) normal tests rejects with
$\alpha$; from that quantile q a noncentral t's equation gives the difference found with 80 % power, without simulation,
hence the same number every time. At few cases sign flips, and the correction for skewness, cost more than that: by
simulation the difference has to be larger by a factor of about $1 + (q / \sqrt n)^{2.2} / 6$. The test holds the result
against simulated comparisons. It is for normal differences.

**Too few cases.** The least two-sided p-value of n sign flips is $2 / 2^n$: with 6 cases differences can be
significant, with 5 none, however large, and however many comparisons there are.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtr, ndtr, stdtrit

from pipelines.statistics.bootstrap import Bootstrap
from pipelines.statistics.mean_difference import ALPHA, least_patients
from pipelines.statistics.paired import Comparison, Omnibus
from pipelines.statistics.table import MetricInfo


@lru_cache(maxsize=256)
def _level(comparisons: int, level: float) -> float:
    """The level of one of k equally correlated (0.5) two-sided normal tests, such that any rejects with `level`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    shared, weights = nodes * sqrt(0.5), weights / weights.sum()

    def excess(z: float) -> float:
        within = ndtr((z - shared) / sqrt(0.5)) - ndtr((-z - shared) / sqrt(0.5))
        return float((weights * within**comparisons).sum()) - (1 - level)

    return 2 * float(ndtr(-brentq(excess, 0.1, 12.0)))


def power(difference: float, sd: float, cases: int, *, comparisons: int = 1, level: float = ALPHA) -> float:
    """The chance that a mean difference is found, in its direction.

    Args:
        difference: the true mean difference.
        sd: standard deviation of the paired differences over cases, in the same unit; above 0.
        cases: n.
        comparisons: with one reference, as one of which it is found.
        level: of all of them together.
    """
    if cases < least_patients(level):
        return 0.0
    quantile = -float(stdtrit(cases - 1, _level(comparisons, level) / 2))
    shift = abs(difference) / sd * sqrt(cases) / (1 + (quantile / sqrt(cases)) ** 2.2 / 6)
    return 1 - float(nctdtr(cases - 1, shift, quantile))


def least_difference(
    sd: float, cases: int, *, comparisons: int = 1, wanted: float = 0.8, level: float = ALPHA
) -> float | None:
    """The smallest mean difference that is found with the wanted power; none where the cases are too few for any.

    Args:
        sd: standard deviation of the paired differences over cases.
        cases: n.
        comparisons: with one reference, as one of which it is found.
        wanted: the power.
        level: of all comparisons together.
    """
    if cases < least_patients(level):
        return None
    if sd == 0:
        return 0.0

    def lack(difference: float) -> float:
        return power(difference, 1.0, cases, comparisons=comparisons, level=level) - wanted

    high = 1.0
    while lack(high) < 0:
        high *= 2
    return sd * float(brentq(lack, 0.0, high, xtol=1e-6))


def cases_needed(difference: float, sd: float, *, comparisons: int = 1, wanted: float = 0.8) -> int:
    """How many cases find a mean difference with the wanted power.

    Args:
        difference: the true mean difference, not 0.
        sd: standard deviation of the paired differences over cases; above 0.
        comparisons: with one reference, as one of which it is found.
        wanted: the power.
    """
    low, high = 1, 2
    while power(difference, sd, high, comparisons=comparisons) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if power(difference, sd, middle, comparisons=comparisons) < wanted:
            low = middle
        else:
            high = middle
    return high


# What an analysis holds.


@dataclass(frozen=True)
class Ranked:
    """A loss's place.

    Attributes:
        loss: the loss.
        rank: by mean, 1 the best, ties midranks.
        mean: over patients (and seeds).
        median: over patients, seeds averaged.
        sd: over patients, seeds averaged; none with one.
        average_rank: over patients.
        rank_set: the lowest and highest rank by mean that the pairs leave open, of all losses at once (95 %).
        failed: empty cells that counted as worst.
        lacking: cases of which a row was missing, which counted as worst.
        missed: predictions with nothing of a class that is there.
        false_alarms: predictions with something of a class that is not there.
    """

    loss: str
    rank: float
    mean: float
    median: float
    sd: float | None
    average_rank: float
    rank_set: tuple[int, int]
    failed: int
    lacking: tuple[str, ...]
    missed: int
    false_alarms: int


@dataclass(frozen=True)
class Reach:
    """What could be seen at all.

    Attributes:
        cases: patients.
        least_cases: below so many no comparison can be significant, with the reference or of a pair.
        sd: median over the comparisons of the differences' standard deviation; none with one patient or no reference.
        difference: the least true mean difference that one comparison alone finds with 80 % power; none if none, and
            with several trainings, where it hangs on how much these differ.
        difference_family: the same as one of all comparisons.
    """

    cases: int
    least_cases: int
    sd: float | None
    difference: float | None
    difference_family: float | None


@dataclass(frozen=True)
class MetricAnalysis:
    """One measure, of all classes or of one.

    Attributes:
        metric: its column.
        class_name: the class; none: the mean over a case's classes.
        primary: named before; all others are secondary, and say no more than that there is something to look at.
        patients: how many were compared.
        excluded: cases of which a class, or all, were left out, since the measure has no meaning there.
        empty: cases in which the reference has nothing of a class.
        ranking: best mean first.
        comparisons: with the reference, in the order of the ranking; empty without one.
        omnibus: all losses and pairs.
        bootstrap: intervals of means, and how stable first place is.
        reach: what could be seen at all.
    """

    metric: str
    class_name: str | None
    primary: bool
    patients: int
    excluded: tuple[str, ...]
    empty: tuple[str, ...]
    ranking: tuple[Ranked, ...]
    comparisons: tuple[Comparison, ...]
    omnibus: Omnibus
    bootstrap: Bootstrap
    reach: Reach


@dataclass(frozen=True)
class Analysis:
    """The whole.

    Attributes:
        verdict: one sentence.
        caveats: what it does not cover, a sentence each.
        reference: the loss that the others were compared with; none: all with all alone.
        margin: differences up to it do not matter, in the primary measure's unit.
        bootstraps: replicates.
        seed: of their draws.
        empty: what counts where the reference has nothing of a class, as `scores` says.
        non_inferior: whether *non-inferior* takes the place of *equivalent*.
        unit: what is counted, `patient` or `case`; the latter where no patient is known by another name than its case.
        trainings: per loss: folds times seeds.
        folds: of the trainings, where each patient is in one; otherwise 1.
        seeds: per fold.
        patients: their names.
        scores: loss -> the primary measure per patient, in the order of `patients`; failures counted as worst.
        primary: the primary measure.
        classes: class -> the primary measure; empty with fewer than two.
        secondary: measure -> its analysis.
        metrics: the table's, by name; not among the numbers of `to_dict`.
    """

    verdict: str
    caveats: tuple[str, ...]
    reference: str | None
    margin: float
    bootstraps: int
    seed: int
    empty: str
    non_inferior: bool
    unit: str
    trainings: int
    folds: int
    seeds: int
    patients: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    primary: MetricAnalysis
    classes: dict[str, MetricAnalysis]
    secondary: dict[str, MetricAnalysis]
    metrics: Mapping[str, MetricInfo]

    @property
    def metric(self) -> MetricInfo:
        """The primary one."""
        return self.metrics[self.primary.metric]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: dicts, lists, numbers, text, and `None` for what there is not."""
        content = asdict(replace(self, metrics={}))
        del content["metrics"]
        return dict(_plain(content))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
