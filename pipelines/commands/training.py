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
    from pipelines.checkpoint import has_checkpoint
    from pipelines.commands.options import run_config
    from pipelines.errors import TrainingError, UserError
    from pipelines.progress import attach_bars, print_epoch
    from pipelines.run import train_run
    from pipelines.run_folder import RunFolder

    config = run_config(manifest=manifest, loss=loss, fold=fold, seed=seed, **options)
    if resume and not has_checkpoint(out):
        raise UserError(f"--resume: {out} holds no checkpoint; start the run without --resume")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is no folder; name another")
    if not resume and out.is_dir() and any(out.iterdir()):
        go_on = "pass --resume to go on with its run, or " if has_checkpoint(out) else ""
        raise UserError(f"--out: {out} is not empty; {go_on}name another folder")
    try:
        result = train_run(config, out, resume=resume, report=print_epoch, attach=attach_bars)
    except TrainingError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except OSError as error:
        raise UserError(f"--out: cannot write in {out}: {error.strerror or error}") from None
    for name, value in result["metrics"].items():
        click.echo(f"{name:12} {value:.4f}")
    click.echo(f"written to {RunFolder(out).path}")
