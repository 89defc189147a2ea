"""What every loss reads: logits, one target map a class, mask, spacing; brought to one form, once."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor


class Mode(Enum):
    """What a voxel is: one class out of C, or C yes/no answers (from logits, or as probabilities)."""

    CATEGORICAL = "softmax"
    BERNOULLI = "sigmoid"
    PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class LossInputs:
    """Checked inputs of a loss, in the accumulation type (float32, or float64 for float64 logits).

    Attributes:
        logits: `[B, C, *spatial]`; 0 at masked voxels, so that nothing there (NaN included) goes on.
        target: `[B, C, *spatial]`, one map a class, in the type of `logits`.
        mask: `[B, 1, *spatial]` bool, True where a voxel counts; None when all do.
        mode: how `logits` become probabilities.
        activation: the callable behind `other_act`, for `Mode.PROBABILITIES`.
        include_background: whether class 0 belongs to the sums.
        class_weight: `[1]` or `[C']`; None for 1.
        spacing: mm, one tuple an item.
        distance_map: `[B, C or C', *spatial]`, the target's signed distance in mm; None to compute it.
    """

    logits: Tensor
    target: Tensor
    mask: Tensor | None
    mode: Mode
    activation: Callable[[Tensor], Tensor] | None
    include_background: bool
    class_weight: Tensor | None
    spacing: list[tuple[float, ...]]
    distance_map: Tensor | None = None

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """The spatial axes of `logits`: (2, 3) or (2, 3, 4)."""
        return tuple(range(2, self.logits.ndim))

    @property
    def categorical(self) -> bool:
        """Whether a voxel is one class out of C."""
        return self.mode is Mode.CATEGORICAL

    def probabilities(self) -> Tensor:
        """p of all C classes; at masked voxels the target, without gradient."""
        if self.mode is Mode.CATEGORICAL:
            p = torch.softmax(self.logits, 1)
        elif self.mode is Mode.BERNOULLI:
            p = torch.sigmoid(self.logits)
        else:
            p = self.logits if self.activation is None else self.activation(self.logits)
        return p if self.mask is None else torch.where(self.mask, p, self.target)

    def hard_prediction(self) -> Tensor:
        """q of all C classes, bool: the first argmax (categorical), or p > 0.5; the target where masked."""
        with torch.no_grad():
            if self.mode is Mode.CATEGORICAL:
                winner = self.logits.argmax(1, keepdim=True)
                classes = torch.arange(self.logits.shape[1], device=winner.device)
                q = winner == classes.view(1, -1, *(1,) * len(self.spatial_axes))
            elif self.mode is Mode.BERNOULLI:
                q = self.logits > 0
            else:
                q = (self.logits if self.activation is None else self.activation(self.logits)) > 0.5
            return q if self.mask is None else torch.where(self.mask, q, self.target > 0.5)

    def included(self, maps: Tensor) -> Tensor:
        """The C' channels that count: all, or all but class 0."""
        return maps if self.include_background else maps[:, 1:]

    def counted(self, maps: Tensor) -> Tensor:
        """`maps` with 0 at masked voxels. It selects, never multiplies: NaN under a mask stays there."""
        return maps if self.mask is None else torch.where(self.mask, maps, maps.new_zeros(()))

    def counts(self) -> Tensor:
        """Number of voxels that count, `[B, 1]`."""
        if self.mask is None:
            voxels = self.logits[0, 0].numel()
            return self.logits.new_full((self.logits.shape[0], 1), voxels)
        return self.mask.sum(self.spatial_axes).to(self.logits.dtype)

    def weights(self) -> Tensor:
        """Class weights, broadcastable over `[B, C', *spatial]`."""
        if self.class_weight is None:
            return self.logits.new_ones((1,) * self.logits.ndim)
        weight = self.class_weight.to(self.logits)
        return weight.view(1, -1, *(1,) * len(self.spatial_axes))
