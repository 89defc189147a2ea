"""Rounds before a comparison: successive halving, and the folders of its rungs and of learning-rate trials.

Successive halving screens all losses with short runs and drops the worse half, twice; the survivors are compared.

After Karnin et al. (2013) and Jamieson and Talwalkar (2016, arXiv 1502.07943), with two changes:

- **Every rung trains from scratch**, with its own whole schedule, instead of resuming from the checkpoint. The learning
  rate follows the run's length: a run stopped at a quarter has never had a low rate, and differs from one that was
  planned so short; resuming would compare networks in the middle of their schedules. Two rungs of a quarter and of
  half the epochs cost at most half of what training all losses on one fold does.
- **The cases that drop losses do not compare them.** The rungs run on a fold that the comparison does not have: one
  that was not asked for, or, where all were, the first, which the comparison then goes without. Chosen and evaluated
  on the same cases, survivors would look better than they are, and their p-values would be too small.

The reference is never dropped, so it needs no screening. A loss whose run failed is dropped first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.comparison.execution import Comparison
from pipelines.runs.comparison_folder import adopt_plan, read_plan, run_folder
from pipelines.runs.plan import SCREENING_SHARES, Halving, Plan
from pipelines.utils import UserError

#: With fewer losses next to the reference, or fewer epochs, there is nothing to halve.
LEAST_LOSSES = LEAST_EPOCHS = 4


def plan_halving(
    losses: list[str], reference: str, folds: list[int], seeds: list[int], epochs: int, known: list[int]
) -> tuple[Halving, list[int]]:
    """How losses are screened, and the folds that remain to compare the survivors on.

    Args:
        losses: all losses of the comparison.
        reference: the one that is never dropped.
        folds: the folds asked for.
        seeds: the seeds asked for; the first one screens.
        epochs: of the comparison's runs.
        known: the data set's folds.

    Raises:
        UserError: there are too few losses, epochs or folds.
    """
    racing = [loss for loss in losses if loss != reference]
    if len(racing) < LEAST_LOSSES:
        raise UserError(
            f"--halving: got {len(racing)} losses next to the reference; expected {LEAST_LOSSES} or more: "
            "compare so few without it"
        )
    if epochs < LEAST_EPOCHS:
        raise UserError(
            f"--halving: got {epochs} epochs; expected {LEAST_EPOCHS} or more, of which a quarter and half screen"
        )
    fold, remaining = screening_fold("--halving", folds, known)
    rungs = [round(epochs * share) for share in SCREENING_SHARES]
    return Halving(fold=fold, seed=seeds[0], losses=racing, rungs=rungs), remaining


def screening_fold(flag: str, folds: list[int], known: list[int]) -> tuple[int, list[int]]:
    """The fold whose cases decide before the comparison, and the folds that remain to compare on.

    Args:
        flag: the option that needs one.
        folds: the folds asked for.
        known: the data set's folds.

    Raises:
        UserError: there is only one fold.
    """
    unused = [fold for fold in known if fold not in folds]
    fold = unused[0] if unused else folds[0]
    remaining = [other for other in folds if other != fold]
    if not remaining:
        raise UserError(
            f"{flag}: got a data set of one fold; expected two or more: the cases that decide before the comparison "
            "are not those that compare the losses"
        )
    return fold, remaining


# The rungs of a screening and the trials of a tuning: each is a comparison in the folder of the whole one.


@dataclass(frozen=True)
class Score:
    """The result of a rung's run.

    Attributes:
        score: mean of the primary metric; None: the run failed, or no case has the metric.
        error: why it failed.
        cases: how many it validated.
    """

    score: float | None
    error: str | None
    cases: int


def rung_folder(folder: Path, name: int | str) -> Path:
    """The folder of a rung (a number) or a trial (its name) of the comparison in `folder`."""
    return folder / "screening" / (name if isinstance(name, str) else f"rung{name}")


def adopt_rung(comparison: Comparison, name: int | str, changes: Mapping[str, Any]) -> Comparison:
    """Begin a rung, or resume it.

    Args:
        comparison: the whole one.
        name: as `rung_folder` takes it.
        changes: what the rung's plan has in place of the comparison's: `id`, `rung`, `runs` and so on.

    Raises:
        UserError: its folder holds another one.
    """
    path = rung_folder(comparison.folder, name)
    without: dict[str, Any] = {"asked": None, "told": [], "halving": None, "tuning": None}
    plan = adopt_plan(path, comparison.plan.model_copy(update=without | dict(changes)))
    # It shares the comparison's prepared cases.
    (comparison.folder / "cache").mkdir(exist_ok=True)
    if not (path / "cache").exists():
        (path / "cache").symlink_to(Path("..") / ".." / "cache", target_is_directory=True)
    return _rung(comparison, path, plan)


def begun_rungs(comparison: Comparison) -> list[Comparison]:
    """The trials of a comparison's tuning, and the rungs of its screening, that were begun, in that order.

    Raises:
        UserError: a rung's plan is damaged.
    """
    tuning, halving = comparison.plan.tuning, comparison.plan.halving
    names: list[int | str] = [f"rate{1 + place}" for place in range(len(tuning.factors) if tuning else 0)]
    names += [1 + place for place in range(len(halving.rungs) if halving else 0)]
    paths = [rung_folder(comparison.folder, name) for name in names]
    return [_rung(comparison, path, plan) for path in paths if (plan := read_plan(path)) is not None]


def scores(rung: Comparison) -> dict[str, Score]:
    """The result of each loss's run in a rung whose runs have ended."""
    found = {}
    for run in rung.plan.runs:
        run_dir = run_folder(rung.folder, run)
        result = run_dir.result or {"state": "failed", "error": "it never ended"}
        value = (result.get("metrics") or {}).get(rung.plan.metric) if result["state"] == "done" else None
        error = result.get("error") if value is None else None
        found[run.config.loss] = Score(value, error, len({row["case"] for row in run_dir.cases}))
    return found


def _rung(comparison: Comparison, folder: Path, plan: Plan) -> Comparison:
    return Comparison(folder, plan, comparison.execution, store=comparison.folder)
