"""Workers on this machine: started, watched, and started again when they die."""

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pipelines.comparison.locks import holder
from pipelines.comparison.plan import Plan, run_folder

#: A run whose process died so often is failed: it would only die again.
_MOST_DEATHS = 2
_POLL_S = 0.25


def execute(folder: Path, plan: Plan, jobs: int, watch: Callable[[], None]) -> None:
    """Train all runs of a plan that are not finished, `jobs` at a time.

    Args:
        folder: the comparison's folder; the workers' output goes to `logs/`.
        plan: its plan.
        jobs: worker processes; the processor's cores are divided among them.
        watch: called a few times a second.
    """
    threads = max(1, available_cores() // jobs)
    waiting = sum(run_folder(folder, run).result is None for run in plan.runs)
    workers = [_start(folder, number, threads) for number in range(min(jobs, waiting))]
    deaths: Counter[str] = Counter()
    try:
        while workers:
            watch()
            time.sleep(_POLL_S)
            for number, worker in enumerate(list(workers)):
                if worker.poll() is None:
                    continue
                workers.remove(worker)
                if worker.returncode != 0:
                    _bury(folder, plan, worker, deaths)
                    if any(run_folder(folder, run).result is None for run in plan.runs):
                        workers.append(_start(folder, number, threads))
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.kill()
    watch()


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(folder: Path, number: int, threads: int) -> subprocess.Popen[bytes]:
    logs = folder / "logs"
    logs.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pipelines.cli", "worker", str(folder)]
    command += ["--threads", str(threads), "--parent", str(os.getpid())]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
    }
    with (logs / f"worker-{number}.log").open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _bury(folder: Path, plan: Plan, worker: subprocess.Popen[bytes], deaths: Counter[str]) -> None:
    """Note which run a dead worker had; one that kills every process is failed."""
    had = None
    for run in plan.runs:
        own = run_folder(folder, run)
        if own.result is None and holder(own.path / "lock") == worker.pid:
            had = run
    key = "" if had is None else had.id
    deaths[key] += 1
    if deaths[key] < _MOST_DEATHS:
        return
    cause = f"signal {-worker.returncode}" if worker.returncode < 0 else f"exit code {worker.returncode}"
    if had is None:
        raise RuntimeError(f"a worker ends before it trains anything ({cause}); see {folder / 'logs'}")
    run_folder(folder, had).write_result(
        {
            "state": "failed",
            "error": f"its process died {_MOST_DEATHS} times ({cause}; -9 is often a lack of memory): "
            "lower --batch-size or --patch, or run fewer jobs",
        }
    )
