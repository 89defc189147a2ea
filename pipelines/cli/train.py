"""`medloss train`, and the options of a run's training, which `compare` shares."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from click.core import ParameterSource

from pipelines.cli import (
    DATA,
    OUTPUT,
    PATH,
    PLACE,
    RECIPE,
    RUN,
    GroupedCommand,
    combined,
    help_all_option,
    option,
    typed,
)
from pipelines.data import Configuration
from pipelines.utils import TrainingError, UserError, let_first_rank_report

if TYPE_CHECKING:  # `--help` does not wait for it
    from pipelines.training.run_config import RunConfig

training_options = combined(
    option("--data-root", DATA, "DIR", "Folder of the data; default: $MEDLOSS_DATA.", type=PATH),
    option("--check/--no-check", DATA, None, "Check all files before training.", default=True),
    option("--resample-channels/--no-resample-channels", DATA, None,
           "Resample channels on other grids to the label's; refused by default.", rare=True, default=None),
    option("--cache-dir", DATA, "DIR", "Folder of the preprocessed cases; default: in the folder of --out.", rare=True),
    option("--recipe", RECIPE, "NAME", "quick, full or a YAML file.", default="quick"),
    option("--network", RECIPE, "NAME", "unet, vnet or dynunet; default: set by the recipe.",
           type=click.Choice(["unet", "vnet", "dynunet"])),
    option("--epochs", RECIPE, "N", "Training epochs; default: set by the recipe.", type=int),
    option("--batch-size", RECIPE, "N", "Patches per step; default: 2 to 4, as memory allows.", type=int),
    option("--lr learning_rate", RECIPE, "RATE", "Peak learning rate.", type=float),
    option("--loss-lr learning_rates", RECIPE, "LOSS=RATE",
           "Peak learning rate per loss, such as focal=1e-2,tversky=1e-3."),
    option("--schedule loss_schedule", RECIPE, "NAME",
           "Weights of sums with a boundary-based term: constant, ramp or balanced; default: set per loss.",
           type=click.Choice(["constant", "ramp", "balanced"])),
    option("--val-interval", RECIPE, "N", "Epochs between validations.", type=int),
    option("--set settings", RECIPE, "KEY=VALUE",
           "Any other setting, such as optimizer=sgd, patch=64,96,96, spacing=1,1,1, flip_axes=0,2, "
           "precision=float32, compile=true, ema=0.99 or augmentation.rotation=15. May be repeated; --help-all lists "
           "all keys.", multiple=True),
    option("--optimizer", RECIPE, None, "Default: adamw.", rare=True, type=click.Choice(["adamw", "sgd"])),
    option("--accumulate", RECIPE, "N", "Batches whose gradients make one step.", rare=True, type=int),
    option("--patch patch_size", RECIPE, "LIST",
           "Voxels per axis, such as 40,56,40; planned from the data by default.", rare=True),
    option("--spacing", RECIPE, "LIST",
           "Spacing of the training grid per axis, mm, such as 1,1,1; planned from the data by default.", rare=True),
    option("--flip-axes", RECIPE, "LIST",
           "Array axes that are flipped at random, such as 0,2; none by default.", rare=True),
    option("--precision", RECIPE, "TYPE", "auto (the default), float32, bfloat16 or float16.", rare=True,
           type=click.Choice(["auto", "float32", "bfloat16", "float16"])),
    option("--compile/--no-compile", RECIPE, None, "Compile the network; pays off in long runs.", rare=True,
           default=None),
    option("--predictions/--no-predictions keep_predictions", OUTPUT, None,
           "Keep the label maps of the last validation; kept by default.", rare=True, default=None),
    option("--probabilities/--no-probabilities keep_probabilities", OUTPUT, None,
           "Keep the class probabilities of the last validation, too, as nnU-Net's .npz in float16.", rare=True,
           default=None),
    option("--metrics", RECIPE, "LIST",
           "Metrics in addition to the default ones and the manifest's, such as lesion_f1,lesion_dice.", rare=True),
    option("--tolerance nsd_tolerance", RECIPE, "MM",
           "Tolerance of the NSD; default: the manifest's, or 1 or the largest voxel side, whichever is more.",
           rare=True, type=float),
    option("--device", PLACE, "NAME", "cpu, cuda or auto (the default)."),
    option("--workers", PLACE, "N", "Loader processes per run.", rare=True, type=int),
    option("--threads", PLACE, "N", "CPU threads per run.", rare=True, type=int),
    help_all_option,
)  # fmt: skip

trainer_options = combined(
    option("--trainer", RECIPE, "NAME",
           "engines: MONAI's; nnunet: nnU-Net plans, trains and predicts with these losses (--set "
           "nnunet.configuration=2d, nnunet.planner, nnunet.iterations).",
           type=click.Choice(["engines", "nnunet"]), default="engines"),
    option("--nnunet-configuration", RECIPE, "NAME",
           "Configuration of nnU-Net's plans: 2d, 3d_fullres or 3d_lowres; default: 3d_fullres, and 2d for 2D data.",
           rare=True, type=click.Choice(get_args(Configuration))),
    option("--nnunet-planner", RECIPE, "CLASS", "Planner, such as nnUNetPlannerResEncM; default: nnU-Net's.",
           rare=True),
    option("--nnunet-iterations", RECIPE, "N", "Steps per epoch; default: 250, as in nnU-Net.",
           rare=True, type=click.IntRange(min=1)),
)  # fmt: skip

#: Training options that nnU-Net does not plan itself.
_NOT_PLANNED = {
    "epochs", "data_root", "keep_predictions", "keep_probabilities", "cache_dir", "device", "settings", "metrics",
    "nsd_tolerance",
}  # fmt: skip


def chosen_trainer(manifest: str, options: Mapping[str, Any], others: Mapping[str, bool]) -> dict[str, Any]:
    """The options for `run_config`, with `nnunet` among them if nnU-Net trains.

    `others` are flags of other options that need our engines, and whether they were given.

    Raises:
        UserError: an option that the trainer does not have; nnU-Net is not installed, or cannot take the data.
    """
    kept = dict(options)
    trainer = kept.pop("trainer")
    nnunet = {key.removeprefix("nnunet_"): kept.pop(key) for key in options if key.startswith("nnunet_")}
    context = click.get_current_context()
    given = {
        str(param.name): typed(param.opts[0])
        for param in context.command.params
        if param.name and context.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    }
    if trainer == "engines":
        for name in nnunet:
            if flag := given.get(f"nnunet_{name}"):
                raise UserError(f"{flag}: goes with --trainer nnunet, and got --trainer engines")
        return kept
    refused = [given[name] for name in kept if name in given and name not in _NOT_PLANNED]
    if refused := refused + [f"--set {key}" for key in kept.get("settings", {})]:
        raise UserError(f"{refused[0]}: nnU-Net plans that itself; leave it out with --trainer nnunet")
    if refused := [flag for flag, is_given in others.items() if is_given]:
        raise UserError(f"{refused[0]}: goes with --trainer engines, and got --trainer nnunet")
    from pipelines.data.manifest import load_manifest
    from pipelines.nnunet.datasets import refuse_unfit, require_nnunet

    loaded = load_manifest(manifest)
    refuse_unfit(loaded)
    nnunet["configuration"] = nnunet["configuration"] or ("2d" if loaded.dimensions == 2 else "3d_fullres")
    if loaded.dimensions == 2 and nnunet["configuration"] != "2d":
        raise UserError(
            f"--nnunet-configuration: got {nnunet['configuration']}; '{loaded.name}' is 2D, and has 2d alone"
        )
    require_nnunet()
    return kept | {"nnunet": {name: value for name, value in nnunet.items() if value is not None}}


@click.command(cls=GroupedCommand)
@click.argument("manifest")
@option("--loss", RUN, "LOSS", "A name, a sum (0.2*focal+0.8*dice) or a dotted path.", default="dice")
@option("--fold", RUN, "N", "Validation fold.", default=0)
@option("--seed", RUN, "N", "Seed of weights, order and augmentation.", default=0)
@option("--out", RUN, "DIR", "Folder of the run.", type=PATH, required=True)
@option("--resume", RUN, None, "Resume from the last checkpoint in the folder.", is_flag=True)
@training_options
def train(manifest: str, loss: str, out: Path, resume: bool, check: bool, **options: Any) -> None:
    """Train one network with one loss on MANIFEST (a path, or the name of a shipped one).

    Processes that torchrun starts share each batch.
    """
    # Not above, for the time that pydantic takes.
    from pipelines.cli.settings import refuse_untrainable, refuse_unused_rates, run_config, with_settings
    from pipelines.data.manifest import load_manifest
    from pipelines.training.auto_config import refuse_settings

    options = with_settings(options)
    refuse_unused_rates(options["learning_rates"], [loss])
    config = run_config(manifest=manifest, loss=loss, **options)
    loaded = load_manifest(config.manifest)
    refuse_settings(config, loaded)
    _refuse_folder(out, resume)
    refuse_untrainable([config], loaded)
    # Not above, for the seconds that MONAI takes.
    from pipelines.data.checks import refuse_bad_data
    from pipelines.training.distributed import joined_ranks, rank, wait_for_all

    if config.cache_dir is None:
        config = config.model_copy(update={"cache_dir": str(out / "cache")})
    try:
        with joined_ranks(config.device):
            if rank() == 0 and check:
                refuse_bad_data(config.manifest, config.data_root, resample_channels=config.resample_channels)
            wait_for_all()
            result = _train(config, out, resume, rank() == 0)
    except TrainingError as error:
        let_first_rank_report()
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    for name, value in result.items():
        click.echo(f"{name:12} {value:.4f}")
    if result:
        click.echo(f"written to {out}")


def _refuse_folder(out: Path, resume: bool) -> None:
    from pipelines.training.checkpoint import has_checkpoint, is_unfinished
    from pipelines.training.run_folder import RUN_FILES
    from pipelines.utils.files import refuse_unwritable_folder

    refuse_unwritable_folder(out, "--out")
    if resume and not has_checkpoint(out):
        raise UserError(f"--resume: {out} holds no checkpoint; start the run without --resume")
    if resume or not out.is_dir():
        return
    if has_checkpoint(out):
        raise UserError(f"--out: {out} holds a run; pass --resume to resume it, or name another folder")
    # A run that was killed in its first epoch leaves files, and can be started again.
    if any(path.name not in RUN_FILES and not is_unfinished(path.name) for path in out.iterdir()):
        raise UserError(f"--out: {out} is not empty; name another folder")


def _train(config: "RunConfig", out: Path, resume: bool, first: bool) -> dict[str, float]:
    """Train, and return the metrics in the first process; nothing in the others."""
    from pipelines.utils.locks import held_lock
    from pipelines.utils.machine import without_mlflow

    with without_mlflow():
        from pipelines.training.run import attach_bars, print_epoch, train_run

    try:
        if not first:
            train_run(config, out, resume=resume)
            return {}
        with held_lock(out / "lock", wait=lambda line: click.echo(line, err=True)) as mine:
            if not mine:
                raise UserError(f"--out: another process trains in {out}; name another folder")
            result = train_run(config, out, resume=resume, report=print_epoch, attach=attach_bars)
            return dict(result["metrics"])
    except OSError as error:
        raise UserError(f"--out: cannot write in {out}: {error.strerror or error}") from None
