"""`RegionLoss`: the losses that read only sums over voxels."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from medloss.base import SegmentationLoss
from medloss.inputs import LossInputs
from medloss.overlap import OverlapStatistics, overlap_statistics
from medloss.reduction import reduce_items, weighted


class RegionLoss(SegmentationLoss):
    """A loss that is a function of `OverlapStatistics`; a subclass says which in `from_statistics`."""

    #: Whether the formula reads the sums of (y - p)^2.
    reads_squared_errors: ClassVar[bool] = False
    #: Whether this instance's formula reads the sums of p^2 and y^2.
    squared_pred: bool = False

    @abstractmethod
    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """The loss an item (or the batch) and class, `[B or 1, C']`."""

    def compute(self, inputs: LossInputs) -> Tensor:
        """Sum, apply the formula, weigh and reduce."""
        sums = overlap_statistics(
            inputs, batch=self.batch, squares=self.squared_pred, squared_errors=self.reads_squared_errors
        )
        return reduce_items(weighted(self.from_statistics(sums), inputs), inputs, self.reduction)
