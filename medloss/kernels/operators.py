"""The kernels as operators of torch: differentiable, and opaque to its compiler.

Tensors have the shape of the losses' inputs, `[B, C, *spatial]`; kernel sets get them with flattened space. The set is
selected when an operator is called or traced, and is one of its arguments.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from medloss.errors import InputError
from medloss.kernels import dispatch, self_check
from medloss.kernels.self_check import small_case
from medloss.kernels.sum_spec import ROWS, Row, VoxelTerms, sum_type

#: The entropies of single losses, and the exponent with which they are checked.
RARE_ENTROPIES = {"power": 0.3, "focal_background": 0.75}


def voxel_sums(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None = None
) -> dict[Row, Tensor]:
    """Sums over the counted voxels, `[B, C]` per row of `terms`, differentiable with respect to the logits only.

    Args:
        terms: which sums; `Row` defines each.
        logits: `[B, C, *spatial]`, or probabilities.
        target: an index map `[B, 1, *spatial]`, or one map per class `[B, C, *spatial]`, of any type.
        mask: `[B, 1, *spatial]` bool; None when all voxels count.
        voxel_weight: `[B, 1 or C - first, *spatial]`, without gradient; v of the sums.
    """
    # The other sets know no minimum.
    kernels = "eager" if terms.soft_overlap else _kernels(logits, f"{terms.mode} {sums_work(terms)}")
    # A custom operator costs more than a small kernel. A compiler, tracing and subclasses of tensors (fake ones) need
    # it, and it resolves negative views (`.imag` of a conjugate).
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    rows = terms.rows(weighted=voxel_weight is not None)
    if not traced and type(logits) in (Tensor, torch.nn.Parameter) and not logits.is_neg():
        return dict(zip(rows, _PlainSums.apply(logits, target, mask, voxel_weight, terms, kernels, rows), strict=True))
    sums = _sums(logits, target, mask, voxel_weight, *_flat(terms), kernels)
    return {row: sums[row] for row in rows}


def entropy_map(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, positive: Tensor, negative: Tensor
) -> Tensor:
    """Weighted cross entropy per voxel, 0 where masked, differentiable with respect to the logits only.

    Args:
        terms: the mode and the kind of entropy.
        logits: `[B, C, *spatial]`, or probabilities.
        target: as in `voxel_sums`.
        mask: as in `voxel_sums`.
        positive: weights of y, `[B, C]`, without gradient.
        negative: weights of 1 - y, `[B, C]`; a softmax does not read them.

    Returns:
        `[B, 1, *spatial]` for a softmax, else `[B, C - first, *spatial]`.
    """
    result: Tensor = _map(
        logits, target, mask, positive, negative, *_flat(terms), _kernels(logits, f"{terms.mode} map")
    )
    return result


def _kernels(logits: Tensor, work: str) -> str:
    return dispatch.choose(logits.device.type, logits.dtype, work, logits.device.index)


def sums_work(terms: VoxelTerms) -> str:
    """The kind of work of a pass over sums: the rarer entropies have checks of their own, made when they are used."""
    return f"{terms.entropy} sums" if terms.entropy in RARE_ENTROPIES else "sums"


def _flat(terms: VoxelTerms) -> tuple[str, int, bool, bool, bool, str, float, bool]:
    sums = terms.mode, terms.first, terms.overlap, terms.squares, terms.errors
    return *sums, terms.entropy, terms.gamma, terms.soft_overlap


@torch.library.custom_op("medloss::voxel_sums", mutates_args=())
def _sums(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    mode: str,
    first: int,
    overlap: bool,
    squares: bool,
    errors: bool,
    entropy: str,
    gamma: float,
    soft_overlap: bool,
    kernels: str,
) -> Tensor:
    terms = VoxelTerms(mode, first, overlap, squares, errors, entropy, gamma, soft_overlap)
    return _call_sums(terms, logits, target, mask, voxel_weight, kernels)


@torch.library.custom_op("medloss::voxel_sums_backward", mutates_args=())
def _sums_backward(
    sum_gradients: Tensor,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    mode: str,
    first: int,
    overlap: bool,
    squares: bool,
    errors: bool,
    entropy: str,
    gamma: float,
    soft_overlap: bool,
    kernels: str,
) -> Tensor:
    terms = VoxelTerms(mode, first, overlap, squares, errors, entropy, gamma, soft_overlap)
    return _call_backward(terms, sum_gradients, logits, target, mask, voxel_weight, kernels)


@torch.library.custom_op("medloss::entropy_map", mutates_args=())
def _map(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    positive: Tensor,
    negative: Tensor,
    mode: str,
    first: int,
    overlap: bool,
    squares: bool,
    errors: bool,
    entropy: str,
    gamma: float,
    soft_overlap: bool,
    kernels: str,
) -> Tensor:
    terms = VoxelTerms(mode, first, overlap, squares, errors, entropy, gamma, soft_overlap)
    flat = (logit_lines(logits), _lines(target), _line(mask))
    values: Tensor = dispatch.module(kernels).entropy_map(terms, *flat, positive.contiguous(), negative.contiguous())
    return values.view(logits.shape[0], -1, *logits.shape[2:])


def _call_sums(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None, kernels: str
) -> Tensor:
    flat = flat_inputs(logits, target, mask, voxel_weight)
    result: Tensor = dispatch.module(kernels).voxel_sums(terms, *flat)
    return result


def _call_backward(
    terms: VoxelTerms,
    sum_gradients: Tensor,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    kernels: str,
) -> Tensor:
    flat = flat_inputs(logits, target, mask, voxel_weight)
    result: Tensor = dispatch.module(kernels).voxel_sums_backward(terms, *flat, sum_gradients.contiguous())
    return shaped_gradient(result, logits)


class _PlainSums(torch.autograd.Function):
    """`_sums` without what makes it an operator, and row by row: selecting one would be an operation, and four more
    in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target: Tensor,
        mask: Tensor | None,
        voxel_weight: Tensor | None,
        terms: VoxelTerms,
        kernels: str,
        rows: tuple[Row, ...],
    ) -> tuple[Tensor, ...]:
        """The sums."""
        ctx.save_for_backward(logits, target, mask, voxel_weight)
        ctx.terms, ctx.kernels, ctx.rows = terms, kernels, rows
        ctx.set_materialize_grads(False)
        sums = _call_sums(terms, logits, target, mask, voxel_weight, kernels)
        return tuple(sums[row] for row in rows)

    @staticmethod
    def backward(ctx: Any, *row_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """The logits' gradient."""
        gradient = None
        logits, target, mask, voxel_weight = ctx.saved_tensors
        if ctx.needs_input_grad[0] and any(row is not None for row in row_gradients):
            given = _stacked(dict(zip(ctx.rows, row_gradients, strict=True))), logits, target, mask, voxel_weight
            if torch.is_grad_enabled():
                # The operator refuses to be differentiated again, in our words.
                gradient = _sums_backward(*given, *_flat(ctx.terms), ctx.kernels)
            else:
                gradient = _call_backward(ctx.terms, *given, ctx.kernels)
        return gradient, None, None, None, None, None, None


def _stacked(gradients: dict[Row, Tensor | None]) -> Tensor:
    """`[ROWS, B, C]`, with 0 for a row without a gradient; at least one has one."""
    given = {row: gradient for row, gradient in gradients.items() if gradient is not None}
    nothing = torch.zeros_like(next(iter(given.values())))
    return torch.stack([given.get(row, nothing) for row in Row])


def _memory_format(logits: Tensor) -> torch.memory_format:
    """The layout in which logits are read and their gradient is written; others are copied to the default one."""
    layout = torch.channels_last if logits.ndim == 4 else torch.channels_last_3d
    last = logits.is_contiguous(memory_format=layout) and not logits.is_contiguous()
    return layout if last else torch.contiguous_format


def flat_inputs(
    logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The inputs of a pass with flattened space, as kernels get them."""
    return logit_lines(logits), _lines(target), _line(mask), _lines(voxel_weight)


def shaped_gradient(gradient: Tensor, logits: Tensor) -> Tensor:
    """A kernel's gradient in the shape of the logits."""
    return gradient.unflatten(2, logits.shape[2:])


def empty_gradient(logits: Tensor) -> Tensor:
    """An empty gradient, in the layout that kernels give it."""
    return torch.empty_like(logits, memory_format=_memory_format(logits))


def logit_lines(logits: Tensor) -> Tensor:
    """`[B, C, N]`, contiguous or with adjacent channels: what networks trained with channels-last images return."""
    if logits.is_neg():
        logits = logits.resolve_neg()
    # Asking for what is there already would be one operation more.
    layout = _memory_format(logits)
    if not logits.is_contiguous(memory_format=layout):
        logits = logits.contiguous(memory_format=layout)
    return logits.flatten(2)


def _lines(tensor: Any) -> Any:
    """`[B, C, N]`; a copy only of what is not contiguous."""
    if tensor is None:
        return None
    # Kernels read the memory, in which a negative view's numbers are not negative.
    return (tensor.resolve_neg() if tensor.is_neg() else tensor).contiguous().flatten(2)


def _line(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().flatten(1)


@_sums.register_fake
def _(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty((ROWS, *logits.shape[:2]), dtype=sum_type(logits))


@_sums_backward.register_fake
def _(sum_gradients: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return empty_gradient(logits)


@_map.register_fake
def _(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    positive: Tensor,
    negative: Tensor,
    mode: str,
    first: int,
    *_: Any,
) -> Tensor:
    kept = 1 if mode == "softmax" else logits.shape[1] - first
    return logits.new_empty((logits.shape[0], kept, *logits.shape[2:]), dtype=sum_type(logits))


def _keep_sums(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _sums_gradient(ctx: Any, sum_gradients: Tensor) -> tuple[Tensor | None, ...]:
    gradient = _sums_backward(sum_gradients, *ctx.saved_tensors, *ctx.rest) if ctx.needs_input_grad[0] else None
    return gradient, *(None,) * (3 + len(ctx.rest))


def _keep_map(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.rest = inputs[5:]


def _map_gradient(ctx: Any, map_gradient: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, mask, positive, negative = ctx.saved_tensors
    gradient = None
    if ctx.needs_input_grad[0]:
        # The map's gradient is that of the sums with the incoming gradient as the voxels' weight.
        rows = logits.new_zeros((ROWS, *logits.shape[:2]), dtype=map_gradient.dtype)
        rows[Row.POSITIVE], rows[Row.NEGATIVE] = positive, negative
        gradient = _sums_backward(rows, logits, target, mask, map_gradient, *ctx.rest)
    return gradient, *(None,) * (4 + len(ctx.rest))


def no_second_derivative(ctx: Any, gradient: Tensor) -> Any:
    """Refuse to differentiate a gradient."""
    raise InputError(
        "second derivatives: this loss has none; if you need them, write it in torch from `inputs.probabilities()`"
    )


_sums.register_autograd(_sums_gradient, setup_context=_keep_sums)
_map.register_autograd(_map_gradient, setup_context=_keep_map)
_sums_backward.register_autograd(no_second_derivative)


def _register_small_cases(mode: str) -> None:
    """All kinds of sums with a mask and weights, over an odd number of voxels; plain ones over whole tiles."""

    def sums(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        masked = VoxelTerms(mode, 1, overlap=True, squares=True, errors=True, entropy="focal", gamma=2.0)
        plain = VoxelTerms(mode, overlap=True, entropy="plain")
        return [
            *_small_sums(masked, (5, 7, 9), device, dtype, masked=True),
            *_small_sums(plain, (16, 16, 16), device, dtype, masked=False),
        ]

    def map_(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        results = []
        for terms in (VoxelTerms(mode, entropy="focal", gamma=2.0), VoxelTerms(mode, 1, entropy="plain")):
            logits, target, mask, _ = small_case(mode, (5, 7, 9), device, dtype)
            factors = 1 + torch.arange(6, device=device).view(2, 3).to(sum_type(logits))
            values = entropy_map(terms, logits.requires_grad_(), target, mask, factors, factors.flip(0))
            results += [values.detach(), *torch.autograd.grad(values.square().sum(), logits)]
        return results

    self_check.register(f"{mode} sums", sums)
    self_check.register(f"{mode} map", map_)
    for entropy, gamma in RARE_ENTROPIES.items():
        terms = VoxelTerms(mode, overlap=True, entropy=entropy, gamma=gamma)
        self_check.register(f"{mode} {sums_work(terms)}", partial(_small_sums, terms, (5, 7, 9), masked=True))


def _small_sums(
    terms: VoxelTerms, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, *, masked: bool
) -> list[Tensor]:
    logits, target, mask, weight = small_case(terms.mode, shape, device, dtype)
    given = (mask, weight) if masked else (None, None)
    rows = torch.stack(list(voxel_sums(terms, logits.requires_grad_(), target, *given).values()))
    factors = torch.arange(rows.numel(), device=device).cos().view_as(rows).to(rows)
    return [*rows.detach(), *torch.autograd.grad((factors * rows).sum(), logits)]


for _mode in ("softmax", "sigmoid", "probabilities"):
    _register_small_cases(_mode)
