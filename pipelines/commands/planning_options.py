"""Options of `compare` that are settled before anything is trained: what is named, and what is planned."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

from pipelines.errors import UserError

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--reference",
        default="dice+binary_cross_entropy",
        show_default=True,
        help="The loss to compare with; joins by itself. none: all with all.",
    ),
    click.option("--metric", default="dice", show_default=True, help="The primary measure."),
    click.option("--margin", type=float, default=0.01, show_default=True, help="Differences up to it do not matter."),
    click.option(
        "--empty",
        type=click.Choice(["one", "exclude", "worst"]),
        default="one",
        show_default=True,
        help="Where the label has nothing of a class, an empty prediction counts 1 (a false alarm 0), is left out, or "
        "counts as the worst.",
    ),
    click.option("--non-inferior", is_flag=True, help="Ask for non-inferior (one-sided), in place of equivalent."),
    click.option(
        "--dry-run", "is_dry", is_flag=True, help="Measure a few steps a loss, print what all will take, and end."
    ),
    click.option(
        "--budget",
        type=float,
        metavar="MINUTES",
        help="Plan what fits. Gives way in this order: seeds, folds, epochs (to half), the slowest losses.",
    ),
    click.option(
        "--tune-lr",
        type=int,
        metavar="N",
        help="Try N learning rates per loss (factors of 3) on another fold, and train each loss at its best.",
    ),
    click.option("--halving", is_flag=True, help="Drop the worse half after short trainings on another fold, twice."),
)


def planning_options(command: _Command) -> _Command:
    """Add the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
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
    from pipelines.comparison.plan import NO_REFERENCE

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
    from pipelines.comparison.statistics.metrics import in_report_order
    from pipelines.evaluation.registry import METRICS

    if metric is not None and metric not in METRICS:
        raise UserError(f"--metric: got '{metric}'; expected one of {', '.join(in_report_order(METRICS))}")
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        raise UserError(f"--margin: got {margin}; expected 0 or more, in the unit of {metric or 'the measure'}")
