"""`MeanOverVoxelsLoss`: the losses that are a mean over the voxels of an item and class."""

from abc import abstractmethod

from torch import Tensor

from medloss.base import SegmentationLoss
from medloss.inputs import LossInputs
from medloss.loss_entry import Recipe
from medloss.reduction import reduce_means


class MeanOverVoxelsLoss(SegmentationLoss):
    """A mean over voxels, per item and class; a subclass defines the values in `sums`. Targets must be hard."""

    soft_targets = False
    uses_spacing = True

    @abstractmethod
    def sums(self, inputs: LossInputs) -> Tensor:
        """The sum over an item's counted voxels, `[B, C']`."""

    def compute(self, inputs: LossInputs) -> Tensor:
        """Average over each item's counted voxels, weigh and reduce."""
        return reduce_means(self.sums(inputs), inputs, self.reduction)


def karimi_recipe(name: str, *, clip: float | None = None, note: str = "") -> Recipe:
    """The recipe of the three Hausdorff losses, which alone and from scratch collapse to background.

    Args:
        name: of the loss.
        clip: largest norm of a step's gradient; None: any.
        note: why, in addition to the common note.
    """
    return Recipe(
        f"{name}+dice",
        schedule="balanced",
        clip=clip,
        note="After Karimi 2019: together with Dice, the weights set again each epoch so that both terms weigh the "
        "same. Ours: Dice keeps its weight, and the Hausdorff term is scaled to it; the other way the sum's scale "
        "falls by orders of magnitude, and the steps of an adaptive optimizer with it" + note,
    )
