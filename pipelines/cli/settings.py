"""`--set KEY=VALUE`: settings named as in a recipe file, with or without an option of their own."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import click
import yaml
from click.core import ParameterSource
from pydantic import BaseModel

from pipelines.cli import note_typed
from pipelines.comparison.executors import EXECUTORS
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError

#: Fields that only an argument or an option sets; those of `nnunet` are keys such as `nnunet.configuration`.
_NO_SETTINGS = {"manifest", "loss", "loss_arguments", "fold", "seed", "nnunet"}


def keys_without_option() -> list[str]:
    """The keys without an option, in the order of `RunConfig`."""
    flagged = {option.name for option in _options().values()}
    return [key for key in _recipe_keys(RunConfig) if key not in flagged]


def with_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the current command, updated by `--set`.

    A key is a field of `RunConfig` (`learning_rate`, `augmentation.rotation`), the name of its option (`lr`), or, for
    the options of SLURM and nnU-Net, one such as `slurm.time`. Its value replaces the recipe's. It has the form of the
    option's value; without an option that of a recipe file, or of a list such as `0.7,1.4`.

    Args:
        options: name to value; `settings` has the `KEY=VALUE` of each `--set`.

    Returns:
        The options; `settings` has the fields of `RunConfig` without an option, key to value.

    Raises:
        UserError: no such key, a value out of range, or a key that is set twice or by its option as well.
    """
    ctx = click.get_current_context()
    known = _options()
    given = dict(options)
    rest: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    spelled: dict[str, str] = {}
    for key, value in _pairs(options.get("settings", ())):
        name = _name(key, known)
        if name in texts and not (name in known and known[name].multiple):
            raise UserError(f"--set {key}: set twice; leave one out")
        texts.setdefault(name, []).append(value)
        spelled.setdefault(name, key)
    for name, values in texts.items():
        key = spelled[name]
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


def merged(recipe: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings, updated by those of `--set`; `augmentation.noise` keeps the rest of `augmentation`."""
    result = dict(recipe)
    for key, value in settings.items():
        field, _, entry = key.partition(".")
        old = result.get(field) or {}
        if not entry:
            result[field] = value
        elif isinstance(old, dict):  # anything else is refused with the config
            result[field] = old | {entry: value}
    return result


def _pairs(settings: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for text in settings:
        key, _, value = (part.strip() for part in text.partition("="))
        if not key or not value:
            raise UserError(f"--set: got '{text}'; expected KEY=VALUE, such as lr=1e-3")
        yield key, value


def _options() -> dict[str, click.Option]:
    """The options of the current command that `--set` accepts, by key.

    Keys are names of `RunConfig`; those of executors and nnU-Net have a prefix: `--slurm-time` is `slurm.time`.
    """
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
    """The name in `known`, or the field of `RunConfig`, that a key refers to.

    Raises:
        UserError: there is none; the message names the nearest key.
    """
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
