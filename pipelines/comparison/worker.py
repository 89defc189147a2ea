"""A worker: trains the waiting runs of a comparison, one after another, and shares nothing but the folder."""

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
from pipelines.utils.machine import sampled, without_mlflow
from pipelines.utils.security import refuse_foreign_losses

#: Signals that end a worker, not its run: it goes on at its last checkpoint.
ENDED_BY = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_ending: list[int] = []


def work(folder: Path, index: int | None = None, threads: int | None = None, *, trust: bool = False) -> None:
    """Train every run that is not finished and that no other worker has, until none is left.

    A run of which another machine died is taken over: at its end by a worker of all runs, at once by one that is given
    just this run; both wait up to two minutes to be sure.

    Args:
        folder: the comparison's folder.
        index: only the run of this number in the plan.
        threads: of the processor.
        trust: import losses of any package that the plan names, and have nnU-Net read the folder's pickles.

    Raises:
        UserError: no comparison there, no such run, a loss that is not to be trusted, or no nnU-Net where it trains.
        DiskFullError: the run that was at work stays as its last checkpoint has it, and is no failed one.
    """
    plan = require_plan(folder)
    if plan.tuning is not None and not plan.tuning.over:
        raise UserError(f"{folder}: its learning rates are not chosen yet; run the same `medloss compare` to its end")
    if not trust:
        refuse_foreign_losses(plan.losses, folder)
        if plan.runs[0].config.nnunet is not None:
            raise UserError(
                f"{folder}: refused: nnU-Net reads the folder's prepared cases as pickles, which could run anything; "
                "pass --trust if you know it"
            )
    if (first := plan.runs[0].config).nnunet is not None:
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
    """Have signals by which schedulers end a process end the block in order: locks are let go, nothing has failed.

    Signals that the process was started to ignore, as a script's background job ignores Ctrl-C, stay ignored: its
    comparison ignores them, too, and would take the end of its workers for their death.
    """

    def end(number: int, frame: object) -> None:
        if not _ending:
            _ending.append(number)
            # torch's handler would have the loader's processes, which may have got the signal, too, be an error.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            raise SystemExit(128 + number)

    ours = [number for number in ENDED_BY if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _ending.clear()


def exit_with(parent: int) -> None:
    """End this process when `parent` is gone: a killed comparison leaves no worker behind."""

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
    """End this process without the second that it takes to tear down what it has imported."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _train(folder: Path, run: PlannedRun, threads: int | None, wait: Callable[[str], None] | None) -> None:
    own = run_folder(folder, run)
    if own.result is not None:
        return
    with held_lock(own.path / "lock", wait=wait) as mine:
        if not mine or own.result is not None:
            return
        write_json(own.path / "attempts.json", {"attempts": attempts(folder, run) + 1})
        config = run.config.model_copy(update={"threads": threads, "cache_dir": str(cache_folder(folder, run.config))})
        try:
            with sampled(own.path), naming_a_full_disk(folder):
                train = _train_by_engines if config.nnunet is None else _train_by_nnunet
                train(config, own)
        except TrainingError:
            return  # the folder says so
        except DiskFullError:
            raise
        except Exception as error:
            if _ending:
                raise SystemExit(128 + _ending[0]) from None  # the signal reached the loader's processes, too
            # Whatever one run meets, the others go on; the traceback goes to the worker's log.
            import traceback

            traceback.print_exc()
            own.write_result({"state": "failed", "error": one_line(error)})


def _train_by_engines(config: RunConfig, own: RunFolder) -> None:
    with without_mlflow():
        from ignite.engine import Events

        from pipelines.training.run import train_run

    lock = own.path / "lock"

    def attach(trainer: Any, evaluator: Any) -> None:
        # Before anything is written: a process that was frozen for minutes may have lost its run to another machine.
        trainer.add_event_handler(Events.EPOCH_COMPLETED, end_if_lost, lock)
        evaluator.add_event_handler(Events.COMPLETED, end_if_lost, lock)

    train_run(config, own.path, resume=True, attach=attach)


def _train_by_nnunet(config: RunConfig, own: RunFolder) -> None:
    from pipelines.nnunet.run import train_nnunet_run

    train_nnunet_run(config, own.path, Path(str(config.cache_dir)), lambda: end_if_lost(own.path / "lock"))


def one_line(error: Exception) -> str:
    """An error as a line of a `result.json`; its kind, too, where it is not written for people."""
    line = " ".join(str(error).split())[:500]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"
