"""What is trained before the comparison, trials of learning rates and rungs of a screening: each is a comparison."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.comparison.plan import Plan, adopt_plan, read_plan, run_folder
from pipelines.comparison.state import RunState, run_states


@dataclass(frozen=True)
class Rung:
    """A rung of the screening, or a trial of the tuning, that was begun.

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

    @property
    def title(self) -> str:
        """`screening, rung 1` or `tuning, learning rates x 3`."""
        return rung_title(self.plan)


@dataclass(frozen=True)
class Score:
    """What a rung's run has reached.

    Attributes:
        score: mean of the primary metric; None: the run failed, or nothing could be measured.
        error: why it failed.
        cases: that were measured.
    """

    score: float | None
    error: str | None
    cases: int


def rung_title(plan: Plan) -> str:
    """What a rung, or a trial, is called by its plan."""
    if plan.factor is None:
        return f"screening, rung {plan.rung}"
    factor = f"{plan.factor:g}" if plan.factor >= 1 else f"1/{1 / plan.factor:g}"
    return f"tuning, learning rates x {factor}"


def rung_folder(folder: Path, name: int | str) -> Path:
    """Where a rung of a comparison's screening (a number), or a trial (its name), lies."""
    return folder / "screening" / (name if isinstance(name, str) else f"rung{name}")


def adopt_rung(folder: Path, name: int | str, plan: Plan, changes: Mapping[str, Any]) -> Rung:
    """Begin a rung, or take it up again.

    Args:
        folder: the comparison's.
        name: as `rung_folder` takes it.
        plan: the comparison's.
        changes: what the rung's plan has in place of the comparison's: `id`, `rung`, `runs` and so on.

    Raises:
        UserError: its folder holds another one.
    """
    path = rung_folder(folder, name)
    without: dict[str, Any] = {"asked": None, "told": [], "halving": None, "tuning": None}
    adopted = adopt_plan(path, plan.model_copy(update=without | dict(changes)))
    # It reads the comparison's prepared cases: they are the same ones.
    (folder / "cache").mkdir(exist_ok=True)
    if not (path / "cache").exists():
        (path / "cache").symlink_to(Path("..") / ".." / "cache", target_is_directory=True)
    return _rung(path, adopted)


def begun_rungs(folder: Path, plan: Plan) -> list[Rung]:
    """The trials of a plan's tuning, and the rungs of its screening, that were begun, in that order.

    Raises:
        UserError: a rung's plan is damaged.
    """
    names: list[int | str] = [f"rate{1 + place}" for place in range(len(plan.tuning.factors) if plan.tuning else 0)]
    names += [1 + place for place in range(len(plan.halving.rungs) if plan.halving else 0)]
    paths = [rung_folder(folder, name) for name in names]
    return [_rung(path, rung) for path in paths if (rung := read_plan(path)) is not None]


def scores(folder: Path, plan: Plan) -> dict[str, Score]:
    """What each loss's run has reached in a rung whose runs have ended.

    Args:
        folder: the rung's.
        plan: the rung's.
    """
    found = {}
    for run in plan.runs:
        at = run_folder(folder, run)
        result = at.result or {"state": "failed", "error": "it never ended"}
        value = (result.get("metrics") or {}).get(plan.metric) if result["state"] == "done" else None
        error = result.get("error") if value is None else None
        found[run.config.loss] = Score(value, error, len({row["case"] for row in at.cases}))
    return found


def _rung(folder: Path, plan: Plan) -> Rung:
    return Rung(plan.rung or 0, folder, plan, plan.runs[0].config.epochs, run_states(folder, plan))
