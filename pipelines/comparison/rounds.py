"""Rounds before a comparison: successive halving, and the folders of its rungs and of learning-rate trials.

Successive halving: short trainings of all losses, of which the worse half is dropped, twice; then the comparison.

After Karnin et al. (2013) and Jamieson and Talwalkar (2016, arXiv 1502.07943), with two changes:

- **Every rung trains anew**, with its own whole schedule, in place of going on from the checkpoint. The learning rate
  follows the run's length: a run stopped at a quarter has never had a low rate, and stands elsewhere than one that was
  planned so short; going on would compare networks in the middle of their schedules. Two rungs of a quarter and of
  half the epochs cost at most half of what training all losses on one fold does.
- **The cases that drop are not those that judge.** The rungs are run on a fold that the comparison does not have: one
  that was not asked for, or, where all were, the first, which the comparison then goes without. Chosen and measured
  on the same cases, survivors would look better than they are, and their p-values would be too small.

The reference is never dropped, so it needs no screening. A loss whose run failed is dropped first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.comparison_folder import RunState, adopt_plan, read_plan, run_folder, run_states
from pipelines.runs.plan import SCREENING_SHARES, Halving, Plan
from pipelines.runs.summary import rung_title
from pipelines.utils import UserError

#: Below so many losses beside the reference, or so many epochs, there is nothing to halve.
LEAST_LOSSES = LEAST_EPOCHS = 4


def plan_halving(
    losses: list[str], reference: str, folds: list[int], seeds: list[int], epochs: int, known: list[int]
) -> tuple[Halving, list[int]]:
    """How losses are screened, and the folds that are left to compare the survivors on.

    Args:
        losses: all of them.
        reference: that is never dropped.
        folds: asked for.
        seeds: asked for; the first one screens.
        epochs: of the comparison's runs.
        known: the data set's folds.

    Raises:
        UserError: there are too few losses, epochs or folds.
    """
    racing = [loss for loss in losses if loss != reference]
    if len(racing) < LEAST_LOSSES:
        raise UserError(
            f"--halving: got {len(racing)} losses beside the reference; expected {LEAST_LOSSES} or more: "
            "compare so few without it"
        )
    if epochs < LEAST_EPOCHS:
        raise UserError(
            f"--halving: got {epochs} epochs; expected {LEAST_EPOCHS} or more, of which a quarter and half screen"
        )
    fold, left = screening_fold("--halving", folds, known)
    rungs = [round(epochs * share) for share in SCREENING_SHARES]
    return Halving(fold=fold, seed=seeds[0], losses=racing, rungs=rungs), left


def screening_fold(flag: str, folds: list[int], known: list[int]) -> tuple[int, list[int]]:
    """The fold whose cases decide before the comparison, and those that are left to compare on.

    Args:
        flag: the option that needs one.
        folds: asked for.
        known: the data set's folds.

    Raises:
        UserError: there is one fold alone.
    """
    unused = [fold for fold in known if fold not in folds]
    fold = unused[0] if unused else folds[0]
    left = [other for other in folds if other != fold]
    if not left:
        raise UserError(
            f"{flag}: got a data set of one fold; expected two or more: the cases that decide before the comparison "
            "are not those that compare the losses"
        )
    return fold, left


# What is trained before the comparison, trials of learning rates and rungs of a screening: each is a comparison.


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
