"""Options that `train` and `compare` share, and the config that they make."""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipelines.errors import UserError

if TYPE_CHECKING:  # `--help` does not wait for them
    from pipelines.dataset.manifest import Manifest
    from pipelines.training.run_config import RunConfig

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--recipe", default="quick", show_default=True, help="quick, full, or a YAML file of settings."),
    click.option("--network", type=click.Choice(["unet", "vnet", "dynunet"]), help="Default: by the recipe."),
    click.option("--epochs", type=int, help="Passes over the training cases; default: by the recipe."),
    click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data [MEDLOSS_DATA]."),
    click.option("--optimizer", type=click.Choice(["adamw", "sgd"])),
    click.option(
        "--schedule",
        "loss_schedule",
        type=click.Choice(["constant", "ramp", "balanced"]),
        help="Of the weights of a sum with a boundary-based term; default: by the loss's recipe.",
    ),
    click.option("--lr", "learning_rate", type=float, help="Highest learning rate."),
    click.option("--loss-lr", "learning_rates", help="Rates of single losses, as focal=1e-2,tversky=1e-3."),
    click.option("--batch-size", type=int, help="Patches a step."),
    click.option("--accumulate", type=int, help="Batches whose gradients make one step."),
    click.option("--patch", "patch_size", help="Voxels an axis, as 40,56,40; planned from the data by default."),
    click.option("--spacing", help="mm an axis to train at, as 1,1,1; planned from the data by default."),
    click.option("--flip-axes", help="Array axes to flip at random, as 0,2; none by default."),
    click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Default: auto."),
    click.option("--compile/--no-compile", default=None, help="Compile the network; pays in long runs."),
    click.option("--workers", type=int, help="Loader processes a run."),
    click.option("--val-interval", type=int, help="Epochs between validations."),
    click.option("--threads", type=int, help="Processor threads a run."),
    click.option("--cache-dir", help="Folder of prepared cases; default: in the folder of --out."),
    click.option(
        "--predictions/--no-predictions",
        "keep_predictions",
        default=None,
        help="Keep the label maps of the last validation; they are kept by default.",
    ),
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


def numbers(text: str, flag: str) -> tuple[float, ...]:
    """The numbers of a list such as `3,0.8,0.8`.

    Raises:
        UserError: it is no such list.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{flag}: got '{text}'; expected numbers and commas, as 3,0.8,0.8") from None


def rates(text: str, flag: str) -> dict[str, float]:
    """Losses with their rates, of a list such as `focal=1e-2,tversky=1e-3`.

    Raises:
        UserError: it is no such list.
    """
    try:
        return {loss.strip(): float(rate) for loss, rate in (part.rsplit("=", 1) for part in text.split(","))}
    except ValueError:
        raise UserError(f"{flag}: got '{text}'; expected losses with rates, as focal=1e-2,tversky=1e-3") from None


def refuse_unused_rates(text: str | None, losses: Sequence[str]) -> None:
    """Refuse rates (as `rates` reads them) of losses that are not trained: a misspelt one would train at another.

    Raises:
        UserError: there is one; says the nearest loss.
    """
    for loss in rates(text, "--loss-lr") if text else ():
        if loss not in losses:
            near = difflib.get_close_matches(loss, losses, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(losses)}"
            raise UserError(f"--loss-lr: {loss} is none of the losses that are trained{hint}")


#: nnU-Net's own.
_NNUNET_EPOCHS = 1000

_READERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "patch_size": ("--patch", whole_numbers),
    "flip_axes": ("--flip-axes", whole_numbers),
    "spacing": ("--spacing", numbers),
    "learning_rates": ("--loss-lr", rates),
}


def run_config(*, recipe: str, **options: Any) -> "RunConfig":
    """A `RunConfig` of a recipe and of the options that were given, which come before the recipe's settings.

    What `nnunet` says is nnU-Net's, which goes by no recipe.

    Raises:
        UserError: an option out of its range, an unknown recipe or loss.
    """
    from medloss.names import refuse_unknown_losses
    from pipelines.training.recipes import recipe_settings
    from pipelines.training.run_config import checked_config

    refuse_unknown_losses(options["loss"])
    given = {name: value for name, value in options.items() if value is not None}
    for name, (flag, read) in _READERS.items():
        if name in given:
            given[name] = read(given[name], flag)
    given = ({"epochs": _NNUNET_EPOCHS} if "nnunet" in given else recipe_settings(recipe)) | given
    if "data_root" in given:
        given["data_root"] = str(Path(given["data_root"]).resolve())
    if "cache_dir" in given:
        given["cache_dir"] = str(Path(given["cache_dir"]).resolve())
    if Path(given["manifest"]).is_file():
        given["manifest"] = str(Path(given["manifest"]).resolve())
    return checked_config(given)


def refuse_untrainable(configs: "Sequence[RunConfig]", manifest: "Manifest") -> None:
    """Refuse configs (as `run_config` makes them) whose device is not there, or whose losses cannot be made.

    Raises:
        UserError: a device or loss that this machine does not have, or that does not fit the data.
    """
    # Torch takes a second: what can be refused without it has been refused by now.
    from pipelines.training.optimization import chosen_device
    from pipelines.training.planning import refuse_misfit

    for config in configs:
        chosen_device(config.device)
        refuse_misfit(config, manifest)
