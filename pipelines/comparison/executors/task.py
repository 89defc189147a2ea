"""What one job of SLURM does: it has a worker train one run, starts it again if it dies, and re-queues itself."""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.comparison.executors.local import MOST_DEATHS, cause_of_death, died_too_often, start_worker
from pipelines.comparison.plan import require_plan, run_folder
from pipelines.comparison.worker import ENDED_BY
from pipelines.errors import DiskFullError
from pipelines.locks import is_held
from pipelines.training.run_folder import RunFolder

#: A run of which so many jobs in a row are ended before one epoch is over gets nowhere.
MOST_IN_VAIN = 3
#: How workers end that the scheduler ended: then this process is ended, too, in a moment.
_OF_THE_SCHEDULER = {code for number in ENDED_BY for code in (128 + number, -number)}
_MOMENT_S = 100.0
_POLL_S = 0.2
#: Seconds in which the processes of an earlier job are gone.
_GONE_S = 15.0


class Task:
    """Trains the run of a number; submitit pickles it, calls it in the job, and calls `checkpoint` before its end.

    The training is a process of its own, so that one which dies, of a lack of memory above all, leaves word.

    Args:
        folder: the comparison's.
        index: of the run in the plan.
        in_vain: jobs before this one in a row that were ended before an epoch was over.
    """

    def __init__(self, folder: str, index: int, in_vain: int = 0) -> None:
        self.folder = folder
        self.index = index
        self.in_vain = in_vain
        self.epochs_before = 0
        self.worker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> str:
        """Train until the run is finished, or another worker has it; says which."""
        # In place of submitit's, which does nothing: it may be all that there is before the job is killed.
        signal.signal(signal.SIGTERM, self._pass_on)
        own = self._own()
        self.epochs_before = len(own.epochs)
        log = Path(self.folder) / "logs" / f"{own.path.name}.log"
        threads = int(os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or 1)
        deaths = 0
        while own.result is None:
            self.worker = start_worker(log, Path(self.folder), threads, self.index)
            # Not `wait`: it holds a lock for which the handlers of signals would wait for ever.
            while (returncode := self.worker.poll()) is None:
                time.sleep(_POLL_S)
            if own.result is not None:
                break
            if returncode == DiskFullError.exit_code:
                raise DiskFullError(self.folder)  # which ends the job: submitted again, the run resumes
            if returncode == 0 and _stays_held(own):
                return "left to another worker"
            if returncode in _OF_THE_SCHEDULER:
                time.sleep(_MOMENT_S)
            elif returncode != 0:
                deaths += 1
                if deaths >= MOST_DEATHS:
                    own.write_result({"state": "failed", "error": _told(returncode, log)})
        return str((own.result or {})["state"])

    def checkpoint(self) -> Any:
        """Called by submitit when the job's time is nearly over, or it is preempted: what is to be done afterwards.

        Returns:
            The same again, and SLURM puts the job back into its queue; None, if nothing would come of it.
        """
        from submitit.helpers import DelayedSubmission

        # First: the worker lets its lock go in order, so that the next one need not wait for a sign of its machine.
        self._end_worker()
        own = self._own()
        if own.result is not None:
            return None
        in_vain = self.in_vain + 1 if len(own.epochs) == self.epochs_before else 0
        if in_vain >= MOST_IN_VAIN:
            error = (
                f"SLURM ended {in_vain} jobs in a row before an epoch was over, by time or for others: "
                "raise --slurm-time, or name another partition"
            )
            own.write_result({"state": "failed", "error": error})
            return None
        return DelayedSubmission(Task(self.folder, self.index, in_vain))

    def _pass_on(self, number: int, frame: object) -> None:
        if self.worker is not None and self.worker.poll() is None:
            self.worker.send_signal(number)

    def _own(self) -> RunFolder:
        folder = Path(self.folder)
        return run_folder(folder, require_plan(folder).runs[self.index])

    def _end_worker(self) -> None:
        for end in (signal.SIGTERM, signal.SIGKILL):
            if self.worker is None or self.worker.poll() is not None:
                return
            self.worker.send_signal(end)
            with suppress(subprocess.TimeoutExpired):
                self.worker.wait(timeout=10)


def _stays_held(own: RunFolder) -> bool:
    """Whether another worker has the run, and not just a process of an earlier job that is about to end."""
    deadline = time.monotonic() + _GONE_S
    while is_held(own.path / "lock"):
        if own.result is not None or time.monotonic() > deadline:
            return True
        time.sleep(1)
    return False


def _told(returncode: int, log: Path) -> str:
    advice = f"see {log}"
    if returncode == -signal.SIGKILL:
        advice = "often a lack of memory: raise --slurm-mem, or lower --batch-size or --patch"
    return died_too_often(cause_of_death(returncode), advice)
