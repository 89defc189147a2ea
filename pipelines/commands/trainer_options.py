"""Options of `compare` that say what trains: our engines, or nnU-Net."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import click
from click.core import ParameterSource

from pipelines.commands.option_groups import RECIPE, option, typed
from pipelines.errors import UserError
from pipelines.nnunet.folders import Configuration

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
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
#: Of the options that say how a network is trained, those that nnU-Net leaves to others.
_LEFT_OPEN = {"epochs", "data_root", "keep_predictions", "cache_dir", "device"}


def trainer_options(command: _Command) -> _Command:
    """Add the options."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def chosen_trainer(manifest: str, options: dict[str, Any], others: Mapping[str, bool]) -> dict[str, Any]:
    """The options for `run_config`, with `nnunet` among them if nnU-Net trains.

    Args:
        manifest: name or path.
        options: of the command, those of the trainer and those of its training.
        others: by their flags, options of the command that go with our engines alone, and whether they were given.

    Raises:
        UserError: an option that the trainer does not have; nnU-Net is not there, or cannot take the data.
    """
    kept = dict(options)
    trainer = kept.pop("trainer")
    own = {key.removeprefix("nnunet_"): kept.pop(key) for key in options if key.startswith("nnunet_")}
    given = _given_flags()
    if trainer == "engines":
        for name in own:
            if flag := given.get(f"nnunet_{name}"):
                raise UserError(f"{flag}: goes with --trainer nnunet, and got --trainer engines")
        return kept
    refused = [given[name] for name in kept if name in given and name not in (*_LEFT_OPEN, "settings")]
    if refused := refused + [f"--set {key}" for key in kept.get("settings", {})]:
        raise UserError(f"{refused[0]}: nnU-Net plans that itself; leave it out with --trainer nnunet")
    if refused := [flag for flag, is_given in others.items() if is_given]:
        raise UserError(f"{refused[0]}: goes with --trainer engines, and got --trainer nnunet")
    return kept | {"nnunet": _settings(manifest, own)}


def _settings(manifest: str, own: dict[str, Any]) -> dict[str, Any]:
    from pipelines.dataset.manifest import load_manifest
    from pipelines.nnunet.prepared import require_nnunet
    from pipelines.nnunet.raw_dataset import refuse_unfit

    loaded = load_manifest(manifest)
    refuse_unfit(loaded)
    default = "2d" if loaded.dimensions == 2 else "3d_fullres"
    configuration = own["configuration"] or default
    if loaded.dimensions == 2 and configuration != "2d":
        raise UserError(f"--nnunet-configuration: got {configuration}; '{loaded.name}' is 2D, and has 2d alone")
    require_nnunet()
    return {name: value for name, value in own.items() if value is not None} | {"configuration": configuration}


def _given_flags() -> dict[str, str]:
    """The options that were typed: name to flag."""
    context = click.get_current_context()
    return {
        str(option.name): typed(option.opts[0])
        for option in context.command.params
        if option.name and context.get_parameter_source(option.name) is ParameterSource.COMMANDLINE
    }
