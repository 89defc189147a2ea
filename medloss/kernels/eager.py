"""The reference kernel set: plain torch, block by block of voxels, on any device and in any floating type.

A block's temporaries are reused, and their sum is small compared with the logits: the gradient is the only new tensor
of the logits' size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from medloss.kernels.eager_blocks import Block
from medloss.kernels.sum_spec import ROWS, Row, VoxelTerms, sum_type

# Voxels per piece on a CPU, and numbers per block, at most. Torch shares out the first axis among its threads: with
# pieces there, `[K, C, m]`, a thread gets the same voxels in every operation, and has them in its cache; of `[C, n]` a
# softmax gives it half of the voxels, and a product or sum half of the classes. Threads wait for each other at every
# operation: smaller blocks cost more time than the cache saves, and larger ones leave the cache and cost memory. The
# sizes do not depend on the number of threads, or sums would. A GPU needs more numbers at once.
_VOXELS, _NUMBERS, _GPU_NUMBERS = 1 << 12, 1 << 19, 1 << 24


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
        sums[Row.TARGET, item] += block.sum(block.all_targets)
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
        rows = sum_gradients[:, item, terms.first :].unsqueeze(-1)
        # Without a name a block's memory is free for the next one.
        values = load(terms, logits, target, mask, voxel_weight, item, part).gradient(rows)
        store(values, gradient[item, :, part])
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
            values = values.sum(1, keepdim=True)
        else:
            values += block.entropy(block.log_miss, block.log_p, no=True) * (no * (1 - block.target))
        store(block.counted(values), out[item, :, part])
    return out


def blocks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """An item, and a slice of its voxels: as many whole pieces as a block may have, or what is less than a piece."""
    batch, _, voxels = logits.shape
    piece, pieces = _piece(logits)
    whole = voxels // piece * piece
    for item in range(batch):
        for start in range(0, whole, piece * pieces):
            yield item, slice(start, min(start + piece * pieces, whole))
        if whole < voxels:
            yield item, slice(whole, voxels)


def _piece(logits: Tensor) -> tuple[int, int]:
    """Voxels per piece, and pieces per block: a power of 2, to be shared out evenly."""
    channels = logits.shape[1]
    if logits.device.type != "cpu":
        return max(_GPU_NUMBERS // channels, 1), 1
    piece = min(_VOXELS, max(_NUMBERS // channels, 1))
    return piece, 1 << (max(_NUMBERS // channels // piece, 1).bit_length() - 1)


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
    pieces = max((part.stop - part.start) // _piece(logits)[0], 1)
    z = _in_pieces(logits[item, :, part], pieces, sum_type(logits))
    y = _class_maps(target[item, :, part], z)
    m = None if mask is None else mask[item, part].view(pieces, 1, -1)
    v = None if weight is None else _in_pieces(weight[item, :, part], pieces, weight.dtype)
    if m is not None:
        # Selected, not multiplied: masked values may be NaN.
        z, y = torch.where(m, z, 0.0), torch.where(m, y, 0.0)
        v = None if v is None else torch.where(m, v, 0.0)
    return Block(terms, z, y, m, v)


def store(values: Tensor, out: Tensor) -> None:
    """Write a block's values `[K, C, m]` to `[C, n]`, a slice of voxels."""
    if out.stride(0) == 1:
        values = values.to(out.dtype)  # as in `_in_pieces`
    out.unflatten(1, (len(values), -1)).copy_(values.transpose(0, 1))


def _in_pieces(maps: Tensor, pieces: int, dtype: torch.dtype) -> Tensor:
    """`[C, n]` as `[K, C, m]`, contiguous."""
    # Of three axes: torch transposes matrices tile by tile, which takes four times as long with few classes.
    parts = maps.unflatten(1, (pieces, -1)).transpose(0, 1)
    if maps.stride(0) == 1:
        parts = parts.contiguous()  # to another order and to another type at once takes twice as long
    return parts.to(dtype, memory_format=torch.contiguous_format)


def _class_maps(target: Tensor, like: Tensor) -> Tensor:
    """One map per class in the shape and type of `like`, from a block of either kind of target."""
    pieces, channels, _ = like.shape
    if target.shape[0] == channels:
        return _in_pieces(target, pieces, like.dtype)
    # In bytes the classes' numbers might not fit.
    wide = target.dtype in (torch.uint8, torch.int8, torch.bool) and channels > 128
    labels = _in_pieces(target, pieces, torch.int16 if wide else target.dtype)
    classes = torch.arange(channels, device=target.device, dtype=labels.dtype).unsqueeze(1)
    return torch.eq(labels, classes, out=like.new_empty(like.shape))
