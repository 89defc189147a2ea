"""The folder of a comparison: its `plan.json`, its runs' folders, and the status of each run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.plan import Plan, PlannedRun
from pipelines.training.run_config import INCIDENTAL, RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import UserError
from pipelines.utils.files import read_json, write_atomically, write_json
from pipelines.utils.locks import is_held

# `plan.json`, which is written before any run starts.

_NAME = "plan.json"
#: Groups of cases that were named before training, next to the plan.
SUBGROUPS = "subgroups.csv"


def adopt_plan(folder: Path, plan: Plan) -> Plan:
    """Write a plan to an empty folder, or adopt the folder's plan if it is the same comparison.

    Incidental settings, such as the folder of the data, are taken from the new plan.

    Raises:
        UserError: the folder holds another comparison; the message names the difference.
    """
    existing = refuse_another(folder, plan)
    if existing is None:
        keep_plan(folder, plan)
        return plan
    new = {run.id: run.config.model_dump(include=INCIDENTAL) for run in plan.runs}
    runs = [run.model_copy(update={"config": run.config.model_copy(update=new[run.id])}) for run in existing.runs]
    if runs != existing.runs:
        existing = existing.model_copy(update={"runs": runs})
        keep_plan(folder, existing)
    return existing


def refuse_another(folder: Path, plan: Plan) -> Plan | None:
    """Refuse a folder that holds another comparison; returns the folder's plan, None where there is none.

    Raises:
        UserError: the folder holds another comparison; the message names the difference.
    """
    refuse_foreign(folder)
    existing = read_plan(folder)
    if existing is not None and (difference := _difference(existing, plan)):
        raise UserError(f"--out: {folder} holds another comparison: {difference}; name another folder")
    return existing


def keep_plan(folder: Path, plan: Plan) -> None:
    """Write the folder's plan, replacing the one that is there."""
    write_json(folder / _NAME, plan.model_dump(mode="json"))


def keep_groups(folder: Path, content: bytes) -> None:
    """Write the table of groups, unless the folder has one."""
    if not (folder / SUBGROUPS).is_file():
        write_atomically(folder / SUBGROUPS, lambda file: file.write(content))


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that is not a comparison's.

    Raises:
        UserError: it is no folder, or holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is no folder; name another one")
    content = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if _NAME not in content and content - {"compare.lock", SUBGROUPS}:
        raise UserError(f"--out: {folder} is not empty and holds no comparison; name another folder")


def read_plan(folder: Path) -> Plan | None:
    """The folder's plan; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        content = read_json(folder / _NAME)
        return None if content is None else Plan.model_validate(content)
    except ValueError:
        raise UserError(f"{folder / _NAME} is damaged, or of another version; name another folder") from None


def require_plan(folder: Path) -> Plan:
    """The folder's plan.

    Raises:
        UserError: there is none.
    """
    plan = read_plan(folder)
    if plan is None:
        raise UserError(
            f"{folder} holds no comparison (no {_NAME}); name the folder that `medloss compare --out` named"
        )
    return plan


def run_folder(folder: Path, run: PlannedRun) -> RunFolder:
    """The folder of one run of a comparison."""
    return RunFolder(folder / "runs" / run.id)


def cache_folder(folder: Path, config: RunConfig) -> Path:
    """The folder of the prepared cases of a comparison's run."""
    return folder / "cache" if config.cache_dir is None else Path(config.cache_dir)


def _difference(old: Plan, new: Plan) -> str:
    if old.manifest_name != new.manifest_name:
        return f"its data set is '{old.manifest_name}', and '{new.manifest_name}' was asked for"
    if old.manifest_sha256 != new.manifest_sha256:
        return f"its data set is '{old.manifest_name}' as it was then, and the manifest has changed since"
    if (old.asked is None) != (new.asked is None):
        has, has_not = ("this one", "it") if old.asked is None else ("it", "this one")
        return f"{has} is planned with --budget, --tune-lr or --halving, and {has_not} is not"
    runs = [{run.id: run.config.model_dump(exclude=INCIDENTAL) for run in plan.runs} for plan in (old, new)]
    for has, theirs, ours in (("has", runs[0], runs[1]), ("does not have", runs[1], runs[0])):
        if missing := [run for run in theirs if run not in ours]:
            # Earlier versions added no reference.
            added = theirs is runs[1] and old.reference is None and new.reference in set(new.losses) - set(old.losses)
            return f"it {has} the run {missing[0]}{'; pass --reference none to resume without one' if added else ''}"
    for run, config in runs[0].items():
        for field, value in config.items():
            if runs[1][run][field] != value:
                return f"its {field} is {_shown(value)}, and {_shown(runs[1][run][field])} was asked for"
    for field in ("reference", "metric", "margin", "further_metrics", "empty", "non_inferior"):
        theirs, ours = getattr(old, field), getattr(new, field)
        # Plans of an earlier version have none, and are resumed as they are.
        if theirs != ours and theirs is not None:
            return f"its {field} is {theirs}, and {_shown(ours)} was asked for"
    return ""


def _shown(value: Any) -> str:
    return "the default" if value is None else str(value)


# The state of each run, read from the folders alone.


@dataclass(frozen=True)
class RunState:
    """The state of a run."""

    run: PlannedRun
    state: str  #: `waiting`, `running`, `interrupted`, `done` or `failed`
    epoch: int  #: epochs that are finished
    epochs: int  #: of the whole run
    seconds_left: float | None = None  #: expected, of a running one
    dice: float | None = None  #: of the last validation
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended, successfully or not."""
        return self.state in ("done", "failed")


def run_states(folder: Path, plan: Plan) -> list[RunState]:
    """The state of every run, in the plan's order."""
    return [_state(folder, run) for run in plan.runs]


def _state(folder: Path, run: PlannedRun) -> RunState:
    run_dir = run_folder(folder, run)
    epochs = run.config.epochs
    result = run_dir.result
    if result is not None and result["state"] == "done":
        return RunState(run, "done", epochs, epochs, dice=(result.get("metrics") or {}).get("dice"))
    progress = run_dir.progress or {}
    epoch = int(progress.get("epoch", 0))
    if result is not None:
        return RunState(run, "failed", epoch, epochs, error=result.get("error"))
    if is_held(run_dir.path / "lock"):
        return RunState(run, "running", epoch, epochs, progress.get("seconds_left"), progress.get("val_dice"))
    return RunState(run, "interrupted" if run_dir.begun else "waiting", epoch, epochs)


def epochs_over(states: list[RunState]) -> int:
    """Epochs that need no more training; all of a failed run count."""
    return sum(state.epochs if state.finished else state.epoch for state in states)


def seconds_left(states: list[RunState], elapsed: float, done_before: int) -> float | None:
    """Expected seconds until all runs are finished; None before the first epoch is finished.

    Args:
        states: of all runs.
        elapsed: seconds since the start of this process.
        done_before: epochs that were finished then.
    """
    done = epochs_over(states) - done_before
    remaining = sum(state.epochs - state.epoch for state in states if not state.finished)
    if remaining == 0:
        return 0.0
    if done <= 0:
        return None
    # Epochs of different losses take different times; the mean so far is the best guess available.
    return max([elapsed / done * remaining, *(s.seconds_left or 0.0 for s in states if s.state == "running")])


def attempts(folder: Path, run: PlannedRun) -> int:
    """How often a run was started."""
    content = read_json(run_folder(folder, run).path / "attempts.json")
    return 0 if content is None else int(content["attempts"])
