"""The kernel set on a GPU: each pass reads the logits once, a tile of all classes by some voxels at a time.

A program adds up its tiles lane by lane and writes partial sums, which are added in a fixed order: no atomics, the same
result to the bit each time. In Triton's interpreter (`TRITON_INTERPRET=1`) the same runs on a CPU, slowly, for tests.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from medloss.kernels.sum_spec import ROWS, VoxelTerms, sum_type
from medloss.kernels.triton.passes import Plan, backward_pass, map_pass, sums_pass

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTERPRETED = bool(triton.knobs.runtime.interpret)
# Tiles per program, at most: few partial sums, and still some hundred programs per item.
_TILES = 8
_PROGRAMS = 512
# Bytes of a tile that a thread holds: with the sums of four rows this leaves room for other programs on a processor.
_HELD = 128


def supports(device: str, dtype: torch.dtype) -> bool:
    """A GPU, or a CPU in Triton's interpreter."""
    return dtype in _DTYPES and (device == "cuda" or (device == "cpu" and _INTERPRETED))


def preferred(device: str, dtype: torch.dtype) -> bool:
    """On a GPU; never in the interpreter."""
    return device == "cuda" and supports(device, dtype) and not _INTERPRETED


def voxel_sums(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None
) -> Tensor:
    """The sums `[ROWS, B, C]` of `VoxelTerms`."""
    logits = logits.contiguous()  # channels-last is copied
    batch, channels, voxels = logits.shape
    plan = _plan(terms, logits, target, mask, voxel_weight)
    programs = triton.cdiv(voxels, plan.block_n * plan.tiles)
    partial = logits.new_zeros((ROWS, batch, channels, programs), dtype=sum_type(logits))
    _launch(sums_pass, plan, logits, target, mask, voxel_weight, partial)
    return partial.sum(-1, dtype=torch.float64).to(partial.dtype)


def voxel_sums_backward(
    terms: VoxelTerms,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    sum_gradients: Tensor,
) -> Tensor:
    """The gradient of `(sum_gradients * voxel_sums).sum()` for the logits."""
    given, logits = logits, logits.contiguous()
    gradient = torch.empty_like(logits)
    plan = _plan(terms, logits, target, mask, voxel_weight)
    _launch(backward_pass, plan, logits, target, mask, voxel_weight, sum_gradients.contiguous(), gradient)
    return gradient if logits is given else torch.empty_like(given).copy_(gradient)


def entropy_map(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, positive: Tensor, negative: Tensor
) -> Tensor:
    """The weighted cross entropy per voxel: `[B, 1, N]` for a softmax, else `[B, C - first, N]`."""
    logits = logits.contiguous()
    batch, channels, voxels = logits.shape
    kept = 1 if terms.mode == "softmax" else channels - terms.first
    out = logits.new_empty((batch, kept, voxels), dtype=sum_type(logits))
    plan = _plan(terms, logits, target, mask, None)
    _launch(map_pass, plan, logits, target, mask, positive.contiguous(), negative.contiguous(), out)
    return out


def _plan(terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None) -> Plan:
    _, channels, voxels = logits.shape
    accumulator = sum_type(logits)
    block_c = triton.next_power_of_2(channels)
    if block_c <= 32:
        # A thread holds all classes of its voxels: a softmax asks no other thread. Two neighbours at most, which are
        # what it can load of 64-bit labels too: for any type of target the tile lies in the same registers.
        fitting = max(min(_HELD // accumulator.itemsize // block_c, 16 // logits.element_size()), 1)
        vector = min(fitting, 2) if voxels % 16 == 0 else 1
        warps, block_n = 4, 128 * fitting
    else:
        vector, warps, block_n = 1, min(block_c // 32, 16), 32
    # By the volume alone: an item's sums don't change with the batch.
    tiles = min(triton.next_power_of_2(triton.cdiv(max(voxels, 1), block_n * _PROGRAMS)), _TILES)
    # Each exponent compiles a separate kernel; without one it is the plain entropy.
    focused = terms.entropy == "power" or (terms.entropy in ("focal", "focal_background") and terms.gamma != 0)
    return Plan(
        mode=terms.mode,
        first=terms.first,
        overlap=terms.overlap,
        squares=terms.squares,
        errors=terms.errors,
        entropy=terms.entropy if focused or not terms.entropy else "plain",
        gamma=float(terms.gamma) if focused else 0.0,
        classes=channels,
        index_map=channels > 1 and target.shape[1] == 1,
        weights="" if voxel_weight is None else "shared" if voxel_weight.shape[1] == 1 else "each",
        whole=mask is None and voxels % (block_n * tiles) == 0,
        accumulator=tl.float64 if accumulator == torch.float64 else tl.float32,
        block_c=block_c,
        block_n=block_n,
        vector=vector,
        tiles=tiles,
        warps=warps,
    )


def _launch(kernel: Any, plan: Plan, logits: Tensor, target: Tensor, mask: Tensor | None, *others: Any) -> None:
    batch, _, voxels = logits.shape
    programs = triton.cdiv(voxels, plan.block_n * plan.tiles)
    if not batch or not voxels:
        return
    with torch.cuda.device_of(logits):
        kernel[(batch * programs,)](
            logits,
            _bytes(target),
            _bytes(mask),
            *others,
            voxels,
            programs,
            PLAN=plan,
            num_warps=plan.warps,
            enable_fp_fusion=False,
        )


def _bytes(tensor: Tensor | None) -> Tensor | None:
    return tensor.view(torch.uint8) if tensor is not None and tensor.dtype == torch.bool else tensor
