"""Sums over groups in plain torch, block by block of voxels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medloss.kernels.eager import blocks, load, store
from medloss.kernels.eager_blocks import Block
from medloss.kernels.group_spec import MASS, OFF, GroupTerms, total_type
from medloss.kernels.sum_spec import VoxelTerms


def group_sums(
    terms: GroupTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None
) -> Tensor:
    """The sums `[2, B, C, groups]` of `GroupTerms`."""
    sums = logits.new_zeros((2, *logits.shape[:2], terms.groups), dtype=total_type(logits))
    for item, part in blocks(logits):
        block = load(_voxel_terms(terms), logits, target, mask, voxel_weight, item, part)
        for c in range(terms.first, logits.shape[1]):
            shares = _shares(terms, block, target[item, :, part], c)
            off = shares.off.to(sums.dtype)
            for place, share in ((shares.lower, shares.below), (shares.lower + 1, shares.above)):
                if share is None:
                    continue
                for row, values in ((MASS, share), (OFF, share * off)):
                    values = torch.broadcast_to(values.to(sums.dtype), place.shape)
                    sums[row, item, c] += torch.bincount(place, values, terms.groups + 1)[: terms.groups]
    return sums


def group_sums_backward(
    terms: GroupTerms,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    sum_gradients: Tensor,
) -> Tensor:
    """The gradient of `(sum_gradients * group_sums(...)).sum()` for the logits."""
    gradient = torch.empty_like(logits)
    table = torch.nn.functional.pad(sum_gradients, (0, 1))
    for item, part in blocks(logits):
        block = load(_voxel_terms(terms), logits, target, mask, voxel_weight, item, part)
        along_p = torch.empty_like(block.p)
        for c in range(terms.first, logits.shape[1]):
            shares = _shares(terms, block, target[item, :, part], c)
            mass, off = table[:, item, c]
            value = shares.below * off[shares.lower]
            if shares.above is not None and shares.moved is not None:
                rise = off[shares.lower + 1] - off[shares.lower]
                value += shares.above * off[shares.lower + 1]
                value += shares.moved * (mass[shares.lower + 1] - mass[shares.lower] + shares.off * rise)
            along_p[:, c - terms.first] = value.view(len(along_p), -1)
        store(_gradient(terms, block, along_p), gradient[item, :, part])
    return gradient


def _voxel_terms(terms: GroupTerms) -> VoxelTerms:
    return VoxelTerms(terms.mode, terms.first)


def _gradient(terms: GroupTerms, block: Block, along_p: Tensor) -> Tensor:
    """dL/dz, from dL/dp of the classes that count."""
    if terms.mode == "softmax":
        along_p.mul_(block.p)
        result = torch.mul(block.all_p, along_p.sum(1, keepdim=True).neg_())
        result[:, terms.first :] += along_p
    else:
        result = torch.zeros_like(block.logits)
        result[:, terms.first :] = along_p * block.p * (1 - block.p) if terms.mode == "sigmoid" else along_p
    return block.counted(result)


@dataclass
class _Shares:
    """Where a class's voxels belong."""

    lower: Tensor  # [n], a group; one too many for a voxel of none
    below: Tensor  # [n], its share of that, times v
    above: Tensor | None  # [n], of the next one
    moved: Tensor | None  # [n], d above / d p
    off: Tensor  # [n], p - y


def _shares(terms: GroupTerms, block: Block, target: Tensor, c: int) -> _Shares:
    p, y = block.p[:, c - terms.first].flatten(), block.target[:, c - terms.first].flatten()
    weight = torch.ones_like(p) if block.weight is None else block.weight[:, 0].flatten()
    if block.mask is not None:
        mask = block.mask.flatten()
        p, weight = torch.where(mask, p, 0.0), torch.where(mask, weight, 0.0)
    off = p - y
    if terms.by == "labels":
        labels = target[0].long()
        known = (labels >= 0) & (labels < terms.groups)
        return _Shares(torch.where(known, labels, terms.groups), weight, None, None, off)
    if terms.by == "bins":
        edges = torch.arange(1, terms.groups, dtype=p.dtype, device=p.device) / terms.groups
        return _Shares(torch.bucketize(p, edges), weight, None, None, off)
    p = p.to(total_type(p))
    place = (p * terms.groups - 0.5).clamp(0, terms.groups - 1)
    lower = place.nan_to_num(0.0).floor().clamp(max=max(terms.groups - 2, 0))
    above = place - lower
    moved = terms.groups * ((place > 0) & (place < terms.groups - 1))
    return _Shares(lower.long(), (1 - above) * weight, above * weight, moved * weight, p - y)
