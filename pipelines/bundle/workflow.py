"""The parts that the bundle's `train.yaml` and `evaluate.yaml` name: a `Training` under MONAI's names."""

import math
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
from pipelines.training.auto_config import divisor, refuse_misfit
from pipelines.training.checkpoint import has_checkpoint
from pipelines.training.components import Training
from pipelines.training.distributed import rank, ranks, wait_for_all
from pipelines.training.run import print_epoch, train_run
from pipelines.training.run_config import RunConfig, checked_config, recipe_settings
from pipelines.training.run_folder import RunFolder
from pipelines.training.saved_model import Model
from pipelines.utils import TrainingError, UserError, let_first_rank_report
from pipelines.utils.files import read_json, resource_folder, write_json
from pipelines.utils.locks import held_lock
from pipelines.utils.machine import chosen_device

#: Voxels per axis that a network of any of ours takes, at least.
_LEAST_SIDE = 16


def one_line_errors() -> None:
    """Print errors for users, which MONAI wraps in its own, as one line; others with their traceback."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError | TrainingError | InputError):
            cause = cause.__cause__
        if cause is None:
            usual(kind, error, where)
        else:
            let_first_rank_report()
            click.echo(f"error: {cause}", err=True)

    sys.excepthook = hook


def recipe_default(recipe: str, name: str) -> Any:
    """The value of a field of `RunConfig` in a recipe, or the field's default."""
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
    """The config of a run: a recipe, updated by fields with a name in `train.yaml` (None: not given) and by `settings`.

    Raises:
        UserError: an unknown field, or a value out of range.
    """
    given = {name: value for name, value in named.items() if value is not None}
    # Absolute paths: the run may be resumed from another folder.
    if data_root is not None:
        given["data_root"] = str(Path(data_root).resolve())
    given["manifest"] = str(Path(manifest).resolve()) if Path(manifest).is_file() else manifest
    # Recorded as `auto` where that chooses the same device, so that `medloss train --resume` can resume the run.
    name = "auto" if device == chosen_device("auto") else str(device)
    return checked_config(recipe_settings(recipe) | given | {"device": name} | (settings or {}))


def trainer(training: Training, max_epochs: int, train_handlers: Iterable[Any] = ()) -> SupervisedTrainer:
    """The trainer with further handlers, such as MONAI's for MLflow, under MONAI's names.

    Its config already has these `max_epochs`, which the learning rate depends on.
    """
    for handler in train_handlers:
        handler.attach(training.trainer)
    return training.trainer


def evaluator(training: Training, val_handlers: Iterable[Any] = ()) -> SupervisedEvaluator:
    """The evaluator with further handlers, under MONAI's names."""
    for handler in val_handlers:
        handler.attach(training.evaluator)
    return training.evaluator


def before_training(config: RunConfig, output_dir: str, resume: bool, check: bool) -> None:
    """Refuse a run that cannot be trained, before anything is prepared or written; `check` reads the whole data set.

    Raises:
        UserError: the config does not fit the data; the folder has a run and `resume` is false, or the reverse; there
            are bad files; or several processes run without the config for several GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and ranks() == 1:
        raise UserError("started by torchrun: pass configs/multi_gpu_train.yaml after configs/train.yaml")
    refuse_misfit(config, load_manifest(config.manifest))
    held = has_checkpoint(Path(output_dir))
    if held and not resume:
        raise UserError(f"output_dir: {output_dir} holds a run; pass --resume True to resume it, or name another")
    if resume and not held:
        raise UserError(f"resume: {output_dir} holds no checkpoint; start the run without --resume")
    if check and rank() == 0:
        try:
            refuse_bad_data(config.manifest, config.data_root, resample_channels=config.resample_channels)
        except UserError as error:
            raise UserError(str(error).replace("--no-check", "--check False")) from None
    wait_for_all()


def run_training(training: Training, output_dir: str, resume: bool) -> dict[str, Any]:
    """Train in a run's folder, as `medloss train` does, and print a line per epoch.

    Raises:
        UserError: another process trains there, or it cannot be written to.
        TrainingError: the loss or a gradient was not finite; it is also in `result.json`.
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
        write_json(folder / "metadata.json", run_metadata(training))
    except OSError as error:
        raise UserError(f"output_dir: cannot write in {output_dir}: {error.strerror or error}") from None
    _print(result["metrics"], folder)
    return result


