"""The reference kernel set: plain torch, block by block of voxels, on any device and in any floating type.

A block's temporaries are reused, and their sum is small compared with the logits: the gradient is the only new tensor
of the logits' size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from medloss.kernels.eager_blocks import Block
from medloss.kernels.sum_spec import ROWS, Row, VoxelTerms, sum_type

# Voxels per block on a CPU, and numbers, at most: torch's threads wait for each other at every operation, so that
# smaller ones cost more time than the cache saves, and larger ones leave the cache and cost memory. They do not depend
# on the number of threads, or sums would. A GPU needs more numbers at once.
_VOXELS, _NUMBERS, _GPU_NUMBERS = 1 << 16, 1 << 19, 1 << 24


def supports(device: str, dtype: torch.dtype) -> bool:
    """Any device and floating type."""
    return True


def preferred(device: str, dtype: torch.dtype) -> bool:
    """Used where no other set fits."""
    return True


def voxel_sums(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None
) -> Tensor:
    """The sums `[ROWS, B, C]` of `VoxelTerms`."""
    sums = logits.new_zeros((ROWS, *logits.shape[:2]), dtype=sum_type(logits))
    for item, part in blocks(logits):
        block = load(terms, logits, target, mask, voxel_weight, item, part)
        sums[Row.TARGET, item] += block.all_targets.sum(1)
        block.add_sums(sums[:, item, terms.first :])
    return sums


def voxel_sums_backward(
    terms: VoxelTerms,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    sum_gradients: Tensor,
) -> Tensor:
    """The gradient of `(sum_gradients * voxel_sums).sum()` for the logits."""
    gradient = torch.empty_like(logits)
    for item, part in blocks(logits):
        block = load(terms, logits, target, mask, voxel_weight, item, part)
        gradient[item, :, part] = block.gradient(sum_gradients[:, item, terms.first :].unsqueeze(-1))
    return gradient


def entropy_map(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, positive: Tensor, negative: Tensor
) -> Tensor:
    """The weighted cross entropy per voxel: `[B, 1, N]` for a softmax, else `[B, C - first, N]`."""
    batch, channels, voxels = logits.shape
    kept = 1 if terms.mode == "softmax" else channels - terms.first
    out = logits.new_empty((batch, kept, voxels), dtype=sum_type(logits))
    for item, part in blocks(logits):
        block = load(terms, logits, target, mask, None, item, part)
        yes, no = positive[item, terms.first :, None], negative[item, terms.first :, None]
        values = block.entropy(block.log_p, block.log_miss) * (yes * block.target)
        if terms.mode == "softmax":
            values = values.sum(0, keepdim=True)
        else:
            values += block.entropy(block.log_miss, block.log_p, no=True) * (no * (1 - block.target))
        out[item, :, part] = block.counted(values)
    return out


def blocks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """An item, and a slice of its voxels."""
    batch, channels, voxels = logits.shape
    on_cpu = logits.device.type == "cpu"
    length = min(_VOXELS, max(_NUMBERS // channels, 1)) if on_cpu else max(_GPU_NUMBERS // channels, 1)
    for item in range(batch):
        for start in range(0, voxels, length):
            yield item, slice(start, min(start + length, voxels))


def load(
    terms: VoxelTerms,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    item: int,
    part: slice,
) -> Block:
    """A block's numbers in the type of the sums."""
    # Of three axes: torch transposes matrices tile by tile, which takes four times as long with few classes.
    z = logits[item : item + 1, :, part].to(sum_type(logits)).contiguous()[0]
    y = _class_maps(target[item, :, part], z)
    m = None if mask is None else mask[item, part]
    v = None if weight is None else weight[item, :, part]
    if m is not None:
        # Selected, not multiplied: masked values may be NaN.
        z, y = torch.where(m, z, 0.0), torch.where(m, y, 0.0)
        v = None if v is None else torch.where(m, v, 0.0)
    return Block(terms, z, y, m, v)


def _class_maps(target: Tensor, like: Tensor) -> Tensor:
    """One map per class `[C, n]` in the type of `like`, from a block of either kind of target."""
    channels = like.shape[0]
    if target.shape[0] == channels:
        return target.to(like.dtype)
    if target.dtype in (torch.uint8, torch.int8, torch.bool) and channels > 128:
        target = target.short()  # the classes' numbers would not fit
    classes = torch.arange(channels, device=target.device, dtype=target.dtype).unsqueeze(1)
    return torch.eq(target, classes, out=like.new_empty(like.shape))
