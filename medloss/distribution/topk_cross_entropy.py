"""Cross entropy of the worst voxels only."""

from fractions import Fraction
from typing import Any, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medloss.base import CommonArguments
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.loss_entry import register
from medloss.voxelwise import VoxelwiseLoss, checked_label_smoothing


@register(
    "topk_cross_entropy",
    family="distribution",
    paper="Wu et al. 2016, arXiv 1605.06885",
    summary="cross entropy of the worst voxels only",
)
class TopKCrossEntropyLoss(VoxelwiseLoss):
    r"""Mean of the largest k percent of the voxels' cross entropies.

    $$\frac{1}{n} \sum_{i=1}^{n} \mathrm{CE}_{(i)}, \quad n = \max(1, \lfloor N k / 100 \rfloor)$$

    CE_(1) >= CE_(2) >= ...: the cross entropies per voxel, as in `BinaryCrossEntropyLoss`, class and voxel weights
    included; N: the voxels that count. They are chosen within an item and, where channels are independent, within a
    channel; with `batch=True` within the batch (of each rank), as nnU-Net does. The mean is over all that are chosen.
    With `reduction="none"` the others are 0. k = 100 is `BinaryCrossEntropyLoss`.

    nnU-Net's `TopKLoss` counts ignored voxels, too, whose zeros dilute the mean, and has NaN for n = 0.

    With softmax and `include_background=False` a false positive on background costs nothing.

    Args:
        k: percent of the voxels, 0 < k <= 100. Default 10 (nnU-Net's).
        label_smoothing: e in [0, 1]: the target y becomes (1 - e) y + e / C with softmax, where C is the number of
            (labelled) classes, as in torch, else (1 - e) y + e / 2. A perfect prediction then does not give 0.
            Default 0.
        **common: the arguments of `SegmentationLoss`. Soft targets are allowed.

    Raises:
        InputError: `k` is not in (0, 100], `label_smoothing` outside [0, 1].

    References:
        Wu, Shen and van den Hengel (2016), Bridging Category-level and Instance-level Semantic Image Segmentation,
        arXiv 1605.06885 (online bootstrapping; as read by nnU-Net, doi 10.1038/s41592-020-01008-z).

    Example:
        >>> import torch, medloss
        >>> loss = medloss.TopKCrossEntropyLoss(sigmoid=True, k=50)
        >>> logits = torch.tensor([[[[0.9, 0.8, 0.6, 0.3]]]]).logit()
        >>> round(loss(logits, torch.ones(1, 1, 1, 4)).item(), 4)  # -(ln 0.3 + ln 0.6) / 2
        0.8574
    """

    def __init__(self, *, k: float = 10.0, label_smoothing: float = 0.0, **common: Unpack[CommonArguments]) -> None:
        super().__init__(**common)
        if not 0 < k <= 100:
            raise InputError(f"k: got {k}; expected percent, above 0 and at most 100")
        self.k = float(k)
        self.label_smoothing = checked_label_smoothing(label_smoothing)
        # Counted in integers: float32 ends at 2^24.
        self.share = Fraction(self.k).limit_denominator(10**6) / 100

    def compute(self, inputs: LossInputs) -> Tensor:
        """The largest values, averaged, summed or at their places."""
        values = self.voxels(inputs)
        lines = self._lines(values)
        most = max(1, lines.shape[1] * self.share.numerator // self.share.denominator)
        mask = self._mask(inputs, values)
        if mask is None:
            places = _largest(lines.detach(), most)
            largest, number = lines.gather(1, places), lines.new_full((), most * len(lines))
        else:
            mask = self._lines(mask)
            # A line has `most` places, as if all of its voxels counted. Those that do come first.
            places = torch.where(mask, lines.detach(), -1.0).topk(most, 1).indices
            counts = mask.sum(1, keepdim=True)
            chosen = torch.where(counts > 0, (counts * self.share.numerator // self.share.denominator).clamp(min=1), 0)
            largest = torch.where(torch.arange(most, device=mask.device) < chosen, lines.gather(1, places), 0.0)
            number = chosen.sum().clamp(min=1)
        if self.reduction == "none":
            kept = torch.zeros_like(lines).scatter(1, places, largest)
            if self.batch:
                return kept.view(values.shape[1], len(values), *values.shape[2:]).transpose(0, 1)
            return kept.view(values.shape)
        return largest.sum() if self.reduction == "sum" else largest.sum() / number

    def _mask(self, inputs: LossInputs, values: Tensor) -> Tensor | None:
        """Where a value counts, as `values`; None: everywhere."""
        pairs = None if inputs.categorical else inputs.pairs()
        if pairs is None:
            return None if inputs.mask is None else inputs.mask.expand(values.shape)
        labelled = pairs.view(*pairs.shape, *(1,) * len(inputs.spatial_axes)).expand(values.shape)
        return labelled if inputs.mask is None else labelled & inputs.mask

    def _lines(self, maps: Tensor) -> Tensor:
        """Maps `[B, C', *spatial]` as one line of voxels for each choice: per item and channel, or per channel."""
        return maps.transpose(0, 1).flatten(1) if self.batch else maps.flatten(2).flatten(0, 1)


def _largest(lines: Tensor, number: int) -> Tensor:
    """Indices of the largest numbers of each line, in any order, `[L, number]`."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or lines.device.type != "cpu" or type(lines) is not Tensor:
        return lines.topk(number, 1, sorted=False).indices
    # numpy selects ten times as fast as torch.
    places = [_largest_of_line(line, number) for line in lines.numpy()]
    return torch.stack([torch.from_numpy(found) for found in places])


def _largest_of_line(line: NDArray[np.floating[Any]], number: int) -> NDArray[np.int64]:
    least = np.partition(line, len(line) - number)[len(line) - number]
    if np.isnan(least):  # the largest number
        return np.flatnonzero(np.isnan(line))[:number]
    places = np.flatnonzero(~(line < least))
    if (surplus := len(places) - number) > 0:
        places = np.delete(places, np.flatnonzero(line[places] == least)[-surplus:])
    return places
