"""Options that `train` and `compare` share, and the config that they make."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pipelines.errors import UserError

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--network", type=click.Choice(["unet", "vnet"]), default="unet", show_default=True),
    click.option("--epochs", default=8, show_default=True, help="Passes over the training cases."),
    click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data [MEDLOSS_DATA]."),
    click.option("--lr", "learning_rate", type=float, help="Highest learning rate."),
    click.option("--batch-size", type=int, help="Patches a step."),
    click.option("--patch", "patch_size", help="Voxels an axis, as 40,56,40; planned from the data by default."),
    click.option("--flip-axes", help="Array axes to flip at random, as 0,2; none by default."),
    click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), help="Default: auto."),
    click.option("--workers", type=int, help="Loader processes a run."),
    click.option("--val-interval", type=int, help="Epochs between validations."),
    click.option("--threads", type=int, help="Processor threads a run."),
    click.option("--device", help="cpu, cuda or auto."),
)


def training_options(command: _Command) -> _Command:
    """Add the options that say how a network is trained."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def whole_numbers(text: str, flag: str) -> tuple[int, ...]:
    """The whole numbers of a list such as `40,56,40`.

    Raises:
        UserError: it is no such list.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{flag}: got '{text}'; expected whole numbers and commas, as 0,1,2") from None


def run_config(**options: Any) -> Any:
    """A `RunConfig` of the options that were given.

    Raises:
        UserError: an option out of its range, an unknown loss, manifest or fold.
    """
    from pydantic import ValidationError

    from medloss import create_training_loss
    from pipelines.manifest import load_manifest
    from pipelines.run_config import RunConfig

    given = {name: value for name, value in options.items() if value is not None}
    for name, flag in (("patch_size", "--patch"), ("flip_axes", "--flip-axes")):
        if name in given:
            given[name] = whole_numbers(given[name], flag)
    if "data_root" in given:
        given["data_root"] = str(Path(given["data_root"]).resolve())
    if Path(given["manifest"]).is_file():
        given["manifest"] = str(Path(given["manifest"]).resolve())
    try:
        config = RunConfig.model_validate(given)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(str(p) for p in e['loc'])}: got {e['input']!r}, {e['msg']}" for e in error.errors()
        )
        raise UserError(told) from None
    manifest = load_manifest(config.manifest)
    manifest.split(config.fold)
    create_training_loss(config.loss, num_classes=manifest.num_classes, arguments=config.loss_arguments)
    return config
