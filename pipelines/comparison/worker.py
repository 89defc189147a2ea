"""A worker: trains the waiting runs of a comparison, one after another; workers share nothing but the folder."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipelines.runs.comparison_folder import attempts, cache_folder, require_plan, run_folder
from pipelines.runs.plan import PlannedRun
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import DiskFullError, TrainingError, UserError
from pipelines.utils.files import naming_a_full_disk, write_json
from pipelines.utils.locks import end_if_lost, held_lock
from pipelines.utils.machine import without_mlflow
from pipelines.utils.security import refuse_foreign_losses
from pipelines.utils.usage import sampled

#: Signals that end a worker, not its run, which resumes from its last checkpoint.
ENDED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_ending: list[int] = []


def work(folder: Path, index: int | None = None, threads: int | None = None, *, trust: bool = False) -> None:
    """Train every run that is not finished and that no other worker has, until none remains.

    The run of a machine that died is taken over once its lock is stale (two minutes): by a worker of all runs after
    the others, by a worker of this run only at once.

    Args:
        folder: of the comparison.
        index: in the plan, of the only run to train; None: all runs.
        threads: of the processor.
        trust: import losses of any package that the plan names, and let nnU-Net read the folder's pickles.

    Raises:
        UserError: the folder has no comparison or no such run, a loss is untrusted, or nnU-Net is missing.
        DiskFullError: the current run keeps its last checkpoint, and has not failed.
    """
    plan = require_plan(folder)
    first = plan.runs[0].config
    if plan.tuning is not None and not plan.tuning.over:
        raise UserError(
            f"{folder}: its learning rates are not chosen yet; run the same `medloss compare` until they are"
        )
    if not trust:
        refuse_foreign_losses(plan.losses, folder)
        if first.nnunet is not None:
            raise UserError(
                f"{folder}: refused: nnU-Net reads the folder's prepared cases as pickles, which can run any code; "
                "pass --trust if you trust the folder"
            )
    if first.nnunet is not None:
        from pipelines.nnunet.datasets import find_prepared

        find_prepared(first, cache_folder(folder, first))  # else each run would fail by itself
    if index is not None and not 0 <= index < len(plan.runs):
        raise UserError(f"--index: got {index}; the comparison has runs 0 to {len(plan.runs) - 1}")
    if index is None:
        for run in plan.runs:
            _train(folder, run, threads, None)
    for run in plan.runs if index is None else [plan.runs[index]]:
        _train(folder, run, threads, lambda line: print(line, file=sys.stderr, flush=True))


@contextmanager
def ending_in_order() -> Iterator[None]:
    """End the block in order on signals of schedulers: locks are released, and the run has not failed.

    Signals that the process ignores from its start (a script's background job ignores Ctrl-C) stay ignored: its
    comparison ignores them, too, and would take the end of its workers for their death.
    """

    def end(number: int, frame: object) -> None:
        if not _ending:
            _ending.append(number)
            # The loader's processes may have got the signal, too: torch's handler would raise an error for that.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise SystemExit(128 + number)

    handled = [number for number in ENDED_BY if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _ending.clear()


def exit_with(parent: int) -> None:
    """End this process when its parent has ended: a killed comparison leaves no worker running."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        import psutil

        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_at_once(code: int = 0) -> None:
    """End this process without Python's cleanup, which takes a second after so many imports."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _train(folder: Path, run: PlannedRun, threads: int | None, wait: Callable[[str], None] | None) -> None:
    run_dir = run_folder(folder, run)
    if run_dir.result is not None:
        return
    with held_lock(run_dir.path / "lock", wait=wait) as held:
        if not held or run_dir.result is not None:
            return
        write_json(run_dir.path / "attempts.json", {"attempts": attempts(folder, run) + 1})
        config = run.config.model_copy(update={"threads": threads, "cache_dir": str(cache_folder(folder, run.config))})
        try:
            with sampled(run_dir.path), naming_a_full_disk(folder):
                train = _train_by_engines if config.nnunet is None else _train_by_nnunet
                train(config, run_dir)
        except TrainingError:
            return  # the run's result has the error
        except DiskFullError:
            raise
        except Exception as error:
            if _ending:
                raise SystemExit(128 + _ending[0]) from None  # the signal reached the loader's processes, too
            # An error of one run does not end the others; the traceback goes to the worker's log.
            import traceback

            traceback.print_exc()
            run_dir.write_result({"state": "failed", "error": one_line(error)})


def _train_by_engines(config: RunConfig, run_dir: RunFolder) -> None:
    with without_mlflow():
        from ignite.engine import Events

        from pipelines.training.run import train_run

    lock = run_dir.path / "lock"

    def attach(trainer: Any, evaluator: Any) -> None:
        # Before any file is written: a process that was frozen for minutes may have lost its run to another machine.
        trainer.add_event_handler(Events.EPOCH_COMPLETED, end_if_lost, lock)
        evaluator.add_event_handler(Events.COMPLETED, end_if_lost, lock)

    train_run(config, run_dir.path, resume=True, attach=attach)


def _train_by_nnunet(config: RunConfig, run_dir: RunFolder) -> None:
    from pipelines.nnunet.run import train_nnunet_run

    train_nnunet_run(config, run_dir.path, Path(str(config.cache_dir)), lambda: end_if_lost(run_dir.path / "lock"))


def one_line(error: Exception) -> str:
    """An error as one line for `result.json`, with its class unless it is a `UserError`."""
    line = " ".join(str(error).split())[:500]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
