"""L1 average calibration error: do probabilities mean what they say?"""

from typing import Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments, SegmentationLoss
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.loss_entry import Recipe, register
from medloss.per_map import differentiable, new_results, wants_gradient
from medloss.reduction import reduce_items, weighted

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
        indexed = inputs.target.shape[1] != inputs.logits.shape[1]
        y = inputs.included(inputs.target_masks() if indexed else inputs.target_maps())
        p = inputs.included(inputs.probabilities())
        mask, weight = (None if maps is None else maps.flatten(1) for maps in (inputs.mask, inputs.voxel_weight))
        options = (self.num_bins, self.binning == "soft", self.ignore_empty_classes)
        values, _ = _operator(p.flatten(2).contiguous(), y.flatten(2), mask, weight, *options, wants_gradient(p))
        return reduce_items(weighted(values, inputs), inputs, self.reduction)


@differentiable("l1_ace")
@torch.library.custom_op("medloss::calibration_error", mutates_args=())
def _operator(
    p: Tensor,
    y: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    bins: int,
    soft: bool,
    ignore_empty: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    values, gradients = new_results(p, gradient)
    for item in range(p.shape[0]):
        kept = slice(None) if mask is None else mask[item]
        w = None if weight is None else _wide(weight[item][kept])
        for c in range(p.shape[1]):
            error, slope = (_soft_error if soft else _hard_error)(p[item, c][kept], y[item, c][kept], w, bins, gradient)
            there = y[item, c][kept] > 0
            counts = ~torch.tensor(ignore_empty, device=p.device) | (there if w is None else there & (w > 0)).any()
            values[item, c] = torch.where(counts, error, 0.0)
            if gradient:
                if mask is not None:
                    gradients[item, c].zero_()
                gradients[item, c][kept] = torch.where(counts, slope, 0.0).to(p.dtype)
    return values, gradients


def _hard_error(p: Tensor, y: Tensor, w: Tensor | None, bins: int, gradient: bool) -> tuple[Tensor, Tensor]:
    """The error of one map's voxels, and its gradient for `p`."""
    edges = torch.arange(1, bins, dtype=p.dtype, device=p.device) / bins
    index = torch.bucketize(p, edges, out_int32=True)
    mass = torch.bincount(index, w, bins)
    has_mass, off = mass > 0, _wide(p - y.to(p.dtype))
    mass = torch.where(has_mass, mass, 1)
    difference = torch.bincount(index, off if w is None else w * off, bins) / mass
    filled = has_mass.sum().clamp(min=1)
    error = difference.abs().sum() / filled
    if not gradient:
        return error, error
    slope = (difference.sign() / (mass * filled))[index]
    return error, slope if w is None else w * slope


def _soft_error(p: Tensor, y: Tensor, w: Tensor | None, bins: int, gradient: bool) -> tuple[Tensor, Tensor]:
    p, y = _wide(p), _wide(y)
    place = (p * bins - 0.5).clamp(0, bins - 1)
    lower = place.nan_to_num(0.0).floor().clamp(max=max(bins - 2, 0)).long()
    above = place - lower
    below, off = 1 - above, p - y

    def by_bin(values: Tensor | float) -> Tensor:
        values = values if w is None else w * values
        sums = torch.bincount(lower, below * values, bins + 1) + torch.bincount(lower + 1, above * values, bins + 1)
        return sums[:bins]  # with a single bin there is none above: its room is cut off

    mass, total = by_bin(1.0), by_bin(off)
    # "Not below" keeps the NaN of a bin.
    has_mass = ~(mass < _LEAST_MASS)
    difference = torch.where(has_mass, total / torch.where(has_mass, mass, 1.0), 0.0)
    filled = has_mass.sum().clamp(min=1)
    error = difference.abs().sum() / filled
    if not gradient:
        return error, error
    slope = torch.where(has_mass, difference.sign() / (torch.where(has_mass, mass, 1.0) * filled), 0.0)
    slope, difference = (torch.nn.functional.pad(values, (0, 1)) for values in (slope, difference))
    moved = bins * ((place > 0) & (place < bins - 1))
    from_below = slope[lower] * (below - moved * (off - difference[lower]))
    slope = from_below + slope[lower + 1] * (above + moved * (off - difference[lower + 1]))
    return error, slope if w is None else w * slope


def _wide(values: Tensor) -> Tensor:
    """In float64, where the device has it: sums of millions of numbers."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)
