"""No executor: the workers' command lines, for any other scheduler."""

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from pipelines.comparison.executors.base import Handover, register
from pipelines.utils import UserError
from pipelines.utils.security import refuse_foreign_losses

if TYPE_CHECKING:  # importing a plan takes a second, which `--help` need not wait for
    from pipelines.runs.plan import Plan


@dataclass(frozen=True)
class CommandLines:
    """Prints the worker's command line of each run on standard output, and nothing else there.

    Attributes:
        threads: of the processor, for each worker; None: all that it may use.
    """

    threads: int | None = None
    for_programs: ClassVar[bool] = True

    def check(self) -> None:
        """Nothing can be missing."""

    def hand_over(self, folder: Path, plan: "Plan", indices: list[int], tell: Callable[[str], None]) -> None:
        """Print a line for each run; what people should know goes to `tell`."""
        for index in indices:
            click.echo(shlex.join([*worker_command(folder, plan), "--index", str(index), *self._threads()]))
        tell(f"{len(indices)} command {'line' if len(indices) == 1 else 'lines'}, one a run")

    def _threads(self) -> list[str]:
        return [] if self.threads is None else ["--threads", str(self.threads)]


@register("none", help="print one command line per run")
def command_lines(jobs: int | None, threads: int | None, options: Mapping[str, Any]) -> Handover:
    """The lines' executor.

    Raises:
        UserError: `--jobs` was given.
    """
    if jobs is not None:
        raise UserError("--jobs: with --executor none, who runs the lines decides how many run at a time")
    return CommandLines(threads)


def worker_command(folder: Path, plan: "Plan") -> list[str]:
    """The command of a worker, which works from any folder and on any machine that has the same files."""
    script = Path(sys.executable).with_name("medloss")
    command = [str(script)] if script.is_file() else [sys.executable, "-m", "pipelines.cli"]
    command += ["worker", str(folder.resolve())]
    try:
        refuse_foreign_losses(plan.losses, folder)
        trusted = plan.runs[0].config.nnunet is not None
    except UserError:
        trusted = True
    # The losses are those that the user named to this process, which has the cases prepared, too.
    return [*command, *(["--trust"] if trusted else [])]
