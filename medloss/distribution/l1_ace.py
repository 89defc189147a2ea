"""L1 average calibration error: do probabilities mean what they say?"""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments, SegmentationLoss
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.kernels import operators
from medloss.kernels.group_operators import group_sums
from medloss.kernels.group_spec import GroupTerms
from medloss.kernels.sum_spec import Row
from medloss.loss_entry import Recipe, register
from medloss.reduction import reduce_items, weighted
from medloss.voxel_sums import Requested

#: A soft bin with less than this many voxels is empty (the authors').
_LEAST_MASS = 0.01


@register(
    "l1_ace",
    family="distribution",
    paper="Barfoot et al. 2025, arXiv 2506.03942",
    summary="calibration error: probabilities against frequencies, bin by bin",
    recipe=Recipe(
        "0.33*dice+0.33*binary_cross_entropy+0.33*l1_ace",
        note="After its authors: an auxiliary, in equal shares with Dice and cross entropy; alone it is content with "
        "the prevalence everywhere",
    ),
)
class L1ACELoss(SegmentationLoss):
    r"""Mean over bins of probability of how far the mean probability is from the frequency of the class.

    $$\frac{1}{|B|} \sum_{m \in B} |P_m - Y_m|, \quad P_m = \mathrm{mean}_{x \in m}\, p, \quad
    Y_m = \mathrm{mean}_{x \in m}\, y$$

    p: probability; y: target; m: a bin of p, of M equally wide ones; B: those that hold voxels, per item and class.
    Hard bins are ((m-1)/M, m/M], and 0 belongs to the first; which bin a voxel is in carries no gradient.
    A voxel of weight w counts w times.
    Soft bins: a voxel belongs to the two bins whose centres (m-1/2)/M enclose p, linearly, and beyond the outermost
    centres to one of them; the gradient goes through these shares, too, and a bin with less than 0.01 voxels is empty.
    With one bin the value is |mean p - mean y|.

    Pitfall: p equal to the prevalence in every voxel gives 0, as a perfect prediction does. Use it next to others.

    Args:
        num_bins: M. Default 20 (the authors').
        binning: `hard` (the authors' default) or `soft`.
        ignore_empty_classes: a class without a voxel in the item has the value 0, which still enters the mean.
        **common: the arguments of `SegmentationLoss`; `batch` is ignored. Soft targets are allowed. With
            `reduction="none"` the shape is `[B, C', 1, 1(, 1)]`.

    Raises:
        InputError: `num_bins` below 1, an unknown `binning`.

    References:
        Barfoot, Garcia-Peraza-Herrera, Glocker and Vercauteren (2025), Average Calibration Losses for Reliable
        Uncertainty in Medical Image Segmentation, arXiv 2506.03942.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.L1ACELoss(sigmoid=True, num_bins=2)
        >>> label = torch.tensor([[[[0.0, 1.0, 0.0, 1.0]]]])
        >>> logits = torch.tensor([[[[0.2, 0.4, 0.6, 0.9]]]]).logit()
        >>> round(loss(logits, label).item(), 4)  # (|0.3 - 0.5| + |0.75 - 0.5|) / 2
        0.225
    """

    def __init__(
        self,
        *,
        num_bins: int = 20,
        binning: str = "hard",
        ignore_empty_classes: bool = False,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        if num_bins < 1:
            raise InputError(f"num_bins: got {num_bins}; expected 1 or more")
        if binning not in ("hard", "soft"):
            raise InputError(f"binning: got '{binning}'; expected 'hard' or 'soft'")
        self.num_bins = int(num_bins)
        self.binning = binning
        self.ignore_empty_classes = ignore_empty_classes

    def compute(self, inputs: LossInputs) -> Tensor:
        """The error of each map, weighted and reduced."""
        by = "soft_bins" if self.binning == "soft" else "bins"
        terms = GroupTerms(inputs.mode.value, 0 if inputs.include_background else 1, by, self.num_bins)
        sums = group_sums(terms, inputs.logits, inputs.target, inputs.mask, inputs.voxel_weight)
        mass, off = (inputs.included(row) for row in sums)
        # "Not below" keeps the NaN of a bin.
        filled = ~(mass < _LEAST_MASS) if self.binning == "soft" else mass > 0
        differences = torch.where(filled, off / torch.where(filled, mass, 1.0), 0.0)
        values = differences.abs().sum(2) / filled.sum(2).clamp(min=1)
        if self.ignore_empty_classes:
            values = torch.where(self._present(inputs), values, 0.0)
        return reduce_items(weighted(inputs.labelled_only(values).to(inputs.dtype), inputs), inputs, self.reduction)

    def _present(self, inputs: LossInputs) -> Tensor:
        """Whether a class has a voxel that counts, `[B, C']`."""
        terms = Requested(overlap=True).terms(inputs)
        row = Row.TARGET if inputs.voxel_weight is None else Row.WEIGHTED_TARGET
        sums = operators.voxel_sums(terms, inputs.logits.detach(), inputs.target, inputs.mask, inputs.voxel_weight)
        return inputs.included(sums[row]) > 0
