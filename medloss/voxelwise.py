"""`VoxelwiseLoss`: the losses that are a value a voxel."""

from abc import abstractmethod

from torch import Tensor

from medloss.base import SegmentationLoss
from medloss.inputs import LossInputs
from medloss.reduction import reduce_voxels


class VoxelwiseLoss(SegmentationLoss):
    """A loss that is a value a voxel; a subclass says which in `voxels`."""

    @abstractmethod
    def voxels(self, inputs: LossInputs) -> Tensor:
        """The value a voxel: `[B, 1, *spatial]` (categorical) or `[B, C', *spatial]`; 0 at masked voxels."""

    def compute(self, inputs: LossInputs) -> Tensor:
        """Reduce the voxels' values."""
        return reduce_voxels(self.voxels(inputs), inputs, self.reduction)
