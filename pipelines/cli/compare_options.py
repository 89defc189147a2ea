"""Options of `medloss compare`: what is compared and planned, and where the runs are trained."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from pipelines.cli import PLACE, PLANNING, VERDICT, option, typed
from pipelines.comparison.executors import EXECUTORS
from pipelines.comparison.executors.base import Handover
from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.table import in_report_order
from pipelines.utils import UserError

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
    """Add the options of the verdict and of the search."""
    for decorate in reversed(_PLANNING):
        command = decorate(command)
    return command


@dataclass(frozen=True)
class RunOptions:
    """Which runs a comparison has: every loss on every fold with every seed; lists as they were typed."""

    losses: str
    folds: str
    seeds: str

    def names(self) -> list[str]:
        """The losses.

        Raises:
            UserError: there are none.
        """
        from medloss.names import loss_names

        items = [item for item in "".join(self.losses.split()).split(",") if item]
        names = [name for item in items for name in (loss_names() if item == "all" else [item])]
        if not names:
            raise UserError("--losses: got none; expected names by commas, or all")
        return names


@dataclass(frozen=True)
class VerdictOptions:
    """How the losses are compared, named before any result is seen; `Plan` describes the fields."""

    reference: str
    metric: str
    margin: float
    empty: str
    non_inferior: bool


@dataclass(frozen=True)
class SearchOptions:
    """What is measured or tried before the comparison's runs: the options of the help's group, without `--dry-run`."""

    budget: float | None
    halving: bool
    tune_lr: int | None

    def given(self) -> dict[str, bool]:
        """Flags of what needs our engines, and whether they were given."""
        return {"--budget": self.budget is not None, "--tune-lr": self.tune_lr is not None}

    def refuse_handover(self) -> None:
        """Refuse a search where the runs are trained on other machines.

        Raises:
            UserError: there is one.
        """
        for flag, is_given in ({"--halving": self.halving} | self.given()).items():
            if is_given:
                raise UserError(f"{flag}: goes with --executor local, whose machine it measures and trains on")


def named_before(names: list[str], reference: str, metric: str, margin: float) -> tuple[list[str], dict[str, Any]]:
    """The losses with the reference among them, and the plan's fields for the verdict.

    Args:
        names: the losses.
        reference: one of them, one that is added as the first, or `none`.
        metric: the primary metric.
        margin: largest difference that does not matter.

    Raises:
        UserError: no such metric, or a margin out of range.
    """
    from medloss.expression import parse_expression
    from pipelines.runs.plan import NO_REFERENCE

    refuse_verdict(metric, margin)
    reference = "".join(reference.split())
    if reference != NO_REFERENCE and reference not in names:

        def terms(loss: str) -> list[Any]:
            return sorted((term.name, term.weight) for term in parse_expression(loss))

        # The same sum in another order is the same loss.
        same = [name for name in names if terms(name) == terms(reference)]
        reference = same[0] if same else reference
        names = names if same else [reference, *names]
    return names, {"reference": reference, "metric": metric, "margin": margin}


def refuse_verdict(metric: str | None, margin: float | None) -> None:
    """Refuse a metric or a margin out of range, before any work begins.

    Args:
        metric: the primary metric; None: not named.
        margin: largest difference that does not matter; None: not named.

    Raises:
        UserError: no such metric, or a margin out of range.
    """
    if metric is not None and metric not in METRICS:
        raise UserError(f"--metric: got '{metric}'; expected one of {', '.join(in_report_order(METRICS))}")
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        raise UserError(f"--margin: got {margin}; expected 0 or more, in the unit of {metric or 'the metric'}")


# Where the runs are trained


def executor_options(command: _Command) -> _Command:
    """Add the options: `--executor`, and those of each executor, which `--help-all` lists."""
    for entry in reversed([entry for executor in EXECUTORS.values() for entry in executor.options]):
        command = option(
            entry.flag, entry.name, group=PLACE, rare=True, metavar=entry.metavar, type=entry.type,
            multiple=entry.multiple, help=entry.help,
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
        jobs: runs at a time; None: not given.
        options: of the command; loses `threads` and those of all executors.

    Raises:
        UserError: an option of another executor, or a value that this one refuses.
    """
    threads = options.pop("threads", None)
    given: dict[str, Any] = {}
    for executor in EXECUTORS.values():
        for entry in executor.options:
            value = options.pop(entry.name, None)
            if value in (None, ()):
                continue
            if executor.name != name:
                raise UserError(
                    f"{typed(entry.flag)}: it goes with --executor {executor.name}, and got --executor {name}"
                )
            given[entry.name] = value
    try:
        return EXECUTORS[name].make(jobs, threads, given)
    except UserError as error:
        flag, colon, reason = str(error).partition(":")
        raise UserError(f"{typed(flag)}{colon}{reason}") from None
