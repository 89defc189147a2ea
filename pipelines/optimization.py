"""What a run is trained by: the patch, the learning rate's schedule, the seeds, the device."""

import math
import random

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pipelines.errors import UserError
from pipelines.manifest import Manifest
from pipelines.networks import DIVISOR, planned_patch
from pipelines.run_config import RunConfig


def checked_patch(config: RunConfig, manifest: Manifest, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The patch asked for, or a planned one.

    Args:
        config: the run's.
        manifest: of its data set.
        shapes: the training cases' shapes, voxels.

    Raises:
        UserError: it does not fit the data's dimensions, or the network does not divide it.
    """
    divisor = DIVISOR[config.network]
    if any(axis not in range(manifest.dimensions) for axis in config.flip_axes):
        raise UserError(f"flip axes: got {config.flip_axes}; '{manifest.name}' has axes 0 to {manifest.dimensions - 1}")
    if config.patch_size is None:
        return planned_patch(shapes, config.network)
    if len(config.patch_size) != manifest.dimensions or any(n % divisor for n in config.patch_size):
        raise UserError(
            f"patch size: got {config.patch_size}; '{config.network}' on '{manifest.name}' needs "
            f"{manifest.dimensions} numbers divisible by {divisor}"
        )
    return config.patch_size


def create_schedule(optimizer: torch.optim.Optimizer, config: RunConfig, steps_an_epoch: int) -> LRScheduler:
    """A linear warm-up, then half a cosine down to 0; stepped after each of the optimizer's steps."""
    steps = config.epochs * steps_an_epoch
    warmup = max(1, round(config.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return LambdaLR(optimizer, factor)


def seed_everything(seed: int, epoch: int) -> None:
    """Set every generator by the seed and the epoch: so a resumed run needs none of their states."""
    number = 1_000_003 * seed + epoch
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002  for libraries that use it


def chosen_device(name: str) -> torch.device:
    """The device of a name, `auto` being the GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: got '{name}'; expected cpu, cuda or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device: got 'cuda', and there is no CUDA device; expected cpu or auto")
    return device
