"""Lovász extensions as an operator of torch, whose gradient takes the place of what was kept for it."""

from typing import Any

import torch
from torch import Tensor

from medloss.kernels import dispatch, self_check
from medloss.kernels.lovasz_spec import LovaszTerms
from medloss.kernels.operators import empty_gradient, flat_inputs, no_second_derivative, shaped_gradient
from medloss.kernels.self_check import small_case
from medloss.kernels.sum_spec import sum_type


def lovasz_extensions(
    terms: LovaszTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The extension of each item (or of the batch) and class, and how many counted voxels the class has there.

    Args:
        terms: which extensions, as `LovaszTerms` has them.
        logits: `[B, C, *spatial]`, or probabilities.
        target: an index map `[B, 1, *spatial]`, or one map per class, hard.
        mask: `[B, 1, *spatial]` bool; None when all voxels count.
        voxel_weight: `[B, 1, *spatial]`, without gradient.

    Returns:
        values: `[B or 1, C]`, differentiable with respect to the logits only.
        positives: `[B or 1, C]`, int64; of weight above 0.
    """
    given = logits, target, mask, voxel_weight
    numba = dispatch.choose(logits.device.type, logits.dtype, f"{terms.mode} lovasz", logits.device.index) == "numba"
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(logits) not in (Tensor, torch.nn.Parameter):
        values, positives, _ = _extensions(*given, terms.mode, terms.first, terms.hinge, terms.batch, numba)
    else:
        values, positives = _PlainExtensions.apply(*given, terms, numba)
    return values, positives


def _compute(terms: LovaszTerms, numba: bool, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    logits, target, mask, weight = flat_inputs(*given)
    if numba:
        from medloss.kernels.numba import lovasz  # not above: numba may be missing

        if lovasz.supports(logits, weight):
            return lovasz.extensions(terms, logits, target, mask)
    from medloss.kernels.eager_lovasz import extensions

    return extensions(terms, logits, target, mask, weight)


def _gradient_in_place(
    terms: LovaszTerms, numba: bool, logits: Tensor, mask: Tensor | None, slopes: Tensor, by: Tensor
) -> Tensor:
    flat, _, mask, _ = flat_inputs(logits, logits, mask, None)
    by = by.expand(logits.shape[:2]).contiguous()
    if numba and logits.dtype != torch.float64:
        from medloss.kernels.numba.lovasz import gradient_in_place
    else:
        from medloss.kernels.eager_lovasz import gradient_in_place
    return shaped_gradient(gradient_in_place(terms, flat, mask, slopes, by), logits)


class _PlainExtensions(torch.autograd.Function):
    """The extensions with their gradients kept, of which the first backward pass makes the logits' gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        mask: Tensor | None,
        voxel_weight: Tensor | None,
        terms: LovaszTerms,
        numba: bool,
    ) -> tuple[Tensor, Tensor]:
        """Values and positives."""
        values, positives, slopes = _compute(terms, numba, logits, target, mask, voxel_weight)
        ctx.mark_non_differentiable(positives)
        # Saved, not kept: a checkpoint drops it, and computes it again.
        ctx.save_for_backward(logits, target, mask, voxel_weight, slopes)
        ctx.terms, ctx.numba, ctx.taken = terms, numba, False
        return values, positives

    @staticmethod
    def backward(ctx: Any, by: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        """The logits' gradient."""
        logits, target, mask, voxel_weight, slopes = ctx.saved_tensors
        if ctx.taken:  # by an earlier pass through a graph that was retained
            slopes = _compute(ctx.terms, ctx.numba, logits, target, mask, voxel_weight)[2]
        terms = ctx.terms
        if torch.is_grad_enabled():
            # The operator refuses to be differentiated again.
            gradient = _gradient(logits, mask, slopes, by, terms.mode, terms.first, terms.hinge, terms.batch, ctx.numba)
        else:
            ctx.taken = True
            # `data` has no version that a later look at what was saved would miss.
            gradient = _gradient_in_place(terms, ctx.numba, logits, mask, slopes.data, by)
        return gradient, None, None, None, None, None


@torch.library.custom_op("medloss::lovasz_extensions", mutates_args=())
def _extensions(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    mode: str,
    first: int,
    hinge: bool,
    batch: bool,
    numba: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _compute(LovaszTerms(mode, first, hinge, batch), numba, logits, target, mask, voxel_weight)


@torch.library.custom_op("medloss::lovasz_gradient", mutates_args=())
def _gradient(
    logits: Tensor,
    mask: Tensor | None,
    slopes: Tensor,
    by: Tensor,
    mode: str,
    first: int,
    hinge: bool,
    batch: bool,
    numba: bool,
) -> Tensor:
    return _gradient_in_place(LovaszTerms(mode, first, hinge, batch), numba, logits, mask, slopes.clone(), by)


@_extensions.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    mask: Any,
    voxel_weight: Any,
    mode: str,
    first: int,
    hinge: bool,
    batch: bool,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    items, classes = logits.shape[:2]
    values = logits.new_empty((1 if batch else items, classes), dtype=sum_type(logits))
    slopes = logits.new_empty((items, classes, logits[0, 0].numel()), dtype=sum_type(logits))
    return values, torch.empty_like(values, dtype=torch.int64), slopes


@_gradient.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return empty_gradient(logits)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(inputs[0], inputs[2], output[2])
    ctx.rest = inputs[4:]


def _backward(ctx: Any, by: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradient = _gradient(*ctx.saved_tensors, by, *ctx.rest) if ctx.needs_input_grad[0] else None
    return gradient, *(None,) * (3 + len(ctx.rest))


_extensions.register_autograd(_backward, setup_context=_keep)
_gradient.register_autograd(no_second_derivative)


def _register_small_case(mode: str) -> None:
    """Items by themselves with a mask, and all together; equal errors share what they cost in any order."""

    def extensions(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        results = []
        for batch in (False, True):
            logits, target, mask, _ = small_case(mode, (5, 7, 9), device, dtype)
            terms = LovaszTerms(mode, 1, mode == "probabilities" and batch, batch)
            values, _ = lovasz_extensions(terms, logits.requires_grad_(), target, None if batch else mask, None)
            factors = torch.arange(1, values.numel() + 1, device=device).cos().view_as(values).to(values)
            (gradient,) = torch.autograd.grad((factors * values).sum(), logits)
            lines = gradient[:, 1:].flatten(2).float()
            results += [values.detach(), *(part.to(dtype) for part in (lines.abs().sum(2), lines.sum(2)))]
        return results

    self_check.register(f"{mode} lovasz", extensions)


for _mode in ("softmax", "sigmoid", "probabilities"):
    _register_small_case(_mode)
