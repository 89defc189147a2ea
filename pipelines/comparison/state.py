"""Where each run of a comparison is, read from the folders alone."""

from dataclasses import dataclass
from pathlib import Path

from pipelines.comparison.plan import Plan, PlannedRun, run_folder
from pipelines.locks import is_held


@dataclass(frozen=True)
class RunState:
    """One run: `waiting`, `running`, `interrupted`, `done` or `failed`.

    Attributes:
        run: the planned run.
        state: the word.
        epoch: epochs that are over.
        epochs: of how many.
        seconds_left: expected, of a running one.
        dice: of the last validation.
        error: why it failed.
    """

    run: PlannedRun
    state: str
    epoch: int
    epochs: int
    seconds_left: float | None = None
    dice: float | None = None
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("done", "failed")


def run_states(folder: Path, plan: Plan) -> list[RunState]:
    """The state of every run, in the plan's order."""
    return [_state(folder, run) for run in plan.runs]


def _state(folder: Path, run: PlannedRun) -> RunState:
    own = run_folder(folder, run)
    epochs = run.config.epochs
    result = own.result
    if result is not None and result["state"] == "done":
        return RunState(run, "done", epochs, epochs, dice=(result.get("metrics") or {}).get("dice"))
    progress = own.progress or {}
    epoch = int(progress.get("epoch", 0))
    if result is not None:
        return RunState(run, "failed", epoch, epochs, error=result.get("error"))
    if is_held(own.path / "lock"):
        return RunState(run, "running", epoch, epochs, progress.get("seconds_left"), progress.get("val_dice"))
    return RunState(run, "interrupted" if own.begun else "waiting", epoch, epochs)


def epochs_over(states: list[RunState]) -> int:
    """Epochs that need not be trained any more; a failed run needs none."""
    return sum(state.epochs if state.finished else state.epoch for state in states)


def seconds_left(states: list[RunState], elapsed: float, done_before: int) -> float | None:
    """Expected seconds until all runs are finished; None before the first epoch is over.

    Args:
        states: of all runs.
        elapsed: seconds since the start of this process.
        done_before: epochs that were over then.
    """
    done = epochs_over(states) - done_before
    left = sum(state.epochs - state.epoch for state in states if not state.finished)
    if left == 0:
        return 0.0
    if done <= 0:
        return None
    # Epochs of different losses take different times; the mean so far is the best guess there is.
    return max(elapsed / done * left, max((s.seconds_left or 0.0 for s in states if s.state == "running"), default=0.0))
