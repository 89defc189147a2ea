"""`RegionLoss`: the losses that read only how prediction and reference overlap."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from medloss.overlap import OverlapStatistics
from medloss.reduction import weighted
from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import Requested, VoxelSums


class RegionLoss(SumsLoss):
    """A loss that is a function of `OverlapStatistics`; a subclass defines it in `from_statistics`."""

    #: Whether the formula reads the sums of (y - p)^2.
    reads_squared_errors: ClassVar[bool] = False
    #: Whether this instance's formula reads the sums of p^2 and y^2.
    squared_pred: bool = False
    #: Whether TP is the sum of (p + y - |p - y|) / 2, so that a soft target has its optimum at p = y.
    soft_label: bool = False

    @abstractmethod
    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """The loss per item (or the batch) and class, `[B or 1, C']`."""

    def requested(self) -> Requested:
        """The overlap's sums, and the squared ones that the formula reads."""
        # With squares the optimum lies there without it.
        soft = self.soft_label and not self.squared_pred
        return Requested(overlap=True, squares=self.squared_pred, errors=self.reads_squared_errors, soft_overlap=soft)

    def from_sums(self, sums: VoxelSums) -> Tensor:
        """Apply the formula, weigh and reduce."""
        statistics = self.overlap(sums)
        return self.reduced(weighted(self.from_statistics(statistics), sums.inputs), sums.inputs, statistics)
