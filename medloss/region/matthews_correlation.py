"""Matthews correlation coefficient loss."""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.distributed import sum_over_ranks
from medloss.errors import InputError
from medloss.kernels.sum_spec import Row
from medloss.loss_entry import register
from medloss.overlap import OverlapStatistics
from medloss.reduction import weighted
from medloss.region.base import RegionLoss
from medloss.voxel_sums import VoxelSums


@register(
    "matthews_correlation",
    family="region",
    paper="Abhishek and Hamarneh 2020, arXiv 2010.13454",
    summary="correlation of prediction and reference: true negatives count, too",
)
class MatthewsCorrelationLoss(RegionLoss):
    r"""One minus the soft Matthews correlation coefficient of each item and class.

    $$1 - \frac{TP\, TN - FP\, FN}{\sqrt{(TP + FP)(TP + FN)(TN + FP)(TN + FN) + s}}$$

    TP = sum y p, FP = sum (1 - y) p, FN = sum y (1 - p), TN = sum (1 - y)(1 - p), over an item's counted voxels;
    y: target; p: probability; s: smoothing, in voxels^4. For a hard prediction it is one minus Pearson's correlation.

    Where y is empty or full a correlation has no meaning: the value is (FP + FN) / N there, N the voxels that count.

    Replaces MONAI's `MCCLoss`, which is 1 without a gradient for an empty or full reference, unless the prediction is
    exactly right.

    Args:
        smooth_dr: s > 0. Default 1e-5 (MONAI's).
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed.

    Raises:
        InputError: `smooth_dr` is not positive.

    References:
        Abhishek and Hamarneh (2020), Matthews Correlation Coefficient Loss for Deep Convolutional Networks:
        Application to Skin Lesion Segmentation, arXiv 2010.13454.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.MatthewsCorrelationLoss(sigmoid=True)
        >>> label = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
        >>> logits = torch.tensor([[[[0.9, 0.8, 0.3, 0.2]]]]).logit()
        >>> round(loss(logits, label).item(), 4)  # 1 - (1.7 * 1.5 - 0.5 * 0.3) / (2.2 * 2 * 2 * 1.8)^0.5
        0.397
    """

    reads_voxels_again = True  # for the sum of w (1 - y)

    def __init__(self, *, smooth_dr: float = 1e-5, **common: Unpack[CommonArguments]) -> None:
        super().__init__(**common)
        if not smooth_dr > 0:
            raise InputError(f"smooth_dr: got {smooth_dr}; expected a positive number")
        self.smooth_dr = float(smooth_dr)

    def from_sums(self, sums: VoxelSums) -> Tensor:
        """Apply the formula, weigh and reduce."""
        statistics, outside = self.overlap(sums), self._outside(sums)
        # Two sums of one class round differently. Of a full class none may be left outside.
        voxels = statistics.target.to(_wide(outside)) + outside.to(_wide(outside))
        values = self.from_statistics(statistics.with_voxels(voxels))
        return self.reduced(weighted(values, sums.inputs), sums.inputs, statistics)

    def _outside(self, sums: VoxelSums) -> Tensor:
        """Sum (1 - y), `[B or 1, C']`."""
        inputs = sums.inputs
        if inputs.voxel_weight is None:
            outside = inputs.included(inputs.class_counts()) - sums.row(Row.TARGET)
        else:
            rest = 1 - inputs.included(inputs.target_maps())
            outside = inputs.labelled_only((rest * inputs.voxel_weight).sum(inputs.spatial_axes))
        if self.batch:
            (outside,) = sum_over_ranks(inputs.logits, outside.sum(0, keepdim=True))
        return outside

    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """One minus the coefficient."""
        # Products of four volumes: their differences need more digits than float32 has.
        tp, p, y, n = (value.to(_wide(value)) for value in (sums.tp, sums.prediction, sums.target, sums.voxels))
        one_sided = (y <= 0) | (y >= n)
        # In these sums the numerator TP TN - FP FN is N TP - (TP + FP)(TP + FN).
        # A float32 sum of p may end above N.
        product = p * y * (n - y) * (n - p).clamp(min=0)
        root = (torch.where(one_sided, 1.0, product) + self.smooth_dr).sqrt()
        errors = (p + y - 2 * tp) / n.clamp(min=1)
        return torch.where(one_sided, errors, 1 - (n * tp - p * y) / root).to(sums.tp)


def _wide(values: Tensor) -> torch.dtype:
    return torch.float32 if values.device.type == "mps" else torch.float64
