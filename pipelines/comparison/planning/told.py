"""What is planned, and what halving dropped, in words: before a comparison, at its end, and on its page."""

from collections.abc import Iterator

from pipelines.comparison.plan import NO_REFERENCE, Plan
from pipelines.comparison.planning.halving import survivors
from pipelines.comparison.planning.lines import counted, item, listed
from pipelines.comparison.planning.matrix import Matrix
from pipelines.comparison.planning.records import Dropped
from pipelines.comparison.statistics.metrics import METRICS
from pipelines.duration import duration


def planned_told(plan: Plan, matrix: Matrix, seconds: float | None = None) -> Iterator[str]:
    """What is planned, line by line.

    Args:
        plan: of the comparison.
        matrix: its runs; with halving, as if no loss were dropped.
        seconds: that all of it takes, if that is known.
    """
    halving = None if plan.halving is None or plan.halving.over else plan.halving
    count = len(matrix.losses) if halving is None else 1 + survivors(len(halving.losses))
    runs = count * len(matrix.folds) * len(matrix.seeds)
    losses = counted(count, "loss") if halving is None else f"{count} of {len(matrix.losses)} losses"
    shape = f"{losses} x {counted(len(matrix.folds), 'fold')} x {counted(len(matrix.seeds), 'seed')}"
    folds, seeds = listed("fold", matrix.folds), listed("seed", matrix.seeds)
    yield from item(
        "runs",
        f"{shape} = {counted(runs, 'run')} of {counted(matrix.epochs, 'epoch')} on {plan.manifest_name}; "
        f"{folds}; {seeds}",
    )
    metric = METRICS[plan.metric]
    named = "no reference, all with all" if plan.reference in (None, NO_REFERENCE) else f"reference {plan.reference}"
    margin = f"{plan.margin:g} {'mm' if not metric.bounded else metric.label}"
    yield from item("verdict", f"{named}; primary measure {metric.label}; margin of equivalence {margin}")
    if halving is not None:
        yield from item(
            "halving",
            f"before that, {counted(len(halving.losses), 'loss')} are screened on fold {halving.fold} with "
            f"{_rungs(plan)} epochs, the worse half being dropped each time; the reference is not",
        )
    for told in plan.told:
        yield from item("cut", told)
    if seconds is not None:
        yield from item("time", f"about {duration(seconds)} in all, what measuring took included")


def halving_notes(plan: Plan) -> tuple[str, ...]:
    """A sentence on the screening, and one a dropped loss; none without halving."""
    halving = plan.halving
    if halving is None:
        return ()
    if not halving.over:
        return (f"Halving is under way: {len(halving.losses)} losses are screened with {_rungs(plan)} epochs.",)
    told = (
        f"Successive halving: {len(halving.losses)} losses were screened on fold {halving.fold} "
        f"({counted(halving.cases, 'case')}) in one training each of {_rungs(plan)} epochs, with its whole schedule; "
        f"the worse half by {_label(plan)} was dropped each time. None of these cases is in the verdict, so the choice "
        "does not flatter the survivors. It is no test: near the bound chance decided, and a loss that learns slowly "
        "may have been dropped too early. Dropped losses are not ranked, and not counted as worst."
    )
    return (told, *(dropped_told(plan, dropped) for dropped in halving.dropped))


def dropped_told(plan: Plan, dropped: Dropped) -> str:
    """Why a loss was dropped."""
    when = f"{dropped.loss}: dropped after {counted(dropped.epochs, 'epoch')}"
    if dropped.score is None:
        return f"{when}: it failed ({dropped.error})."
    shown = METRICS[plan.metric].shown
    bound = "" if dropped.bound is None else f"; the last that was kept had {shown(dropped.bound)}"
    return f"{when}: {_label(plan)} {shown(dropped.score)}{bound}."


def _rungs(plan: Plan) -> str:
    return "" if plan.halving is None else " and ".join(str(epochs) for epochs in plan.halving.rungs)


def _label(plan: Plan) -> str:
    return METRICS[plan.metric].label
