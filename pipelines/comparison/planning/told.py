"""What is planned, and what halving dropped, in words: before a comparison, at its end, and on its page."""

from collections.abc import Iterator

from pipelines.comparison.plan import NO_REFERENCE, Plan
from pipelines.comparison.planning.halving import survivors
from pipelines.comparison.planning.lines import counted, item, listed
from pipelines.comparison.planning.matrix import Matrix
from pipelines.comparison.planning.records import Dropped, Tuning
from pipelines.duration import duration
from pipelines.evaluation.registry import METRICS


def planned_told(plan: Plan, matrix: Matrix, seconds: float | None = None) -> Iterator[str]:
    """What is planned, line by line.

    Args:
        plan: of the comparison.
        matrix: its runs; with halving, as if no loss were dropped.
        seconds: that all of it takes, if that is known.
    """
    halving = None if plan.halving is None or plan.halving.over else plan.halving
    tuning = None if plan.tuning is None or plan.tuning.over else plan.tuning
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
    margin = f"{plan.margin:g} {metric.unit or metric.label}"
    yield from item("verdict", f"{named}; primary measure {metric.label}; margin of equivalence {margin}")
    if tuning is not None:
        yield from item(
            "rates",
            f"before that, each of {counted(len(matrix.losses), 'loss')} is trained on fold {tuning.fold} at "
            f"{len(tuning.factors)} learning rates ({_factors(tuning)} of the recipe's) with "
            f"{counted(tuning.epochs, 'epoch')}, and then at its best",
        )
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


def screening_notes(plan: Plan) -> tuple[str, ...]:
    """What was decided before the comparison: learning rates and dropped losses, a sentence each."""
    return (*tuning_notes(plan), *halving_notes(plan))


def tuning_notes(plan: Plan) -> tuple[str, ...]:
    """How the learning rates were chosen, and which; none without tuning."""
    tuning = plan.tuning
    if tuning is None:
        return ()
    what = f"{len(tuning.factors)} learning rates per loss ({_factors(tuning)} of the recipe's)"
    if not tuning.over:
        return (f"Tuning is under way: {what} are tried with {counted(tuning.epochs, 'epoch')}.",)
    failed = [loss for loss in tuning.chosen if all(own.score is None for own in tuning.tried if own.loss == loss)]
    note = (
        f"Learning rates: {what} were tried on fold {tuning.fold}, in one run each of "
        f"{counted(tuning.epochs, 'epoch')}, and each loss is trained at its best by {_label(plan)}. None of these "
        "cases is in the verdict. The choice is one run's: near-equal rates were decided by chance. Schedule and all "
        "else are common to all losses."
    )
    chosen = ", ".join(f"{loss} {rate:g}" for loss, rate in tuning.chosen.items())
    lost = f" Every run failed, so at the recipe's rate: {', '.join(failed)}." if failed else ""
    return (note, f"Chosen rates: {chosen}.{lost}")


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


def _factors(tuning: Tuning) -> str:
    words = [f"{factor:g}" if factor >= 1 else f"1/{1 / factor:g}" for factor in sorted(tuning.factors)]
    return ", ".join(words)


def _rungs(plan: Plan) -> str:
    return "" if plan.halving is None else " and ".join(str(epochs) for epochs in plan.halving.rungs)


def _label(plan: Plan) -> str:
    return METRICS[plan.metric].label
