"""Unified focal loss: a focal cross entropy and a focal Tversky loss that share their parameters."""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.compound.reduction import reduce_compound
from medloss.distribution.weighted_cross_entropy import foreground_weights
from medloss.errors import InputError
from medloss.loss_entry import register
from medloss.overlap import OverlapStatistics
from medloss.region.dice import checked_smoothing
from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import Requested, VoxelSums


@register(
    "unified_focal",
    family="compound",
    paper="Yeung et al. 2021, arXiv 2102.04525",
    summary="focal cross entropy and focal Tversky loss, background suppressed and foreground enhanced",
)
class UnifiedFocalLoss(SumsLoss):
    r"""A weighted sum of focal cross entropy and a focal Tversky loss, with background and foreground apart.

    $$a\, \mathrm{mean}(F) + (1 - a)\, R, \quad
    F = -\Big[(1 - d)(1 - p_0)^g\, y_0 \ln p_0 + d \sum_{c > 0} y_c \ln p_c\Big], \quad
    R_0 = 1 - T_0, \quad R_c = (1 - T_c)^{1 - g}, \quad
    T = \frac{TP + s}{TP + d\, FN + (1 - d)\, FP + s}$$

    y: target; p: probability; class 0 is background, all others are rare; TP, FN, FP: as in `TverskyLoss`; a: `alpha`;
    d: `delta`; g: `gamma`; s: smoothing, in voxels. Only background's cross entropy is suppressed where it is right,
    and only the rare classes' overlap is enhanced. F's mean is over an item's voxels, R is per item and class.

    Independent channels: each is a problem of two classes, no (background) and yes (rare), and R the mean of its two.
    One channel has the value of a softmax of two classes.

    In the powers 1 - T is kept at or above 1e-7, with no gradient below. With g = 0 the two parts are
    `WeightedCrossEntropyLoss` with the weights 1 - d, d, ... and `TverskyLoss` with alpha = 1 - d, beta = d. With
    softmax and `include_background=False` a false positive on background costs nothing in F.

    MONAI's `AsymmetricUnifiedFocalLoss` is of two classes only, and halves F.

    Args:
        alpha: a in [0, 1], the share of cross entropy (the paper's lambda, MONAI's `weight`). Default 0.5 (the
            authors').
        delta: d in [0, 1]; above 0.5 a missed rare voxel costs more than a false one. Default 0.6 (the authors').
        gamma: g in [0, 1). Default 0.5 (the authors').
        asymmetric: as above; False: all classes' cross entropies have the factor (1 - p_c)^g, and all overlaps the
            power.
        smooth_nr: s in the numerator. Default 1 (ours, as in `DiceLoss`).
        smooth_dr: s in the denominator. Default 1.
        **common: the arguments of `SegmentationLoss`; `weight` multiplies a class's terms in both parts. Soft targets
            are allowed; `batch` concerns R.

    Raises:
        InputError: `alpha` or `delta` outside [0, 1], `gamma` outside [0, 1), a negative smoothing term.

    References:
        Yeung, Sala, Schonlieb and Rundo (2021), Unified Focal loss: Generalising Dice and cross entropy-based losses to
        handle class imbalanced medical image segmentation, arXiv 2102.04525.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.UnifiedFocalLoss(sigmoid=True)
        >>> label = torch.tensor([[[[1.0, 0.0]]]])
        >>> round(loss(torch.tensor([[[[0.8, 0.3]]]]).logit(), label).item(), 4)
        0.1719
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        delta: float = 0.6,
        gamma: float = 0.5,
        asymmetric: bool = True,
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        for name, value in (("alpha", alpha), ("delta", delta)):
            if not 0 <= value <= 1:
                raise InputError(f"{name}: got {value}; expected a number in [0, 1]")
        if not 0 <= gamma < 1:
            raise InputError(f"gamma: got {gamma}; expected a number in [0, 1)")
        self.alpha = float(alpha)
        self.delta = float(delta)
        self.gamma = float(gamma)
        self.asymmetric = asymmetric
        self.smooth_nr, self.smooth_dr = checked_smoothing(smooth_nr, smooth_dr)

    def requested(self) -> Requested:
        """Overlap, and cross entropy: only background's is focal, or that of all classes."""
        if self.gamma == 0:
            return Requested(overlap=True, entropy="plain")
        entropy = "focal_background" if self.asymmetric else "focal"
        return Requested(overlap=True, entropy=entropy, gamma=self.gamma)

    def from_sums(self, sums: VoxelSums) -> Tensor:
        """The weighted sum of the two parts, per item and class."""
        overlap = self.overlap(sums)
        regions = self._regions(overlap, sums)
        entropy = sums.cross_entropy(*self._class_factors(sums))
        return reduce_compound(sums.inputs, self, overlap, self.alpha, entropy, 1 - self.alpha, regions)

    def _class_factors(self, sums: VoxelSums) -> tuple[Tensor | float, Tensor | float]:
        """The weights of y and of 1 - y."""
        no, yes = 1 - self.delta, self.delta
        return (foreground_weights(sums, no, yes), 0.0) if sums.inputs.categorical else (yes, no)

    def _regions(self, overlap: OverlapStatistics, sums: VoxelSums) -> Tensor:
        """R, `[B or 1, C']`."""
        rare = 1 - self._index(overlap.tp, overlap.fn, overlap.fp)
        if sums.inputs.categorical:
            if not (self.asymmetric and sums.inputs.include_background):
                return self._enhanced(rare)
            return torch.cat([rare[:, :1], self._enhanced(rare[:, 1:])], 1)
        # The channel's other class: what is missed of one is false in the other.
        right = overlap.voxels - overlap.target - overlap.fp
        other = 1 - self._index(right, overlap.fp, overlap.fn)
        return (self._enhanced(rare) + (other if self.asymmetric else self._enhanced(other))) / 2

    def _index(self, tp: Tensor, fn: Tensor, fp: Tensor) -> Tensor:
        return (tp + self.smooth_nr) / (tp + self.delta * fn + (1 - self.delta) * fp + self.smooth_dr)

    def _enhanced(self, values: Tensor) -> Tensor:
        return values.clamp(min=1e-7) ** (1 - self.gamma) if self.gamma else values
