"""`SumsLoss`: the losses that are functions of sums over voxels, so that several can share one pass."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from medloss.base import SegmentationLoss
from medloss.inputs import LossInputs
from medloss.overlap import OverlapStatistics
from medloss.reduction import reduce_pairs, reduce_regions
from medloss.voxel_sums import Requested, VoxelSums, voxel_sums


class SumsLoss(SegmentationLoss):
    """A loss that reads the voxels only through sums; a subclass defines which, and the formula over them."""

    #: Whether the formula makes another pass over the voxels of the sums that it is given.
    reads_voxels_again: ClassVar[bool] = False

    @abstractmethod
    def requested(self) -> Requested:
        """Which sums the formula reads."""

    @abstractmethod
    def from_sums(self, sums: VoxelSums) -> Tensor:
        """The loss, reduced by `self.reduction`."""

    def voxel_weight(self, inputs: LossInputs) -> Tensor | None:
        """The formula's factor of each voxel, `[B, 1 or C', *spatial]`, without gradient; None for 1.

        `LossInputs.voxel_weight`, which the caller gives, comes on top.
        """
        return None

    def compute(self, inputs: LossInputs) -> Tensor:
        """Sum, and apply the formula."""
        return self.from_sums(voxel_sums(inputs, self.requested(), self.voxel_weight(inputs)))

    def overlap(self, sums: VoxelSums) -> OverlapStatistics:
        """How prediction and reference overlap, per item; with `batch=True` over the batches of all ranks."""
        return OverlapStatistics(sums, batch=self.batch)

    def reduced(self, values: Tensor, inputs: LossInputs, overlap: OverlapStatistics) -> Tensor:
        """Reduce as `reduce_items` does, by what counts on all ranks.

        Args:
            values: one per item (or the batch) and class, `[B or 1, C' or 1]`.
            inputs: the checked inputs of the loss.
            overlap: what `self.overlap` gave.
        """
        if inputs.mask is None and inputs.voxel_weight is None and inputs.labelled is None:
            return reduce_pairs(values, inputs, None, self.reduction)
        return reduce_regions(values, inputs, overlap.voxels, overlap.items, self.reduction)
