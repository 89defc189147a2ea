"""From values per voxel, or per item and class, to the requested reduction."""

from torch import Tensor

from medloss.inputs import LossInputs


def weighted(values: Tensor, inputs: LossInputs) -> Tensor:
    """`[B or 1, C']` times the class weights."""
    return values if inputs.class_weight is None else values * inputs.class_weight.to(values)


def reduce_items(values: Tensor, inputs: LossInputs, reduction: str) -> Tensor:
    """Reduce `[B, C']`, one value per item and class; the mean is over all of them that are labelled."""
    if inputs.mask is not None:
        # An item of which no voxel counts contributes 0, whatever the formula would give.
        values = values.where(inputs.counts() > 0, values.new_zeros(()))
    return reduce_pairs(values, inputs, inputs.pairs(), reduction)


def reduce_pairs(values: Tensor, inputs: LossInputs, pairs: Tensor | None, reduction: str) -> Tensor:
    """Reduce `[B or 1, C']`.

    Args:
        values: one per item (or the batch) and class.
        inputs: the checked inputs of the loss.
        pairs: which of them count, as bool; None for all.
        reduction: `mean`, `sum` or `none`.
    """
    if pairs is not None:
        values = values.where(pairs, values.new_zeros(()))
    if reduction == "none":
        return values.reshape(*values.shape, *(1,) * len(inputs.spatial_axes))
    if reduction == "sum":
        return values.sum()
    return values.mean() if pairs is None else values.sum() / pairs.sum().clamp(min=1)


def reduce_means(sums: Tensor, inputs: LossInputs, reduction: str) -> Tensor:
    """Reduce the means over each item's counted voxels, of sums `[B, C']`; the class weights come on top."""
    return reduce_items(weighted(sums / inputs.counts().clamp(min=1), inputs), inputs, reduction)
