"""What the MONAI bundle's configs call, in `configs/`: MONAI's names for the parts of the one `Training`."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import click
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer

from medloss.errors import InputError
from pipelines.data.checks import refuse_bad_data
from pipelines.data.manifest import load_manifest
from pipelines.evaluation.evaluate import mean_metrics
from pipelines.evaluation.metrics import METRICS
from pipelines.training.auto_config import refuse_misfit
from pipelines.training.checkpoint import has_checkpoint
from pipelines.training.components import Training
from pipelines.training.distributed import rank, ranks, wait_for_all
from pipelines.training.run import print_epoch, train_run
from pipelines.training.run_config import RunConfig, checked_config, recipe_settings
from pipelines.training.run_folder import RunFolder
from pipelines.training.saved_model import Model
from pipelines.utils import TrainingError, UserError, let_first_rank_report
from pipelines.utils.files import write_json
from pipelines.utils.locks import held_lock
from pipelines.utils.machine import chosen_device


def one_line_errors() -> None:
    """Print an error for people, which MONAI wraps in others of its own, as one line; all others as ever."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError | TrainingError | InputError):
                let_first_rank_report()
                click.echo(f"error: {cause}", err=True)
                return
            cause = cause.__cause__
        usual(kind, error, where)

    sys.excepthook = hook


def recipe_default(recipe: str, name: str) -> Any:
    """What a recipe sets a field of `RunConfig` to, or the field's default."""
    return getattr(checked_config(recipe_settings(recipe) | {"manifest": ""}), name)


def bundle_config(
    recipe: str,
    *,
    manifest: str,
    data_root: str | None,
    device: torch.device | str,
    settings: dict[str, Any] | None = None,
    **named: Any,
) -> RunConfig:
    """The config of a run.

    Args:
        recipe: a name or a file.
        manifest: name or path of the data.
        data_root: the folder of their files.
        device: that the bundle computes on.
        settings: fields of `RunConfig` that have no name of their own in `train.yaml`.
        named: fields that have; None leaves them to the recipe.

    Raises:
        UserError: a field that is not there, or a value out of its range.
    """
    given = {name: value for name, value in named.items() if value is not None}
    # The run's folder is to be understood from any other folder.
    if data_root is not None:
        given["data_root"] = str(Path(data_root).resolve())
    given["manifest"] = str(Path(manifest).resolve()) if Path(manifest).is_file() else manifest
    # What `auto` chooses here is told as `auto`: such a run may go on with `medloss train --resume`.
    told = "auto" if device == chosen_device("auto") else str(device)
    return checked_config(recipe_settings(recipe) | given | {"device": told} | (settings or {}))


def trainer(training: Training, max_epochs: int, train_handlers: Iterable[Any] = ()) -> SupervisedTrainer:
    """The training's trainer, under MONAI's names.

    Args:
        training: whose; its config has `max_epochs` from here already, for the learning rate falls over them.
        max_epochs: how many.
        train_handlers: more handlers, such as MONAI's of MLflow.
    """
    for handler in train_handlers:
        handler.attach(training.trainer)
    return training.trainer


def evaluator(training: Training, val_handlers: Iterable[Any] = ()) -> SupervisedEvaluator:
    """The training's evaluator, under MONAI's names.

    Args:
        training: whose.
        val_handlers: more handlers.
    """
    for handler in val_handlers:
        handler.attach(training.evaluator)
    return training.evaluator


