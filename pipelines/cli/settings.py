"""The config of a run, from the options and from `--set KEY=VALUE`, whose keys are those of a recipe file."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import yaml
from click.core import ParameterSource
from pydantic import BaseModel

from medloss.names import refuse_unknown_losses
from pipelines.cli import note_typed, typed
from pipelines.comparison.executors import EXECUTORS
from pipelines.data.manifest import Manifest
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import default_metrics, refuse_unknown_metrics
from pipelines.training.run_config import RunConfig, checked_config, recipe_settings
from pipelines.utils import UserError

#: Fields that only an argument or an option sets; those of `nnunet` are keys such as `nnunet.configuration`.
_NO_SETTINGS = {"manifest", "loss", "loss_arguments", "fold", "seed", "nnunet"}
#: Epochs of nnU-Net's default trainer.
_NNUNET_EPOCHS = 1000


def _list_of(kind: Callable[[str], Any], expected: str) -> Callable[[str, str], tuple[Any, ...]]:
    """A reader of lists such as `40,56,40`, which raises a `UserError` that names the flag."""

    def read(text: str, flag: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise UserError(f"{flag}: got '{text}'; expected {expected}") from None

    return read


def _rate(text: str) -> tuple[str, float]:
    loss, rate = text.rsplit("=", 1)
    return loss.strip(), float(rate)


whole_numbers = _list_of(int, "whole numbers and commas, such as 0,1,2")
_numbers = _list_of(float, "numbers and commas, such as 3,0.8,0.8")
_rates = _list_of(_rate, "losses with rates, such as focal=1e-2,tversky=1e-3")


def metric_names(text: str, flag: str = "--metrics") -> tuple[str, ...]:
    """The metrics in a list such as `default,lesion_f1`, each once, in the order of columns; `all` are all.

    Raises:
        UserError: there is no such metric, or it needs a package that is not installed.
    """
    names: set[str] = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        if item == "all":
            names |= {name for name, metric in METRICS.items() if metric.is_installed}
        elif item == "default":
            names |= set(default_metrics())
        else:
            refuse_unknown_metrics([item], flag)
            names.add(item)
    if not names:
        raise UserError(f"{flag}: got none; expected names by commas, such as dice,hd95_mm,lesion_f1")
    return tuple(name for name in METRICS if name in names)


def _further_metrics(text: str, flag: str) -> tuple[str, ...]:
    return tuple(name for name in metric_names(text, flag) if not METRICS[name].default)


_READERS = {
    "patch_size": ("--patch", whole_numbers),
    "flip_axes": ("--flip-axes", whole_numbers),
    "spacing": ("--spacing", _numbers),
    "metrics": ("--metrics", _further_metrics),
    "learning_rates": ("--loss-lr", lambda text, flag: dict(_rates(text, flag))),
}


def run_config(*, recipe: str, settings: Mapping[str, Any] | None = None, **options: Any) -> RunConfig:
    """A `RunConfig` from a recipe, updated by `settings` (of `with_settings`), and by the options that are not None.

    nnU-Net, where `nnunet` is given, uses no recipe.

    Raises:
        UserError: an option out of range, an unknown recipe or loss.
    """
    refuse_unknown_losses(options["loss"])
    given = {name: value for name, value in options.items() if value is not None}
    for name, (flag, read) in _READERS.items():
        if name in given:
            given[name] = read(given[name], typed(flag))
    base: dict[str, Any] = {"epochs": _NNUNET_EPOCHS} if "nnunet" in given else dict(recipe_settings(recipe))
    for key, value in (settings or {}).items():
        field, _, entry = key.partition(".")
        old = base.get(field) or {}
        if not entry:
            base[field] = value
        elif isinstance(old, dict):  # anything else is refused with the config
            base[field] = old | {entry: value}  # `augmentation.noise` keeps the rest of `augmentation`
    given = base | given
    for name in ("data_root", "cache_dir"):
        if name in given:
            given[name] = str(Path(given[name]).resolve())
    if Path(given["manifest"]).is_file():
        given["manifest"] = str(Path(given["manifest"]).resolve())
    return checked_config(given)


def refuse_unused_rates(text: str | None, losses: Sequence[str]) -> None:
    """Raise a `UserError` for rates of losses that are not trained: a misspelt one would train at the common rate."""
    flag = typed("--loss-lr")
    for loss, _ in _rates(text, flag) if text else ():
        if loss not in losses:
            near = difflib.get_close_matches(loss, losses, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; expected one of {', '.join(losses)}"
            raise UserError(f"{flag}: {loss} is none of the losses that are trained{hint}")


def refuse_untrainable(configs: Sequence[RunConfig], manifest: Manifest) -> None:
    """Raise a `UserError` for a device or loss that this machine does not have, or that does not fit the data."""
    # Not above, for the second that torch takes.
    from pipelines.training.auto_config import refuse_misfit
    from pipelines.utils.machine import chosen_device

    for config in configs:
        chosen_device(config.device)
        refuse_misfit(config, manifest)


# --set


def keys_without_option() -> list[str]:
    """The keys of `--set` without an option of the current command, in the order of `RunConfig`."""
    flagged = {option.name for option in _options().values()}
    return [key for key in _recipe_keys(RunConfig) if key not in flagged]


def with_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the current command, updated by the `KEY=VALUE` of each `--set`.

    A key is a field of `RunConfig` (`learning_rate`, `augmentation.rotation`), the name of its option (`lr`), or, for
    the options of SLURM and nnU-Net, one such as `slurm.time`. A value has the form of the option's value; without an
    option that of a recipe file, or of a list such as `0.7,1.4`: those are left in `settings`, key to value.

    Raises:
        UserError: no such key, a value out of range, or a key that is set twice or by its option as well.
    """
    if not options.get("settings"):
        return {**options, "settings": {}}
    ctx = click.get_current_context()
    known = _options()
    given = dict(options)
    rest: dict[str, Any] = {}
    found: dict[str, tuple[str, list[str]]] = {}
    for text in options["settings"]:
        key, _, value = (part.strip() for part in text.partition("="))
        if not key or not value:
            raise UserError(f"--set: got '{text}'; expected KEY=VALUE, such as lr=1e-3")
        name = _name(key, known)
        if name in found and not (name in known and known[name].multiple):
            raise UserError(f"--set {key}: set twice; leave one out")
        found.setdefault(name, (key, []))[1].append(value)
    for name, (key, values) in found.items():
        if name not in known:
            rest[name] = _recipe_value(key, values[0])
            continue
        option = known[name]
        if ctx.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            raise UserError(f"--set {key}: {option.opts[0]} is given as well; leave one out")
        given[str(option.name)] = _option_value(option, key, values, ctx)
        ctx.set_parameter_source(str(option.name), ParameterSource.COMMANDLINE)
        note_typed(ctx, option.opts[0], f"--set {key}")
    return given | {"settings": rest}


