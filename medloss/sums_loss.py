"""`SumsLoss`: the losses that are functions of sums over voxels, so that several can share one pass."""

from abc import abstractmethod

from torch import Tensor

from medloss.base import SegmentationLoss
from medloss.inputs import LossInputs
from medloss.voxel_sums import Requested, VoxelSums, voxel_sums


class SumsLoss(SegmentationLoss):
    """A loss that reads the voxels only through sums; a subclass says which, and its formula over them."""

    @abstractmethod
    def requested(self) -> Requested:
        """Which sums the formula reads."""

    @abstractmethod
    def from_sums(self, sums: VoxelSums) -> Tensor:
        """The loss, reduced as `self.reduction` says."""

    def voxel_weight(self, inputs: LossInputs) -> Tensor | None:
        """A factor of errors and entropies, `[B, 1 or C', *spatial]`, without gradient; None for 1."""
        return None

    def compute(self, inputs: LossInputs) -> Tensor:
        """Sum, and apply the formula."""
        return self.from_sums(voxel_sums(inputs, self.requested(), self.voxel_weight(inputs)))
