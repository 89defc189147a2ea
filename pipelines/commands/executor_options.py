"""Options of `compare` that say who trains: this machine, SLURM, or another scheduler."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pipelines.commands.option_groups import PLACE, option, typed
from pipelines.comparison.executors import EXECUTORS, Handover
from pipelines.errors import UserError

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    option(
        "--executor",
        group=PLACE,
        type=click.Choice(EXECUTORS),
        default="local",
        show_default=True,
        metavar="NAME",
        help="local: this machine; slurm: a SLURM job array (--set slurm.partition=gpu, slurm.time, slurm.cpus, "
        "slurm.mem, slurm.gres, ...); none: print one command line per run.",
    ),
    option(
        "--slurm-partition",
        group=PLACE,
        rare=True,
        metavar="NAME",
        help="Default: the cluster's, as for the following.",
    ),
    option(
        "--slurm-time",
        group=PLACE,
        rare=True,
        metavar="TIME",
        help="Time limit per job, default 4:00:00; a longer run is resumed by another job.",
    ),
    option("--slurm-mem", group=PLACE, rare=True, metavar="SIZE", help="Memory per job, such as 16G."),
    option("--slurm-cpus", group=PLACE, rare=True, type=click.IntRange(min=1), metavar="N", help="Cores per job."),
    option(
        "--slurm-gres",
        group=PLACE,
        rare=True,
        metavar="GRES",
        help="Generic resources per job, such as gpu:1 or gpu:a100:1.",
    ),
    option("--slurm-account", group=PLACE, rare=True, metavar="NAME", help="Account that is charged."),
    option(
        "--slurm-setup",
        group=PLACE,
        rare=True,
        metavar="COMMAND",
        help="Shell command before each job, such as 'module load cuda'.",
    ),
    option(
        "--slurm-option",
        "slurm_options",
        group=PLACE,
        rare=True,
        metavar="KEY=VALUE",
        multiple=True,
        help="Any other option of sbatch, such as qos=low or exclusive. May be repeated.",
    ),
)

#: The signal to go on elsewhere comes up to two and a half minutes before a job's end.
_LEAST_MINUTES = 5
_OWN = {
    "account": "--slurm-account", "cpus-per-task": "--slurm-cpus", "gres": "--slurm-gres", "mem": "--slurm-mem",
    "partition": "--slurm-partition", "setup": "--slurm-setup", "time": "--slurm-time",
}  # fmt: skip
#: What submitit or the executor sets, or what submits nothing.
_TAKEN = {
    "array", "error", "help", "input", "job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode",
    "output", "parsable", "quiet", "requeue", "signal", "test-only", "usage", "version", "wait", "wrap",
}  # fmt: skip


def executor_options(command: _Command) -> _Command:
    """Add the options."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def chosen_executor(name: str, jobs: int | None, options: dict[str, Any]) -> Handover | None:
    """The executor that runs are handed over to; None where they are trained here.

    Args:
        name: of `EXECUTORS`.
        jobs: runs at a time, if that was said.
        options: of the command; `threads` and those of SLURM are taken out of it.

    Raises:
        UserError: an option that the executor does not have, or a value that SLURM would refuse.
    """
    threads = options.pop("threads", None)
    slurm = {key: options.pop(key) for key in [key for key in options if key.startswith("slurm_")]}
    if threads is not None and name == "local":
        raise UserError(f"{typed('--threads')}: a comparison divides the cores among its jobs; pass --jobs instead")
    if threads is not None and name == "slurm":
        raise UserError(f"{typed('--threads')}: a run has its job's cores; pass --slurm-cpus instead")
    given = [key for key, value in slurm.items() if value not in (None, ())]
    if given and name != "slurm":
        flag = f"--{given[0].removesuffix('s') if given[0] == 'slurm_options' else given[0]}".replace("_", "-")
        raise UserError(f"{typed(flag)}: it goes with --executor slurm, and got --executor {name}")
    if name == "none":
        from pipelines.comparison.executors.none import CommandLines

        if jobs is not None:
            raise UserError("--jobs: with --executor none, who runs the lines decides how many run at a time")
        return CommandLines(threads)
    return _slurm(jobs, **slurm) if name == "slurm" else None


def _slurm(
    jobs: int | None,
    *,
    slurm_partition: str | None,
    slurm_time: str | None,
    slurm_mem: str | None,
    slurm_cpus: int | None,
    slurm_gres: str | None,
    slurm_account: str | None,
    slurm_setup: str | None,
    slurm_options: tuple[str, ...],
) -> Handover:
    from pipelines.comparison.executors.slurm import Slurm

    _refuse("--slurm-partition", slurm_partition, r"[\w.,@-]+", "a partition's name")
    _refuse("--slurm-account", slurm_account, r"[\w.@-]+", "an account's name")
    _refuse("--slurm-mem", slurm_mem, r"[1-9]\d*[KMGTkmgt]?[Bb]?", "a size, as 16G")
    _refuse("--slurm-gres", slurm_gres, r"[\w.,:/()-]+", "generic resources, as gpu:1 or gpu:a100:1")
    _refuse("--slurm-setup", slurm_setup, r".*\S.*", "a shell command in one line")
    return Slurm(
        minutes=240 if slurm_time is None else minutes(slurm_time),
        partition=slurm_partition,
        memory=slurm_mem,
        cpus=slurm_cpus,
        gres=slurm_gres,
        account=slurm_account,
        setup=slurm_setup,
        at_once=jobs,
        more=sbatch_options(slurm_options),
    )


def _refuse(flag: str, value: str | None, pattern: str, expected: str) -> None:
    if value is not None and not re.fullmatch(pattern, value):
        raise UserError(f"{typed(flag)}: got '{value}'; expected {expected}")


def minutes(text: str) -> int:
    """A time as SLURM writes it, in whole minutes, rounded up: `90`, `4:00:00`, `30:00`, `2-12`, `2-12:30:00`.

    Raises:
        UserError: it is none, or too short.
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
            f"{typed('--slurm-time')}: got '{text}'; expected {_LEAST_MINUTES} minutes or more, as 90, 4:00:00 or "
            "2-12:00:00"
        )
    return total


def sbatch_options(given: tuple[str, ...]) -> dict[str, str | bool]:
    """Options of sbatch, from `KEY=VALUE` or `KEY`.

    Raises:
        UserError: no option, one that has its own flag here, or one that would break the array.
    """
    options: dict[str, str | bool] = {}
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip().removeprefix("--").replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", key) or (equals and not value.strip()) or "\n" in value:
            raise UserError(
                f"{typed('--slurm-option')}: got '{text}'; expected one of sbatch's, as qos=low or exclusive"
            )
        if key in _OWN:
            raise UserError(f"{typed('--slurm-option')}: got '{text}'; pass {_OWN[key]} instead")
        if key in _TAKEN:
            raise UserError(
                f"{typed('--slurm-option')}: got '{text}'; --{key} is not free, for the array of runs needs its own"
            )
        options[key] = value if equals else True
    return options
