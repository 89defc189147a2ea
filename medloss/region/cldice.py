"""Soft clDice: overlap of each structure with the other's centre lines."""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments, SegmentationLoss
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.loss_entry import Recipe, register
from medloss.reduction import reduce_regions, sum_regions, weighted
from medloss.region.soft_skeleton import skeleton_sums


@register(
    "cldice",
    family="region",
    paper="Shit et al. 2020, arXiv 2003.07311",
    summary="overlap of prediction and reference with each other's soft centre lines",
    recipe=Recipe("0.5*dice+0.5*cldice", note="After its authors: half Dice, half clDice, over all classes"),
)
class ClDiceLoss(SegmentationLoss):
    r"""One minus the soft centre-line Dice of each item and class, for tubes and nets of them.

    $$1 - \frac{2 P S}{P + S}, \quad P = \frac{\sum K(p)\, y + s}{\sum K(p) + s}, \quad
    S = \frac{\sum K(y)\, p + s}{\sum K(y) + s}$$

    p: probability; y: target; s: smoothing, in voxels; P: precision of the predicted centre line, S: how much of the
    reference's one is found; 1 where P + S = 0. K: the soft skeleton, x_0 = x, K = 0, and for k = 1, ..., `iter_` + 1

    x_k = erode(x_(k-1)),  d = relu(x_(k-1) - dilate(x_k)),  K = K + relu(d - K d).

    Erosion is the minimum over a voxel and its face neighbours, dilation the maximum over the box of 3 voxels a side;
    voxels outside the image are left out. The gradient goes through K(p), too. A voxel of weight w counts w times in
    the sums; K does not know of it.

    Spacing: a step is one smallest spacing. Axis i takes part in every n-th step, n = round(s_i / min s), and a step's
    cross and box have only the axes that do. With equal spacings the values are those of MONAI's `SoftclDiceLoss`
    of one class (which adds 1e-4 to P + S); MONAI and the authors sum over the classes first.

    Pitfalls: right centre lines suffice, so a prediction of another thickness has the value 0; K has gaps in 3D where
    tubes are an even number of voxels thick. Use it next to Dice.

    Args:
        iter_: at least the largest radius in voxels (of the smallest spacing), or thick parts keep no centre line.
            Default 3 (MONAI's).
        smooth: s. Default 1 (the authors').
        **common: the arguments of `SegmentationLoss`. Targets must be hard.

    Raises:
        InputError: `iter_` or `smooth` below 0; a soft target.

    References:
        Shit, Paetzold, Sekuboyina, Ezhov, Unger, Zhylka, Pluim, Bauer and Menze (2020), clDice: a Novel
        Topology-Preserving Loss Function for Tubular Structure Segmentation, arXiv 2003.07311.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.ClDiceLoss(sigmoid=True)
        >>> label = torch.zeros(1, 1, 5, 5)
        >>> label[..., 2, :] = 1
        >>> p = label * torch.tensor([0.9, 0.9, 0.2, 0.9, 0.9])
        >>> round(loss(p.logit(eps=1e-7), label).item(), 4)  # P = 1, S = 4.8 / 6
        0.1111
    """

    soft_targets = False
    uses_spacing = True

    def __init__(self, *, iter_: int = 3, smooth: float = 1.0, **common: Unpack[CommonArguments]) -> None:
        super().__init__(**common)
        if iter_ < 0:
            raise InputError(f"iter_: got {iter_}; expected 0 or more")
        if not smooth >= 0:
            raise InputError(f"smooth: got {smooth}; expected a number >= 0")
        self.iter_ = int(iter_)
        self.smooth = float(smooth)

    def compute(self, inputs: LossInputs) -> Tensor:
        """The four sums, and their harmonic mean."""
        y = inputs.included(inputs.target_masks())
        p = inputs.included(inputs.probabilities())
        sums = skeleton_sums(p, y, inputs.mask, inputs.voxel_weight, inputs.spacing, self.iter_ + 1)
        (found, predicted, right, true), voxels, items = sum_regions(inputs, sums, batch=self.batch)
        precision, sensitivity = self._share(found, predicted), self._share(right, true)
        both = precision + sensitivity
        some = both > 0
        overlap = torch.where(some, 2 * precision * sensitivity / torch.where(some, both, 1.0), both)
        return reduce_regions(weighted(1 - overlap, inputs), inputs, voxels, items, self.reduction)

    def _share(self, part: Tensor, whole: Tensor) -> Tensor:
        whole = whole + self.smooth
        empty = whole == 0
        return torch.where(empty, 0.0, (part + self.smooth) / torch.where(empty, 1.0, whole))
