"""Operators that give a sum per item and class with its gradient: nothing else is kept for the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from medloss.errors import InputError


def wants_gradient(p: Tensor) -> bool:
    """Whether a backward pass may follow, so that gradients are needed."""
    return torch.is_grad_enabled() and p.requires_grad


def new_results(p: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    """Room for the sums `[B, C]` and the gradients: as `p`, or nothing if no gradient is needed."""
    return p.new_empty(p.shape[:2]), torch.empty(p.shape if gradient else (0,), dtype=p.dtype, device=p.device)


def differentiable(loss: str) -> Callable[[CustomOpDef], CustomOpDef]:
    """Complete an operator `(p, ..., gradient) -> (sums, gradients)`, `gradients` the sums' gradient for `p`."""

    def complete(operator: CustomOpDef) -> CustomOpDef:
        def results(p: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
            return new_results(p, others[-1])

        def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
            ctx.save_for_backward(output[1])
            ctx.set_materialize_grads(False)
            ctx.others = len(inputs) - 1

        def backward(ctx: Any, by_sum: Tensor | None, by_gradient: Tensor | None) -> tuple[Tensor | None, ...]:
            if by_gradient is not None:
                raise InputError(f"{loss}: second derivatives are not there for this loss; expected one backward only")
            gradient = None
            if by_sum is not None:
                (gradients,) = ctx.saved_tensors
                gradient = gradients * by_sum.reshape(*by_sum.shape, *(1,) * (gradients.ndim - 2))
            return gradient, *(None,) * ctx.others

        operator.register_fake(results)
        operator.register_autograd(backward, setup_context=setup)
        return operator

    return complete
