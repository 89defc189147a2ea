"""From values per voxel, or per item and class, to the requested reduction."""

from collections.abc import Iterable

import torch
from torch import Tensor

from medloss.distributed import sum_over_ranks
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


def sum_regions(inputs: LossInputs, sums: Iterable[Tensor], *, batch: bool) -> tuple[list[Tensor], Tensor, Tensor]:
    """Sums per region, how many voxels count in each, and how many items label the class.

    Args:
        inputs: the checked inputs of a loss.
        sums: each `[B, C']`.
        batch: whether the region is the batch of all ranks: `[1, C']` then.
    """
    voxels = inputs.included(inputs.class_counts(weighted=True))
    values = [inputs.labelled_only(values) for values in (*sums, voxels, torch.ones_like(voxels))]
    if batch:
        values = list(sum_over_ranks(inputs.logits, *(value.sum(0, keepdim=True) for value in values)))
    return values[:-2], values[-2], values[-1]


def reduce_regions(values: Tensor, inputs: LossInputs, voxels: Tensor, items: Tensor, reduction: str) -> Tensor:
    """Reduce as `reduce_items` does, by what counts on all ranks.

    Args:
        values: one per item (or the batch) and class, or of all classes together, `[B or 1, C' or 1]`.
        inputs: the checked inputs of the loss.
        voxels: that count, each as often as it weighs, `[B or 1, C']`, on all ranks.
        items: that label the class, likewise.
        reduction: as `SegmentationLoss` has it.
    """
    if values.shape[1] < voxels.shape[1]:
        voxels, items = (counts.amax(1, keepdim=True) for counts in (voxels, items))
    if inputs.mask is not None or inputs.voxel_weight is not None:
        # A rank whose voxels are all masked still returns the value of the global batch.
        values = values.where(voxels > 0, values.new_zeros(()))
    return reduce_pairs(values, inputs, None if inputs.labelled is None else items > 0, reduction)
