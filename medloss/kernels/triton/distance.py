"""Exact Euclidean distances on a GPU: all masks of a batch at once, axis by axis, both signs in one field.

A voxel's value is the squared distance to the other side's nearest voxel, negative inside. Of the two fields that a
signed distance needs, that of the voxel's side is 0: so the sign shows which of the two the value belongs to.

The first axis takes two passes along lines. Each further axis takes, for voxel i, the least f(j) + s² (i - j)² of its
line, outwards from i until s² (i - j)² alone exceeds the least value found, or `_REACH` voxels away. Lines that then
have voxels with a larger value, far from any border, are computed by the lower envelope of their parabolas
(Felzenszwalb and Huttenlocher, Theory of Computing 8, 2012): in all, steps are linear in a line's length.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_INTERPRETED = bool(triton.knobs.runtime.interpret)
_BLOCK = 128
# Steps outwards between two looks at whether all of a block's voxels are done.
_STEPS = 4
# Steps outwards at most, a multiple of `_STEPS`. With many more the envelope would be faster, whose loads are of single
# voxels.
_REACH = 64
# Lines of a program of the envelope: one warp, or threads would wait for those with another number of steps.
_LINES = 32


def supports(device: str) -> bool:
    """A GPU, or a CPU in Triton's interpreter."""
    return device == "cuda" or (device == "cpu" and _INTERPRETED)


def signed_distances(masks: Tensor, spacings: Sequence[Sequence[float]]) -> Tensor:
    """Each voxel's distance in mm to the other side's nearest voxel, negative inside; 0 if a side is empty.

    Args:
        masks: `[B, C, *spatial]`, bool, 2D or 3D.
        spacings: mm, in the order of the axes, one per item.

    Returns:
        float32, the shape and device of `masks`.
    """
    return _distances(masks, spacings, inside=True, outside=True)


def inside_distances(masks: Tensor, spacings: Sequence[Sequence[float]]) -> Tensor:
    """Each voxel's distance in mm to the nearest voxel outside its mask; 0 outside, and if a side is empty."""
    return _distances(masks, spacings, inside=True, outside=False)


def outside_distances(masks: Tensor, spacings: Sequence[Sequence[float]]) -> Tensor:
    """Each voxel's distance in mm to its mask's nearest voxel; 0 inside, and if a side is empty."""
    return _distances(masks, spacings, inside=False, outside=True)


def _distances(masks: Tensor, spacings: Sequence[Sequence[float]], inside: bool, outside: bool) -> Tensor:
    masks = masks.contiguous()
    shape = masks.shape[2:]
    volumes, size = masks.shape[0] * masks.shape[1], shape.numel()
    field = torch.empty(masks.shape, dtype=torch.float32, device=masks.device)
    if not field.numel():
        return field
    # A mask without another side has no distances: its voxels would search whole lines in vain.
    flat = masks.flatten(2)
    two_sided = (flat.any(-1) & ~flat.all(-1)).view(torch.uint8)
    squares = torch.tensor([[s * s for s in spacing] for spacing in spacings], dtype=torch.float64, device="cpu")
    # An axis's squares lie one after the other.
    squares = squares.T.to(masks.device, torch.float32).contiguous()
    common: dict[str, Any] = {"BLOCK": _BLOCK, "enable_fp_fusion": False}
    with torch.cuda.device_of(masks):
        columns = size // shape[0]
        blocks = triton.cdiv(columns, _BLOCK)
        _first_axis[(blocks * volumes,)](
            masks.view(torch.uint8), two_sided, squares[0], field, masks.shape[1], shape[0], columns, blocks, **common
        )
        inner = columns
        for axis in range(1, len(shape)):
            inner //= shape[axis]
            blocks = triton.cdiv(size, _BLOCK)
            reached = torch.empty_like(field)
            _further_axis[(blocks * volumes,)](
                field,
                two_sided,
                squares[axis],
                reached,
                masks.shape[1],
                size,
                shape[axis],
                inner,
                blocks,
                STEPS=_STEPS,
                REACH=_REACH,
                INSIDE=inside,
                OUTSIDE=outside,
                LAST=axis == len(shape) - 1,
                num_warps=1,
                **common,
            )
            if shape[axis] > _REACH + 1:
                lines = size // shape[axis]
                blocks = triton.cdiv(lines, _LINES)
                _far_voxels[(blocks * volumes,)](
                    field,
                    two_sided,
                    squares[axis],
                    reached,
                    torch.empty(
                        masks.shape, dtype=torch.int16 if shape[axis] < 2**15 else torch.int32, device=masks.device
                    ),
                    masks.shape[1],
                    lines,
                    shape[axis],
                    inner,
                    blocks,
                    REACH=_REACH,
                    INSIDE=inside,
                    OUTSIDE=outside,
                    LAST=axis == len(shape) - 1,
                    num_warps=1,
                    **common | {"BLOCK": _LINES},
                )
            field = reached
    return field


