"""`--executor slurm`: its options, and their checks."""

import re
from collections.abc import Mapping
from typing import Any

import click

from pipelines.comparison.executors.base import ExecutorOption, Handover, register
from pipelines.utils import UserError

_TIME = "Time limit per job, default 4:00:00; a longer run is resumed by another job."
_MORE = "Any other option of sbatch, such as qos=low or exclusive. May be repeated."
_OPTIONS = (
    ExecutorOption("--slurm-partition", "Default: the cluster's, as for the following.", "NAME"),
    ExecutorOption("--slurm-time", _TIME, "TIME"),
    ExecutorOption("--slurm-mem", "Memory per job, such as 16G.", "SIZE"),
    ExecutorOption("--slurm-cpus", "Cores per job.", "N", type=click.IntRange(min=1)),
    ExecutorOption("--slurm-gres", "Generic resources per job, such as gpu:1 or gpu:a100:1.", "GRES"),
    ExecutorOption("--slurm-account", "Account that is charged.", "NAME"),
    ExecutorOption("--slurm-setup", "Shell command before each job, such as 'module load cuda'.", "COMMAND"),
    ExecutorOption("--slurm-option", _MORE, "KEY=VALUE", multiple=True, key="slurm_options"),
)
#: Key of a value, the pattern it must match, and what that is.
_PATTERNS = (
    ("partition", r"[\w.,@-]+", "a partition's name"),
    ("account", r"[\w.@-]+", "an account's name"),
    ("mem", r"[1-9]\d*[KMGTkmgt]?[Bb]?", "a size such as 16G"),
    ("gres", r"[\w.,:/()-]+", "generic resources such as gpu:1 or gpu:a100:1"),
    ("setup", r".*\S.*", "a shell command in one line"),
)

#: A job is signalled to re-queue itself up to two and a half minutes before its time limit.
_LEAST_MINUTES = 5
_FLAGS = {"cpus-per-task": "--slurm-cpus"} | {
    key: f"--slurm-{key}" for key in ("account", "gres", "mem", "partition", "setup", "time")
}
#: Options that submitit or the executor sets, or that submit nothing.
_TAKEN = {
    "array", "error", "help", "input", "job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode",
    "output", "parsable", "quiet", "requeue", "signal", "test-only", "usage", "version", "wait", "wrap",
}  # fmt: skip


@register(
    "slurm",
    help="a SLURM job array (--set slurm.partition=gpu, slurm.time, slurm.cpus, slurm.mem, slurm.gres, ...)",
    options=_OPTIONS,
)
def slurm(jobs: int | None, threads: int | None, options: Mapping[str, Any]) -> Handover:
    """SLURM's executor.

    Raises:
        UserError: a value that SLURM would refuse.
    """
    from pipelines.comparison.executors.slurm import Slurm  # not above: importing a plan takes a second

    if threads is not None:
        raise UserError("--threads: a run has its job's cores; pass --slurm-cpus instead")
    given = {key.removeprefix("slurm_"): value for key, value in options.items() if key.startswith("slurm_")}
    for key, pattern, expected in _PATTERNS:
        if (value := given.get(key)) is not None and not re.fullmatch(pattern, value):
            raise UserError(f"--slurm-{key}: got '{value}'; expected {expected}")
    limit, more = minutes(given.get("time", "4:00:00")), sbatch_options(given.get("options", ()))
    partition, memory, cpus, gres = (given.get(key) for key in ("partition", "mem", "cpus", "gres"))
    return Slurm(limit, partition, memory, cpus, gres, given.get("account"), given.get("setup"), jobs, more)


def minutes(text: str) -> int:
    """A time in SLURM's notation, in whole minutes, rounded up: `90`, `4:00:00`, `30:00`, `2-12`, `2-12:30:00`.

    Raises:
        UserError: it is not a time, or too short.
    """
    days, hours, whole, seconds = 0, 0, 0, 0
    if match := re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?(?::(\d+))?", text):
        days, hours, whole, seconds = (int(part or 0) for part in match.groups())
    elif match := re.fullmatch(r"(?:(\d+):)?(\d+):(\d+)", text):
        hours, whole, seconds = (int(part or 0) for part in match.groups())
    elif text.isdecimal():
        whole = int(text)
    total = -(-(((days * 24 + hours) * 60 + whole) * 60 + seconds) // 60)
    if total < _LEAST_MINUTES:
        raise UserError(
            f"--slurm-time: got '{text}'; expected {_LEAST_MINUTES} minutes or more, such as 90, 4:00:00 or 2-12:00:00"
        )
    return total


def sbatch_options(given: tuple[str, ...]) -> dict[str, str | bool]:
    """Options of sbatch, from `KEY=VALUE` or `KEY`.

    Raises:
        UserError: it is not an option, has a flag of this command, or would break the job array.
    """
    options: dict[str, str | bool] = {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip().removeprefix("--").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", key) or (equals and not value.strip()) or "\n" in value:
            raise UserError(f"--slurm-option: got '{text}'; expected one of sbatch's, such as qos=low or exclusive")
        if key in _FLAGS:
            raise UserError(f"--slurm-option: got '{text}'; pass {_FLAGS[key]} instead")
        if key in _TAKEN:
            raise UserError(f"--slurm-option: got '{text}'; --{key} is reserved for the array of runs")
        options[key] = value if equals else True
    return options
