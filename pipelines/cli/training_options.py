"""Options of a run's training, shared by `train` and `compare`, and the run config that they make."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click
from click.core import ParameterSource

from pipelines.cli import DATA, OUTPUT, PLACE, RECIPE, help_all_option, option, typed
from pipelines.data import Configuration
from pipelines.utils import UserError

if TYPE_CHECKING:  # `--help` does not wait for them
    from pipelines.data.manifest import Manifest
    from pipelines.training.run_config import RunConfig

_Command = TypeVar("_Command", bound=Callable[..., Any])

# The trainer: MONAI's engines, or nnU-Net

_TRAINER = (
    option(
        "--trainer",
        group=RECIPE,
        type=click.Choice(["engines", "nnunet"]),
        default="engines",
        show_default=True,
        metavar="NAME",
        help="engines: MONAI's; nnunet: nnU-Net plans, trains and predicts with these losses (--set "
        "nnunet.configuration=2d, nnunet.planner, nnunet.iterations).",
    ),
    option(
        "--nnunet-configuration",
        group=RECIPE,
        rare=True,
        type=click.Choice(get_args(Configuration)),
        metavar="NAME",
        help="Configuration of nnU-Net's plans: 2d, 3d_fullres or 3d_lowres; default: 3d_fullres, and 2d for 2D data.",
    ),
    option(
        "--nnunet-planner",
        group=RECIPE,
        rare=True,
        metavar="CLASS",
        help="Planner, such as nnUNetPlannerResEncM; default: nnU-Net's.",
    ),
    option(
        "--nnunet-iterations",
        group=RECIPE,
        rare=True,
        type=click.IntRange(min=1),
        metavar="N",
        help="Steps per epoch; default: 250, as in nnU-Net.",
    ),
)
#: Training options that nnU-Net does not plan itself.
_NOT_PLANNED = {"epochs", "data_root", "keep_predictions", "cache_dir", "device"}


def trainer_options(command: _Command) -> _Command:
    """Add the options of the trainer."""
    for decorate in reversed(_TRAINER):
        command = decorate(command)
    return command


def chosen_trainer(manifest: str, options: dict[str, Any], others: Mapping[str, bool]) -> dict[str, Any]:
    """The options for `run_config`, with `nnunet` among them if nnU-Net trains.

    Args:
        manifest: name or path.
        options: of the trainer and of the training.
        others: flags of other options that need our engines, and whether they were given.

    Raises:
        UserError: an option that the trainer does not have; nnU-Net is not installed, or cannot take the data.
    """
    kept = dict(options)
    trainer = kept.pop("trainer")
    nnunet = {key.removeprefix("nnunet_"): kept.pop(key) for key in options if key.startswith("nnunet_")}
    given = _given_flags()
    if trainer == "engines":
        for name in nnunet:
            if flag := given.get(f"nnunet_{name}"):
                raise UserError(f"{flag}: goes with --trainer nnunet, and got --trainer engines")
        return kept
    refused = [given[name] for name in kept if name in given and name not in (*_NOT_PLANNED, "settings")]
    if refused := refused + [f"--set {key}" for key in kept.get("settings", {})]:
        raise UserError(f"{refused[0]}: nnU-Net plans that itself; leave it out with --trainer nnunet")
    if refused := [flag for flag, is_given in others.items() if is_given]:
        raise UserError(f"{refused[0]}: goes with --trainer engines, and got --trainer nnunet")
    return kept | {"nnunet": _nnunet_settings(manifest, nnunet)}


def _nnunet_settings(manifest: str, options: dict[str, Any]) -> dict[str, Any]:
    from pipelines.data.manifest import load_manifest
    from pipelines.nnunet.datasets import refuse_unfit, require_nnunet

    loaded = load_manifest(manifest)
    refuse_unfit(loaded)
    default = "2d" if loaded.dimensions == 2 else "3d_fullres"
    configuration = options["configuration"] or default
    if loaded.dimensions == 2 and configuration != "2d":
        raise UserError(f"--nnunet-configuration: got {configuration}; '{loaded.name}' is 2D, and has 2d alone")
    require_nnunet()
    return {name: value for name, value in options.items() if value is not None} | {"configuration": configuration}


def _given_flags() -> dict[str, str]:
    """The options of the command line: name to flag."""
    context = click.get_current_context()
    return {
        str(option.name): typed(option.opts[0])
        for option in context.command.params
        if option.name and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    }


# The training

_OPTIONS = (
    option(
        "--data-root",
        group=DATA,
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder of the data; default: $MEDLOSS_DATA.",
    ),
    option("--check/--no-check", group=DATA, default=True, show_default=True, help="Check all files before training."),
    option(
        "--cache-dir",
        group=DATA,
        rare=True,
        metavar="DIR",
        help="Folder of the preprocessed cases; default: in the folder of --out.",
    ),
    option(
        "--recipe", group=RECIPE, default="quick", show_default=True, metavar="NAME", help="quick, full or a YAML file."
    ),
    option(
        "--network",
        group=RECIPE,
        type=click.Choice(["unet", "vnet", "dynunet"]),
        metavar="NAME",
        help="unet, vnet or dynunet; default: set by the recipe.",
    ),
    option("--epochs", group=RECIPE, type=int, metavar="N", help="Training epochs; default: set by the recipe."),
    option(
        "--batch-size", group=RECIPE, type=int, metavar="N", help="Patches per step; default: 2 to 4, as memory allows."
    ),
    option("--lr", "learning_rate", group=RECIPE, type=float, metavar="RATE", help="Peak learning rate."),
    option(
        "--loss-lr",
        "learning_rates",
        group=RECIPE,
        metavar="LOSS=RATE",
        help="Peak learning rate per loss, such as focal=1e-2,tversky=1e-3.",
    ),
    option(
        "--schedule",
        "loss_schedule",
        group=RECIPE,
        type=click.Choice(["constant", "ramp", "balanced"]),
        metavar="NAME",
        help="Weights of sums with a boundary-based term: constant, ramp or balanced; default: set per loss.",
    ),
    option("--val-interval", group=RECIPE, type=int, metavar="N", help="Epochs between validations."),
    option(
        "--set",
        "settings",
        group=RECIPE,
        multiple=True,
        metavar="KEY=VALUE",
        help="Any other setting, such as optimizer=sgd, patch=64,96,96, spacing=1,1,1, flip_axes=0,2, "
        "precision=float32, compile=true, ema=0.99 or augmentation.rotation=15. May be repeated; --help-all lists all "
        "keys.",
    ),
    option("--optimizer", group=RECIPE, rare=True, type=click.Choice(["adamw", "sgd"]), help="Default: adamw."),
    option(
        "--accumulate", group=RECIPE, rare=True, type=int, metavar="N", help="Batches whose gradients make one step."
    ),
    option(
        "--patch",
        "patch_size",
        group=RECIPE,
        rare=True,
        metavar="LIST",
        help="Voxels per axis, such as 40,56,40; planned from the data by default.",
    ),
    option(
        "--spacing",
        group=RECIPE,
        rare=True,
        metavar="LIST",
        help="Spacing of the training grid per axis, mm, such as 1,1,1; planned from the data by default.",
    ),
    option(
        "--flip-axes",
        group=RECIPE,
        rare=True,
        metavar="LIST",
        help="Array axes that are flipped at random, such as 0,2; none by default.",
    ),
    option(
        "--precision",
        group=RECIPE,
        rare=True,
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        metavar="TYPE",
        help="auto (the default), float32, bfloat16 or float16.",
    ),
    option(
        "--compile/--no-compile",
        group=RECIPE,
        rare=True,
        default=None,
        help="Compile the network; pays off in long runs.",
    ),
    option(
        "--predictions/--no-predictions",
        "keep_predictions",
        group=OUTPUT,
        rare=True,
        default=None,
        help="Keep the label maps of the last validation; kept by default.",
    ),
    option("--device", group=PLACE, metavar="NAME", help="cpu, cuda or auto (the default)."),
    option("--workers", group=PLACE, rare=True, type=int, metavar="N", help="Loader processes per run."),
    option("--threads", group=PLACE, rare=True, type=int, metavar="N", help="CPU threads per run."),
    help_all_option,
)


def training_options(command: _Command) -> _Command:
    """Add the options of the training."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


