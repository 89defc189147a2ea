"""What a loss adds to the peak of a training step's memory."""

import torch

from benchmarks.cases import EXACT
from benchmarks.memory import peak_memory
from benchmarks.step_losses import Losses
from benchmarks.step_results import Found
from benchmarks.step_run import Loss, TrainingStep
from benchmarks.step_settings import Setting


def added_memory(setting: Setting, losses: Losses, step: TrainingStep) -> list[Found]:
    """A row per side and loss, in sizes of the logits; the gradient that it hands to the network is part of it."""
    logits = sum(gradient.nbytes for gradient in step.constant)

    def peak(loss: Loss | None) -> int | None:
        step.run_untimed(loss)
        return peak_memory(lambda: step.run_untimed(loss), torch.device("cpu"))

    bare = peak(None)
    rows = []
    for (side, loss), function in losses.items():
        whole = peak(function)
        known = bare is not None and whole is not None
        memory = (whole - bare) / logits if known else None  # type: ignore[operator]
        note = "" if known else "peak memory is not available on this system"
        rows.append(Found(setting.key, EXACT, loss, side, memory=memory, note=note))
    return rows