def before_training(config: RunConfig, output_dir: str, resume: bool, check: bool) -> None:
    """Refuse, before anything is read for it or written, what cannot be trained.

    Args:
        config: what to train.
        output_dir: the run's folder.
        resume: whether to go on with the run in it.
        check: whether to read the whole data set first.

    Raises:
        UserError: the config does not fit the data; the folder holds a run that is not to go on, or none that could;
            there are bad files; or several processes that do not know of each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and ranks() == 1:
        raise UserError("started by torchrun: name configs/multi_gpu_train.yaml behind configs/train.yaml")
    refuse_misfit(config, load_manifest(config.manifest))
    held = has_checkpoint(Path(output_dir))
    if held and not resume:
        raise UserError(f"output_dir: {output_dir} holds a run; pass --resume True to go on with it, or name another")
    if resume and not held:
        raise UserError(f"resume: {output_dir} holds no checkpoint; start the run without --resume")
    if check and rank() == 0:
        try:
            refuse_bad_data(config.manifest, config.data_root)
        except UserError as error:
            raise UserError(str(error).replace("--no-check", "--check False")) from None
    wait_for_all()


def run_training(training: Training, output_dir: str, resume: bool) -> dict[str, Any]:
    """Train in a run's folder, as `medloss train` does, and print a line an epoch.

    Args:
        training: what is trained.
        output_dir: the run's folder.
        resume: go on from its checkpoint.

    Raises:
        UserError: another process trains there, or it cannot be written to.
        TrainingError: the loss or a gradient was not finite; `result.json` says so, too.
    """
    config, folder = training.config, Path(output_dir)
    try:
        if rank() != 0:
            return train_run(training, folder, resume=resume)
        click.echo(
            f"{config.network} on {training.manifest.name} with {config.loss}: fold {config.fold}, seed {config.seed}, "
            f"{config.epochs} epochs, patches of {' x '.join(map(str, config.patch_size or ()))}"
        )
        with held_lock(folder / "lock", wait=lambda line: click.echo(line, err=True)) as mine:
            if not mine:
                raise UserError(f"output_dir: another process trains in {output_dir}; name another folder")
            result = train_run(training, folder, resume=resume, report=print_epoch)
    except OSError as error:
        raise UserError(f"output_dir: cannot write in {output_dir}: {error.strerror or error}") from None
    _print(result["metrics"], folder)
    return result


def evaluated_config(
    model: Model, *, manifest: str, data_root: str | None, fold: int, device: torch.device | str, cache_dir: str
) -> RunConfig:
    """The config by which a model's validation is made: its run's, without what only training needs.

    Args:
        model: the model.
        manifest: name or path of the data.
        data_root: the folder of their files.
        fold: the fold that is predicted.
        device: where.
        cache_dir: where prepared cases are kept.
    """
    changes: dict[str, Any] = {"manifest": manifest, "data_root": data_root, "fold": fold, "cache_dir": cache_dir}
    # Nor is the loss imported that a stranger's model names.
    changes |= {"device": str(device), "loss": "dice", "loss_arguments": {}, "ema": None}
    return checked_config(model.config.model_dump() | changes)


def run_of(model_file: str, model: Model) -> RunConfig:
    """The config of the run that made a model: from its folder, where it still lies there, else the model's own."""
    path = Path(model_file)
    return RunFolder(path if path.is_dir() else path.parent).config or model.config


def evaluated_training(model: Model, config: RunConfig) -> Training:
    """A training whose network has a model's weights.

    Args:
        model: the model.
        config: from `evaluated_config`.

    Raises:
        UserError: the data have other classes than the model.
    """
    training = Training(config)
    names = {value: training.manifest.classes[value] for value in training.manifest.label_values}
    if names != model.classes:
        raise UserError(f"'{training.manifest.name}' has other classes than the model: {names}, not {model.classes}")
    training.network.load_state_dict(model.network.state_dict())
    return training


def run_evaluation(training: Training, folder: str) -> dict[str, float]:
    """Predict and measure the fold's cases; write `cases.csv` and `metrics.json`, and print the means.

    Args:
        training: from `evaluated_training`.
        folder: where the files are written.
    """
    rows = training.validate()
    metrics = mean_metrics(rows)
    if rank() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        RunFolder(Path(folder)).write_cases(rows)
        write_json(Path(folder) / "metrics.json", metrics)
        _print(metrics, Path(folder))
    return metrics


def _print(metrics: dict[str, float], where: Path) -> None:
    for name in METRICS:
        click.echo(f"{name:12} {metrics[name]:.4f}")
    click.echo(f"written to {where}")
