"""How a voxelwise and a region part become one value."""

import torch
from torch import Tensor

from medloss.distributed import sum_over_ranks
from medloss.inputs import LossInputs
from medloss.overlap import OverlapStatistics
from medloss.reduction import weighted
from medloss.sums_loss import SumsLoss


def reduce_compound(
    inputs: LossInputs,
    loss: SumsLoss,
    overlap: OverlapStatistics,
    voxel_share: float,
    entropy: Tensor,
    region_share: float,
    regions: Tensor,
) -> Tensor:
    """Add a voxelwise part, averaged per item, to a region part, and reduce.

    Args:
        inputs: the checked inputs of the loss.
        loss: whose `batch` and `reduction` hold; with `batch=True` the voxelwise part is the mean over all items'
            means, of all ranks.
        overlap: what `loss.overlap` gave.
        voxel_share: factor of the voxelwise part.
        entropy: the voxelwise part's sums `[B, 1 or C']`, class weights inside.
        region_share: factor of the region part.
        regions: `[B or 1, C']`, class weights not inside.
    """
    means = entropy / inputs.counts().clamp(min=1)
    if loss.batch:
        items = torch.ones_like(means)
        if not inputs.categorical:
            items = inputs.labelled_only(items)
        total, number = sum_over_ranks(inputs.logits, means.sum(0, keepdim=True), items.sum(0, keepdim=True))
        means = total / number.clamp(min=1)
    return loss.reduced(voxel_share * means + region_share * weighted(regions, inputs), inputs, overlap)
