"""Boundary loss: probabilities times the signed distance to the reference's border."""

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.boundary.base import MeanOverVoxelsLoss
from medloss.distance.maps import signed_distance_map
from medloss.inputs import LossInputs
from medloss.kernels.sum_spec import Row
from medloss.loss_entry import Recipe, register
from medloss.voxel_sums import Requested, voxel_sums


@register(
    "boundary",
    family="boundary",
    paper="Kervadec et al. 2018, arXiv 1812.07032",
    summary="probabilities times the signed distance to the reference's border",
    recipe=Recipe(
        "dice+binary_cross_entropy+0.01*boundary",
        terms={"boundary": {"include_background": False}},
        note="Background's map is the opposite of the structures' and is left out. The authors' code adds it to "
        "generalized Dice, which gives way to it by 0.01 per epoch until epoch 90 ('rebalance'): with classes of very "
        "different sizes that sum learned only the rarest (phantom, 20 epochs: Dice 0.316; this sum: 0.911)",
    ),
)
class BoundaryLoss(MeanOverVoxelsLoss):
    r"""Probabilities, weighted by the signed distance to the reference's border.

    $$\mathrm{mean}\big[p\, \phi\big]$$

    p: probability; phi: the signed distance in mm to the nearest voxel of the other side, positive outside, negative
    inside (`signed_distance_map`), without gradient. The mean is over the voxels of an item and class: the integral of
    phi over the prediction, which grows with the distance between the two borders.

    Pitfalls: a perfect prediction has the *negative* value -mean edt(y); `subtract_minimum` moves it to 0. An empty or
    a full reference has no border: phi, value and gradient are 0. Alone the loss collapses to background where the
    foreground is small, since all of background adds up to more than the structure: its authors train it next to
    generalized Dice.

    Replaces MONAI's `BoundaryLoss`, which subtracts 1 voxel from the distances inside (also where they are in mm): with
    spacing 1 its value is ours plus mean(p y).

    `spacing` (mm) matters; `distance_map` spares the transform.

    Args:
        normalize: divide phi by its largest absolute value, over the whole map: no unit, and a range of [-1, 1].
        subtract_minimum: (p - y) phi, which is |p - y| |phi|: the same gradient, and least 0.
        **common: the arguments of `SegmentationLoss`; `batch` is ignored. Targets must be hard.

    Raises:
        InputError: as `SegmentationLoss`; a soft target.

    References:
        Kervadec, Bouchtiba, Desrosiers, Granger, Dolz and Ben Ayed (2018), Boundary loss for highly unbalanced
        segmentation, arXiv 1812.07032.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.BoundaryLoss(sigmoid=True)
        >>> label = torch.tensor([[[[0.0, 1.0, 1.0, 0.0, 0.0]]]])
        >>> logits = torch.tensor([[[[0.2, 0.9, 0.6, 0.1, 0.4]]]]).logit()
        >>> round(loss(logits, label, spacing=0.7).item(), 4)  # 0.7 (0.2 - 0.9 - 0.6 + 0.1 + 2 * 0.4) / 5
        -0.056
    """

    reads_maps = ("distance_map",)

    def __init__(
        self, *, normalize: bool = False, subtract_minimum: bool = False, **common: Unpack[CommonArguments]
    ) -> None:
        super().__init__(**common)
        self.normalize = normalize
        self.subtract_minimum = subtract_minimum
        #: Read by `CombinedLoss`, whose balanced weights are quotients of values.
        self.negative_values = not subtract_minimum

    def sums(self, inputs: LossInputs) -> Tensor:
        """The sum of p phi, or of (p - y) phi."""
        phi = self._signed_maps(inputs)
        if self.subtract_minimum:
            # Not the difference of two sums, whose rounding may exceed it.
            error = inputs.included(inputs.probabilities()) - inputs.included(inputs.target_maps())
            values = inputs.times_voxel_weight(inputs.counted(error * inputs.included(phi)))
            sums = values.sum(inputs.spatial_axes)
        else:
            # The overlap's sum of y p, with phi in y's place: it needs no map of p.
            sums = voxel_sums(replace(inputs, target=phi, ignore_index=None), Requested(overlap=True)).row(Row.TP)
        if self.normalize:
            # NaN under a mask stays there.
            largest = inputs.included(phi).abs().nan_to_num(0.0, torch.inf).amax(inputs.spatial_axes)
            sums = sums / torch.where(largest > 0, largest, 1.0)
        return sums

    def _signed_maps(self, inputs: LossInputs) -> Tensor:
        """phi of all C classes; that of a background that does not count may be anything finite."""
        classes, given = inputs.logits.shape[1], inputs.distance_map
        if given is None:
            masks = inputs.target_masks()
            if not inputs.include_background:
                masks[:, 0] = False
            return signed_distance_map(masks, inputs.spacing)
        return given if given.shape[1] == classes else torch.cat([torch.zeros_like(given[:, :1]), given], 1)
