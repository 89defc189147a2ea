"""Carries out a plan's screening: trains each rung, drops its worse half, and plans the survivors' runs."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from pipelines.comparison.plan import NO_REFERENCE, Plan, keep_plan, planned_runs, read_plan
from pipelines.comparison.planning.halving import better_half
from pipelines.comparison.planning.lines import counted
from pipelines.comparison.planning.records import Dropped
from pipelines.comparison.planning.rungs import adopt_rung, rung_folder, rung_title, scores
from pipelines.comparison.planning.told import dropped_told
from pipelines.comparison.planning.tuning import tuned
from pipelines.comparison.state import run_states
from pipelines.comparison.tracking import Findings, Mirror, mirroring
from pipelines.errors import UserError
from pipelines.evaluation.registry import METRICS
from pipelines.training.run_config import RunConfig


def screen(
    folder: Path,
    plan: Plan,
    configs: Sequence[RunConfig],
    train: Callable[[Path, Plan], None],
    forget: Callable[[Path, Plan], None] | None = None,
) -> Plan:
    """Carry out a plan's screening, or what is left of it; the plan then has the survivors' runs.

    Args:
        folder: the comparison's; the rungs are comparisons of their own in `screening/`.
        plan: as it was adopted.
        configs: of all losses.
        train: trains all runs of a plan in a folder.
        forget: makes the failed runs of a plan in a folder wait again; of the rung that is under way alone, since on
            those before it the next one was built.

    Returns:
        The plan, which the folder has, too.

    Raises:
        UserError: all losses failed.
    """
    halving = plan.halving
    if halving is None or halving.over:
        return plan
    by_loss = {config.loss: tuned(config, plan.tuning) for config in configs}
    racing, dropped, cases = list(halving.losses), list[Dropped](), 0
    for rung, epochs in enumerate(halving.rungs, start=1):
        short = [by_loss[loss].model_copy(update={"epochs": epochs}) for loss in racing]
        runs = planned_runs(short, [halving.fold], [halving.seed])
        changes = {"id": f"{plan.id}-rung{rung}", "rung": rung, "runs": runs, "reference": NO_REFERENCE}
        begun = adopt_rung(folder, rung, plan, changes)
        if forget is not None and read_plan(rung_folder(folder, rung + 1)) is None:
            forget(begun.folder, begun.plan)
        train(begun.folder, begun.plan)
        racing, lost, seen = judge(begun.folder, begun.plan, rung, epochs)
        dropped += lost
        cases = max(cases, seen)
    first = plan.runs[0].config
    folds = list(dict.fromkeys(run.config.fold for run in plan.runs))
    seeds = list(dict.fromkeys(run.config.seed for run in plan.runs))
    full = [by_loss[loss].model_copy(update={"epochs": first.epochs}) for loss in (first.loss, *racing)]
    over = halving.model_copy(update={"over": True, "dropped": dropped, "cases": cases})
    plan = plan.model_copy(update={"runs": planned_runs(full, folds, seeds), "halving": over})
    keep_plan(folder, plan)
    return plan


def judge(folder: Path, plan: Plan, rung: int, epochs: int) -> tuple[list[str], list[Dropped], int]:
    """Who goes on, who is dropped, and how many cases said so; ties are decided by the order of the losses.

    Args:
        folder: the rung's.
        plan: the rung's, whose runs have ended.
        rung: its number.
        epochs: of its runs.

    Raises:
        UserError: all losses failed.
    """
    metric = METRICS[plan.metric]
    found = scores(folder, plan)
    cases = max(one.cases for one in found.values())

    def place(loss: str) -> float:
        value = found[loss].score
        return math.inf if value is None else -metric.sign * value

    order = sorted(plan.losses, key=place)
    better = order[: better_half(len(order))]
    kept = [loss for loss in plan.losses if loss in better and found[loss].score is not None]
    if not kept:
        raise UserError(
            f"--halving: all losses failed in the screening; {order[0]}: {found[order[0]].error}; see {folder}, and "
            "call the same command with --retry-failed"
        )
    bound = found[[loss for loss in order if loss in kept][-1]].score
    lost = []
    for loss in (loss for loss in order if loss not in kept):
        one = found[loss]
        error = None if one.score is not None else one.error or f"no {metric.label} could be measured"
        lost.append(Dropped(loss=loss, rung=rung, epochs=epochs, score=one.score, bound=bound, error=error))
    return kept, lost, cases


def train_rung(folder: Path, plan: Plan, jobs: int, mirror: Mirror) -> None:
    """Train all runs of a rung, or a trial, on this machine; show and mirror how far they are, and who is dropped.

    Args:
        folder: the rung's.
        plan: the rung's.
        jobs: runs at a time.
        mirror: of the rung.

    Raises:
        KeyboardInterrupt: it was interrupted; MLflow is told.
    """
    from pipelines.comparison.training import prepare_cases, train_left

    epochs = plan.runs[0].config.epochs
    if any(not state.finished for state in run_states(folder, plan)):
        prepare_cases(folder, plan)
        where = f"{counted(epochs, 'epoch')} on fold {plan.runs[0].config.fold}"
        click.echo(f"{rung_title(plan)}: {counted(len(plan.runs), 'loss')}, {where}", err=True)
        with mirroring(mirror) as to_mlflow:
            train_left(folder, plan, jobs, to_mlflow)
        mirror.finish(run_states(folder, plan), Findings())
    if plan.factor is not None or plan.rung is None:
        return  # nothing is decided before all rates were tried
    for dropped in judge(folder, plan, plan.rung, epochs)[1]:
        click.echo(dropped_told(plan, dropped), err=True)
