"""The interface and registry of executors: where the runs of a comparison are trained."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.utils import UserError

if TYPE_CHECKING:  # importing a plan takes a second, too long for `--help`
    from pipelines.runs.plan import Plan


class Handover(Protocol):
    """An executor that has runs trained elsewhere, and does not wait for them."""

    @property
    def for_programs(self) -> bool:
        """Whether standard output is read by programs: messages then go to standard error."""

    def check(self) -> None:
        """Check, before anything is read, that runs can be handed over.

        Raises:
            UserError: programs or packages are missing; the message names them.
        """

    def hand_over(self, folder: Path, plan: "Plan", indices: list[int], message: Callable[[str], None]) -> None:
        """Have runs trained elsewhere.

        Args:
            folder: of the comparison.
            plan: of the comparison.
            indices: in the plan, of the runs that are neither finished nor running.
            message: called with lines to print.

        Raises:
            UserError: the runs were refused.
        """


@dataclass(frozen=True)
class ExecutorOption:
    """An option of `compare` that belongs to one executor.

    Attributes:
        flag: `--<executor>-<word>`.
        help: one line.
        metavar: placeholder of its value in the help.
        type: of its value; a type of click.
        multiple: whether it may be repeated; its value is then a tuple.
        key: its name, where that is not the flag's.
    """

    flag: str
    help: str
    metavar: str | None = None
    type: Any = str
    multiple: bool = False
    key: str | None = None

    @property
    def name(self) -> str:
        """The key of its value in the options that `Executor.make` gets."""
        return self.key or self.flag.removeprefix("--").replace("-", "_")


Make = Callable[[int | None, int | None, Mapping[str, Any]], Handover | None]


@dataclass(frozen=True)
class Executor:
    """A value of `--executor`."""

    name: str  #: the value
    help: str  #: its words in the help
    #: called with `--jobs` and `--threads` (None: not given), and with the given options of this executor by
    #: `ExecutorOption.name`; returns what takes the runs, or None where the command trains them itself. Raises
    #: `UserError`, which begins with the flag, for a value that is not allowed
    make: Make
    options: tuple[ExecutorOption, ...] = ()  #: its options of the command


#: All registered executors, by name, in the order of registration.
REGISTERED: dict[str, Executor] = {}


def register(name: str, *, help: str, options: tuple[ExecutorOption, ...] = ()) -> Callable[[Make], Make]:
    """Decorator that registers `Executor.make`; the arguments are the other attributes of `Executor`.

    The module is imported for `compare --help`: import slow packages inside functions.
    """

    def add(make: Make) -> Make:
        if name in REGISTERED:
            raise ValueError(f"an executor '{name}' is registered already")
        for option in options:
            if not option.flag.startswith(f"--{name}-"):
                raise ValueError(f"executor '{name}': got the option {option.flag}; expected --{name}-...")
        REGISTERED[name] = Executor(name, help, make, options)
        return make

    return add


@register("local", help="this machine")
def _local(jobs: int | None, threads: int | None, options: Mapping[str, Any]) -> None:
    """The command trains the runs itself with workers (`local.py`), and waits for them."""
    if threads is not None:
        raise UserError("--threads: a comparison divides the cores among its jobs; pass --jobs instead")
