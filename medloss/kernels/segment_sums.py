"""Sums over the segments of a single channel: the rows of `sum_spec`, of each segment instead of the whole item."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from medloss.kernels import dispatch, self_check
from medloss.kernels.operators import RARE_ENTROPIES, no_second_derivative, sums_work
from medloss.kernels.self_check import small_case
from medloss.kernels.sum_spec import ROWS, Row, VoxelTerms, sum_type


def segment_sums(
    terms: VoxelTerms, logits: Tensor, target: Tensor, segment: Tensor, count: int, voxel_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The sums of each segment in one pass, however many there are.

    Args:
        terms: which sums, of `sigmoid` or `probabilities`.
        logits: `[N]`, contiguous, in the type of the sums.
        target: `[N]` bool, contiguous.
        segment: `[N]` int32, contiguous; negative for a voxel of none.
        count: S, how many segments.
        voxel_weight: `[N]`, as `logits`, without gradient.

    Returns:
        sums: `[S, ROWS]`, differentiable with respect to the logits only.
        voxels: `[S]`, how many there are, in the type of the sums.
    """
    work = f"{terms.mode} {sums_work(terms)} of segments"
    numba = dispatch.choose(logits.device.type, logits.dtype, work, logits.device.index) == "numba"
    sums, voxels = _SegmentSums.apply(logits, target, segment, voxel_weight, terms, count, numba)
    return sums, voxels


class _SegmentSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        segment: Tensor,
        voxel_weight: Tensor | None,
        terms: VoxelTerms,
        count: int,
        numba: bool,
    ) -> tuple[Tensor, Tensor]:
        """Sums and voxels."""
        ctx.save_for_backward(logits, target, segment, voxel_weight)
        ctx.terms, ctx.numba = terms, numba
        if numba:
            from medloss.kernels.numba.segments import sums_by_segment  # not above: numba may be missing
        else:
            sums_by_segment = _sums_by_segment
        sums, voxels = sums_by_segment(terms, logits, target, segment, count, voxel_weight)
        ctx.mark_non_differentiable(voxels)
        return sums, voxels

    @staticmethod
    def backward(ctx: Any, sum_gradients: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """The logits' gradient."""
        if ctx.numba:
            from medloss.kernels.numba.segments import gradient_by_segment
        else:
            gradient_by_segment = _gradient_by_segment
        logits, target, segment, weight = ctx.saved_tensors
        gradient = gradient_by_segment(ctx.terms, logits, target, segment, weight, sum_gradients.detach().contiguous())
        if torch.is_grad_enabled():
            gradient = _Once.apply(gradient, logits)
        return gradient, None, None, None, None, None, None


class _Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, logits: Tensor) -> Tensor:
        return gradient

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        no_second_derivative(ctx, gradient)


def _sums_by_segment(
    terms: VoxelTerms, logits: Tensor, target: Tensor, segment: Tensor, count: int, voxel_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    from medloss.kernels.eager import blocks

    sums = logits.new_zeros((ROWS, 1, count), dtype=sum_type(logits))
    voxels = sums.new_zeros(count)
    for _, part in blocks(logits[None, None]):
        kept = segment[part] >= 0
        places = segment[part][kept].long()
        block = _block(terms, logits, target, voxel_weight, part, kept)
        block.segment, block.segments = places, count
        sums[Row.TARGET] += block.sum(block.all_targets)
        block.add_sums(sums)
        voxels.index_add_(0, places, torch.ones_like(places, dtype=voxels.dtype))
    return sums[:, 0].T.contiguous(), voxels


def _gradient_by_segment(
    terms: VoxelTerms, logits: Tensor, target: Tensor, segment: Tensor, voxel_weight: Tensor | None, rows: Tensor
) -> Tensor:
    from medloss.kernels.eager import blocks

    gradient = torch.zeros_like(logits)
    for _, part in blocks(logits[None, None]):
        kept = segment[part] >= 0
        block = _block(terms, logits, target, voxel_weight, part, kept)
        gradient[part][kept] = block.gradient(rows[segment[part][kept].long()].T.unsqueeze(1))[0, 0]
    return gradient


def _block(
    terms: VoxelTerms, logits: Tensor, target: Tensor, voxel_weight: Tensor | None, part: slice, kept: Tensor
) -> Any:
    from medloss.kernels.eager_blocks import Block

    z = logits[part][kept][None, None]
    weight = None if voxel_weight is None else voxel_weight[part][kept][None, None]
    return Block(terms, z, target[part][kept][None, None].to(z.dtype), None, weight)


def _register_small_cases(mode: str) -> None:
    """All kinds of sums, of which the rarer entropies have cases of their own."""
    common = (
        VoxelTerms(mode, overlap=True, squares=True, errors=True, entropy="focal", gamma=2.0),
        VoxelTerms(mode, entropy="plain"),
    )
    rare = (VoxelTerms(mode, overlap=True, entropy=entropy, gamma=gamma) for entropy, gamma in RARE_ENTROPIES.items())
    for every in (common, *((terms,) for terms in rare)):
        self_check.register(f"{mode} {sums_work(every[0])} of segments", partial(_small_case, every))


def _small_case(every: Sequence[VoxelTerms], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Sums over three segments, with voxels of none and weights."""
    results = []
    for terms in every:
        drawn = small_case(terms.mode, (5, 7, 9), device, dtype)
        logits, target, mask, weight = (part[0, 0].flatten() for part in drawn)
        segment = torch.where(mask, torch.arange(len(mask), device=device) // 150, -1).int()
        logits = logits.to(sum_type(logits))
        rows, voxels = segment_sums(terms, logits.requires_grad_(), target > 0, segment, 3, weight)
        factors = torch.arange(rows.numel(), device=device).cos().view_as(rows).to(rows)
        results += [*rows.detach().T, voxels, *torch.autograd.grad((factors * rows).sum(), logits)]
    return results


for _mode in ("sigmoid", "probabilities"):
    _register_small_cases(_mode)
