"""From values per voxel, or per item and class, to the requested reduction."""

from torch import Tensor

from medloss.inputs import LossInputs


def weighted(values: Tensor, inputs: LossInputs) -> Tensor:
    """`[B or 1, C']` times the class weights."""
    return values if inputs.class_weight is None else values * inputs.class_weight.to(values)


def reduce_items(values: Tensor, inputs: LossInputs, reduction: str) -> Tensor:
    """Reduce `[B or 1, C']`, one value per item (or the batch) and class; the mean is over all of them."""
    if inputs.mask is not None:
        counts = inputs.counts()
        if values.shape[0] != counts.shape[0]:
            counts = counts.sum(0, keepdim=True)
        # An item of which no voxel counts contributes 0, whatever the smoothing terms would give.
        values = values.where(counts > 0, values.new_zeros(()))
    if reduction == "none":
        return values.reshape(*values.shape, *(1,) * len(inputs.spatial_axes))
    return values.sum() if reduction == "sum" else values.mean()


def reduce_means(sums: Tensor, inputs: LossInputs, reduction: str) -> Tensor:
    """Reduce the means over each item's counted voxels, of sums `[B, C']`; the class weights come on top."""
    return reduce_items(weighted(sums / inputs.counts().clamp(min=1), inputs), inputs, reduction)
