"""How a voxelwise and a region part become one value."""

from torch import Tensor

from medloss.base import SegmentationLoss
from medloss.inputs import LossInputs
from medloss.reduction import reduce_items, weighted


def reduce_compound(
    inputs: LossInputs,
    loss: SegmentationLoss,
    voxel_share: float,
    entropy: Tensor,
    region_share: float,
    regions: Tensor,
) -> Tensor:
    """Add a voxelwise part, averaged an item, to a region part, and reduce.

    Args:
        inputs: the checked inputs of the loss.
        loss: whose `batch` and `reduction` hold.
        voxel_share: factor of the voxelwise part.
        entropy: the voxelwise part's sums `[B, 1 or C']`, class weights inside.
        region_share: factor of the region part.
        regions: `[B or 1, C']`, class weights not inside.
    """
    means = entropy / inputs.counts().clamp(min=1)
    if loss.batch:
        means = means.mean(0, keepdim=True)
    return reduce_items(voxel_share * means + region_share * weighted(regions, inputs), inputs, loss.reduction)
