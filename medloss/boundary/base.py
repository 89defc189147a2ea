"""`BoundaryLoss`: the losses that are a mean over the voxels of an item and class."""

from abc import abstractmethod

from torch import Tensor

from medloss.base import SegmentationLoss
from medloss.entry import Recipe
from medloss.inputs import LossInputs
from medloss.reduction import item_means, reduce_items, weighted


class BoundaryLoss(SegmentationLoss):
    """A mean over voxels, an item and class; a subclass says of what in `voxels`. Targets must be hard."""

    soft_targets = False

    @abstractmethod
    def voxels(self, inputs: LossInputs) -> Tensor:
        """The value a voxel and class, `[B, C', *spatial]`; what it is at masked voxels does not matter."""

    def compute(self, inputs: LossInputs) -> Tensor:
        """Average over each item's counted voxels, weigh and reduce."""
        means = item_means(inputs.counted(self.voxels(inputs)), inputs)
        return reduce_items(weighted(means, inputs), inputs, self.reduction)


def karimi_recipe(name: str) -> Recipe:
    """The recipe of the three Hausdorff losses, which alone and from scratch collapse to background."""
    return Recipe(
        f"{name}+dice",
        schedule="balanced",
        note="Karimi 2019: together with Dice, its weight set anew each epoch so that both terms weigh the same",
    )
