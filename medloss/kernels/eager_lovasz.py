"""Lovász extensions in plain torch, class by class."""

import numpy as np
import torch
from torch import Tensor

from medloss.kernels.eager import blocks, load, store
from medloss.kernels.lovasz_spec import LovaszTerms
from medloss.kernels.sum_spec import ROWS, Row, VoxelTerms, sum_type


def extensions(
    terms: LovaszTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, numbers of voxels of the classes, and gradients, as `lovasz_spec` has them."""
    items, classes, _ = logits.shape
    slopes = torch.empty(logits.shape, dtype=sum_type(logits), device=logits.device)
    for item, part in blocks(logits):
        block = load(VoxelTerms(terms.mode, terms.first), logits, target, mask, None, item, part)
        store(block.all_p, slopes[item, :, part])
    regions = [slice(None)] if terms.batch else [slice(item, item + 1) for item in range(items)]
    values = slopes.new_zeros(len(regions), classes)
    positives = torch.zeros(len(regions), classes, dtype=torch.int64, device=logits.device)
    for r, region in enumerate(regions):
        kept = None if mask is None else mask[region].flatten()
        weight = None if voxel_weight is None else _kept(voxel_weight[region, 0].flatten(), kept)
        for c in range(terms.first, classes):
            score = _kept(slopes[region, c].flatten(), kept)
            positive = _kept(_of_class(target[region], c, classes).flatten(), kept)
            counted = positive if weight is None else positive & (weight > 0)
            positives[r, c] = counted.sum()
            values[r, c], slope = _extension(score, positive, weight, terms.hinge)
            if kept is not None:
                slope = torch.zeros(kept.shape, dtype=slope.dtype, device=slope.device).masked_scatter_(kept, slope)
            slopes[region, c] = slope.view(slopes[region, c].shape)
    return values, positives, slopes


def gradient_in_place(terms: LovaszTerms, logits: Tensor, mask: Tensor | None, slopes: Tensor, by: Tensor) -> Tensor:
    """The gradient of `(by * values).sum()` for the logits, `[B, C, N]`; `slopes` may become it."""
    passed = VoxelTerms(terms.mode, terms.first, overlap=True)
    rows = slopes.new_zeros((ROWS, *logits.shape[:2]))
    rows[Row.TP] = by
    result = slopes if logits.dtype == slopes.dtype and logits.is_contiguous() else torch.empty_like(logits)
    for item, part in blocks(logits):
        # The sum of y p over maps y has this gradient.
        block = load(passed, logits, slopes, mask, None, item, part)
        store(block.gradient(rows[:, item, terms.first :].unsqueeze(-1)), result[item, :, part])
    return result


def _kept(values: Tensor, kept: Tensor | None) -> Tensor:
    return values if kept is None else values[kept]


def _of_class(target: Tensor, c: int, classes: int) -> Tensor:
    """Whether a voxel is of a class, as `target_masks` has it."""
    if target.shape[1] == classes:
        return target[:, c] > 0.5
    labels = target[:, 0]
    return (labels.short() if c > 127 and labels.dtype in (torch.uint8, torch.int8) else labels) == c


def _extension(score: Tensor, positive: Tensor, weight: Tensor | None, hinge: bool) -> tuple[Tensor, Tensor]:
    """The value of one map's voxels, and its gradient."""
    sign = 1 - 2 * positive.to(score.dtype)
    error = torch.relu_(1 + score * sign) if hinge else (score - positive.to(score.dtype)).abs_()
    order = _descending(error)
    error = error[order]
    if weight is None:
        jump = _jumps(positive[order], error.dtype)
    else:
        jump = _weighted_jumps(positive[order], weight[order]).to(error.dtype)
    value = (error * jump).sum()
    slope = torch.empty_like(jump).scatter_(0, order, torch.where(error == 0, 0.0, jump))
    return value, slope.mul_(sign)


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
