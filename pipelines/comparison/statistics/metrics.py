"""The measures that a table of results may have: which way is better, and how bad it gets."""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Metric:
    """A measure.

    Attributes:
        name: its column.
        label: how it is written.
        higher_is_better: the direction.
        upper: the largest value it can have; the smallest is 0.
    """

    name: str
    label: str
    higher_is_better: bool = True
    upper: float = 1.0

    @property
    def sign(self) -> int:
        """Times this, more is better."""
        return 1 if self.higher_is_better else -1

    @property
    def bounded(self) -> bool:
        """Whether there is a largest value."""
        return self.upper < inf

    def worst(self, largest: float) -> float:
        """What a failed prediction counts: 0, or of a distance, which has no bound, the largest one seen."""
        return 0.0 if self.higher_is_better else largest

    def shown(self, value: float, *, signed: bool = False) -> str:
        """A value as text, with its unit."""
        digits = f"{value:{'+' if signed else ''}.{4 if self.bounded else 2}f}"
        return digits if self.bounded else f"{digits} mm"


#: By column, in the order of reports.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice"),
        Metric("iou", "IoU"),
        Metric("nsd", "NSD"),
        Metric("sensitivity", "sensitivity"),
        Metric("specificity", "specificity"),
        Metric("hd95_mm", "HD95", higher_is_better=False, upper=inf),
        Metric("assd_mm", "ASSD", higher_is_better=False, upper=inf),
    )
}
