"""How far a run is: what it tells after each epoch, and how that is shown."""

import math
import sys
from dataclasses import dataclass

import click
from ignite.engine import Engine
from ignite.handlers import ProgressBar

from pipelines.duration import duration


@dataclass(frozen=True)
class Progress:
    """Where a run is after an epoch, for whoever watches.

    Attributes:
        epoch: epochs that are over.
        epochs: of how many.
        train_loss: mean over the epoch's batches.
        val_dice: mean over the validation cases; None without a validation.
        epoch_s: seconds that the epoch trained, validation apart.
        seconds_left: expected, with validation.
    """

    epoch: int
    epochs: int
    train_loss: float
    val_dice: float | None
    epoch_s: float
    seconds_left: float


def print_epoch(progress: Progress) -> None:
    """Print one line an epoch."""
    dice = "" if progress.val_dice is None or math.isnan(progress.val_dice) else f", val dice {progress.val_dice:.4f}"
    click.echo(
        f"epoch {progress.epoch}/{progress.epochs}: train loss {progress.train_loss:.4f}{dice}, "
        f"{progress.epoch_s:.1f} s, about {duration(progress.seconds_left)} left"
    )


def attach_bars(trainer: Engine, evaluator: Engine) -> None:
    """Show on a terminal, and there alone, how far the epoch's batches and the validation's cases are."""
    if not sys.stderr.isatty():
        return
    bar_format = "{desc} {percentage:3.0f}% |{bar:30}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
    loss = {"output_transform": lambda output: {"loss": f"{output['loss'].item():.4f}"}}
    for engine, name, shown in ((trainer, "epoch", loss), (evaluator, "validation", {})):
        ProgressBar(persist=False, bar_format=bar_format, desc=name).attach(engine, **shown)
