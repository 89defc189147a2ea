"""Cross entropy that weighs voxels by their distance to the reference's border."""

from dataclasses import replace

import torch
from torch import Tensor

from medloss.distance.maps import penalty_map, signed_distance_map
from medloss.inputs import LossInputs, Mode
from medloss.kernels import dispatch, self_check
from medloss.kernels.sum_spec import sum_type
from medloss.loss_entry import register
from medloss.voxelwise import VoxelwiseLoss


@register(
    "distance_penalty",
    family="distribution",
    paper="Caliva et al. 2019, arXiv 1908.03679",
    summary="cross entropy, heavier near the reference's border",
)
class DistancePenaltyLoss(VoxelwiseLoss):
    r"""Cross entropy times one plus a map that is highest at the reference's border.

    $$(1 + F)\, \mathrm{CE}, \quad F = (\max d - d) / \max d$$

    CE: cross entropy per voxel, as in `BinaryCrossEntropyLoss`; d: distance in mm to the nearest voxel of the
    other side, separately for each side of a structure's border; max d: over that whole side, masked voxels too. F lies
    in [0, 1). It is 0 for an empty or full structure, and inside one that is a voxel thick.

    Independent channels: one map per channel. Categorical: the maximum of F over classes 1..C-1, whatever
    `include_background`; background voxels far from every border then weigh least. With softmax and
    `include_background=False` a false positive on background costs nothing.

    Takes the arguments of `SegmentationLoss`, and no others. Targets must be hard. `spacing` (mm) matters;
    `distance_map` spares the transform. The division by max d is ours; the paper inverts the map.

    Raises:
        InputError: as `SegmentationLoss`; a soft target.

    References:
        Caliva, Iriondo, Martinez, Majumdar and Pedoia (2019), Distance Map Loss Penalty Term for Semantic
        Segmentation, arXiv 1908.03679.

    Example:
        >>> import torch, medloss
        >>> label = torch.zeros(1, 1, 1, 5)
        >>> label[..., :2] = 1  # distances to the border: 2 1 | 1 2 3
        >>> loss = medloss.DistancePenaltyLoss(sigmoid=True, reduction="none")
        >>> (loss(torch.zeros(1, 1, 1, 5), label) / torch.tensor(2.0).log() - 1).flatten().tolist()
        [0.0, 0.5, 0.6666666269302368, 0.3333333730697632, 0.0]
    """

    soft_targets = False
    uses_spacing = True
    reads_maps = ("distance_map",)

    def voxel_weight(self, inputs: LossInputs) -> Tensor:
        """One plus the penalty map."""
        channels = inputs.logits.shape[1]
        kept = channels - 1 if inputs.categorical or not inputs.include_background else channels
        signed = inputs.distance_map
        if dispatch.direct(inputs.logits, "penalty weight"):
            if signed is None:
                signed = signed_distance_map(inputs.target_masks()[:, channels - kept :], inputs.spacing)
            return _compiled(signed[:, -kept:], inputs.categorical, inputs.dtype)
        structures = inputs.target_masks()[:, channels - kept :]
        signed = None if signed is None else signed[:, -kept:]
        spacing = inputs.spacing if signed is None else None  # which may be unknown
        penalty = penalty_map(structures, spacing, signed_map=signed).to(inputs.dtype)
        return 1 + (torch.amax(penalty, 1, keepdim=True) if inputs.categorical else penalty)


def _compiled(signed: Tensor, joint: bool, dtype: torch.dtype) -> Tensor:
    from medloss.kernels.numba.voxel_weights import penalty_weight

    return penalty_weight(signed, joint, dtype)


def _small_case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    signed = (torch.arange(2 * 3 * 315, dtype=torch.float32, device="cpu") * 0.3).sin().mul(9).round()
    logits, signed = torch.zeros(2, 3, 5, 7, 9, dtype=dtype, device=device), signed.view(2, 3, 5, 7, 9).to(device)
    inputs = LossInputs(logits, logits, None, Mode.CATEGORICAL, True, None, [], signed.to(sum_type(logits)))
    loss = DistancePenaltyLoss()
    return [loss.voxel_weight(inputs), loss.voxel_weight(replace(inputs, mode=Mode.BERNOULLI))]


self_check.register("penalty weight", _small_case)