# The run config

#: Epochs of nnU-Net's default trainer.
_NNUNET_EPOCHS = 1000


def whole_numbers(text: str, flag: str) -> tuple[int, ...]:
    """The whole numbers in a list such as `40,56,40`.

    Raises:
        UserError: it is no such list.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{flag}: got '{text}'; expected whole numbers and commas, such as 0,1,2") from None


def numbers(text: str, flag: str) -> tuple[float, ...]:
    """The numbers in a list such as `3,0.8,0.8`.

    Raises:
        UserError: it is no such list.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{flag}: got '{text}'; expected numbers and commas, such as 3,0.8,0.8") from None


def rates(text: str, flag: str) -> dict[str, float]:
    """Learning rates by loss, from a list such as `focal=1e-2,tversky=1e-3`.

    Raises:
        UserError: it is no such list.
    """
    try:
        return {loss.strip(): float(rate) for loss, rate in (part.rsplit("=", 1) for part in text.split(","))}
    except ValueError:
        raise UserError(f"{flag}: got '{text}'; expected losses with rates, such as focal=1e-2,tversky=1e-3") from None


def refuse_unused_rates(text: str | None, losses: Sequence[str]) -> None:
    """Refuse learning rates of losses that are not trained: a misspelt loss would train at the common rate.

    Args:
        text: in the form of `rates`; None: not given.
        losses: that are trained.

    Raises:
        UserError: there is one; the message names the nearest loss.
    """
    flag = typed("--loss-lr")
    for loss in rates(text, flag) if text else ():
        if loss not in losses:
            near = difflib.get_close_matches(loss, losses, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(losses)}"
            raise UserError(f"{flag}: {loss} is none of the losses that are trained{hint}")


_READERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "patch_size": ("--patch", whole_numbers),
    "flip_axes": ("--flip-axes", whole_numbers),
    "spacing": ("--spacing", numbers),
    "learning_rates": ("--loss-lr", rates),
}


def run_config(*, recipe: str, settings: dict[str, Any] | None = None, **options: Any) -> "RunConfig":
    """A `RunConfig` from a recipe and the options, which take precedence over the recipe's settings.

    nnU-Net, where `nnunet` is given, uses no recipe.

    Args:
        recipe: name or file.
        settings: from `--set`, as `with_settings` returns them; they take precedence over the recipe, too.
        options: fields of `RunConfig`; None: not given.

    Raises:
        UserError: an option out of range, an unknown recipe or loss.
    """
    from medloss.names import refuse_unknown_losses
    from pipelines.cli.settings import merged
    from pipelines.training.run_config import checked_config, recipe_settings

    refuse_unknown_losses(options["loss"])
    given = {name: value for name, value in options.items() if value is not None}
    for name, (flag, read) in _READERS.items():
        if name in given:
            given[name] = read(given[name], typed(flag))
    given = merged({"epochs": _NNUNET_EPOCHS} if "nnunet" in given else recipe_settings(recipe), settings or {}) | given
    if "data_root" in given:
        given["data_root"] = str(Path(given["data_root"]).resolve())
    if "cache_dir" in given:
        given["cache_dir"] = str(Path(given["cache_dir"]).resolve())
    if Path(given["manifest"]).is_file():
        given["manifest"] = str(Path(given["manifest"]).resolve())
    return checked_config(given)


def refuse_untrainable(configs: "Sequence[RunConfig]", manifest: "Manifest") -> None:
    """Refuse configs that cannot be trained on this machine or on these data.

    Args:
        configs: as `run_config` makes them.
        manifest: of the data.

    Raises:
        UserError: a device or loss that this machine does not have, or that does not fit the data.
    """
    # Not above, for the second that torch takes.
    from pipelines.training.auto_config import refuse_misfit
    from pipelines.utils.machine import chosen_device

    for config in configs:
        chosen_device(config.device)
        refuse_misfit(config, manifest)