def _options() -> dict[str, click.Option]:
    """The options that `--set` accepts, by name of `RunConfig`, or with a prefix: `--slurm-time` is `slurm.time`."""
    found = {}
    for param in click.get_current_context().command.params:
        prefix, _, rest = _flag_name(param).partition("_")
        if isinstance(param, click.Option) and prefix in (*EXECUTORS, "nnunet"):
            found[f"{prefix}.{rest}"] = param
        elif isinstance(param, click.Option) and param.name in RunConfig.model_fields.keys() - _NO_SETTINGS:
            found[param.name] = param
    return found


def _flag_name(param: click.Parameter) -> str:
    return param.opts[0].lstrip("-").replace("-", "_")


def _recipe_keys(model: type[BaseModel]) -> Iterator[str]:
    """The names of the fields, with those of nested models after a dot."""
    for name, field in model.model_fields.items():
        if name in _NO_SETTINGS:
            continue
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        nested = [kind for kind in kinds if issubclass(kind, BaseModel)]
        yield from (f"{name}.{key}" for key in _recipe_keys(nested[0])) if nested else (name,)


def _name(key: str, known: Mapping[str, click.Option]) -> str:
    """The name in `known`, or the field of `RunConfig`, that a key refers to; a `UserError` names the nearest key."""
    fields = list(_recipe_keys(RunConfig))
    # `schedule` is a field, and also the flag of another option: here it means the field, as in a recipe file.
    names = {_flag_name(option): name for name, option in known.items() if "." not in name}
    names |= {name: name for name in (*known, *fields)}
    spelling = key.replace("-", "_")
    if spelling in names:
        return names[spelling]
    for param in click.get_current_context().command.params:
        if isinstance(param, click.Option) and spelling in (param.name, _flag_name(param)):
            raise UserError(f"--set {key}: no setting of a recipe; pass {param.opts[0]} instead")
    near = [name for name in names if name.endswith(f".{spelling}")] or difflib.get_close_matches(spelling, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "--help-all lists the keys"
    raise UserError(f"--set: no setting '{key}'; {hint}")


def _option_value(option: click.Option, key: str, texts: list[str], ctx: click.Context) -> Any:
    if option.name in RunConfig.model_fields:
        # Lists may have brackets, as in a recipe file.
        texts = [text[1:-1] if text.startswith("[") and text.endswith("]") else text for text in texts]
    try:
        return option.type_cast_value(ctx, texts if option.multiple else texts[0])
    except click.BadParameter as error:
        raise UserError(f"--set {key}: {error.message}") from None


def _recipe_value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(f"[{text}]" if "," in text and text[0] not in "[{" else text)
    except yaml.YAMLError:
        raise UserError(f"--set {key}: got '{text}'; expected a value as in a recipe file") from None
