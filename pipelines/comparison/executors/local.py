"""Workers on this machine: started, watched, and started again when they die."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.plan import Plan
from pipelines.utils import DiskFullError, UserError, locks
from pipelines.utils.locks import holder, holder_host, is_held
from pipelines.utils.machine import available_cores, thread_environment
from pipelines.utils.text import counted

#: A run whose process died so often is failed: it would only die again.
MOST_DEATHS = 2
_POLL_S = 0.25
#: Seconds in which all workers that are asked to end have let their locks go.
_ORDER_S = 3.0


def execute(folder: Path, plan: Plan, jobs: int, watch: Callable[[], None], tell: Callable[[str], None]) -> None:
    """Train all runs of a plan that are not finished, `jobs` at a time.

    Args:
        folder: the comparison's folder; the workers' output goes to `logs/`.
        plan: its plan.
        jobs: worker processes; the processor's cores are divided among them.
        watch: called a few times a second.
        tell: called with a line for people when a process dies and its run is started again.

    Raises:
        UserError: no worker gets as far as a run.
        DiskFullError: a worker could not write; no run has failed by that.
        KeyboardInterrupt: it was interrupted; no worker is left.
    """
    threads = max(1, available_cores() // min(jobs, len(plan.runs)))
    workers: dict[int, subprocess.Popen[bytes]] = {}
    deaths: Counter[str] = Counter()
    left = plan.runs
    try:
        while True:
            left = [run for run in left if run_folder(folder, run).result is None]
            # Who leaves without an error found every run taken: only one that somebody else drops is to be had again.
            if not workers:
                wanted = min(jobs, sum(not is_held(run_folder(folder, run).path / "lock") for run in left))
                workers = {number: start_worker(_log(folder, number), folder, threads) for number in range(wanted)}
            watch()
            if not left and not workers:
                break
            time.sleep(_POLL_S)
            for number, worker in list(workers.items()):
                if worker.poll() is None:
                    continue
                del workers[number]
                if worker.returncode == DiskFullError.exit_code:
                    raise DiskFullError(folder)
                if worker.returncode != 0:
                    _bury(folder, plan, worker, number, deaths, tell)
                    if any(run_folder(folder, run).result is None for run in left):
                        workers[number] = start_worker(_log(folder, number), folder, threads)
    except KeyboardInterrupt:
        tell(f"stopping {counted(len(workers), 'worker')}: each run resumes after its last epoch")
        raise
    finally:
        _end(list(workers.values()))


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    """End workers, in order if that takes no longer than a moment: their files are whole either way."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + _ORDER_S
    for worker in workers:
        try:
            worker.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def start_worker(log_file: Path, folder: Path, threads: int, index: int | None = None) -> subprocess.Popen[bytes]:
    """Start a worker that ends with this process.

    Args:
        log_file: gets what it says.
        folder: the comparison's.
        threads: of the processor.
        index: only the run of this number in the plan.
    """
    log_file.parent.mkdir(exist_ok=True)
    arguments = ["worker", str(folder), *([] if index is None else ["--index", str(index)])]
    # The losses are those that the user named to this process.
    arguments += ["--threads", str(threads), "--parent", str(os.getpid()), "--trust"]
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    environment = os.environ | thread_environment(threads)
    with log_file.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _log(folder: Path, number: int) -> Path:
    return folder / "logs" / f"worker-{number}.log"


def _bury(
    folder: Path,
    plan: Plan,
    worker: subprocess.Popen[bytes],
    number: int,
    deaths: Counter[str],
    tell: Callable[[str], None],
) -> None:
    """Note which run a dead worker had; one that kills every process is failed."""
    had = None
    left = [run for run in plan.runs if run_folder(folder, run).result is None]
    if not left:
        return
    for run in left:
        lock = run_folder(folder, run).path / "lock"
        if holder(lock) == worker.pid and holder_host(lock) in (None, locks.own_host()):
            had = run
    # Deaths between runs count together only while nothing else is finished.
    key = f"with {len(left)} left" if had is None else had.id
    deaths[key] += 1
    cause = cause_of_death(worker.returncode)
    if deaths[key] < MOST_DEATHS:
        if had is not None:
            tell(f"{had.title}: its process died ({cause}) and is started again")
        return
    if had is None:
        log = _log(folder, number)
        told = log.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(told) if line.strip()), "it said nothing")
        raise UserError(f"workers die before they train anything ({cause}): {last[:300]}; see {log}")
    advice = f"see {_log(folder, number)}"
    if worker.returncode == -signal.SIGKILL:
        advice = "often a lack of memory: lower --batch-size or --patch, or run fewer jobs"
    run_folder(folder, had).write_result({"state": "failed", "error": died_too_often(cause, advice)})


def cause_of_death(returncode: int) -> str:
    """How a process ended, for people."""
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"


def died_too_often(cause: str, advice: str) -> str:
    """Why a run is failed whose process died again and again."""
    return f"its process died {MOST_DEATHS} times ({cause}); {advice}"