def run_metadata(training: Training) -> dict[str, Any]:
    """The bundle's metadata for the network of a run: its channels, classes or regions in place of the phantom's."""
    manifest, scheme = training.manifest, training.manifest.scheme
    content: dict[str, Any] = read_json(resource_folder("configs") / "metadata.json")
    channels = [channel.name for channel in manifest.image_channels]
    outputs = scheme.names if scheme.sigmoid else [scheme.classes[value] for value in scheme.values]
    labels = ", ".join(f"{value} {scheme.classes[value]}" for value in scheme.values)
    shape = [f"{math.lcm(step, _LEAST_SIDE)}*n" for step in divisor(training.config, manifest.dimensions)]
    data = content["network_data_format"]
    for entry, names in ((data["inputs"]["image"], channels), (data["outputs"]["pred"], outputs)):
        entry |= {"num_channels": len(names), "spatial_shape": shape}
        entry["channel_def"] = {str(number): name for number, name in enumerate(names)}
    data["inputs"]["image"]["modality"] = manifest.modality
    return content | {
        "name": manifest.name,
        "task": manifest.task,
        "description": f"{training.config.network} trained by medloss with {training.config.loss}",
        "data_source": manifest.source,
        "image_classes": f"channels: {', '.join(channels)}",
        "label_classes": f"one channel: {labels}",
        "pred_classes": f"logits, of a {'sigmoid' if scheme.sigmoid else 'softmax'}: {', '.join(outputs)}",
    }


def evaluated_config(
    model: Model, *, manifest: str, data_root: str | None, fold: int, device: torch.device | str, cache_dir: str
) -> RunConfig:
    """The config for a model's validation on a fold: its run's, without the parts that only training needs."""
    changes: dict[str, Any] = {"manifest": manifest, "data_root": data_root, "fold": fold, "cache_dir": cache_dir}
    # Another loss, too: that of an untrusted model must not be imported.
    changes |= {"device": str(device), "loss": "dice", "loss_arguments": {}, "ema": None}
    return checked_config(model.config.model_dump() | changes)


def run_of(model_file: str, model: Model) -> RunConfig:
    """The config of the run that trained a model: from the run's folder if the model is there, else the model's."""
    path = Path(model_file)
    return RunFolder(path if path.is_dir() else path.parent).config or model.config


def evaluated_training(model: Model, config: RunConfig) -> Training:
    """A `Training` with a model's weights; a `UserError` if the data have other classes or channels than the model."""
    training = Training(config)
    ours, theirs = (scheme.model_copy(update={"ignore": None}) for scheme in (training.manifest.scheme, model.scheme))
    if ours != theirs:
        what = "classes" if ours.classes != theirs.classes else "regions"
        raise UserError(
            f"'{training.manifest.name}' has other {what} than the model: {getattr(ours, what)}, not "
            f"{getattr(theirs, what)}"
        )
    if (channels := len(training.manifest.image_channels)) != model.in_channels:
        raise UserError(f"'{training.manifest.name}' has {channels} channels; the model has {model.in_channels}")
    training.network.load_state_dict(model.network.state_dict())
    return training


def run_evaluation(training: Training, folder: str) -> dict[str, float]:
    """Predict and evaluate the fold's cases; write `cases.csv` and `metrics.json`, and print the means."""
    rows = training.validate()
    metrics = mean_metrics(rows)
    if rank() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        RunFolder(Path(folder)).write_cases(rows)
        write_json(Path(folder) / "metrics.json", metrics)
        _print(metrics, Path(folder))
    return metrics


def _print(metrics: dict[str, float], where: Path) -> None:
    for name, value in metrics.items():
        click.echo(f"{name:12} {value:.4f}")
    click.echo(f"written to {where}")
