"""What a run is trained by: optimizer, learning rate's schedule, seeds, device."""

import math
import os
import random

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pipelines.errors import UserError
from pipelines.training.run_config import RunConfig

#: nnU-Net's.
_MOMENTUM, _EXPONENT = 0.99, 0.9


def create_optimizer(network: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of a planned config."""
    rate = config.learning_rate or 0.0
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(), rate, momentum=_MOMENTUM, nesterov=True, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(network.parameters(), rate, weight_decay=config.weight_decay)


def create_schedule(optimizer: torch.optim.Optimizer, config: RunConfig, batches_an_epoch: int) -> LRScheduler:
    """A linear warm-up, then half a cosine, or a polynomial, down to 0; stepped after each of the optimizer's steps."""
    steps = config.epochs * math.ceil(batches_an_epoch / config.accumulate)
    warmup = max(1, round(config.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return (1 - done) ** _EXPONENT if config.schedule == "polynomial" else 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


def seed_everything(seed: int, epoch: int, rank: int = 0) -> None:
    """Set every generator by the seed, the epoch and the process: so a resumed run needs none of their states."""
    number = 1_000_003 * seed + epoch + 7_919 * rank
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002  for libraries that use it


def chosen_device(name: str) -> torch.device:
    """The device of a name, `auto` being the GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: got '{name}'; expected cpu, cuda or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device: got 'cuda', and there is no CUDA device; expected cpu or auto")
    return device
