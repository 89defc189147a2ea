"""`--executor slurm`: its options, and their checks."""

import re
from collections.abc import Mapping
from typing import Any

import click

from pipelines.comparison.executors.base import ExecutorOption, Handover, register
from pipelines.utils import UserError

_OPTIONS = (
    ExecutorOption("--slurm-partition", "Default: the cluster's, as for the following.", "NAME"),
    ExecutorOption(
        "--slurm-time", "Time limit per job, default 4:00:00; a longer run is resumed by another job.", "TIME"
    ),
    ExecutorOption("--slurm-mem", "Memory per job, such as 16G.", "SIZE"),
    ExecutorOption("--slurm-cpus", "Cores per job.", "N", type=click.IntRange(min=1)),
    ExecutorOption("--slurm-gres", "Generic resources per job, such as gpu:1 or gpu:a100:1.", "GRES"),
    ExecutorOption("--slurm-account", "Account that is charged.", "NAME"),
    ExecutorOption("--slurm-setup", "Shell command before each job, such as 'module load cuda'.", "COMMAND"),
    ExecutorOption(
        "--slurm-option",
        "Any other option of sbatch, such as qos=low or exclusive. May be repeated.",
        "KEY=VALUE",
        multiple=True,
        key="slurm_options",
    ),
)

#: A job is signalled to re-queue itself up to two and a half minutes before its time limit.
_LEAST_MINUTES = 5
_FLAGS = {
    "account": "--slurm-account", "cpus-per-task": "--slurm-cpus", "gres": "--slurm-gres", "mem": "--slurm-mem",
    "partition": "--slurm-partition", "setup": "--slurm-setup", "time": "--slurm-time",
}  # fmt: skip
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
    _refuse("--slurm-partition", options, r"[\w.,@-]+", "a partition's name")
    _refuse("--slurm-account", options, r"[\w.@-]+", "an account's name")
    _refuse("--slurm-mem", options, r"[1-9]\d*[KMGTkmgt]?[Bb]?", "a size such as 16G")
    _refuse("--slurm-gres", options, r"[\w.,:/()-]+", "generic resources such as gpu:1 or gpu:a100:1")
    _refuse("--slurm-setup", options, r".*\S.*", "a shell command in one line")
    return Slurm(
        minutes=minutes(options.get("slurm_time", "4:00:00")),
        partition=options.get("slurm_partition"),
        memory=options.get("slurm_mem"),
        cpus=options.get("slurm_cpus"),
        gres=options.get("slurm_gres"),
        account=options.get("slurm_account"),
        setup=options.get("slurm_setup"),
        at_once=jobs,
        more=sbatch_options(options.get("slurm_options", ())),
    )


def _refuse(flag: str, options: Mapping[str, Any], pattern: str, expected: str) -> None:
    value = options.get(flag.removeprefix("--").replace("-", "_"))
    if value is not None and not re.fullmatch(pattern, value):
        raise UserError(f"{flag}: got '{value}'; expected {expected}")


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
