"""Generalized Dice loss: one overlap of all classes, rare ones weighted up."""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.errors import InputError
from medloss.loss_entry import Recipe, register
from medloss.overlap import OverlapStatistics
from medloss.reduction import weighted
from medloss.region.base import RegionLoss
from medloss.region.dice import checked_smoothing
from medloss.voxel_sums import VoxelSums

#: The power of a class's share, by `w_type`.
_POWERS = {"square": 2.0, "simple": 1.0, "uniform": 0.0}


@register(
    "generalized_dice",
    family="region",
    paper="Sudre et al. 2017, arXiv 1707.03237",
    summary="one overlap of all classes, each weighted by its rarity",
    recipe=Recipe(
        arguments={"w_type": "simple"},
        note="Weights by the volume, not by its square as in the paper: squares left all but the rarest of the classes "
        "unlearned (phantom, 20 epochs: Dice 0.313 with `square`, 0.923 with `simple`)",
    ),
)
class GeneralizedDiceLoss(RegionLoss):
    r"""One minus a Dice coefficient that sums over all classes of an item, rare ones weighted up.

    $$1 - \frac{2 \sum_c w_c\, TP_c + s}{\sum_c w_c (\sum y_c + \sum p_c) + s}, \quad
    w_c = \Big(\frac{n_{\min}}{n_c}\Big)^2$$

    TP_c = sum y_c p_c; y: target; p: probability; n_c = sum y_c, the class's volume in voxels (one of weight w counts w
    times), without gradient; n_min: the least n_c > 0 of the item; s: smoothing, in voxels of the rarest class. An
    absent class has weight 1, that of the rarest; where none is present, all have. With one channel the loss is Dice.

    Replaces MONAI's `GeneralizedDiceLoss`, whose weights are 1/n^2: with s = 0 the values are the same where any
    class is present, but its s of 1e-5 outweighs a class of 1e5 voxels. There an item without any class has the
    constant value 0.

    Args:
        w_type: how weights fall with the volume: `square` as above (the paper's), `simple` with the power 1, `uniform`
            with the power 0.
        smooth_nr: s in the numerator. Default 1 (ours, as in `DiceLoss`).
        smooth_dr: s in the denominator. Default 1.
        soft_label: for soft targets: TP is the sum of (p + y - |p - y|) / 2 (Wang 2023, as MONAI), so that p = y gives
            0; with targets of 0 and 1 nothing changes. Default False.
        **common: the arguments of `SegmentationLoss`; `weight` multiplies w. Soft targets are allowed. With
            `reduction="none"` the shape is `[B, 1, 1, 1(, 1)]`, one value per item.

    Raises:
        InputError: an unknown `w_type`, a negative smoothing term.

    References:
        Sudre, Li, Vercauteren, Ourselin and Cardoso (2017), Generalised Dice overlap as a deep learning loss function
        for highly unbalanced segmentations, arXiv 1707.03237. Wang et al. (2023), arXiv 2303.16296, for `soft_label`.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.GeneralizedDiceLoss(sigmoid=True, smooth_nr=0.0, smooth_dr=0.0)
        >>> label = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0, 0.0]]]])
        >>> round(loss(torch.zeros(1, 2, 1, 4), label).item(), 4)  # w = 1/4, 1: 1 - 2 * 0.75 / 4
        0.625
    """

    def __init__(
        self,
        *,
        w_type: str = "square",
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        soft_label: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        # MONAI's Weight is an enumeration whose values are these words.
        w_type = str(getattr(w_type, "value", w_type))
        if w_type not in _POWERS:
            raise InputError(f"w_type: got '{w_type}'; expected one of {', '.join(_POWERS)}")
        self.w_type = w_type
        self.smooth_nr, self.smooth_dr = checked_smoothing(smooth_nr, smooth_dr)
        self.soft_label = soft_label

    def from_sums(self, sums: VoxelSums) -> Tensor:
        """Weigh the classes, apply the formula and reduce."""
        statistics = self.overlap(sums)
        weights = weighted(self._rarity(statistics.target.detach()), sums.inputs)
        return self.reduced(1 - self._coefficient(statistics, weights), sums.inputs, statistics)

    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """The loss per item (or the batch), `[B or 1, 1]`, without class weights."""
        return 1 - self._coefficient(sums, self._rarity(sums.target.detach()))

    def _coefficient(self, sums: OverlapStatistics, weights: Tensor) -> Tensor:
        both = (weights * (sums.target + sums.prediction)).sum(1, keepdim=True)
        return (2 * (weights * sums.tp).sum(1, keepdim=True) + self.smooth_nr) / (both + self.smooth_dr)

    def _rarity(self, volumes: Tensor) -> Tensor:
        """w, `[B or 1, C']`."""
        present = volumes > 0
        least = volumes.where(present, torch.inf).amin(1, keepdim=True)
        return torch.where(present, least / volumes, 1.0) ** _POWERS[self.w_type]
