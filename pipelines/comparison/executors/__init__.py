"""Where the runs of a comparison are trained: here, in a cluster's queue, or wherever somebody else puts them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # importing a plan takes a second, which `--help` need not wait for
    from pipelines.comparison.plan import Plan

#: `local` waits until all is done; the others hand the runs over, and return.
EXECUTORS = ("local", "slurm", "none")


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
