"""`--executor none`: prints the workers' command lines, for any other scheduler."""

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from pipelines.comparison.executors.base import Handover, register
from pipelines.utils import UserError
from pipelines.utils.text import counted

if TYPE_CHECKING:  # importing a plan takes a second, too long for `--help`
    from pipelines.runs.plan import Plan


@dataclass(frozen=True)
class CommandLines:
    """Prints the worker's command line of each run, and nothing else, on standard output."""

    threads: int | None = None  #: per worker; None: all that are available
    for_programs: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing can be missing."""

    def hand_over(self, folder: Path, plan: "Plan", indices: list[int], message: Callable[[str], None]) -> None:
        """Print a command line per run, and their number as a message."""
        threads = [] if self.threads is None else ["--threads", str(self.threads)]
        for index in indices:
            click.echo(shlex.join([*worker_command(folder, plan), "--index", str(index), *threads]))
        message(f"{counted(len(indices), 'command line')}, one per run")


@register("none", help="print one command line per run")
def command_lines(jobs: int | None, threads: int | None, options: Mapping[str, Any]) -> Handover:
    """The executor.

    Raises:
        UserError: `--jobs` was given.
    """
    if jobs is not None:
        raise UserError("--jobs: with --executor none, whatever runs the lines decides how many run at a time")
    return CommandLines(threads)


def worker_command(folder: Path, plan: "Plan") -> list[str]:
    """The command of a worker, for any working directory and any machine with the same files."""
    from pipelines.utils.security import refuse_foreign_losses

    script = Path(sys.executable).with_name("medloss")
    command = [str(script)] if script.is_file() else [sys.executable, "-m", "pipelines.cli"]
    command += ["worker", str(folder.resolve())]
    try:
        refuse_foreign_losses(plan.losses, folder)
        trusted = plan.runs[0].config.nnunet is not None
    except UserError:
        trusted = True
    # The user named the losses to this process, which has also prepared the cases.
    return [*command, *(["--trust"] if trusted else [])]
