"""Where the runs of a comparison are trained: here, in a cluster's queue, or wherever somebody else puts them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipelines.utils import UserError

if TYPE_CHECKING:  # importing a plan takes a second, which `--help` need not wait for
    from pipelines.runs.plan import Plan


class Handover(Protocol):
    """An executor that does not wait."""

    @property
    def for_programs(self) -> bool:
        """Whether standard output is for programs: people are then told on standard error."""

    def check(self) -> None:
        """Refuse, before anything is read, what cannot be handed over.

        Raises:
            UserError: programs or packages are missing; says which.
        """

    def hand_over(self, folder: Path, plan: "Plan", indices: list[int], tell: Callable[[str], None]) -> None:
        """Have runs trained by others.

        Args:
            folder: the comparison's.
            plan: its plan.
            indices: of the runs that are neither finished nor being trained, by the plan's order.
            tell: called with lines for people.

        Raises:
            UserError: they were refused.
        """


@dataclass(frozen=True)
class ExecutorOption:
    """An option of `compare` that belongs to one executor.

    Attributes:
        flag: `--<executor>-<word>`.
        help: one line.
        metavar: what stands for its value in the help.
        type: of its value, as click takes it.
        multiple: whether it may be given several times; its value is a tuple then.
        key: its name, where it is not the flag's.
    """

    flag: str
    help: str
    metavar: str | None = None
    type: Any = str
    multiple: bool = False
    key: str | None = None

    @property
    def name(self) -> str:
        """By which `Executor.make` gets its value."""
        return self.key or self.flag.removeprefix("--").replace("-", "_")


Make = Callable[[int | None, int | None, Mapping[str, Any]], Handover | None]


@dataclass(frozen=True)
class Executor:
    """A value of `--executor`.

    Attributes:
        name: the value.
        help: what it does, for the help.
        make: called with `--jobs` and `--threads`, None where they are not given, and with those of its options that
            are, by `ExecutorOption.name`; returns what runs are handed over to, or None where they are trained here.
            Raises `UserError`, which begins with the flag, for a value that it cannot have.
        options: that the command has for it.
    """

    name: str
    help: str
    make: Make
    options: tuple[ExecutorOption, ...] = ()


#: All registered executors, by name, in the order of registration.
REGISTERED: dict[str, Executor] = {}


def register(name: str, *, help: str, options: tuple[ExecutorOption, ...] = ()) -> Callable[[Make], Make]:
    """Decorator that registers what makes an executor; the arguments are the attributes of `Executor`.

    Its module is imported for `compare --help`: what takes time is imported within functions.
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
def _here(jobs: int | None, threads: int | None, options: Mapping[str, Any]) -> None:
    """The command trains the runs itself, by workers (`local.py`), and waits until all are done."""
    if threads is not None:
        raise UserError("--threads: a comparison divides the cores among its jobs; pass --jobs instead")
