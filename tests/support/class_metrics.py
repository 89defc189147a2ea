"""The metrics of maps of classes, as tests call them."""

from torch import Tensor

from pipelines.evaluation.evaluate import region_metrics
from pipelines.evaluation.metrics.base import DEFAULT_SETTINGS, MetricSettings


def case_metrics(
    prediction: Tensor,
    reference: Tensor,
    num_classes: int,
    spacing: tuple[float, ...],
    settings: MetricSettings = DEFAULT_SETTINGS,
) -> list[dict[str, float]]:
    """The metrics of classes 1..C-1 of one case: labels `[*spatial]` and spacing in mm."""
    regions = [(c,) for c in range(1, num_classes)]
    return region_metrics(prediction.cpu().numpy(), reference.cpu().numpy(), regions, spacing, settings=settings)
