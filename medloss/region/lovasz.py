"""Lovász losses: the convex extension of the Jaccard index."""

from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from medloss.base import CommonArguments, SegmentationLoss
from medloss.errors import InputError
from medloss.inputs import LossInputs, Mode
from medloss.loss_entry import register
from medloss.per_map import differentiable, new_results, wants_gradient
from medloss.reduction import reduce_regions, sum_regions, weighted


@register(
    "lovasz",
    family="region",
    paper="Berman et al. 2018, arXiv 1705.08790",
    summary="the convex extension of the Jaccard index: sorted errors, each weighted by what it costs",
)
class LovaszLoss(SegmentationLoss):
    r"""The Lovász extension of one minus the Jaccard index, of each item and class.

    $$\sum_i e_{(i)} (J_i - J_{i-1}), \quad
    J_i = 1 - \frac{G - \sum_{j \le i} y_{(j)}}{G + \sum_{j \le i} (1 - y_{(j)})}, \quad e = |y - p|$$

    p: probability; y: target; (i): the voxel of the i-th largest error e; G = sum y; J_i: the Jaccard index's loss if
    the i largest errors, and no others, were errors; J_0 = 0. For a hard prediction it is one minus the Jaccard index.
    Masked voxels leave before the sort, and a voxel of weight w counts w times. The gradient goes through e alone. Of
    an empty class (G = 0) the value is the largest e, and one voxel has the gradient.

    Pitfall: with `classes="present"`, the default with softmax, a class that the item has not costs nothing, and where
    no class is left the value is 0.

    Args:
        classes: which classes enter an item's mean: `present` (those with a voxel in the item, 0 where there are none;
            the authors') or `all`. `"default"`: `present` with softmax, else `all`. Weights multiply a class's term.
        hinge: e = max(0, 1 - z (2y - 1)), z the logit: the authors' loss of binary problems. Needs `sigmoid=True`.
        **common: the arguments of `SegmentationLoss`. With `batch=True` the voxels of the batch (of each rank) are
            sorted together. Targets must be hard.

    Raises:
        InputError: an unknown `classes`, `hinge` without `sigmoid=True`; a soft target.

    References:
        Berman, Rannen Triki and Blaschko (2018), The Lovász-Softmax loss: A tractable surrogate for the optimization of
        the intersection-over-union measure in neural networks, arXiv 1705.08790.

    Example:
        >>> import torch, medloss
        >>> loss = medloss.LovaszLoss(sigmoid=True)
        >>> label = torch.tensor([[[[1.0, 1.0, 0.0]]]])
        >>> round(loss(torch.tensor([[[[0.8, 0.4, 0.3]]]]).logit(), label).item(), 4)  # 0.6 / 2 + 0.3 / 6 + 0.2 / 3
        0.4167
    """

    soft_targets = False

    def __init__(self, *, classes: str = "default", hinge: bool = False, **common: Unpack[CommonArguments]) -> None:
        super().__init__(**common)
        if classes not in ("default", "present", "all"):
            raise InputError(f"classes: got '{classes}'; expected 'present', 'all' or 'default'")
        if hinge and not self.sigmoid:
            raise InputError("hinge: it is defined on the logits of independent channels; expected sigmoid=True")
        self.classes = classes if classes != "default" else "present" if self.softmax else "all"
        self.hinge = hinge

    def compute(self, inputs: LossInputs) -> Tensor:
        """The extension of each map, and the mean over classes and items."""
        if self.hinge:
            assert inputs.mode is Mode.BERNOULLI
            scores = inputs.counted(inputs.logits).to(inputs.dtype)
        else:
            scores = inputs.probabilities()
        scores, y = self._lines(inputs.included(scores)), self._lines(inputs.included(inputs.target_masks()))
        mask, weight = (
            None if maps is None else self._lines(maps)[:, 0] for maps in (inputs.mask, inputs.voxel_weight)
        )
        values, _ = _operator(scores, y, mask, weight, self.hinge, wants_gradient(scores))
        _, voxels, items = sum_regions(inputs, (), batch=False)
        if self.batch:
            voxels, items = voxels.sum(0, keepdim=True), items.sum(0, keepdim=True)
        if self.classes == "all":
            return reduce_regions(weighted(values, inputs), inputs, voxels, items, self.reduction)
        counted = y if mask is None else y & mask[:, None]
        counted = counted if weight is None else counted & (weight > 0)[:, None]
        present = counted.any(2) & (items > 0)
        # Selected: NaN comes out of the classes that count.
        values = weighted(torch.where(present, values, 0.0), inputs)
        if self.reduction != "mean":
            return reduce_regions(values, inputs, voxels, items, self.reduction)
        means = values.sum(1) / present.sum(1).clamp(min=1)
        return means.mean() if inputs.labelled is None else means.sum() / (items > 0).any(1).sum().clamp(min=1)

    def _lines(self, maps: Tensor) -> Tensor:
        """Maps `[B, C, *spatial]` as `[B, C, voxels]`; with `batch=True` `[1, C, voxels of all items]`."""
        return (maps.transpose(0, 1)[None] if self.batch else maps).flatten(2).contiguous()