@triton.jit
def _first_axis(
    masks: tl.tensor,
    two_sided: tl.tensor,
    squares: tl.tensor,
    field: tl.tensor,
    channels: tl.tensor,
    length: tl.tensor,
    columns: tl.tensor,
    blocks: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Squared distances along the first axis, infinite where a line has one side only; a lane processes one line."""
    volume = tl.program_id(0) // blocks
    if tl.load(two_sided + volume) == 0:
        return
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    base = volume.to(tl.int64) * length * columns
    square = tl.load(squares + volume // channels)
    mask = masks + base + column
    out = field + base + column
    before = tl.load(mask, mask=inside, other=0)
    steps = tl.full([BLOCK], float("inf"), tl.float32)
    tl.store(out, steps, mask=inside)
    for i in range(1, length):
        here = tl.load(mask + i * columns, mask=inside, other=0)
        steps = tl.where(here != before, 1.0, steps + 1.0)
        before = here
        tl.store(out + i * columns, steps, mask=inside)
    steps = tl.full([BLOCK], float("inf"), tl.float32)
    for k in range(length):
        i = length - 1 - k
        here = tl.load(mask + i * columns, mask=inside, other=0)
        steps = tl.where(here != before, 1.0, steps + 1.0)
        before = here
        nearest = tl.minimum(steps, tl.load(out + i * columns, mask=inside, other=0))
        distance = nearest * nearest * square
        tl.store(out + i * columns, tl.where(here != 0, -distance, distance), mask=inside)


@triton.jit
def _further_axis(
    field: tl.tensor,
    two_sided: tl.tensor,
    squares: tl.tensor,
    reached: tl.tensor,
    channels: tl.tensor,
    size: tl.tensor,
    length: tl.tensor,
    inner: tl.tensor,
    blocks: tl.tensor,
    BLOCK: tl.constexpr,
    STEPS: tl.constexpr,
    REACH: tl.constexpr,
    INSIDE: tl.constexpr,
    OUTSIDE: tl.constexpr,
    LAST: tl.constexpr,
) -> None:
    """The least f(j) + s² (i - j)² for a block of voxels that follow each other in memory, whichever the axis.

    Steps further than `REACH` are left to `_far_voxels`.
    """
    volume = tl.program_id(0) // blocks
    # A lane's voxels don't follow each other: loads at any distance are of whole lines.
    voxel = tl.max_contiguous(tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK), 1)
    inside = voxel < size
    base = volume.to(tl.int64) * size
    if tl.load(two_sided + volume) == 0:
        if LAST:
            tl.store(reached + base + voxel, tl.zeros([BLOCK], tl.float32), mask=inside)
        return
    square = tl.load(squares + volume // channels)
    line = field + base + voxel
    squared = tl.load(line, mask=inside, other=0)
    sign = tl.where(squared < 0, -1.0, 1.0)
    best = tl.abs(squared)
    # Voxels of a side that nobody asks for keep their sign, and search nothing.
    if not INSIDE:
        best = tl.where(squared < 0, 0.0, best)
    if not OUTSIDE:
        best = tl.where(squared < 0, best, 0.0)
    i = voxel // inner % length
    k = 1
    worst = tl.max(best, 0)
    while (k < length) & (k <= REACH) & (square * k * k < worst):
        for step in tl.static_range(STEPS):
            j = k + step
            away = square * j * j
            # On the other side f is 0. Outside the line: no better than what the voxel has.
            behind = tl.load(line - j * inner, mask=inside & (i >= j), other=0)
            ahead = tl.load(line + j * inner, mask=inside & (i + j < length), other=0)
            behind = tl.where(i >= j, tl.maximum(sign * behind, 0.0) + away, best)
            ahead = tl.where(i + j < length, tl.maximum(sign * ahead, 0.0) + away, best)
            best = tl.minimum(best, tl.minimum(behind, ahead))
        k += STEPS
        worst = tl.max(best, 0)
    if LAST:
        best = tl.sqrt_rn(best)
        if INSIDE and OUTSIDE:
            best *= sign
    else:
        # Never 0: a voxel that searched nothing must keep its sign.
        best = sign * tl.where(best == 0, 1.0, best)
    tl.store(reached + base + voxel, best, mask=inside)


@triton.jit
def _far_voxels(
    field: tl.tensor,
    two_sided: tl.tensor,
    squares: tl.tensor,
    reached: tl.tensor,
    stack: tl.tensor,
    channels: tl.tensor,
    lines: tl.tensor,
    length: tl.tensor,
    inner: tl.tensor,
    blocks: tl.tensor,
    BLOCK: tl.constexpr,
    REACH: tl.constexpr,
    INSIDE: tl.constexpr,
    OUTSIDE: tl.constexpr,
    LAST: tl.constexpr,
) -> None:
    """Lines with a voxel that `_further_axis` has not finished; a lane processes one line."""
    volume = tl.program_id(0) // blocks
    if tl.load(two_sided + volume) == 0:
        return
    line = tl.max_contiguous(tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK), 1)
    real = line < lines
    start = volume.to(tl.int64) * lines * length + line // inner * length * inner + line % inner
    square = tl.load(squares + volume // channels)
    farthest = square * (REACH + 1) * (REACH + 1)
    if LAST:
        farthest = tl.sqrt_rn(farthest)
    largest = tl.zeros([BLOCK], tl.float32)
    for i in range(length):
        largest = tl.maximum(largest, tl.abs(tl.load(reached + start + i * inner, mask=real, other=0)))
    unfinished = real & (largest > farthest)
    if tl.max(unfinished.to(tl.int32), 0) == 0:
        return
    if OUTSIDE:
        _envelope(field, reached, stack, start, square, length, inner, unfinished, 1.0, BLOCK, LAST, True)
    if INSIDE:
        _envelope(field, reached, stack, start, square, length, inner, unfinished, -1.0, BLOCK, LAST, OUTSIDE)


@triton.jit
def _envelope(
    field: tl.tensor,
    reached: tl.tensor,
    stack: tl.tensor,
    start: tl.tensor,
    square: tl.tensor,
    length: tl.tensor,
    inner: tl.tensor,
    lines: tl.tensor,
    SIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
    SIGNED: tl.constexpr,
) -> None:
    """The least f(j) + s² (i - j)² of the voxels of one side (1 or -1), on the lines that `lines` selects.

    The voxels whose parabolas are lowest somewhere are kept on `stack`, in the order of the line. A lane first goes
    forwards and adds voxel after voxel, and then backwards and writes; on both ways it removes the topmost voxel when
    that is not the lowest any more: at most four steps per voxel.
    """
    depth = tl.zeros([BLOCK], tl.int32)
    # The topmost voxel and the one below it, their f, and where the topmost begins to be the lower one.
    top = depth
    below = depth
    f_top = tl.zeros([BLOCK], tl.float32)
    f_below = f_top
    begin = tl.full([BLOCK], float("-inf"), tl.float32)
    i = depth
    forwards = lines
    backwards = lines & False
    while tl.max((forwards | backwards).to(tl.int32), 0) != 0:
        signed = SIDE * tl.load(field + start + i * inner, mask=forwards | backwards, other=0)
        f = tl.maximum(signed, 0.0)
        crossing = (i + top) * 0.5 + (f - f_top) / (2.0 * square * tl.maximum(i - top, 1))
        finite = f < float("inf")
        removes = (depth > 1) & ((forwards & finite & (crossing <= begin)) | (backwards & (begin > i)))
        adds = forwards & finite & ~removes
        tl.store(stack + start + depth * inner, i.to(stack.dtype.element_ty), mask=adds)
        writes = backwards & ~removes & (signed > 0) & (depth > 0)
        least = f_top + square * (i - top) * (i - top)
        if LAST:
            least = tl.sqrt_rn(least)
            if SIGNED:
                least *= SIDE
        else:
            least *= SIDE
        tl.store(reached + start + i * inner, least, mask=writes)
        # What a thread reads here another one may have written.
        tl.debug_barrier()
        lower = tl.load(stack + start + (depth - 3) * inner, mask=removes & (depth > 2), other=0).to(tl.int32)
        f_lower = tl.load(field + start + lower * inner, mask=removes & (depth > 2), other=0)
        f_lower = tl.maximum(SIDE * f_lower, 0.0)
        # A removed voxel's neighbours move up; an added one moves them down.
        join = (lower + below) * 0.5 + (f_below - f_lower) / (2.0 * square * tl.maximum(below - lower, 1))
        begin = tl.where(
            removes, tl.where(depth > 2, join, float("-inf")), tl.where(adds & (depth > 0), crossing, begin)
        )
        below, top = (
            tl.where(removes, lower, tl.where(adds, top, below)),
            tl.where(removes, below, tl.where(adds, i, top)),
        )
        f_below, f_top = (
            tl.where(removes, f_lower, tl.where(adds, f_top, f_below)),
            tl.where(removes, f_below, tl.where(adds, f, f_top)),
        )
        depth += tl.where(removes, -1, tl.where(adds, 1, 0))
        moves = ~removes
        i += tl.where(forwards & moves, 1, tl.where(backwards & moves, -1, 0))
        turns = forwards & (i == length)
        i = tl.where(turns, length - 1, i)
        forwards &= ~turns
        backwards = (backwards | turns) & (i >= 0)
