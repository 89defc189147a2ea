"""What an analysis holds."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.comparison.statistics.bootstrap import Bootstrap
from pipelines.comparison.statistics.metrics import MetricInfo
from pipelines.comparison.statistics.omnibus import Omnibus
from pipelines.comparison.statistics.paired import Comparison


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
