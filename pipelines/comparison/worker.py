"""A worker: trains the waiting runs of a comparison, one after another, and shares nothing but the folder."""

import os
import threading
import time
from pathlib import Path

from pipelines.comparison.plan import PlannedRun, require_plan, run_folder
from pipelines.errors import TrainingError, UserError
from pipelines.files import read_json, write_json
from pipelines.locks import held_lock
from pipelines.trust import refuse_foreign_losses


def work(folder: Path, index: int | None = None, threads: int | None = None, *, trust: bool = False) -> None:
    """Train every run that is not finished and that no other worker has, until none is left.

    Args:
        folder: the comparison's folder.
        index: only the run of this number in the plan.
        threads: of the processor.
        trust: import losses of any package that the plan names.

    Raises:
        UserError: no comparison there, no such run, or a loss that is not to be trusted.
    """
    plan = require_plan(folder)
    if not trust:
        refuse_foreign_losses(plan.losses, folder)
    if index is not None and not 0 <= index < len(plan.runs):
        raise UserError(f"--index: got {index}; the comparison has runs 0 to {len(plan.runs) - 1}")
    runs = plan.runs if index is None else [plan.runs[index]]
    for run in runs:
        if run_folder(folder, run).result is None:
            _train(folder, run, threads)


def exit_with(parent: int) -> None:
    """End this process when `parent` is gone: a killed comparison leaves no worker behind."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def attempts(folder: Path, run: PlannedRun) -> int:
    """How often a run was begun."""
    content = read_json(run_folder(folder, run).path / "attempts.json")
    return 0 if content is None else int(content["attempts"])


def _train(folder: Path, run: PlannedRun, threads: int | None) -> None:
    from pipelines.training.run import train_run

    own = run_folder(folder, run)
    with held_lock(own.path / "lock") as mine:
        if not mine or own.result is not None:
            return
        write_json(own.path / "attempts.json", {"attempts": attempts(folder, run) + 1})
        config = run.config.model_copy(update={"threads": threads, "cache_dir": str(folder / "cache")})
        try:
            train_run(config, own.path, resume=True)
        except TrainingError:
            return  # the folder says so
        except Exception as error:
            # Whatever one run meets, the others go on; the traceback goes to the worker's log.
            import traceback

            traceback.print_exc()
            own.write_result({"state": "failed", "error": _one_line(error)})


def _one_line(error: Exception) -> str:
    line = " ".join(str(error).split())[:500]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
