"""Operators that give a sum per item and class with its gradient: nothing else is kept for the backward pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.library import CustomOpDef

from medloss.errors import InputError
from medloss.inputs import LossInputs, Mode
from medloss.kernels import dispatch, self_check
from medloss.kernels.operators import logit_lines, shaped_gradient

#: What `differentiable` completes: from `p` and whether gradients are needed to the sums and gradients.
Sums = Callable[[Tensor, bool], tuple[Tensor, Tensor]]


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
                raise _no_second_derivative(loss)
            gradient = None
            if by_sum is not None:
                (gradients,) = ctx.saved_tensors
                gradient = gradients * by_sum.reshape(*by_sum.shape, *(1,) * (gradients.ndim - 2))
            return gradient, *(None,) * ctx.others

        operator.register_fake(results)
        operator.register_autograd(backward, setup_context=setup)
        return operator

    return complete


def _no_second_derivative(loss: str) -> InputError:
    return InputError(f"{loss}: second derivatives are not there for this loss; expected one backward only")


def sums_of_probabilities(loss: str, inputs: LossInputs, sums: Sums) -> Tensor:
    """The sums `[B, C']` of an operator over the probabilities of the classes that count, differentiable.

    Args:
        loss: its name, for messages.
        inputs: the checked inputs of the loss.
        sums: calls the operator; its gradient for `p` is constant.
    """
    logits = inputs.logits
    if not _compiled_softmax(inputs):
        p = inputs.included(inputs.probabilities())
        return sums(p, wants_gradient(p))[0]
    first = 0 if inputs.include_background else 1
    result: Tensor = _OfSoftmax.apply(logits, loss, first, sums, wants_gradient(logits))
    return result


def fixed_probabilities(inputs: LossInputs) -> Tensor:
    """The probabilities of the classes that count, `[B, C', *spatial]`, without gradient."""
    with torch.no_grad():
        return inputs.included(_softmax(inputs.logits) if _compiled_softmax(inputs) else inputs.probabilities())


def _compiled_softmax(inputs: LossInputs) -> bool:
    return inputs.categorical and inputs.mask is None and dispatch.direct(inputs.logits, "softmax maps")


def _softmax(logits: Tensor) -> Tensor:
    from medloss.kernels.numba.softmax import probabilities

    return probabilities(logit_lines(logits.detach())).unflatten(2, logits.shape[2:])


class _OfSoftmax(torch.autograd.Function):
    """A softmax and the sums over it in one: their gradients meet in one pass, in the logits' type and layout."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: str, first: int, sums: Sums, gradient: bool) -> Tensor:
        """The sums."""
        p = _softmax(logits)
        values, gradients = sums(p[:, first:], gradient)
        ctx.save_for_backward(logits, p, gradients)
        ctx.loss = loss
        return values

    @staticmethod
    def backward(ctx: Any, by_sum: Tensor) -> tuple[Tensor | None, ...]:
        """The logits' gradient."""
        from medloss.kernels.numba.softmax import logit_gradients

        logits, p, gradients = ctx.saved_tensors
        by_logit = logit_gradients(gradients.flatten(2), by_sum.detach(), p.flatten(2), logit_lines(logits.detach()))
        by_logit = shaped_gradient(by_logit, logits)
        if torch.is_grad_enabled():
            by_logit = _Once.apply(by_logit, logits, by_sum, ctx.loss)
        return by_logit, None, None, None, None


class _Once(torch.autograd.Function):
    """A gradient that refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, logits: Tensor, by_sum: Tensor, loss: str) -> Tensor:
        """The gradient as it is."""
        ctx.loss = loss
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, by_gradient: Tensor) -> Any:
        """Refuse."""
        raise _no_second_derivative(ctx.loss)


def _small_case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    numbers = torch.arange(2 * 3 * 315, dtype=torch.float64, device="cpu")
    z = (4 * (0.37 * numbers).sin()).view(2, 3, 5, 7, 9).to(device, dtype).requires_grad_()
    factors = (0.11 * numbers).cos().view(2, 3, 5, 7, 9).to(device)
    planes = LossInputs(z, z, None, Mode.CATEGORICAL, False, None, [])
    last = z.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    results = []
    for inputs in (planes, replace(planes, logits=last, include_background=True)):

        def sums(p: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
            weights = factors[:, -p.shape[1] :].to(p)
            return (p * weights).flatten(2).sum(2), weights.contiguous()

        values = sums_of_probabilities("", inputs, sums)
        by_sum = torch.arange(values.numel(), device=device).cos().view_as(values).to(values)
        results += [values.detach(), torch.autograd.grad((by_sum * values).sum(), inputs.logits)[0]]
    return results


self_check.register("softmax maps", _small_case)
