"""The contents of an analysis, and the differences that a number of cases can detect with one run per loss."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import nctdtr, ndtr, stdtrit

from pipelines.statistics.bootstrap import Bootstrap
from pipelines.statistics.influence import Influence
from pipelines.statistics.mean_difference import ALPHA, least_patients
from pipelines.statistics.paired import Comparison, Omnibus
from pipelines.statistics.scores import Unlearned
from pipelines.statistics.subgroups import Subgroups

if TYPE_CHECKING:
    from pipelines.evaluation.metrics.base import Metric


@lru_cache(maxsize=256)
def _level(comparisons: int, level: float) -> float:
    """The level of each of k equally correlated (0.5) two-sided normal tests whose family-wise level is `level`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    shared, weights = nodes * sqrt(0.5), weights / weights.sum()

    def excess(z: float) -> float:
        within = ndtr((z - shared) / sqrt(0.5)) - ndtr((-z - shared) / sqrt(0.5))
        return float((weights * within**comparisons).sum()) - (1 - level)

    return 2 * float(ndtr(-brentq(excess, 0.1, 12.0)))


def power(difference: float, sd: float, cases: int, *, comparisons: int = 1, level: float = ALPHA) -> float:
    r"""The probability that a mean difference is detected, with the right sign.

    Step-down max-T over k comparisons with one reference rejects about where Student's t does at the level $\alpha_k$
    at which any of k equally correlated (0.5) normal tests rejects with probability $\alpha$. From that quantile q, the
    noncentral t distribution gives the power. With few cases, sign flips and the correction for skewness need a larger
    difference, by a factor of about $1 + (q / \sqrt n)^{2.2} / 6$ (found by simulation).

    Args:
        difference: the true mean difference.
        sd: standard deviation of the paired differences over cases, in the same unit; above 0.
        cases: number of cases.
        comparisons: number of comparisons with the reference, of which this is one.
        level: the family-wise level.
    """
    if cases < least_patients(level):
        return 0.0
    quantile = -float(stdtrit(cases - 1, _level(comparisons, level) / 2))
    shift = abs(difference) / sd * sqrt(cases) / (1 + (quantile / sqrt(cases)) ** 2.2 / 6)
    return 1 - float(nctdtr(cases - 1, shift, quantile))


def least_difference(
    sd: float, cases: int, *, comparisons: int = 1, wanted: float = 0.8, level: float = ALPHA
) -> float | None:
    """The smallest mean difference that is detected with the power `wanted`; `None` if there are too few cases.

    The other arguments are those of `power`.
    """
    if cases < least_patients(level):
        return None
    if sd == 0:
        return 0.0

    def surplus(difference: float) -> float:
        return power(difference, 1.0, cases, comparisons=comparisons, level=level) - wanted

    high = 1.0
    while surplus(high) < 0:
        high *= 2
    return sd * float(brentq(surplus, 0.0, high, xtol=1e-6))


