"""From values per voxel, or per item and class, to the requested reduction."""

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from medloss.distributed import sum_over_ranks
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


def sum_regions(inputs: LossInputs, sums: Iterable[Tensor], *, batch: bool) -> tuple[list[Tensor], Tensor]:
    """Sums per region, and how many voxels count in each: as they are, or over the batches of all ranks.

    Args:
        inputs: the checked inputs of a loss.
        sums: each `[B, C']`.
        batch: whether the region is the whole batch: `[1, C']` then.
    """
    values = [*sums, inputs.counts()]
    if batch:
        values = list(sum_over_ranks(inputs.logits, *(value.sum(0, keepdim=True) for value in values)))
    return values[:-1], values[-1]


def reduce_regions(values: Tensor, inputs: LossInputs, voxels: Tensor, *, batch: bool, reduction: str) -> Tensor:
    """Reduce as `reduce_items` does, by the voxels that count on all ranks.

    Args:
        values: one per item (or the batch) and class, `[B or 1, C']`.
        inputs: the checked inputs of the loss.
        voxels: that count, `[B or 1, 1]`, on all ranks.
        batch: whether the region is the whole batch.
        reduction: as `SegmentationLoss` has it.
    """
    if batch and inputs.mask is not None:
        # A rank whose voxels are all masked still returns the value of the global batch.
        values = values.where(voxels > 0, values.new_zeros(()))
        inputs = replace(inputs, mask=None)
    return reduce_items(values, inputs, reduction)
