"""What the statistics need to know of a metric: the table comes with it. `pipelines.evaluation` has the metrics."""

from collections.abc import Mapping
from typing import Protocol


class MetricInfo(Protocol):
    """A metric, as `pipelines.evaluation.metric.Metric` describes it, without how it is computed."""

    @property
    def name(self) -> str:
        """Its column."""

    @property
    def label(self) -> str:
        """How it is written for people."""

    @property
    def unit(self) -> str:
        """`mm` for example; empty for a share."""

    @property
    def higher_is_better(self) -> bool:
        """The direction."""

    @property
    def sign(self) -> int:
        """Times this, more is better."""

    @property
    def lower(self) -> float:
        """The smallest value that it can have."""

    @property
    def upper(self) -> float:
        """The largest one; infinite where there is none."""

    @property
    def bounded(self) -> bool:
        """Whether there is a largest value."""

    @property
    def best(self) -> float:
        """The value of a perfect prediction."""

    @property
    def decimals(self) -> int:
        """How many are shown."""

    @property
    def heading(self) -> str:
        """Its label with its unit."""

    @property
    def empty_reference(self) -> str:
        """What it is where the reference has nothing of the class: `option`, `left out` or `value`."""

    @property
    def zero_without_overlap(self) -> bool:
        """Whether it is 0 just where prediction and reference share no voxel."""

    def worst(self, largest: float) -> float:
        """What a failed prediction counts, where `largest` is the largest value seen."""

    def shown(self, value: float, *, signed: bool = False, decimals: int | None = None) -> str:
        """A value as text, with its unit."""


def in_report_order(metrics: Mapping[str, MetricInfo]) -> dict[str, MetricInfo]:
    """The metrics in the order of reports: shares before those with a unit, those of one side of the errors last.

    Within each of these they stay in their order.
    """

    def place(metric: MetricInfo) -> tuple[bool, bool]:
        return bool(metric.unit), metric.empty_reference != "option"

    return {metric.name: metric for metric in sorted(metrics.values(), key=place)}


def having(metrics: Mapping[str, MetricInfo], empty_reference: str) -> list[str]:
    """The names of those with this `empty_reference`."""
    return [name for name, metric in metrics.items() if metric.empty_reference == empty_reference]
