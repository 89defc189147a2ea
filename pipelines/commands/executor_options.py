"""Options of `compare` that say who trains: this machine, SLURM, or another scheduler."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pipelines.commands.option_groups import PLACE, option, typed
from pipelines.comparison.executors import Handover
from pipelines.comparison.executors.registry import EXECUTORS
from pipelines.errors import UserError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def executor_options(command: _Command) -> _Command:
    """Add the options: `--executor`, and those of each executor, which `--help-all` lists."""
    for own in reversed([own for executor in EXECUTORS.values() for own in executor.options]):
        command = option(
            own.flag, own.name, group=PLACE, rare=True, metavar=own.metavar, type=own.type, multiple=own.multiple,
            help=own.help,
        )(command)  # fmt: skip
    return option(
        "--executor",
        group=PLACE,
        type=click.Choice(list(EXECUTORS)),
        default="local",
        show_default=True,
        metavar="NAME",
        help=f"{'; '.join(f'{executor.name}: {executor.help}' for executor in EXECUTORS.values())}.",
    )(command)


def chosen_executor(name: str, jobs: int | None, options: dict[str, Any]) -> Handover | None:
    """The executor that runs are handed over to; None where they are trained here.

    Args:
        name: of `EXECUTORS`.
        jobs: runs at a time, if that was said.
        options: of the command; `threads` and those of all executors are taken out of it.

    Raises:
        UserError: an option that the executor does not have, or a value that it would refuse.
    """
    threads = options.pop("threads", None)
    given: dict[str, Any] = {}
    for executor in EXECUTORS.values():
        for own in executor.options:
            value = options.pop(own.name, None)
            if value in (None, ()):
                continue
            if executor.name != name:
                raise UserError(
                    f"{typed(own.flag)}: it goes with --executor {executor.name}, and got --executor {name}"
                )
            given[own.name] = value
    try:
        return EXECUTORS[name].make(jobs, threads, given)
    except UserError as error:
        flag, colon, told = str(error).partition(":")
        raise UserError(f"{typed(flag)}{colon}{told}") from None