@differentiable("lovasz")
@torch.library.custom_op("medloss::lovasz", mutates_args=())
def _operator(
    p: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None, hinge: bool, gradient: bool
) -> tuple[Tensor, Tensor]:
    values, gradients = new_results(p, gradient)
    for item in range(p.shape[0]):
        for c in range(p.shape[1]):
            kept = slice(None) if mask is None else mask[item]
            out = gradients[item, c] if gradient else None
            if out is not None and mask is not None:
                out.zero_()
            w = None if weight is None else weight[item][kept]
            values[item, c] = _extension(p[item, c], y[item, c], kept, w, hinge, out)
    return values, gradients


def _extension(
    p: Tensor, y: Tensor, kept: Tensor | slice, weight: Tensor | None, hinge: bool, out: Tensor | None
) -> Tensor:
    """The value of one map's voxels; its gradient goes to `out` at those that are kept."""
    score, positive = p[kept], y[kept]
    sign = 1 - 2 * positive.to(score.dtype)
    error = torch.relu_(1 + score * sign) if hinge else (score - positive.to(score.dtype)).abs_()
    order = _descending(error)
    error = error[order]
    if weight is None:
        jump = _jumps(positive[order], error.dtype)
    else:
        jump = _weighted_jumps(positive[order], weight[order]).to(error.dtype)
    if out is not None:
        slope = torch.empty_like(jump).scatter_(0, order, torch.where(error == 0, 0.0, jump))
        out[kept] = slope.mul_(sign)
    return (error * jump).sum()


def _descending(error: Tensor) -> Tensor:
    """The places of errors >= 0, the largest first."""
    if error.device.type != "cpu" or error.dtype != torch.float32 or len(error) >= 2**32:
        return error.argsort(descending=True)
    # Sorting numbers is an order of magnitude faster than sorting places: NumPy has vector instructions for the one.
    # The bits of floats >= 0 have their order, and NaN is above all. The place stands below the error's bits.
    keys = (~error.abs().numpy().view(np.uint32)).astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(keys), dtype=np.uint64)
    keys.sort()
    keys &= np.uint64(2**32 - 1)
    return torch.from_numpy(keys.view(np.int64))


def _jumps(positive: Tensor, dtype: torch.dtype) -> Tensor:
    """J_i - J_(i-1) of voxels in the order of their errors."""
    if not len(positive):
        return torch.empty(0, dtype=dtype, device=positive.device)
    # Counted in integers: float32 ends at 2^24. Differences of the J_i would cancel, hence each by its own formula: a
    # voxel of the class leaves the intersection, another one joins the union.
    left = positive.sum() - positive.cumsum(0)
    union = torch.arange(1, len(positive) + 1, device=positive.device) + left
    jump = torch.where(positive, 1.0, left.to(dtype) / (union - 1).clamp_(min=1).to(dtype)) / union.to(dtype)
    # Of an empty class the first error is all of the union.
    jump[0] = torch.where(union[0] == 1, 1.0, jump[0])
    return jump


def _weighted_jumps(positive: Tensor, weight: Tensor) -> Tensor:
    """As `_jumps`, where a voxel counts `weight` times."""
    weight = weight.to(torch.float32 if weight.device.type == "mps" else torch.float64)
    inside, outside = torch.where(positive, weight, 0.0), torch.where(positive, 0.0, weight)
    left = (inside.sum() - inside.cumsum(0)).clamp(min=0)
    union = inside.sum() + outside.cumsum(0)
    before = union - outside
    joined = torch.where(before > 0, left / torch.where(before > 0, before, 1.0), 1.0)
    share = weight / torch.where(union > 0, union, 1.0)
    # What weighs nothing changes nothing.
    return torch.where(weight > 0, torch.where(positive, 1.0, joined) * share, 0.0)
