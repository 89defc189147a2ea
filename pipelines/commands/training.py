"""`medloss train`: one network, one loss."""

import sys
from pathlib import Path
from typing import Any

import click

from pipelines.commands.options import training_options


@click.command()
@click.argument("manifest")
@click.option("--loss", default="dice", show_default=True, help="A name, a sum (0.2*focal+0.8*dice) or a dotted path.")
@click.option("--fold", default=0, show_default=True, help="The fold that validates.")
@click.option("--seed", default=0, show_default=True, help="Decides weights, order and augmentation.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run's folder.")
@click.option("--resume", is_flag=True, help="Go on from the folder's checkpoint.")
@training_options
def train(manifest: str, loss: str, fold: int, seed: int, out: Path, resume: bool, **options: Any) -> None:
    """Train one network with one loss on MANIFEST (a path, or the name of a shipped one)."""
    from pipelines.checkpoint import NAME
    from pipelines.commands.options import run_config
    from pipelines.errors import TrainingError, UserError
    from pipelines.run import train_run
    from pipelines.run_folder import RunFolder

    config = run_config(manifest=manifest, loss=loss, fold=fold, seed=seed, **options)
    if resume and not (out / NAME).is_file():
        raise UserError(f"--resume: {out} holds no checkpoint; start the run without --resume")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out: {out} is not empty; pass --resume to go on with its run, or name another folder")
    watcher = _Bar(config.epochs) if sys.stderr.isatty() else _Lines()
    try:
        result = train_run(config, out, resume=resume, report=watcher)
    except TrainingError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    for name, value in result["metrics"].items():
        click.echo(f"{name:12} {value:.4f}")
    click.echo(f"written to {RunFolder(out).path}")


class _Lines:
    """One line an epoch."""

    def __call__(self, progress: Any) -> None:
        dice = "" if progress.val_dice is None else f", val dice {progress.val_dice:.4f}"
        click.echo(
            f"epoch {progress.epoch}/{progress.epochs}: train loss {progress.train_loss:.4f}{dice}, "
            f"{progress.epoch_s:.1f} s, about {progress.seconds_left:.0f} s left"
        )


class _Bar:
    """A progress bar, for a terminal."""

    def __init__(self, epochs: int) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=epochs, unit="epoch")

    def __call__(self, progress: Any) -> None:
        self.bar.n = progress.epoch
        dice = "" if progress.val_dice is None else f" val dice {progress.val_dice:.3f}"
        self.bar.set_postfix_str(f"loss {progress.train_loss:.3f}{dice}", refresh=True)
        if progress.epoch == progress.epochs:
            self.bar.close()
