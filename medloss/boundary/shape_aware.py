"""Shape-aware loss: cross entropy that weighs wrong voxels by how far the contours lie apart."""

import torch
from torch import Tensor

from medloss.distance.maps import outside_distance_map
from medloss.inputs import LossInputs, Mode
from medloss.kernels import dispatch, self_check
from medloss.kernels.self_check import small_case
from medloss.kernels.sum_spec import sum_type
from medloss.loss_entry import register
from medloss.voxelwise import VoxelwiseLoss


@register(
    "shape_aware",
    family="boundary",
    paper="Al Arif et al. 2017, doi 10.1007/978-3-319-74113-0_2",
    summary="cross entropy, wrong voxels weighted by how far the contours lie apart",
)
class ShapeAwareLoss(VoxelwiseLoss):
    r"""Cross entropy, times one plus the contours' distance where the hard prediction is wrong.

    $$\mathrm{mean}\big[\mathrm{CE}\,(1 + E\, 1[q \ne y])\big]$$

    CE: cross entropy per voxel, as in `BinaryCrossEntropyLoss`; q: hard prediction; y: target; E: the mean distance in
    mm from the predicted contour's voxels to the reference contour, one number per item (and channel, where channels
    are independent), without gradient. Categorical: E is the mean over classes 1..C-1, whatever `include_background`,
    and wrong means that the argmax differs from the label.

    A contour: the voxels of a mask with a face neighbour inside the image and outside the mask. With an empty contour
    E = 0, also where a map is given. A given `distance_map`, of the whole volume, changes the value for a crop: outside
    the reference it gives the distance, inside it bounds the transform's, which the crop alone would take too far. With
    softmax and `include_background=False` a false positive on background costs nothing.
    The survey's signs are wrong.

    Takes the arguments of `SegmentationLoss`, and no others; `batch` is ignored. Targets must be hard.

    Raises:
        InputError: as `SegmentationLoss`; a soft target.

    References:
        Al Arif, Knapp and Slabaugh (2017), Shape-aware deep convolutional neural network for vertebrae segmentation,
        doi 10.1007/978-3-319-74113-0_2.

    Example:
        >>> import torch, medloss
        >>> label = torch.zeros(1, 1, 8, 8)
        >>> label[..., 2:4, 2:4] = 1
        >>> loss = medloss.ShapeAwareLoss(sigmoid=True)
        >>> near, far = 8 * label.roll(1, 3) - 4, 8 * label.roll(4, 3) - 4
        >>> (loss(far, label) > loss(near, label)).item()
        True
    """

    soft_targets = False
    uses_spacing = True
    reads_maps = ("distance_map",)

    def voxel_weight(self, inputs: LossInputs) -> Tensor:
        """1 + E 1[q != y]."""
        by_labels = _by_labels(inputs)
        if by_labels:
            q, y = inputs.hard_labels()
            distance = _label_distance(q, y, inputs)
        else:
            q, y = inputs.hard_prediction(), inputs.target_masks()
            if not inputs.categorical:
                q, y = inputs.included(q), inputs.included(y)
                return torch.where(q != y, 1 + _contour_distance(q, y, inputs), 1.0)
            distance = _contour_distance(q[:, 1:], y[:, 1:], inputs)
        if inputs.labelled is None:
            distance = distance.mean(1, keepdim=True)
        else:  # an unlabelled class has no contour, and a distance of 0
            number = inputs.labelled[:, 1:].sum(1).clamp(min=1).view(-1, *(1,) * (distance.ndim - 1))
            distance = distance.sum(1, keepdim=True) / number
        return _wrong_weight(q, y, distance) if by_labels else torch.where((q != y).any(1, True), 1 + distance, 1.0)


def _wrong_weight(q: Tensor, y: Tensor, distance: Tensor) -> Tensor:
    from medloss.kernels.numba.voxel_weights import wrong_weight

    return wrong_weight(q, y, distance.flatten())


def _by_labels(inputs: LossInputs) -> bool:
    """Whether the compiled kernels' passes over labels can be used in the place of those over masks."""
    if not inputs.categorical or inputs.target.shape[1] != 1 or not dispatch.direct(inputs.logits, "contours"):
        return False
    # Distances are computed in float32, and have a check of their own.
    return dispatch.choose("cpu", torch.float32, "outside distances") == "numba"


def _label_distance(q: Tensor, y: Tensor, inputs: LossInputs) -> Tensor:
    """`_contour_distance` of all classes but 0, from labels `[B, 1, *spatial]`."""
    from medloss.kernels.numba.contours import contour_distances

    channels = inputs.logits.shape[1]
    signed = inputs.distance_map
    means = contour_distances(
        q[:, 0],
        y[:, 0],
        None if inputs.mask is None else inputs.mask[:, 0],
        channels,
        inputs.spacing,
        None if signed is None else signed[:, 1 - channels :],
    )
    return means.to(inputs.dtype).view(*means.shape, *(1,) * (q.ndim - 2))


def _contour_distance(prediction: Tensor, reference: Tensor, inputs: LossInputs) -> Tensor:
    """Mean distance in mm from the predicted contour's counted voxels to the reference contour, `[B, C, 1, ...]`."""
    axes = inputs.spatial_axes
    border = _contour(reference)
    to_reference = outside_distance_map(border, inputs.spacing).to(inputs.dtype)
    signed = inputs.distance_map
    if signed is not None:
        signed = signed[:, -reference.shape[1] :]
        known = torch.where(reference, torch.minimum(to_reference, signed.abs()), signed.clamp(min=0))
        to_reference = torch.where(border.any(dim=axes, keepdim=True), known, 0.0)
    contour = _contour(prediction)
    if inputs.mask is not None:
        contour = contour & inputs.mask
    count = contour.sum(axes, keepdim=True)
    return torch.where(contour, to_reference, 0.0).sum(axes, keepdim=True) / count.clamp(min=1)


def _contour(masks: Tensor) -> Tensor:
    """Voxels of a mask with a face neighbour inside the image and outside the mask."""
    contour = torch.zeros_like(masks)
    for axis in range(2, masks.ndim):
        size = masks.shape[axis]
        low, high = masks.narrow(axis, 0, size - 1), masks.narrow(axis, 1, size - 1)
        contour.narrow(axis, 0, size - 1).logical_or_(low & ~high)
        contour.narrow(axis, 1, size - 1).logical_or_(high & ~low)
    return contour


def _small_case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Volumes and images, with a mask and without; any maps do, so that no transform is needed for them."""
    results = []
    for shape, spacing in (((5, 7, 9), (3.0, 0.8, 1.1)), ((7, 9), (0.8, 1.1))):
        logits, target, mask, _ = small_case("softmax", shape, device, dtype)
        for counted, maps in ((mask, None), (None, logits.to(sum_type(logits)))):
            inputs = LossInputs(logits, target, counted, Mode.CATEGORICAL, True, None, [spacing] * 2, maps)
            results.append(ShapeAwareLoss(softmax=True).voxel_weight(inputs))
    return results


self_check.register("contours", _small_case)
