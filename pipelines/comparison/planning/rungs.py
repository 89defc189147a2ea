"""The rungs of a screening, read from the folders alone."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.comparison.plan import Plan, read_plan
from pipelines.comparison.state import RunState, run_states


@dataclass(frozen=True)
class Rung:
    """A rung of the screening that was begun.

    Attributes:
        number: from 1.
        folder: its own.
        plan: its own: it is a comparison.
        epochs: of its runs.
        states: of its runs.
    """

    number: int
    folder: Path
    plan: Plan
    epochs: int
    states: list[RunState]


def rung_folder(folder: Path, number: int) -> Path:
    """Where a rung of a comparison's screening lies: it is a comparison of its own."""
    return folder / "screening" / f"rung{number}"


def begun_rungs(folder: Path, plan: Plan) -> list[Rung]:
    """The rungs of a plan's screening that were begun; none without halving.

    Raises:
        UserError: a rung's plan is damaged.
    """
    rungs = []
    for number, epochs in enumerate(() if plan.halving is None else plan.halving.rungs, start=1):
        own = rung_folder(folder, number)
        if (rung := read_plan(own)) is not None:
            rungs.append(Rung(number, own, rung, epochs, run_states(own, rung)))
    return rungs
