"""Screens losses and tunes learning rates before a comparison.

Tunes each loss's learning rate: a few rates per loss, tried on cases that the verdict does not use.

One rate for all losses decides more than the loss does. So `--tune-lr N` tries N rates per loss, factors of 3 around
the recipe's, and the comparison trains each loss at its best. As in a screening (`rounds.py`):

- **The cases that choose are not those that judge**: the fold of the screening, which the comparison does not have.
- **Every run has its own whole schedule**, of half the comparison's epochs: N trials then cost N halves of what one
  fold of the comparison does.

The reference is tuned as all others are. A trial, of all losses at one factor, is a comparison of its own in
`screening/`, as a rung is. Of equal scores the rate nearest to the recipe's is chosen; a loss of which every run failed
keeps the recipe's.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from pipelines.comparison.rounds import Rung, adopt_rung, rung_folder, scores, screening_fold
from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import keep_plan, read_plan, run_states
from pipelines.runs.plan import NO_REFERENCE, Dropped, Plan, Tried, Tuning, better_half, planned_runs
from pipelines.runs.summary import dropped_told, rung_title
from pipelines.tracking.findings import Findings
from pipelines.tracking.mirror import Mirror, mirroring
from pipelines.training.auto_config import recipe_rate
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError
from pipelines.utils.text import counted

_STEP, _SHARE = 3.0, 0.5
#: Further from the recipe's rate than 3^4 nothing trains.
MOST_RATES = 9


def plan_tuning(
    count: int, configs: Sequence[RunConfig], folds: list[int], seeds: list[int], epochs: int, known: list[int]
) -> tuple[Tuning, list[int]]:
    """How the rates are tried, and the folds that are left to compare the losses on.

    Args:
        count: rates per loss.
        configs: one per loss.
        folds: asked for.
        seeds: asked for; the first one tries.
        epochs: of the comparison's runs.
        known: the data set's folds.

    Raises:
        UserError: too few or too many rates, or too few folds.
    """
    if not 2 <= count <= MOST_RATES:
        raise UserError(f"--tune-lr: got {count}; expected 2 to {MOST_RATES} rates per loss")
    fold, left = screening_fold("--tune-lr", folds, known)
    # The recipe's first: of equals it is chosen.
    exponents = [0, *(sign * k for k in range(1, MOST_RATES) for sign in (-1, 1))][:count]
    factors = [_STEP**exponent for exponent in exponents]
    for config in configs:
        if not (rate := _times(config, max(factors))) < 10:
            raise UserError(f"--tune-lr: {config.loss} would be tried at {rate:g}; expected rates below 10: lower --lr")
    return Tuning(fold=fold, seed=seeds[0], epochs=math.ceil(epochs * _SHARE), factors=factors), left


def tuned(config: RunConfig, tuning: Tuning | None) -> RunConfig:
    """A loss's config, at the rate that was chosen for it; as it is before one was."""
    if tuning is None or config.loss not in tuning.chosen:
        return config
    return _at_rate(config, tuning.chosen[config.loss])


def tune(
    folder: Path,
    plan: Plan,
    configs: Sequence[RunConfig],
    train: Callable[[Path, Plan], None],
    forget: Callable[[Path, Plan], None] | None = None,
) -> Plan:
    """Carry out a plan's tuning, or what is left of it; the plan's runs then have the rates that were chosen.

    Args:
        folder: the comparison's; the trials are comparisons of their own in `screening/`.
        plan: as it was adopted.
        configs: of all losses.
        train: trains all runs of a plan in a folder.
        forget: makes the failed runs of a plan in a folder wait again.

    Returns:
        The plan, which the folder has, too.
    """
    tuning = plan.tuning
    if tuning is None or tuning.over:
        return plan
    # A budget may have left out some.
    racing = {*plan.losses, *(plan.halving.losses if plan.halving else ())}
    configs = [config for config in configs if config.loss in racing]
    tried = []
    for number, factor in enumerate(tuning.factors, start=1):
        short = [_at_rate(config, _times(config, factor), epochs=tuning.epochs) for config in configs]
        changes = {
            "id": f"{plan.id}-rate{number}", "rung": number, "factor": factor, "reference": NO_REFERENCE,
            "runs": planned_runs(short, [tuning.fold], [tuning.seed]),
        }  # fmt: skip
        trial = adopt_rung(folder, f"rate{number}", plan, changes)
        if forget is not None:
            forget(trial.folder, trial.plan)
        train(trial.folder, trial.plan)
        tried += _tried(trial)
    sign = METRICS[plan.metric].sign
    chosen = {}
    for config in configs:
        own = [trial for trial in tried if trial.loss == config.loss]
        # The first of equals is the one nearest to the recipe's.
        chosen[config.loss] = max(own, key=lambda t: -math.inf if t.score is None else sign * t.score).rate
    over = tuning.model_copy(update={"over": True, "tried": tried, "chosen": chosen})
    runs = [run.model_copy(update={"config": tuned(run.config, over)}) for run in plan.runs]
    plan = plan.model_copy(update={"runs": runs, "tuning": over})
    keep_plan(folder, plan)
    return plan


def _tried(trial: Rung) -> list[Tried]:
    found = scores(trial.folder, trial.plan)
    return [
        Tried(loss=run.config.loss, rate=recipe_rate(run.config), score=found[run.config.loss].score,
              error=found[run.config.loss].error)
        for run in trial.plan.runs
    ]  # fmt: skip


def _times(config: RunConfig, factor: float) -> float:
    """A config's rate times a factor, in a few digits: it is read by people."""
    return float(f"{recipe_rate(config) * factor:.4g}")


def _at_rate(config: RunConfig, rate: float, **changes: int) -> RunConfig:
    return config.model_copy(update={"learning_rates": {**config.learning_rates, config.loss: rate}, **changes})


# Carries out a plan's screening: trains each rung, drops its worse half, and plans the survivors' runs.


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
    from pipelines.comparison.remaining_runs import prepare_cases, train_left

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
