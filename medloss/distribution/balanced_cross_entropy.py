"""Cross entropy weighted by how rare a class is in the current image."""

from typing import Unpack

from torch import Tensor

from medloss.base import CommonArguments
from medloss.distributed import sum_over_ranks
from medloss.loss_entry import register
from medloss.voxel_sums import VoxelSums
from medloss.voxelwise import VoxelwiseLoss, checked_label_smoothing


@register(
    "balanced_cross_entropy",
    family="distribution",
    paper="Xie and Tu 2015, arXiv 1504.06375",
    summary="cross entropy, each class weighted by its rarity in the image",
)
class BalancedCrossEntropyLoss(VoxelwiseLoss):
    r"""Cross entropy whose weights balance each channel's foreground and background.

    Independent channels:

    $$-[b\, y \ln p + (1 - b)(1 - y) \ln(1 - p)], \quad b = 1 - \mathrm{mean}(y)$$

    Categorical: $-\sum_c (1 - \mathrm{mean}(y_c))\, y_c \ln p_c$.

    y: target; p: probability; b: the share of voxels that are not foreground, per item and channel, or over the
    batch (`batch=True`), of the voxels that count.

    Pitfall: on an empty channel b is 1, on a full one 0, so one of the two sides weighs nothing: a wrong
    prediction costs nothing there. With softmax and `include_background=False` neither does a false positive
    on background.

    Args:
        label_smoothing: e in [0, 1]: the target y becomes (1 - e) y + e / C with softmax, where C is the number of
            (labelled) classes, as in torch, else (1 - e) y + e / 2. A perfect prediction then does not give 0.
            b stays that of y. Default 0.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed.

    Raises:
        InputError: `label_smoothing` outside [0, 1].

    References:
        Xie and Tu (2015), Holistically-Nested Edge Detection, arXiv 1504.06375.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.BalancedCrossEntropyLoss(sigmoid=True)
        >>> label = torch.zeros(1, 1, 4, 4)
        >>> label[..., :1] = 1  # a quarter: b = 0.75
        >>> round(loss(torch.zeros(1, 1, 4, 4), label).item(), 4)  # (0.25 * 0.75 + 0.75 * 0.25) ln 2
        0.2599
    """

    def __init__(self, *, label_smoothing: float = 0.0, **common: Unpack[CommonArguments]) -> None:
        super().__init__(**common)
        self.label_smoothing = checked_label_smoothing(label_smoothing)

    def class_factors(self, sums: VoxelSums) -> tuple[Tensor, Tensor]:
        """Each side's weight is the other's share."""
        inputs = sums.inputs
        counts, targets = inputs.included(inputs.class_counts()), inputs.included(sums.all_targets)
        if self.batch:
            counts, targets = counts.sum(0, keepdim=True), targets.sum(0, keepdim=True)
            counts, targets = sum_over_ranks(inputs.logits, counts, targets)
        share = targets / counts.clamp(min=1)
        return 1 - share, share
