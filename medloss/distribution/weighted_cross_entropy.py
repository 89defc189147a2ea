"""Cross entropy with a constant weight for the foreground."""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.errors import InputError
from medloss.loss_entry import register
from medloss.voxel_sums import VoxelSums
from medloss.voxelwise import VoxelwiseLoss, checked_label_smoothing


@register(
    "weighted_cross_entropy",
    family="distribution",
    paper="Pihur et al. 2007, doi 10.1093/bioinformatics/btm158",
    summary="cross entropy, missed foreground costs more",
)
class WeightedCrossEntropyLoss(VoxelwiseLoss):
    r"""Cross entropy in which a missed foreground voxel costs b times as much.

    Independent channels:

    $$-[b\, y \ln p + (1 - y) \ln(1 - p)]$$

    Categorical: $-\sum_c w_c y_c \ln p_c$, where w is `weight`, or 1 for background and b for the rest.

    y: target; p: probability; b: `pos_weight`. The mean is a plain mean over voxels, not torch's division by
    the summed weights. With `include_background=False` and softmax a false positive on background costs nothing.

    Args:
        pos_weight: b; above 1 it cuts false negatives, below 1 false positives. The default 2 is ours: the
            survey names none. With softmax, `weight` takes its place.
        label_smoothing: e in [0, 1]: the target y becomes (1 - e) y + e / C with softmax, where C is the number of
            (labelled) classes, as in torch, else (1 - e) y + e / 2. A perfect prediction then does not give 0.
            Default 0.
        **common: the arguments of `SegmentationLoss`.

    Raises:
        InputError: `pos_weight` is not positive, `label_smoothing` outside [0, 1].

    References:
        Pihur, Datta and Datta (2007), Weighted rank aggregation of cluster validation measures: a Monte Carlo
        cross-entropy approach, doi 10.1093/bioinformatics/btm158; as read by Jadon (2020), arXiv 2006.14822.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.WeightedCrossEntropyLoss(sigmoid=True, pos_weight=3.0)
        >>> round(loss(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)).item(), 4)  # 3 ln 2
        2.0794
    """

    def __init__(
        self, *, pos_weight: float = 2.0, label_smoothing: float = 0.0, **common: Unpack[CommonArguments]
    ) -> None:
        super().__init__(**common)
        if not pos_weight > 0:
            raise InputError(f"pos_weight: got {pos_weight}; expected a positive number")
        self.pos_weight = float(pos_weight)
        self.label_smoothing = checked_label_smoothing(label_smoothing)

    def class_factors(self, sums: VoxelSums) -> tuple[Tensor | float, Tensor | float]:
        """b and 1; with a softmax the classes' weights."""
        if not sums.inputs.categorical:
            return self.pos_weight, 1.0
        if self.class_weight is not None:
            return 1.0, 1.0
        return foreground_weights(sums, 1.0, self.pos_weight), 1.0


def foreground_weights(sums: VoxelSums, background: float, foreground: float) -> Tensor:
    """`[C']`: one weight for class 0, if it counts, and another for the rest."""
    weights = torch.full_like(sums.all_targets[0], foreground)
    weights[0] = background
    return weights if sums.inputs.include_background else weights[1:]
