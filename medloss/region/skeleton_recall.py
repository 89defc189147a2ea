"""Skeleton Recall loss: how much of each structure's centre line is found."""

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.loss_entry import Recipe, register
from medloss.maps.skeletons import tube_map
from medloss.overlap import OverlapStatistics
from medloss.region.base import RegionLoss


@register(
    "skeleton_recall",
    family="region",
    paper="Kirchhoff et al. 2024, arXiv 2404.03010",
    summary="recall of the voxels around the reference's centre lines",
    recipe=Recipe(
        "dice+binary_cross_entropy+skeleton_recall",
        note="After its authors: next to Dice and cross entropy, all of the same weight; alone it is content with "
        "foreground everywhere",
    ),
)
class SkeletonRecallLoss(RegionLoss):
    r"""One minus the recall of the tubes around the reference's centre lines, of each item and class.

    $$1 - \frac{\sum T p + s}{\sum T + s}$$

    p: probability; T: the reference's voxels within a radius of its centre lines, without gradient; s: smoothing, in
    voxels. With softmax class 0 never counts, whatever `include_background`: C' = C - 1.

    T comes with the call as `skeleton_map`: `medloss.maps.SkeletonMapd` computes it once for the whole volume, class by
    class (the authors thin the union of all classes, where those that touch lose their lines). Without it T is computed
    here, which is slow, and needs scikit-image (`pip install 'medloss[skeleton]'`); its radius is 2 smallest spacings.

    Pitfall: a false positive costs nothing, and p = 1 everywhere has the value 0: use it in a sum.

    Args:
        smooth: s. Default 1e-5 (the authors').
        **common: the arguments of `SegmentationLoss`. Targets must be hard.

    Raises:
        InputError: `smooth` is not positive; from the call, a soft target, or no map and no scikit-image.

    References:
        Kirchhoff, Rokuss, Roy, Kovacs, Ulrich, Wald, Zenk, Vollmuth, Kleesiek, Isensee and Maier-Hein (2024), Skeleton
        Recall Loss for Connectivity Conserving and Resource Efficient Segmentation of Thin Tubular Structures, arXiv
        2404.03010.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.SkeletonRecallLoss(sigmoid=True)
        >>> label, tubes = torch.tensor([[[[1, 1, 1, 1]]]]), torch.tensor([[[[1, 1, 1, 0]]]])
        >>> logits = torch.tensor([[[[0.9, 0.5, 0.7, 0.2]]]]).logit()
        >>> round(loss(logits, label, skeleton_map=tubes).item(), 4)  # 1 - 2.1 / 3
        0.3
    """

    soft_targets = False
    uses_spacing = True
    reads_maps = ("skeleton_map",)

    def __init__(self, *, smooth: float = 1e-5, **common: Unpack[CommonArguments]) -> None:
        super().__init__(**common)
        if not smooth > 0:
            raise InputError(f"smooth: got {smooth}; expected a positive number")
        self.smooth = float(smooth)
        if self.softmax:
            self.include_background = False

    def compute(self, inputs: LossInputs) -> Tensor:
        """The overlap with the tubes, in the target's place."""
        return super().compute(replace(inputs, target=self._tubes(inputs), ignore_index=None))

    def from_statistics(self, sums: OverlapStatistics) -> Tensor:
        """One minus the recall."""
        return 1 - (sums.tp + self.smooth) / (sums.target + self.smooth)

    def _tubes(self, inputs: LossInputs) -> Tensor:
        """T of all C classes; that of a background that does not count is empty."""
        tubes = inputs.skeleton_map
        if tubes is None:
            tubes = tube_map(inputs.included(inputs.target_masks()), inputs.spacing)
        if tubes.shape[1] < inputs.logits.shape[1]:
            tubes = torch.cat([torch.zeros_like(tubes[:, :1]), tubes], 1)
        return tubes
