"""`medloss train`: one network, one loss."""

import sys
from pathlib import Path
from typing import Any

import click

from pipelines.commands.option_groups import RUN, GroupedCommand, option
from pipelines.commands.options import training_options


@click.command(cls=GroupedCommand)
@click.argument("manifest")
@option(
    "--loss",
    group=RUN,
    default="dice",
    show_default=True,
    metavar="LOSS",
    help="A name, a sum (0.2*focal+0.8*dice) or a dotted path.",
)
@option("--fold", group=RUN, default=0, show_default=True, metavar="N", help="Validation fold.")
@option("--seed", group=RUN, default=0, show_default=True, metavar="N", help="Seed of weights, order and augmentation.")
@option("--out", group=RUN, type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the run.")
@option("--resume", group=RUN, is_flag=True, help="Resume from the last checkpoint in the folder.")
@training_options
def train(manifest: str, loss: str, fold: int, seed: int, out: Path, resume: bool, check: bool, **options: Any) -> None:
    """Train one network with one loss on MANIFEST (a path, or the name of a shipped one).

    Processes that torchrun starts share each batch.
    """
    from pipelines.commands.options import refuse_untrainable, refuse_unused_rates, run_config
    from pipelines.dataset.manifest import load_manifest
    from pipelines.errors import TrainingError, let_the_first_rank_tell
    from pipelines.training.planning import refuse_settings

    if options["settings"]:
        from pipelines.commands.settings import with_settings  # not above, for the time that pydantic takes

        options = with_settings(options)
    refuse_unused_rates(options.get("learning_rates"), [loss])
    config = run_config(manifest=manifest, loss=loss, fold=fold, seed=seed, **options)
    loaded = load_manifest(config.manifest)
    refuse_settings(config, loaded)
    _refuse_folder(out, resume)
    refuse_untrainable([config], loaded)
    # Not above, for the seconds that MONAI takes.
    from pipelines.dataset.precheck import refuse_bad_data
    from pipelines.training.ranks import joined_ranks, rank, wait_for_all

    if config.cache_dir is None:
        config = config.model_copy(update={"cache_dir": str(out / "cache")})
    try:
        with joined_ranks(config.device):
            if rank() == 0 and check:
                refuse_bad_data(config.manifest, config.data_root)
            wait_for_all()
            result = _train(config, out, resume, rank() == 0)
    except TrainingError as error:
        let_the_first_rank_tell()
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    for name, value in result.items():
        click.echo(f"{name:12} {value:.4f}")
    if result:
        click.echo(f"written to {out}")


def _refuse_folder(out: Path, resume: bool) -> None:
    from pipelines.errors import UserError
    from pipelines.files import refuse_unwritable_folder
    from pipelines.training.checkpoint import has_checkpoint, is_unfinished
    from pipelines.training.run_folder import OWN_FILES

    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is no folder; name another")
    refuse_unwritable_folder(out, "--out")
    if resume and not has_checkpoint(out):
        raise UserError(f"--resume: {out} holds no checkpoint; start the run without --resume")
    if resume or not out.is_dir():
        return
    if has_checkpoint(out):
        raise UserError(f"--out: {out} holds a run; pass --resume to go on with it, or name another folder")
    # What a run leaves that was killed in its first epoch is no reason to refuse.
    if any(path.name not in OWN_FILES and not is_unfinished(path.name) for path in out.iterdir()):
        raise UserError(f"--out: {out} is not empty; name another folder")


def _train(config: Any, out: Path, resume: bool, first: bool) -> dict[str, float]:
    """Train; the metrics, for the first process alone."""
    from pipelines.errors import UserError
    from pipelines.imports import without_mlflow
    from pipelines.locks import held_lock

    with without_mlflow():
        from pipelines.training.progress import attach_bars, print_epoch
        from pipelines.training.run import train_run

    try:
        if not first:
            train_run(config, out, resume=resume)
            return {}
        with held_lock(out / "lock", wait=lambda line: click.echo(line, err=True)) as mine:
            if not mine:
                raise UserError(f"--out: another process trains in {out}; name another folder")
            metrics: dict[str, float] = train_run(config, out, resume=resume, report=print_epoch, attach=attach_bars)[
                "metrics"
            ]
            return metrics
    except OSError as error:
        raise UserError(f"--out: cannot write in {out}: {error.strerror or error}") from None
