"""From values a voxel, or an item and class, to what the caller asked for."""

from torch import Tensor

from medloss.inputs import LossInputs


def reduce_voxels(values: Tensor, inputs: LossInputs, reduction: str) -> Tensor:
    """Reduce a map `[B, 1 or C', *spatial]`, 0 at masked voxels; the mean is over all counted values."""
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if inputs.mask is None:
        return values.mean()
    return values.sum() / (inputs.mask.sum() * values.shape[1]).clamp(min=1)


def item_means(values: Tensor, inputs: LossInputs) -> Tensor:
    """Mean over each item's counted voxels: `[B, channels, *spatial]`, 0 at masked voxels, to `[B, channels]`."""
    return values.sum(inputs.spatial_axes) / inputs.counts().clamp(min=1)


def weighted(values: Tensor, inputs: LossInputs) -> Tensor:
    """`[B or 1, C']` times the class weights."""
    return values if inputs.class_weight is None else values * inputs.class_weight.to(values)


def reduce_items(values: Tensor, inputs: LossInputs, reduction: str) -> Tensor:
    """Reduce `[B or 1, C']`, one value an item (or the batch) and class; the mean is over all of them."""
    if inputs.mask is not None:
        counts = inputs.counts()
        if values.shape[0] != counts.shape[0]:
            counts = counts.sum(0, keepdim=True)
        # An item of which no voxel counts has no opinion, whatever the smoothing terms would say.
        values = values.where(counts > 0, values.new_zeros(()))
    if reduction == "none":
        return values.reshape(*values.shape, *(1,) * len(inputs.spatial_axes))
    return values.sum() if reduction == "sum" else values.mean()
