"""Options of `compare` that say who trains: this machine, SLURM, or another scheduler."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pipelines.comparison.executors import ExecutorOption, Handover
from pipelines.comparison.executors.registry import EXECUTORS
from pipelines.errors import UserError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def executor_options(command: _Command) -> _Command:
    """Add the options: `--executor`, and those of each executor."""
    own = [option for executor in EXECUTORS.values() for option in executor.options]
    for option in reversed(own):
        command = _added(option)(command)
    shown = " ".join(f"{executor.name}: {executor.help}." for executor in EXECUTORS.values())
    choice = click.Choice(list(EXECUTORS))
    return click.option("--executor", type=choice, default="local", show_default=True, help=shown)(command)


def _added(option: ExecutorOption) -> Callable[[_Command], _Command]:
    return click.option(
        option.flag, option.name, metavar=option.metavar, type=option.type, multiple=option.multiple, help=option.help
    )


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
        for option in executor.options:
            value = options.pop(option.name, None)
            if value in (None, ()):
                continue
            if executor.name != name:
                raise UserError(f"{option.flag}: it goes with --executor {executor.name}, and got --executor {name}")
            given[option.name] = value
    return EXECUTORS[name].make(jobs, threads, given)
