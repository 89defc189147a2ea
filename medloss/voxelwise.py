"""`VoxelwiseLoss`: the losses that are a weighted cross entropy per voxel."""

from typing import ClassVar

from torch import Tensor

from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import Requested, VoxelSums, target_sums, weighted_cross_entropy


class VoxelwiseLoss(SumsLoss):
    """Cross entropy per voxel, times weights; a subclass defines which: per class, per voxel, or both."""

    #: Which cross entropy: `plain` or `focal`, as `Requested` has them.
    entropy: ClassVar[str] = "plain"
    #: Its exponent.
    gamma: float = 0.0
    #: The share of the target that is spread over all labels; a subclass may take it as an argument.
    label_smoothing: float = 0.0

    def class_factors(self, sums: VoxelSums) -> tuple[Tensor | float, Tensor | float]:
        """Weights of y and of 1 - y, each broadcastable to `[B, C']`; only the target's sums may be read."""
        return 1.0, 1.0

    def requested(self) -> Requested:
        """The cross entropy's sums."""
        return Requested(entropy=self.entropy, gamma=self.gamma, label_smoothing=self.label_smoothing)

    def from_sums(self, sums: VoxelSums) -> Tensor:
        """The sum, or the mean over all counted voxels (and channels)."""
        total = sums.class_cross_entropy(*self.class_factors(sums)).sum()
        if self.reduction == "sum":
            return total
        inputs = sums.inputs
        if inputs.categorical:
            # A softmax has one value per voxel, whatever classes are labelled.
            return total / inputs.total_count()
        return total / inputs.included(inputs.class_counts()).sum().clamp(min=1)

    def compute(self, inputs: LossInputs) -> Tensor:
        """The sums' formula, or with `reduction="none"` the value per voxel."""
        return self.voxels(inputs) if self.reduction == "none" else super().compute(inputs)

    def voxels(self, inputs: LossInputs) -> Tensor:
        """The value per voxel: `[B, 1, *spatial]` (categorical) or `[B, C', *spatial]`; 0 at masked voxels."""
        plain = type(self).class_factors is VoxelwiseLoss.class_factors
        factors = (1.0, 1.0) if plain else self.class_factors(target_sums(inputs))
        values = weighted_cross_entropy(
            inputs, *factors, entropy=self.entropy, gamma=self.gamma, label_smoothing=self.label_smoothing
        )
        weight = self.voxel_weight(inputs)
        return values if weight is None else values * inputs.counted(weight)


def checked_label_smoothing(label_smoothing: float) -> float:
    """The share as a number.

    Raises:
        InputError: it is outside [0, 1].
    """
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing: got {label_smoothing}; expected a number in [0, 1]")
    return float(label_smoothing)
