"""What an analysis holds."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.comparison.statistics.bootstrap import Bootstrap
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
        failed: empty cells that counted as worst.
        lacking: cases of which there was no row, which counted as worst.
    """

    loss: str
    rank: float
    mean: float
    median: float
    sd: float | None
    average_rank: float
    failed: int
    lacking: tuple[str, ...]


@dataclass(frozen=True)
class Reach:
    """What could be seen at all.

    Attributes:
        cases: patients.
        least_cases: below so many no comparison with the reference can be significant; none without a reference.
        least_cases_pairs: below so many no pair of all can.
        sd: median over the comparisons of the differences' standard deviation; none with one patient or no reference.
        difference: the least true mean difference that one comparison alone finds with 80 % power; none if none.
        difference_holm: the same for the strictest step of Holm's, among all comparisons.
    """

    cases: int
    least_cases: int | None
    least_cases_pairs: int
    sd: float | None
    difference: float | None
    difference_holm: float | None


@dataclass(frozen=True)
class MetricAnalysis:
    """One measure, of all classes or of one.

    Attributes:
        metric: its column.
        class_name: the class; none: the mean over a case's classes.
        primary: named before; all others are secondary, and say no more than that there is something to look at.
        patients: how many were compared.
        excluded: cases of which a class, or all, were left out, since the measure has no meaning there.
        ranking: best mean first.
        comparisons: with the reference, in the order of the ranking; empty without one.
        omnibus: all losses and pairs.
        bootstrap: intervals of means and ranks.
        reach: what could be seen at all.
    """

    metric: str
    class_name: str | None
    primary: bool
    patients: int
    excluded: tuple[str, ...]
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
        trainings: seeds a patient.
        patients: their names.
        scores: loss -> the primary measure a patient, in the order of `patients`; failures counted as worst.
        primary: the primary measure.
        classes: class -> the primary measure; empty with fewer than two.
        secondary: measure -> its analysis.
    """

    verdict: str
    caveats: tuple[str, ...]
    reference: str | None
    margin: float
    bootstraps: int
    seed: int
    trainings: int
    patients: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]
    primary: MetricAnalysis
    classes: dict[str, MetricAnalysis]
    secondary: dict[str, MetricAnalysis]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: dicts, lists, numbers, text, and `None` for what there is not."""
        return dict(_plain(asdict(self)))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
