"""What was handed to SLURM, kept in the comparison's folder, and what SLURM says of it."""

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.comparison.plan import Plan
from pipelines.files import read_json, write_json

_NAME = "slurm.json"
#: States of jobs that are not over; of one that is being re-queued, too.
_NOT_OVER = {
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
    "RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT", "COMPLETING",
}  # fmt: skip
_PATIENCE_S = 30


@dataclass(frozen=True)
class Job:
    """One run in SLURM.

    Attributes:
        name: as SLURM writes it: `17_3`.
        state: SLURM's word; None where SLURM does not know the job any more.
    """

    name: str
    state: str | None

    @property
    def queued(self) -> bool:
        """Whether SLURM trains it, or will."""
        return self.state in _NOT_OVER


def note_submission(folder: Path, job: str, runs: list[str], array: bool) -> None:
    """Keep which runs a job trains.

    Args:
        folder: the comparison's.
        job: SLURM's number.
        runs: their ids, by the array's index.
        array: whether it is an array; a single run is none.
    """
    submissions = _submissions(folder)
    submissions.append({"job": job, "runs": runs, "array": array, "submitted": round(time.time(), 3)})
    write_json(folder / _NAME, {"submissions": submissions})


def submitted_jobs(folder: Path) -> dict[str, str]:
    """SLURM's name of the last job of each run that was handed to it, by the run's id; from the folder alone."""
    latest: dict[str, str] = {}
    for submission in _submissions(folder):
        for index, run in enumerate(submission["runs"]):
            latest[run] = f"{submission['job']}_{index}" if submission["array"] else submission["job"]
    return latest


def slurm_jobs(folder: Path, plan: Plan) -> dict[str, Job] | None:
    """The last job of each run that was handed to SLURM, by the run's id; None where SLURM cannot be asked."""
    known = {run.id for run in plan.runs}
    latest = {run: job for run, job in submitted_jobs(folder).items() if run in known}
    if not latest:
        return {}
    states = _asked(sorted({job.partition("_")[0] for job in latest.values()}, key=int))
    return None if states is None else {run: Job(job, states.get(job)) for run, job in latest.items()}


def _submissions(folder: Path) -> list[dict[str, Any]]:
    content = read_json(folder / _NAME)
    return [] if content is None else list(content["submissions"])


def _asked(jobs: list[str]) -> dict[str, str] | None:
    """The state of each job and array task that SLURM still knows; None if it cannot be asked."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(jobs)}", "--format=%F|%K|%T"]
    shown = _run(command)
    # Forgotten some minutes after its end, a job is unknown.
    if shown is None or (shown.returncode != 0 and "Invalid job id" not in shown.stderr):
        return None
    states: dict[str, str] = {}
    for line in shown.stdout.splitlines():
        job, index, state = line.split("|", 2)
        states[job if index == "N/A" else f"{job}_{index}"] = state
    missing = [job for job in jobs if not any(name.partition("_")[0] == job for name in states)]
    return states if not missing else _accounted(missing) | states


def _accounted(jobs: list[str]) -> dict[str, str]:
    """How jobs ended, where the cluster keeps accounts."""
    if shutil.which("sacct") is None:
        return {}
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
    shown = _run([*command, f"--jobs={','.join(jobs)}"])
    if shown is None or shown.returncode != 0:
        return {}
    lines = [line.partition("|") for line in shown.stdout.splitlines()]
    return {job: state.split()[0] for job, _, state in lines if state.split()}  # CANCELLED comes with `by` whom


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
