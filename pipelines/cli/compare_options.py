"""Options of `medloss compare`: what is compared and planned, and where the runs are trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import PATH, PLACE, PLANNING, VERDICT, combined, option, typed
from pipelines.cli.primary_metrics import chosen_primary, primary_metrics, read_margins
from pipelines.comparison.executors import EXECUTORS
from pipelines.comparison.executors.base import Handover
from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.table import in_report_order
from pipelines.utils import UserError

if TYPE_CHECKING:  # the command's help does not wait for pydantic
    from pipelines.data.manifest import Manifest
    from pipelines.training.run_config import RunConfig

NON_INFERIOR_HELP = "Test one-sided non-inferiority, not equivalence."
SUBGROUPS_HELP = "By group, too: a table such as case,scanner,sex."
EMPTY_HELP = (
    "Classes missing in a label. one: an empty prediction scores 1, a false positive 0; exclude: left out; worst: an "
    "empty prediction has the worst score."
)
_METRICS = [name for name, metric in in_report_order(METRICS).items() if metric.default]

_PLANNING = (
    option("--reference", VERDICT, "LOSS",
           "Loss that all others are compared with, added if missing; none: all pairs.",
           default="dice+binary_cross_entropy"),
    option("--metric", VERDICT, "LIST",
           f"Primary metric, or several: {', '.join(_METRICS)} or others, such as lesion_f1; default: the manifest's, "
           "or dice."),
    option("--margin", VERDICT, "VALUE",
           "Largest difference that does not matter; default: 0.01. Of several metrics: dice=0.01,hd95=1."),
    option("--empty", VERDICT, "RULE", EMPTY_HELP, type=click.Choice(["one", "exclude", "worst"]), default="one"),
    option("--non-inferior", VERDICT, None, NON_INFERIOR_HELP, is_flag=True),
    option("--subgroups", VERDICT, "FILE", SUBGROUPS_HELP, type=PATH),
    option("--dry-run is_dry", PLANNING, None,
           "Time a few steps per loss, print the time and disk space needed, and exit.", is_flag=True),
    option("--budget", PLANNING, "MINUTES",
           "Fit the plan: fewer seeds, folds, epochs (to half), losses; without --epochs, as many as fit.",
           type=float),
    option("--tune-lr", PLANNING, "N",
           "Try N learning rates per loss (factors of 3) on another fold, and train each loss at its best.", type=int),
    option("--halving", PLANNING, None,
           "Drop the worse half of the losses after short runs on another fold, twice.", is_flag=True),
)  # fmt: skip


def compare_options(command: Any) -> Any:
    """Add `--executor` and the options of every executor, those of the verdict, and those of the search."""
    words = "; ".join(f"{executor.name}: {executor.help}" for executor in EXECUTORS.values())
    entries = [entry for executor in EXECUTORS.values() for entry in executor.options]
    return combined(
        option("--executor", PLACE, "NAME", f"{words}.", type=click.Choice(list(EXECUTORS)), default="local"),
        *(
            option(f"{entry.flag} {entry.name}", PLACE, entry.metavar, entry.help, rare=True, type=entry.type,
                   multiple=entry.multiple)
            for entry in entries
        ),
        *_PLANNING,
    )(command)  # fmt: skip


def loss_list(text: str) -> list[str]:
    """The losses in a list such as `survey,0.2*focal+0.8*dice`; a `UserError` if there are none."""
    from medloss.names import LOSS_SETS, loss_names

    sets = _sets()
    names = [name for item in _items(text) for name in (loss_names(item) if item in sets else [item])]
    if not names:
        raise UserError(f"--losses: got none; expected names by commas, or {', '.join(LOSS_SETS)} or all")
    return names


def left_out_of_regions(names: Sequence[str], text: str, reference: str) -> list[str]:
    """The losses of classes that exclude each other, which have no meaning for regions, but for those named themselves.

    Args:
        names: what `loss_list` and `named_before` make of the list.
        text: the list; its sets of losses name no single one.
        reference: the loss of the plan's `reference`.
    """
    from medloss import LOSSES  # not above, for the second that torch takes

    named = {*_items(text), reference}
    return [name for name in names if name in LOSSES and LOSSES[name].cls.categorical_only and name not in named]


def _sets() -> tuple[str, ...]:
    from medloss.names import LOSS_SETS

    return (*LOSS_SETS, "all")


def _items(text: str) -> list[str]:
    return [item for item in "".join(text.split()).split(",") if item]


def named_before(
    names: list[str], reference: str, metric: str | None, margin: float | str | None, **rest: Any
) -> tuple[list[str], dict[str, Any]]:
    """The losses with the reference among them (added as the first, unless it is `none`), and the plan's fields.

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
    return names, {"reference": reference, "metric": metric, "margin": margin, **rest}


def refuse_verdict(metric: str | None, margin: float | str | None) -> None:
    """Raise a `UserError` for metrics or margins out of range (None: not named), before any work begins."""
    if metric is not None:
        primary_metrics(metric)
    if margin is not None:
        read_margins(str(margin))


def with_primaries(
    about: dict[str, Any], manifest: "Manifest", configs: list["RunConfig"]
) -> tuple[dict[str, Any], list["RunConfig"]]:
    """The plan's fields with every primary metric and its margin, and configs of runs that compute them.

    Raises:
        UserError: losses cannot be compared by a metric, or a margin is of another one.
    """
    first, configs = with_primary(None, manifest, configs) if about["metric"] is None else (about["metric"], configs)
    margin = about["margin"]
    chosen = chosen_primary(primary_metrics(first), None if margin is None else read_margins(str(margin)))
    for name in chosen.margins:
        _, configs = with_primary(name, manifest, configs)
    further = {"further_metrics": chosen.further} if chosen.further else {}
    return {**about, "metric": chosen.metric, "margin": chosen.margin, **further}, configs


def with_primary(metric: str | None, manifest: "Manifest", configs: list["RunConfig"]) -> tuple[str, list["RunConfig"]]:
    """The primary metric, by default the manifest's or Dice, and configs of runs that compute it.

    Raises:
        UserError: losses cannot be compared by it.
    """
    if metric is None and manifest.primary_metric is not None:
        primary_metrics(manifest.primary_metric, f"manifest '{manifest.name}': primary_metric")
    chosen = metric or manifest.primary_metric or "dice"
    if METRICS[chosen].default or chosen in (*manifest.metrics, manifest.primary_metric):
        return chosen, configs
    return chosen, [
        config.model_copy(update={"metrics": tuple(dict.fromkeys((*config.metrics, chosen)))}) for config in configs
    ]


def chosen_executor(name: str, jobs: int | None, options: dict[str, Any]) -> Handover | None:
    """The executor that runs are handed over to; None where they are trained here.

    `options` of the command lose `threads` and those of all executors.

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