def cases_needed(
    difference: float, sd: float, *, comparisons: int = 1, wanted: float = 0.8, level: float = ALPHA
) -> int:
    """The number of cases that detect a mean difference, not 0, with the power `wanted`; see `power`."""

    def found(cases: int) -> float:
        return power(difference, sd, cases, comparisons=comparisons, level=level)

    high = 2
    while found(high) < wanted:
        high *= 2
    cases = range(high // 2 + 1, high + 1)
    return cases[bisect_left(cases, wanted, key=found)]


# The contents of an analysis.


@dataclass(frozen=True)
class Ranked:
    """One loss in the ranking.

    Attributes:
        rank: rank by mean, 1 is the best; ties have midranks.
        mean: mean over patients and runs; `median` and `sd` over patients, runs averaged.
        average_rank: mean over patients of the rank within the patient.
        rank_set: the lowest and highest rank by mean that the pairs leave open, for all losses at once (95 %).
        failed: number of empty cells, which counted as the worst.
        lacking: cases without a row, which counted as the worst.
        missed: number of predictions without a class that the reference contains.
        false_alarms: number of predictions with a class that the reference does not contain.
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
    """The differences that the comparison can detect.

    Attributes:
        least_cases: the number of patients below which no difference can be significant.
        sd: standard deviation of the paired differences, median over the comparisons; `None` with one patient or
            without a reference.
        difference: the smallest true mean difference that a single comparison detects with 80 % power; `None` if there
            is none, and with several runs, whose variance decides it.
        difference_family: the same for one of all comparisons.
    """

    cases: int
    least_cases: int
    sd: float | None
    difference: float | None
    difference_family: float | None


@dataclass(frozen=True)
class MetricAnalysis:
    """The analysis of one metric, over all classes or for one.

    Attributes:
        metric: the metric's column.
        class_name: the class; `None`: the mean over the classes of a case.
        primary: whether this is the primary metric over all classes; all other results are exploratory.
        patients: number of patients that were compared.
        excluded: cases left out entirely or for one class, since the metric is undefined there.
        empty: cases whose reference is empty for a class.
        ranking: all losses, best mean first.
        comparisons: comparisons with the reference, in the order of the ranking; empty without a reference.
        pair: with two losses and no reference, the comparison of one with the other, `pair_base`, which is the one
            with the worse mean in the primary metric; otherwise `None`.
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
    pair: Comparison | None = None
    pair_base: str | None = None

    @property
    def contrasts(self) -> tuple[Comparison, ...]:
        """The comparisons with the reference, or that of the only pair."""
        return self.comparisons if self.pair is None else (self.pair,)


@dataclass(frozen=True)
class SeveralMetrics:
    """Several primary metrics together.

    Attributes:
        analyses: metric -> its analysis over all classes, in the order in which the metrics were named; p-values and
            words are adjusted over all of them.
        tests: number of comparisons with the reference in all metrics together; 0 without one.
        ranks: loss -> its rank by mean in each metric, in their order.
        mean_ranks: loss -> the mean of these.
        tau: metric -> other metric -> Kendall's tau-b between the rankings by mean; None if one consists of ties.
    """

    analyses: dict[str, MetricAnalysis]
    tests: int
    ranks: dict[str, tuple[float, ...]]
    mean_ranks: dict[str, float]
    tau: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class Analysis:
    """The analysis of a table. `analyse` describes its arguments, from `reference` to `non_inferior`.

    Attributes:
        verdict: one sentence.
        summary: the same in two plain sentences, without its details.
        caveats: what the verdict does not cover, one sentence each.
        reference: the loss that the others were compared with; `None`: only pairs were compared.
        unit: the statistical unit, `patient`, or `case` if the table does not name patients.
        trainings: number of runs per loss: folds times seeds.
        folds: number of folds if each patient is in one fold; otherwise 1.
        seeds: number of seeds per fold.
        scores: loss -> the primary metric per patient, in the order of `patients`; failures counted as the worst.
        classes: class -> the analysis of the primary metric for this class; empty with fewer than two classes.
        metrics: the metrics of the table by name; not part of `to_dict`.
        class_cases: class -> number of cases that any loss has a row for; empty if all classes have all cases.
        further: further primary metric -> its margin, `None` if none was named; empty with one primary metric.
        several: all primary metrics together; `None` with one.
        subgroups: the comparison by groups of patients, per variable; empty if none were named.
        unlearned: runs that found a class in none of the cases that have it.
        influences: cases with a class that is empty in reference or prediction, and that a comparison rests on.
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
    metrics: Mapping[str, "Metric"]
    class_cases: dict[str, int] = field(default_factory=dict)
    summary: tuple[str, ...] = ()
    further: Mapping[str, float | None] = field(default_factory=dict)
    several: SeveralMetrics | None = None
    subgroups: tuple[Subgroups, ...] = ()
    influences: tuple[Influence, ...] = ()
    unlearned: tuple[Unlearned, ...] = ()

    @property
    def metric(self) -> "Metric":
        """The primary metric."""
        return self.metrics[self.primary.metric]

    @property
    def base(self) -> str | None:
        """The loss that the others are compared with: the reference, or without one that of the only pair."""
        return self.primary.pair_base if self.reference is None else self.reference

    def to_dict(self) -> dict[str, Any]:
        """The analysis as dicts, lists, numbers, text and `None`, ready for JSON."""
        content = asdict(replace(self, metrics={}))
        del content["metrics"]
        for name in ("class_cases", "subgroups", "influences", "unlearned"):
            if not content[name]:
                del content[name]
        if self.several is None:
            del content["several"], content["further"]
        return dict(_plain(content))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
