"""One loss on the outputs of several scales."""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medloss.call_arguments import CALL_ARGUMENTS, CallArguments, tensors_of
from medloss.checks import check_axes, checked_tensors, first_argument
from medloss.create import call_loss, pass_epoch_on
from medloss.errors import InputError
from medloss.spacing import UnknownSpacingError, resolve_spacing, scaled_spacing


class DeepSupervision(nn.Module):
    r"""The weighted sum of a loss over a network's outputs, finest first: $\sum_i w_i L(z_i, y_i)$.

    Target and mask are brought to each output's grid by nearest neighbours, as MONAI's `DeepSupervisionLoss` does.
    Unlike there, the spacing is scaled with the grid, so that distances stay in mm; distance maps, instance
    maps and voxel weights are resized as well, and skeleton maps by their maximum.

    Args:
        loss: the loss, ours or not.
        weights: one per scale, finest first; None: 1, 1/2, 1/4, ... divided by their sum, as nnU-Net has them. Scales
            beyond the last weight are left out.

    Raises:
        InputError: negative weights; from the call, more weights than outputs, outputs that are stacked in one tensor
            `[B, n, C, *spatial]` (pass `logits.unbind(1)`), a list of targets, a mask for a loss from elsewhere
            that takes none, a mask or map on another grid than the target's.

    References:
        Isensee et al. (2021), nnU-Net, doi 10.1038/s41592-020-01008-z, for the weights.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.DeepSupervision(medloss.DiceLoss(softmax=True))
        >>> label = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
        >>> outputs = [torch.zeros(1, 2, 8, 8, 8), torch.zeros(1, 2, 4, 4, 4)]
        >>> parts = [loss.loss(outputs[0], label), loss.loss(outputs[1], label[..., 1::2, 1::2, 1::2])]
        >>> bool(loss(outputs, label).isclose(2 / 3 * parts[0] + 1 / 3 * parts[1]))
        True
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None and (len(weights) == 0 or not all(w >= 0 for w in weights)):
            raise InputError(f"weights: got {list(weights)}; expected numbers >= 0, one per scale")
        self.loss = loss
        self.weights = None if weights is None else tuple(float(w) for w in weights)

    def forward(
        self,
        logits: Tensor | Sequence[Tensor] | None = None,
        target: Tensor | None = None,
        *,
        input: Tensor | Sequence[Tensor] | None = None,
        **given: Unpack[CallArguments],
    ) -> Tensor:
        """The weighted sum.

        Args:
            logits: `[B, C, *spatial]` per scale, finest first; one tensor is one scale.
            target: on the finest grid; see `SegmentationLoss.forward`, also for the other arguments.
            input: MONAI's name for `logits`, for calls by keyword.
            mask: on the finest grid.
            spacing: mm, of the finest grid.
            distance_map: on the finest grid.
            skeleton_map: on the finest grid.
            instance_map: on the finest grid.
            labelled_classes: of all scales.
            voxel_weight: on the finest grid.
        """
        logits = first_argument(logits, input)
        outputs = [logits] if isinstance(logits, Tensor) or not isinstance(logits, Sequence) else list(logits)
        if not outputs:
            raise InputError("logits: got no outputs; expected one tensor per scale, finest first")
        tensors = tensors_of(given)
        for output in outputs:
            _, target = checked_tensors(output, target, **tensors)
            check_axes(output, target)
        assert target is not None
        weights = self._weights(len(outputs))
        size = target.shape[2:]
        for name, value in tensors.items():
            # Resized it would fit every scale, whatever volume it is of.
            if value is not None and CALL_ARGUMENTS[name].resize and value.shape[2:] != size:
                raise InputError(
                    f"{name}: got shape {tuple(value.shape)} for a target {tuple(target.shape)}; expected the target's "
                    "grid, which is brought to the other scales"
                )
        try:
            spacings = resolve_spacing(given.get("spacing"), target, target.shape[0], len(size))
        except UnknownSpacingError:
            spacings = None  # the loss finds the same, and refuses it if it has distances
        total = outputs[0].new_zeros((), dtype=torch.float32)
        for output, weight in zip(outputs, weights, strict=False):
            if weight == 0:
                continue
            grid = output.shape[2:]
            scaled = None if spacings is None else [scaled_spacing(row, size, grid) for row in spacings]
            of_scale: Any = {
                name: _resized(value, grid, CALL_ARGUMENTS[name].resize)
                for name, value in tensors.items()
                if value is not None
            }
            value = call_loss(self.loss, output, _resized(target, grid), spacing=scaled, **of_scale)
            total = total + weight * value
        return total

    def start_epoch(self, epoch: int) -> None:
        """Update the weights where the loss is a `CombinedLoss`; call it before the epoch's first batch."""
        pass_epoch_on(self.loss, epoch)

    def _weights(self, scales: int) -> tuple[float, ...]:
        if self.weights is None:
            halves = [0.5**i for i in range(scales)]
            return tuple(h / sum(halves) for h in halves)
        if len(self.weights) > scales:
            raise InputError(f"weights: got {len(self.weights)} for {scales} outputs; expected at most one per output")
        return self.weights


def _resized(maps: Tensor, grid: torch.Size, resize: str = "nearest") -> Tensor:
    """Maps on another grid; `resize` as `CallArgument` has it."""
    if not resize or maps.shape[2:] == grid:
        return maps
    # Integers of any type pass through float32, exactly up to 2^24.
    values = maps if maps.is_floating_point() else maps.float()
    if resize == "max":
        pool = F.adaptive_max_pool2d if maps.ndim == 4 else F.adaptive_max_pool3d
        return pool(values, tuple(grid)).to(maps.dtype)
    return F.interpolate(values, size=tuple(grid), mode="nearest-exact").to(maps.dtype)
