"""SLURM: the runs as one job array, what its queue reports, and what each job does."""

import importlib.util
import os
import shutil
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipelines.comparison.executors.local import MOST_DEATHS, died_too_often, start_worker
from pipelines.comparison.worker import ENDED_BY
from pipelines.runs.comparison_folder import require_plan, run_folder
from pipelines.runs.plan import Plan
from pipelines.training.run_folder import RunFolder
from pipelines.utils import DiskFullError, UserError
from pipelines.utils.files import read_json, write_json
from pipelines.utils.locks import is_held
from pipelines.utils.text import counted

# Submitted jobs, noted in the comparison's folder, and their states in SLURM.

_NAME = "slurm.json"
#: States of jobs that have not ended, or are being re-queued.
_NOT_OVER = {
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
    "RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT", "COMPLETING",
}  # fmt: skip
_PATIENCE_S = 30


@dataclass(frozen=True)
class Job:
    """One run in SLURM."""

    name: str  #: SLURM's: `17_3`
    state: str | None  #: SLURM's; None where SLURM does not know the job any more

    @property
    def queued(self) -> bool:
        """Whether it runs, or will."""
        return self.state in _NOT_OVER


def note_submission(folder: Path, job: str, runs: list[str], array: bool) -> None:
    """Note which runs, by the array's index, a job trains; that of a single run is no `array`."""
    submissions = _submissions(folder)
    submissions.append({"job": job, "runs": runs, "array": array, "submitted": round(time.time(), 3)})
    write_json(folder / _NAME, {"submissions": submissions})


def submitted_jobs(folder: Path) -> dict[str, str]:
    """SLURM's name of the last job of each submitted run, by the run's id; read from the folder only."""
    latest: dict[str, str] = {}
    for submission in _submissions(folder):
        for index, run in enumerate(submission["runs"]):
            latest[run] = f"{submission['job']}_{index}" if submission["array"] else submission["job"]
    return latest


def slurm_jobs(folder: Path, plan: Plan) -> dict[str, Job] | None:
    """The last job of each submitted run, by the run's id; None where SLURM does not answer."""
    known = {run.id for run in plan.runs}
    latest = {run: job for run, job in submitted_jobs(folder).items() if run in known}
    if not latest:
        return {}
    states = _job_states(sorted({job.partition("_")[0] for job in latest.values()}, key=int))
    return None if states is None else {run: Job(job, states.get(job)) for run, job in latest.items()}


def _submissions(folder: Path) -> list[dict[str, Any]]:
    content = read_json(folder / _NAME)
    return [] if content is None else list(content["submissions"])


