"""`--executor local`: workers on this machine are started, watched, and restarted when they die."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.plan import Plan, PlannedRun
from pipelines.utils import DiskFullError, UserError, locks
from pipelines.utils.locks import holder, holder_host, is_held
from pipelines.utils.machine import available_cores, thread_environment
from pipelines.utils.text import counted

#: A run has failed when its process died so often: it would only die again.
MOST_DEATHS = 2
_POLL_S = 0.25
#: Seconds that workers have, all together, to release their locks and end.
_GRACE_S = 3.0


def execute(folder: Path, plan: Plan, jobs: int, watch: Callable[[], None], message: Callable[[str], None]) -> None:
    """Train all runs of a plan that are not finished, in `jobs` processes, whose output goes to `logs/`.

    `watch` is called a few times per second.

    Raises:
        UserError: workers end before they start any run.
        DiskFullError: a worker could not write; this is no failure of its run.
        KeyboardInterrupt: it was interrupted; no worker is left.
    """
    threads = max(1, available_cores() // min(jobs, len(plan.runs)))
    workers: dict[int, subprocess.Popen[bytes]] = {}
    deaths: Counter[str] = Counter()
    remaining = plan.runs
    try:
        while True:
            remaining = [run for run in remaining if run_folder(folder, run).result is None]
            # Workers that end without an error found every run taken by other workers, which may yet release one.
            if not workers:
                wanted = min(jobs, sum(not is_held(run_folder(folder, run).path / "lock") for run in remaining))
                workers = {number: start_worker(_log(folder, number), folder, threads) for number in range(wanted)}
            watch()
            if not remaining and not workers:
                break
            time.sleep(_POLL_S)
            for number, worker in list(workers.items()):
                if worker.poll() is None:
                    continue
                del workers[number]
                if worker.returncode == DiskFullError.exit_code:
                    raise DiskFullError(folder)
                unfinished = [run for run in remaining if run_folder(folder, run).result is None]
                if worker.returncode != 0 and unfinished:
                    if line := _note_death(folder, unfinished, worker, _log(folder, number), deaths):
                        message(line)
                    if any(run_folder(folder, run).result is None for run in unfinished):
                        workers[number] = start_worker(_log(folder, number), folder, threads)
    except KeyboardInterrupt:
        message(f"stopping {counted(len(workers), 'worker')}: each run resumes after its last epoch")
        raise
    finally:
        _end(list(workers.values()))


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    """End workers: ask them first, then kill those that take too long; their files are complete either way."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + _GRACE_S
    for worker in workers:
        try:
            worker.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def start_worker(log_file: Path, folder: Path, threads: int, index: int | None = None) -> subprocess.Popen[bytes]:
    """Start a worker, of all runs or of the one of this index, that ends with this process."""
    log_file.parent.mkdir(exist_ok=True)
    arguments = ["worker", str(folder), *([] if index is None else ["--index", str(index)])]
    # The user named the losses to this process.
    arguments += ["--threads", str(threads), "--parent", str(os.getpid()), "--trust"]
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    environment = os.environ | thread_environment(threads)
    with log_file.open("ab") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def _log(folder: Path, number: int) -> Path:
    return folder / "logs" / f"worker-{number}.log"


def _note_death(
    folder: Path, remaining: list[PlannedRun], worker: subprocess.Popen[bytes], log: Path, deaths: Counter[str]
) -> str | None:
    """Count the death for the run that the worker had, which after too many has failed; returns a line to print."""
    had = None
    for run in remaining:
        lock = run_folder(folder, run).path / "lock"
        if holder(lock) == worker.pid and holder_host(lock) in (None, locks.this_host()):
            had = run
    # Deaths between runs add up only while no run is finished.
    key = f"with {len(remaining)} left" if had is None else had.id
    deaths[key] += 1
    cause = cause_of_death(worker.returncode)
    if deaths[key] < MOST_DEATHS:
        return None if had is None else f"{had.title}: its process died ({cause}) and is started again"
    if had is None:
        raise UserError(f"workers die before they train anything ({cause}): {last_line(log, 'no message')}; see {log}")
    advice = "lower --batch-size or --patch, or run fewer jobs"
    run_folder(folder, had).write_result({"state": "failed", "error": died_too_often(worker.returncode, advice, log)})
    return None


def last_line(log: Path, default: str) -> str:
    """The last line of a process's output that is not blank, at most 300 characters."""
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), default)[:300]


def cause_of_death(returncode: int) -> str:
    """How a process ended: `signal 9` or `exit code 1`."""
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"


def died_too_often(returncode: int, advice: str, log: Path) -> str:
    """The error of a run whose process died again and again; the advice is for a lack of memory."""
    what = f"often a lack of memory: {advice}" if returncode == -signal.SIGKILL else f"see {log}"
    return f"its process died {MOST_DEATHS} times ({cause_of_death(returncode)}); {what}"
