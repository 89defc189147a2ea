"""Options of `medloss compare`: what is compared and planned, and where the runs are trained."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pipelines.cli import PLACE, PLANNING, VERDICT, option, typed
from pipelines.comparison.executors import EXECUTORS
from pipelines.comparison.executors.base import Handover
from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.table import in_report_order
from pipelines.utils import UserError

# Options of `compare` that are settled before anything is trained: what is named, and what is planned.

_Command = TypeVar("_Command", bound=Callable[..., Any])

NON_INFERIOR_HELP = "Test one-sided non-inferiority, not equivalence."
EMPTY_HELP = (
    "Classes missing in a label. one: an empty prediction scores 1, a false positive 0; exclude: left out; worst: an "
    "empty prediction has the worst score."
)

_METRICS = list(in_report_order(METRICS))
_PLANNING = (
    option(
        "--reference",
        group=VERDICT,
        default="dice+binary_cross_entropy",
        show_default=True,
        metavar="LOSS",
        help="Loss that all others are compared with, added if missing; none: all pairs.",
    ),
    option(
        "--metric",
        group=VERDICT,
        default="dice",
        show_default=True,
        metavar="NAME",
        help=f"Primary metric: {', '.join(_METRICS[:-1])} or {_METRICS[-1]}.",
    ),
    option(
        "--margin",
        group=VERDICT,
        type=float,
        default=0.01,
        show_default=True,
        metavar="VALUE",
        help="Largest difference in the metric that does not matter.",
    ),
    option(
        "--empty",
        group=VERDICT,
        type=click.Choice(["one", "exclude", "worst"]),
        default="one",
        show_default=True,
        metavar="RULE",
        help=EMPTY_HELP,
    ),
    option("--non-inferior", group=VERDICT, is_flag=True, help=NON_INFERIOR_HELP),
    option(
        "--dry-run",
        "is_dry",
        group=PLANNING,
        is_flag=True,
        help="Time a few steps per loss, print the time and disk space needed, and exit.",
    ),
    option(
        "--budget",
        group=PLANNING,
        type=float,
        metavar="MINUTES",
        help="Shorten the plan to fit, in this order: seeds, folds, epochs (to half), slowest losses.",
    ),
    option(
        "--tune-lr",
        group=PLANNING,
        type=int,
        metavar="N",
        help="Try N learning rates per loss (factors of 3) on another fold, and train each loss at its best.",
    ),
    option(
        "--halving",
        group=PLANNING,
        is_flag=True,
        help="Drop the worse half of the losses after short runs on another fold, twice.",
    ),
)


def planning_options(command: _Command) -> _Command:
    """Add the options."""
    for decorate in reversed(_PLANNING):
        command = decorate(command)
    return command


def named_before(names: list[str], reference: str, metric: str, margin: float) -> tuple[list[str], dict[str, Any]]:
    """The losses with the reference among them, and what a plan keeps of it.

    Args:
        names: of the losses.
        reference: one of them, or one that joins, as the first; or `none`.
        metric: a measure's name.
        margin: of equivalence.

    Raises:
        UserError: no such measure, or no such margin.
    """
    from medloss.expression import parse_expression
    from pipelines.runs.plan import NO_REFERENCE

    refuse_measure(metric, margin)
    reference = "".join(reference.split())
    if reference != NO_REFERENCE and reference not in names:

        def terms(loss: str) -> list[Any]:
            return sorted((term.name, term.weight) for term in parse_expression(loss))

        # The same sum in another order is the same loss.
        same = [name for name in names if terms(name) == terms(reference)]
        reference = same[0] if same else reference
        names = names if same else [reference, *names]
    return names, {"reference": reference, "metric": metric, "margin": margin}


def refuse_measure(metric: str | None, margin: float | None) -> None:
    """Refuse a measure or a margin that makes no sense, before anything is trained or measured.

    Args:
        metric: the primary measure's name; None: none was named.
        margin: of equivalence; None: none was named.

    Raises:
        UserError: no such measure, or no such margin.
    """
    if metric is not None and metric not in METRICS:
        raise UserError(f"--metric: got '{metric}'; expected one of {', '.join(in_report_order(METRICS))}")
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        raise UserError(f"--margin: got {margin}; expected 0 or more, in the unit of {metric or 'the measure'}")


# Options of `compare` that say who trains: this machine, SLURM, or another scheduler.


def executor_options(command: _Command) -> _Command:
    """Add the options: `--executor`, and those of each executor, which `--help-all` lists."""
    for own in reversed([own for executor in EXECUTORS.values() for own in executor.options]):
        command = option(
            own.flag, own.name, group=PLACE, rare=True, metavar=own.metavar, type=own.type, multiple=own.multiple,
            help=own.help,
        )(command)  # fmt: skip
    return option(
        "--executor",
        group=PLACE,
        type=click.Choice(list(EXECUTORS)),
        default="local",
        show_default=True,
        metavar="NAME",
        help=f"{'; '.join(f'{executor.name}: {executor.help}' for executor in EXECUTORS.values())}.",
    )(command)


def chosen_executor(name: str, jobs: int | None, options: dict[str, Any]) -> Handover | None:
    """The executor that runs are handed over to; None where they are trained here.

    Args:
        name: of `EXECUTORS`.
        jobs: runs at a time, if that was said.
        options: of the command; `threads` and those of all executors are taken out of it.

    Raises:
        UserError: an option that the executor does not have, or a value that it would refuse.
    """
    threads = options.pop("threads", None)
    given: dict[str, Any] = {}
    for executor in EXECUTORS.values():
        for own in executor.options:
            value = options.pop(own.name, None)
            if value in (None, ()):
                continue
            if executor.name != name:
                raise UserError(
                    f"{typed(own.flag)}: it goes with --executor {executor.name}, and got --executor {name}"
                )
            given[own.name] = value
    try:
        return EXECUTORS[name].make(jobs, threads, given)
    except UserError as error:
        flag, colon, told = str(error).partition(":")
        raise UserError(f"{typed(flag)}{colon}{told}") from None
