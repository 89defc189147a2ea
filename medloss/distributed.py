"""Sums over the ranks in data-parallel training: `batch=True` then means the global batch.

A `DistributedDataParallel` rank sees one part of the batch. Sums over the batch are summed over all ranks of the
default process group, so that each of them has the loss of the global batch. Its gradient goes back to every rank: the
sum's backward sums the ranks' incoming gradients, W times the gradient of one loss, and DDP's mean over the W ranks
takes the W out again. What remains is the gradient that one process would have on the global batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(logits: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Sum each of some tensors over all ranks, differentiably, in one collective; outside of training do nothing.

    Ranks are summed over only where a gradient is wanted: in validation they may make different numbers of calls,
    and the first that had no counterpart would wait forever.

    Args:
        logits: what the loss was given: they decide whether a gradient is wanted.
        *values: of one type, and of the same shapes on all ranks.

    Returns:
        The sums, in the shapes of the values; the values themselves with one process, or without gradients.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad and _several_ranks()):
        return values
    flat: Tensor = _sum(torch.cat([value.reshape(-1) for value in values]))
    parts = flat.split([value.numel() for value in values])
    return tuple(part.view(value.shape) for part, value in zip(parts, values, strict=True))


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.library.custom_op("medloss::sum_over_ranks", mutates_args=())
def _sum(values: Tensor) -> Tensor:
    total = values.clone()
    dist.all_reduce(total)
    return total


@_sum.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values)


def _gradient(ctx: Any, gradients: Tensor) -> Tensor:
    # Every rank's loss reads this rank's values, so what comes in on all of them belongs to these.
    gradient: Tensor = _sum(gradients)
    return gradient


_sum.register_autograd(_gradient)
