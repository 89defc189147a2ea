"""Focal loss: cross entropy that down-weights well classified voxels."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from medloss.base import CommonArguments
from medloss.errors import InputError
from medloss.kernels.sum_spec import Row
from medloss.loss_entry import register
from medloss.voxel_sums import VoxelSums
from medloss.voxelwise import VoxelwiseLoss


@register(
    "focal",
    family="distribution",
    paper="Lin et al. 2017, arXiv 1708.02002",
    summary="cross entropy that down-weights well classified voxels",
)
class FocalLoss(VoxelwiseLoss):
    r"""Cross entropy times a power of how wrong a voxel is.

    Independent channels:

    $$-a_t (1 - p_t)^g \ln p_t, \quad a_t = a\, y + (1 - a)(1 - y)$$

    Categorical: $-\sum_c a_c y_c (1 - p_c)^g \ln p_c$.

    y: target; p: probability; p_t: the probability given to what is there (p where y = 1, else 1 - p);
    g: `gamma`; a: `alpha`.

    Where it differs from MONAI's `FocalLoss`: with softmax MONAI also divides by C (unless `ignore_index` is
    set), and with `include_background=False` drops the channel before the softmax; ours after it. MONAI's `sum`
    averages over space first; ours is the sum. With softmax and `include_background=False` a false positive on
    background costs nothing.

    Args:
        gamma: g >= 0; 0 (and no `alpha`) is cross entropy exactly. Default 2, from the paper.
        alpha: a in [0, 1], the weight of the foreground. `"default"` is 0.25 (the paper's) for independent
            channels, and None (no weights) with softmax. There a number is 1 - a for background and a for the
            rest, and a sequence one number per class that is left.
        **common: the arguments of `SegmentationLoss`.

    Raises:
        InputError: `gamma` < 0, `alpha` outside [0, 1] or of the wrong length.

    References:
        Lin, Goyal, Girshick, He and Dollar (2017), Focal Loss for Dense Object Detection, arXiv 1708.02002.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.FocalLoss(softmax=True)
        >>> logits, label = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8)
        >>> round(loss(logits, label).item(), 4)  # 0.5^2 ln 2
        0.1733
    """

    entropy = "focal"

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | str | None = "default",
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        if not gamma >= 0:
            raise InputError(f"gamma: got {gamma}; expected a number >= 0")
        if isinstance(alpha, str):
            if alpha != "default":
                raise InputError(f"alpha: got '{alpha}'; expected a number in [0, 1], one per class, or None")
            alpha = None if self.softmax else 0.25
        self.gamma = float(gamma)
        self.alpha: float | tuple[float, ...] | None
        if alpha is None or isinstance(alpha, int | float):
            self.alpha = alpha
        else:
            self.alpha = tuple(float(a) for a in alpha)
        numbers = () if self.alpha is None else self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)
        if not all(0 <= a <= 1 for a in numbers):
            raise InputError(f"alpha: got {alpha}; expected numbers in [0, 1]")

    def class_factors(self, sums: VoxelSums) -> tuple[Tensor | float, Tensor | float]:
        """a and 1 - a."""
        if self.alpha is None:
            return 1.0, 1.0
        inputs = sums.inputs
        targets = sums.row(Row.TARGET)
        left = targets.shape[1]
        if isinstance(self.alpha, tuple):
            if len(self.alpha) != left:
                raise InputError(f"alpha: got {len(self.alpha)} numbers; expected {left}, one per class that is left")
            alpha = targets.new_tensor(self.alpha)
        else:
            alpha = targets.new_full((left,), self.alpha)
            if inputs.categorical and inputs.include_background:
                alpha[0] = 1 - self.alpha
        return alpha, 1 - alpha