def _job_states(jobs: list[str]) -> dict[str, str] | None:
    """The state of each job and array task that SLURM still knows; None if it does not answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}", "--format=%F|%K|%T"]
    shown = _run(command)
    # SLURM forgets a job some minutes after its end.
    if shown is None or (shown.returncode != 0 and "Invalid job id" not in shown.stderr):
        return None
    states: dict[str, str] = {}
    for line in shown.stdout.splitlines():
        job, index, state = line.split("|", 2)
        states[job if index == "N/A" else f"{job}_{index}"] = state
    missing = [job for job in jobs if not any(name.partition("_")[0] == job for name in states)]
    return states if not missing else _accounted(missing) | states


def _accounted(jobs: list[str]) -> dict[str, str]:
    """The final states of jobs, where the cluster has accounting."""
    if shutil.which("sacct") is None:
        return {}
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
    shown = _run([*command, f"--jobs={','.join(jobs)}"])
    if shown is None or shown.returncode != 0:
        return {}
    lines = [line.partition("|") for line in shown.stdout.splitlines()]
    return {job: state.split()[0] for job, _, state in lines if state.split()}  # `CANCELLED by 1000`


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


# One job of SLURM: a worker trains one run, is restarted if it dies, and the job re-queues itself.

#: A run has failed after so many jobs in a row that ended before an epoch was finished.
MOST_IN_VAIN = 3
#: Exit codes of workers that the scheduler ended: it will soon end this process, too.
_OF_THE_SCHEDULER = {code for number in ENDED_BY for code in (128 + number, -number)}
_MOMENT_S = 100.0
_POLL_S = 0.2
#: Seconds within which the processes of an earlier job have ended.
_GONE_S = 15.0


class Task:
    """Trains one run; submitit pickles it, calls it in the job, and calls `checkpoint` before the job's end.

    A separate process trains, so that its death, often for lack of memory, can be noted. Before this job, `in_vain`
    jobs in a row ended before an epoch was finished.
    """

    def __init__(self, folder: str, index: int, in_vain: int = 0) -> None:
        self.folder, self.index, self.in_vain = folder, index, in_vain
        self.epochs_before = 0
        self.worker: subprocess.Popen[bytes] | None = None

    def __call__(self) -> str:
        """Train until the run is finished, or another worker has it; returns which."""
        # Replaces submitit's handler, which does nothing: it may be the only signal before the job is killed.
        signal.signal(signal.SIGTERM, self._pass_on)
        run_dir = self._run_dir()
        self.epochs_before = len(run_dir.epochs)
        log = Path(self.folder) / "logs" / f"{run_dir.path.name}.log"
        threads = int(os.environ.get("SLURM_CPUS_PER_TASK") or os.environ.get("SLURM_CPUS_ON_NODE") or 1)
        deaths = 0
        while run_dir.result is None:
            self.worker = start_worker(log, Path(self.folder), threads, self.index)
            # Not `wait`: it holds a lock for which signal handlers would wait for ever.
            while (returncode := self.worker.poll()) is None:
                time.sleep(_POLL_S)
            if run_dir.result is not None:
                break
            if returncode == DiskFullError.exit_code:
                raise DiskFullError(self.folder)  # which ends the job: submitted again, the run resumes
            if returncode == 0 and _stays_held(run_dir):
                return "left to another worker"
            if returncode in _OF_THE_SCHEDULER:
                time.sleep(_MOMENT_S)
            elif returncode != 0:
                deaths += 1
                if deaths >= MOST_DEATHS:
                    error = died_too_often(returncode, "raise --slurm-mem, or lower --batch-size or --patch", log)
                    run_dir.write_result({"state": "failed", "error": error})
        return str((run_dir.result or {})["state"])

    def checkpoint(self) -> Any:
        """Called by submitit when the job's time is nearly over, or it is preempted.

        Returns:
            The task with which SLURM queues the job again; None: the run is finished, or makes no progress.
        """
        from submitit.helpers import DelayedSubmission

        # First, so that the worker releases its lock: the next one would have to wait until it is stale.
        self._end_worker()
        run_dir = self._run_dir()
        if run_dir.result is not None:
            return None
        in_vain = self.in_vain + 1 if len(run_dir.epochs) == self.epochs_before else 0
        if in_vain >= MOST_IN_VAIN:
            error = (
                f"SLURM ended {in_vain} jobs in a row before an epoch was finished, by time limit or preemption: "
                "raise --slurm-time, or name another partition"
            )
            run_dir.write_result({"state": "failed", "error": error})
            return None
        return DelayedSubmission(Task(self.folder, self.index, in_vain))

    def _pass_on(self, number: int, frame: object) -> None:
        if self.worker is not None and self.worker.poll() is None:
            self.worker.send_signal(number)

    def _run_dir(self) -> RunFolder:
        folder = Path(self.folder)
        return run_folder(folder, require_plan(folder).runs[self.index])

    def _end_worker(self) -> None:
        for end in (signal.SIGTERM, signal.SIGKILL):
            if self.worker is None or self.worker.poll() is not None:
                return
            self.worker.send_signal(end)
            with suppress(subprocess.TimeoutExpired):
                self.worker.wait(timeout=10)


def _stays_held(run_dir: RunFolder) -> bool:
    """Whether another worker has the run, and not a process of an earlier job that is about to end."""
    deadline = time.monotonic() + _GONE_S
    while is_held(run_dir.path / "lock"):
        if run_dir.result is not None or time.monotonic() > deadline:
            return True
        time.sleep(1)
    return False


# The submission: all runs as one job array.

#: How often a job may be re-queued after its time limit; one that makes no progress stops earlier.
_MOST_RESTARTS = 1000
#: Seconds before its time limit at which a job re-queues itself; SLURM may signal up to a minute earlier.
_NOTICE_S = 90
_MOST_AT_ONCE = 256


@dataclass(frozen=True)
class Slurm:
    """Submits runs to SLURM; what is None is the cluster's default."""

    minutes: int = 240  #: time limit per job, after which it re-queues itself and resumes
    partition: str | None = None
    memory: str | None = None  #: per job, in SLURM's notation such as `16G`
    cpus: int | None = None  #: cores per job, and threads of its run
    gres: str | None = None  #: generic resources per job: `gpu:1` or `gpu:a100:1`
    account: str | None = None
    setup: str | None = None  #: a shell command before each job
    at_once: int | None = None  #: jobs at a time; None: 256
    more: dict[str, str | bool] = field(default_factory=dict)  #: other options of sbatch
    for_programs: ClassVar[bool] = False

    def check(self) -> None:
        """Check that SLURM's commands and submitit are available.

        Raises:
            UserError: one is missing.
        """
        missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
        if missing:
            advice = "run it where jobs are submitted, or pass --executor none"
            raise UserError(f"--executor slurm: no {', '.join(missing)} here; {advice}")
        if importlib.util.find_spec("submitit") is None:
            raise UserError("--executor slurm: no submitit here; pip install submitit")

    def hand_over(self, folder: Path, plan: Plan, indices: list[int], message: Callable[[str], None]) -> None:
        """Submit the runs that are not in the queue yet, as one array.

        Raises:
            UserError: SLURM does not answer, or refuses.
        """
        jobs = slurm_jobs(folder, plan)
        if jobs is None:
            raise UserError("--executor slurm: squeue gives no answer, so the queue is not known; try again")
        queued = {run for run, job in jobs.items() if job.queued}
        wanted = [index for index in indices if plan.runs[index].id not in queued]
        if not wanted:
            message(f"{counted(len(indices), 'run')} remaining, in SLURM's queue")
            return
        job = self._submit(folder, wanted)
        note_submission(folder, job, [plan.runs[index].id for index in wanted], array=len(wanted) > 1)
        for run in (plan.runs[index] for index in wanted):
            last = jobs.get(run.id)
            if last is not None and last.state not in (None, "COMPLETED"):
                ended = f"its job {last.name} ended as {last.state}, see {folder / 'slurm'}"
                message(f"{run.title}: submitted again; {ended}")
        more = len(indices) - len(wanted)
        rest = f"; {more} more in its queue" if more else ""
        message(f"submitted {counted(len(wanted), 'run')} as SLURM's job {job}{rest}")

    def _submit(self, folder: Path, indices: list[int]) -> str:
        import submitit

        tasks = [Task(str(folder.resolve()), index) for index in indices]
        try:
            executor = submitit.SlurmExecutor(folder.resolve() / "slurm", max_num_timeout=_MOST_RESTARTS)
            executor.update_parameters(**self._parameters())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # submitit's, of no use to the user
                with executor.batch():
                    submitted = [executor.submit(task) for task in tasks]
        except Exception as error:
            # sbatch's message: an unknown partition, more than the cluster has, no right to an account.
            lines = [line for line in str(error).splitlines() if "sbatch: error:" in line] or str(error).splitlines()
            why = "; ".join(line.replace("sbatch: error:", "").strip() for line in lines[-2:])
            raise UserError(f"--executor slurm: not submitted: {why[:400] or type(error).__name__}") from None
        return str(submitted[0].job_id).partition("_")[0]

    def _parameters(self) -> dict[str, Any]:
        given = {
            "partition": self.partition, "mem": self.memory, "cpus_per_task": self.cpus, "gres": self.gres,
            "account": self.account, "setup": self.setup and [self.setup],
            # A step does not inherit the job's cores since SLURM 22.05.
            "srun_args": self.cpus and [f"--cpus-per-task={self.cpus}"],
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not None} | {
            "job_name": "medloss", "time": self.minutes, "array_parallelism": self.at_once or _MOST_AT_ONCE,
            "signal_delay_s": _NOTICE_S, "additional_parameters": {"requeue": True, **self.more},
            "wckey": None,  # submitit's default is unknown to clusters with a list of them
        }  # fmt: skip
