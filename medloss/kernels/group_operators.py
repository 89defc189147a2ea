"""Sums over groups of voxels as an operator of torch, as `operators.py` has those over all voxels."""

from typing import Any

import torch
from torch import Tensor

from medloss.kernels import dispatch, self_check
from medloss.kernels.group_spec import GroupTerms, total_type
from medloss.kernels.operators import empty_gradient, flat_inputs, no_second_derivative, shaped_gradient
from medloss.kernels.self_check import small_case
from medloss.kernels.sum_spec import sum_type


def group_sums(
    terms: GroupTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None = None
) -> Tensor:
    """Sums over the counted voxels of each group, `[2, B, C, groups]`, differentiable with respect to the logits only.

    Args:
        terms: which groups, as `GroupTerms` has them.
        logits: `[B, C, *spatial]`, or probabilities.
        target: as in `voxel_sums`; an index map for groups by label.
        mask: `[B, 1, *spatial]` bool; None when all voxels count.
        voxel_weight: `[B, 1, *spatial]`, without gradient.
    """
    # Triton has no kernel of its own for it.
    chosen = dispatch.choose(logits.device.type, logits.dtype, f"{terms.mode} groups", logits.device.index)
    kernels = "numba" if chosen == "numba" else "eager"
    result: Tensor = _sums(logits, target, mask, voxel_weight, terms.mode, terms.first, terms.by, terms.groups, kernels)
    return result


def _kernels(name: str) -> Any:
    if name == "numba":
        from medloss.kernels.numba import groups as module  # not above: numba may be missing
    else:
        from medloss.kernels import eager_groups as module  # type: ignore[no-redef]
    return module


@torch.library.custom_op("medloss::group_sums", mutates_args=())
def _sums(
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    mode: str,
    first: int,
    by: str,
    groups: int,
    kernels: str,
) -> Tensor:
    terms = GroupTerms(mode, first, by, groups)
    result: Tensor = _kernels(kernels).group_sums(terms, *flat_inputs(logits, target, mask, voxel_weight))
    return result


@torch.library.custom_op("medloss::group_sums_backward", mutates_args=())
def _sums_backward(
    sum_gradients: Tensor,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    mode: str,
    first: int,
    by: str,
    groups: int,
    kernels: str,
) -> Tensor:
    terms = GroupTerms(mode, first, by, groups)
    flat = flat_inputs(logits, target, mask, voxel_weight)
    return shaped_gradient(_kernels(kernels).group_sums_backward(terms, *flat, sum_gradients.contiguous()), logits)


@_sums.register_fake
def _(
    logits: Tensor, target: Tensor, mask: Any, voxel_weight: Any, mode: str, first: int, by: str, groups: int, *_: Any
) -> Tensor:
    return logits.new_empty((2, *logits.shape[:2], groups), dtype=total_type(logits))


@_sums_backward.register_fake
def _(sum_gradients: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return empty_gradient(logits)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]


def _gradient(ctx: Any, sum_gradients: Tensor) -> tuple[Tensor | None, ...]:
    gradient = _sums_backward(sum_gradients, *ctx.saved_tensors, *ctx.rest) if ctx.needs_input_grad[0] else None
    return gradient, *(None,) * (3 + len(ctx.rest))


_sums.register_autograd(_gradient, setup_context=_keep)
_sums_backward.register_autograd(no_second_derivative)


def _register_small_case(mode: str) -> None:
    """All kinds of groups, with a mask and weights."""

    def sums(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        results = []
        for by, groups in (("bins", 7), ("soft_bins", 5), ("labels", 3)):
            logits, target, mask, weight = small_case(mode, (5, 7, 9), device, dtype)
            rows = group_sums(GroupTerms(mode, 1, by, groups), logits.requires_grad_(), target, mask, weight)
            factors = torch.arange(rows.numel(), device=device).cos().view_as(rows).to(rows)
            results += [*rows.detach().to(sum_type(logits)), *torch.autograd.grad((factors * rows).sum(), logits)]
        return results

    self_check.register(f"{mode} groups", sums)


for _mode in ("softmax", "sigmoid", "probabilities"):
    _register_small_case(_mode)
