"""SLURM: the runs as one array of jobs, each of which re-queues itself and goes on."""

import importlib.util
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pipelines.comparison.executors.queue import note_submission, slurm_jobs
from pipelines.comparison.executors.task import Task
from pipelines.comparison.plan import Plan
from pipelines.comparison.planning.lines import counted
from pipelines.errors import UserError

#: Every job goes on so often after its time was over; one that gets nowhere stops by itself.
_MOST_RESTARTS = 1000
#: Seconds before the end of a job's time at which it re-queues itself; SLURM may give it a minute earlier.
_NOTICE_S = 90
_MOST_AT_ONCE = 256


@dataclass(frozen=True)
class Slurm:
    """Hands runs to SLURM.

    Attributes:
        minutes: of a job, after which it re-queues itself and goes on.
        partition: None: the cluster's default.
        memory: of a job, as SLURM writes it: `16G`; None: the cluster's default.
        cpus: cores a job, and threads of its training; None: the cluster's default.
        gres: a job's generic resources: `gpu:1`, or `gpu:a100:1`; None: none.
        account: that pays; None: the user's default.
        setup: a shell command that comes before the training; None: none.
        at_once: jobs at a time; None: 256.
        more: other options of sbatch.
    """

    minutes: int = 240
    partition: str | None = None
    memory: str | None = None
    cpus: int | None = None
    gres: str | None = None
    account: str | None = None
    setup: str | None = None
    at_once: int | None = None
    more: dict[str, str | bool] = field(default_factory=dict)
    for_programs: ClassVar[bool] = False

    def check(self) -> None:
        """Refuse to go on without SLURM's commands or submitit.

        Raises:
            UserError: says what to do.
        """
        missing = [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]
        if missing:
            raise UserError(
                f"--executor slurm: no {', '.join(missing)} here; call it where jobs are submitted, or take "
                "--executor none"
            )
        if importlib.util.find_spec("submitit") is None:
            raise UserError("--executor slurm: no submitit here; pip install submitit")

    def hand_over(self, folder: Path, plan: Plan, indices: list[int], tell: Callable[[str], None]) -> None:
        """Submit the runs that are not in the queue yet, as one array.

        Raises:
            UserError: SLURM cannot be asked what is in its queue, or it refuses.
        """
        jobs = slurm_jobs(folder, plan)
        if jobs is None:
            raise UserError("--executor slurm: squeue gives no answer, so what is queued cannot be told; try again")
        queued = {run for run, job in jobs.items() if job.queued}
        wanted = [index for index in indices if plan.runs[index].id not in queued]
        if not wanted:
            tell(f"{counted(len(indices), 'run')} left, and in SLURM's queue")
            return
        job = self._submit(folder, wanted)
        note_submission(folder, job, [plan.runs[index].id for index in wanted], array=len(wanted) > 1)
        for run in (plan.runs[index] for index in wanted):
            last = jobs.get(run.id)
            if last is not None and last.state not in (None, "COMPLETED"):
                tell(f"{run.title}: submitted again; its job {last.name} ended as {last.state}, see {folder / 'slurm'}")
        more = len(indices) - len(wanted)
        rest = f"; {more} more in its queue" if more else ""
        tell(f"submitted {counted(len(wanted), 'run')} as SLURM's job {job}{rest}")

    def _submit(self, folder: Path, indices: list[int]) -> str:
        import submitit

        tasks = [Task(str(folder.resolve()), index) for index in indices]
        try:
            executor = submitit.SlurmExecutor(folder.resolve() / "slurm", max_num_timeout=_MOST_RESTARTS)
            executor.update_parameters(**self._parameters())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of submitit, which are not for who calls this
                with executor.batch():
                    submitted = [executor.submit(task) for task in tasks]
        except Exception as error:
            # sbatch's own words: an unknown partition, more than the cluster has, no right to an account.
            told = [line for line in str(error).splitlines() if "sbatch: error:" in line] or str(error).splitlines()
            why = "; ".join(line.replace("sbatch: error:", "").strip() for line in told[-2:])
            raise UserError(f"--executor slurm: not submitted: {why[:400] or type(error).__name__}") from None
        return str(submitted[0].job_id).partition("_")[0]

    def _parameters(self) -> dict[str, Any]:
        given = {
            "partition": self.partition,
            "mem": self.memory,
            "cpus_per_task": self.cpus,
            "gres": self.gres,
            "account": self.account,
            "setup": None if self.setup is None else [self.setup],
            # A step does not inherit the job's cores since SLURM 22.05.
            "srun_args": None if self.cpus is None else [f"--cpus-per-task={self.cpus}"],
        }
        return {name: value for name, value in given.items() if value is not None} | {
            "job_name": "medloss",
            "time": self.minutes,
            "array_parallelism": self.at_once or _MOST_AT_ONCE,
            "signal_delay_s": _NOTICE_S,
            "wckey": None,  # submitit's own is unknown to clusters that keep a list of them
            "additional_parameters": {"requeue": True, **self.more},
        }
