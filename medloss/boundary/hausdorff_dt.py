"""Hausdorff distance loss by distance transforms."""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.boundary.base import karimi_recipe
from medloss.distance.maps import squared_distance_map
from medloss.errors import InputError
from medloss.inputs import LossInputs, Mode
from medloss.kernels import dispatch, self_check
from medloss.kernels.sum_spec import Row, sum_type
from medloss.loss_entry import register
from medloss.reduction import reduce_items, weighted
from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import Requested, VoxelSums


@register(
    "hausdorff_dt",
    family="boundary",
    paper="Karimi and Salcudean 2019, arXiv 1904.10030",
    summary="squared errors times squared distances to both borders, by distance transforms",
    recipe=karimi_recipe("hausdorff_dt"),
)
class HausdorffDTLoss(SumsLoss):
    r"""Squared errors, weighted by their distance to the borders of prediction and reference.

    $$\mathrm{mean}\big[(p - y)^2\, (d(q)^a + d(y)^a)\big]$$

    p: probability; y: target; q: hard prediction (p > 0.5, or the argmax of a softmax); d: distance in mm to the
    border, `boundary_distance_map`, without gradient; a: `alpha`. The mean is over the voxels of an item and class.

    Replaces MONAI's `HausdorffDTLoss`, which drops class 0 by default, knows no spacing, thresholds at 0.5
    with softmax, too, and truncates its distances for integer targets. `spacing` (mm) matters; `distance_map` spares
    the reference's transform.

    Pitfall: an empty target has no border, and neither has a full prediction: a wrong full prediction on an
    empty target has the value 0. Alone and from scratch the loss collapses to background: its paper trains it
    together with Dice.

    Args:
        alpha: a > 0. Default 2 (the paper's).
        one_sided: only the reference's map: half the work.
        log: ln(1 + x) of each item and class, before weights and mean; as `LogHausdorffDTLoss`.
        **common: the arguments of `SegmentationLoss`; `batch` is ignored.

    Raises:
        InputError: `alpha` not positive; a soft target.

    References:
        Karimi and Salcudean (2019), Reducing the Hausdorff Distance in Medical Image Segmentation with
        Convolutional Neural Networks, arXiv 1904.10030.

    Example:
        >>> import torch, medloss
        >>> label = torch.zeros(1, 1, 1, 5)
        >>> label[..., 0] = 1  # distances in mm: 0.5 | 0.5 1 1.5 2
        >>> loss = medloss.HausdorffDTLoss(sigmoid=True)
        >>> logits = 40 * label - 20
        >>> logits[..., 3] = 20  # wrong at 1.5 mm from the reference, at 0.5 mm from the prediction's border
        >>> round(loss(logits, label, spacing=(1.0, 0.5)).item(), 4)  # (1.5^2 + 0.5^2) / 5
        0.5
    """

    soft_targets = False
    uses_spacing = True
    reads_maps = ("distance_map",)

    def __init__(
        self,
        *,
        alpha: float = 2.0,
        one_sided: bool = False,
        log: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        if not alpha > 0:
            raise InputError(f"alpha: got {alpha}; expected a positive number")
        self.alpha = float(alpha)
        self.one_sided = one_sided
        self.log = log

    def requested(self) -> Requested:
        """The weighted squared errors."""
        return Requested(errors=True)

    def from_sums(self, sums: VoxelSums) -> Tensor:
        """Average over each item's counted voxels, weigh and reduce."""
        inputs = sums.inputs
        errors = sums.row(Row.ERROR_INSIDE) + sums.row(Row.ERROR_OUTSIDE)
        means = errors / inputs.counts().clamp(min=1)
        if self.log:
            means = means.log1p()
        return reduce_items(weighted(means, inputs), inputs, self.reduction)

    def voxel_weight(self, inputs: LossInputs) -> Tensor:
        """d(q)^a + d(y)^a."""
        left = inputs.included(inputs.logits).shape[1]
        by_labels = inputs.categorical and inputs.target.shape[1] == 1
        if not self.one_sided and by_labels and dispatch.direct(inputs.logits, "label distances"):
            return self._by_labels(inputs, left)
        if inputs.distance_map is not None:
            weight = self._power(inputs.distance_map[:, -left:].square())
        else:
            weight = self._power(squared_distance_map(inputs.included(inputs.target_masks()), inputs.spacing))
        if not self.one_sided:
            q = inputs.hard_prediction()
            # Of two classes one is where the other is not, and their borders are the same.
            twins = inputs.categorical and inputs.mask is None and q.shape[1] == 2
            q = q[:, 1:] if twins else inputs.included(q)
            weight += self._power(squared_distance_map(q, inputs.spacing))
        return weight

    def _by_labels(self, inputs: LossInputs, left: int) -> Tensor:
        """The same from the predicted class of each voxel, with no map of the prediction in between."""
        q, channels, signed = inputs.hard_labels()[0], inputs.logits.shape[1], inputs.distance_map
        twins = channels == 2 and inputs.mask is None
        first = 1 if twins else channels - left
        if signed is not None and self.alpha == 2 and channels - first == left:
            return _label_squares(q, first, inputs, signed[:, -left:], inputs.dtype)
        if signed is None:
            weight = squared_distance_map(inputs.included(inputs.target_masks()), inputs.spacing)
        else:
            weight = signed[:, -left:].square()
        return self._power(weight).add_(self._power(_label_squares(q, first, inputs, None, torch.float32)))

    def _power(self, square: Tensor) -> Tensor:
        """d^a of d^2, in its memory."""
        return square if self.alpha == 2 else square.pow_(self.alpha / 2)


def _label_squares(q: Tensor, first: int, inputs: LossInputs, signed: Tensor | None, dtype: torch.dtype) -> Tensor:
    from medloss.kernels.numba.distance import label_squares

    return label_squares(q, first, inputs.logits.shape[1], inputs.spacing, signed, dtype)


def _small_case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    numbers = torch.arange(2 * 4 * 504, dtype=torch.float64, device="cpu").view(2, 4, 7, 8, 9)
    logits = ((0.11 * numbers).sin() + (0.9 * numbers).sin()).to(dtype)
    logits[1, 3] = -9  # a class that is nowhere
    signed = (0.3 * numbers).sin().to(device, sum_type(logits))
    logits = logits.to(device)
    target = logits[:, :1] * 0
    spacing: list[tuple[float, ...]] = [(2.0, 1.0, 1.0), (0.7, 1.3, 2.1)]
    inputs = LossInputs(logits, target, None, Mode.CATEGORICAL, True, None, spacing, signed)
    return [
        HausdorffDTLoss(softmax=True).voxel_weight(inputs),
        HausdorffDTLoss(softmax=True, alpha=1.0).voxel_weight(inputs),
    ]


self_check.register("label distances", _small_case)
