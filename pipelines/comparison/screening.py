"""Screens losses and tunes learning rates before a comparison: successive halving, and trials of rates.

Successive halving screens all losses with short runs and drops the worse half, twice; the survivors are compared.

After Karnin et al. (2013) and Jamieson and Talwalkar (2016, arXiv 1502.07943), with two changes:

- **Every rung trains from scratch**, with its own whole schedule, instead of resuming from the checkpoint. The learning
  rate follows the run's length: a run stopped at a quarter has never had a low rate, and differs from one that was
  planned so short; resuming would compare networks in the middle of their schedules. Two rungs of a quarter and of
  half the epochs cost at most half of what training all losses on one fold does.
- **The cases that drop losses do not compare them.** The rungs run on a fold that the comparison does not have: one
  that was not asked for, or, where all were, the first, which the comparison then goes without. Chosen and evaluated
  on the same cases, survivors would look better than they are, and their p-values would be too small.

The reference is never dropped, so it needs no screening. A loss whose run failed is dropped first.

One rate for all losses decides more than the loss does. So `--tune-lr N` tries N rates per loss, factors of 3 around
the recipe's, and the comparison trains each loss at its best. As in the successive halving:

- **The cases that choose rates do not compare losses**: they are of the screening's fold, which the comparison does
  not have.
- **Every run has its own whole schedule**, of half the comparison's epochs: N trials then cost N halves of what one
  fold of the comparison does.

The reference is tuned as all others are. A trial, of all losses at one factor, is a comparison in `screening/`, as a
rung is. Of equal scores the rate nearest to the recipe's is chosen; a loss whose runs all failed keeps the recipe's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from pipelines.comparison.execution import Comparison
from pipelines.comparison.remaining_runs import prepare_cases, train_remaining
from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import adopt_plan, read_plan, run_folder
from pipelines.runs.plan import (
    NO_REFERENCE,
    SCREENING_SHARES,
    Dropped,
    Halving,
    Plan,
    Tried,
    Tuning,
    better_half,
    planned_runs,
)
from pipelines.runs.summary import dropped_note, rung_title
from pipelines.training.auto_config import recipe_rate
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError
from pipelines.utils.text import counted

#: With fewer losses next to the reference, or fewer epochs, there is nothing to halve.
LEAST_LOSSES = LEAST_EPOCHS = 4


def plan_halving(
    losses: list[str], reference: str, folds: list[int], seeds: list[int], epochs: int, known: list[int]
) -> tuple[Halving, list[int]]:
    """How losses are screened, and the folds that remain to compare the survivors on.

    Args:
        losses: all losses of the comparison.
        reference: the one that is never dropped.
        folds: the folds asked for.
        seeds: the seeds asked for; the first one screens.
        epochs: of the comparison's runs.
        known: the data set's folds.

    Raises:
        UserError: there are too few losses, epochs or folds.
    """
    racing = [loss for loss in losses if loss != reference]
    if len(racing) < LEAST_LOSSES:
        raise UserError(
            f"--halving: got {len(racing)} losses next to the reference; expected {LEAST_LOSSES} or more: "
            "compare so few without it"
        )
    if epochs < LEAST_EPOCHS:
        raise UserError(
            f"--halving: got {epochs} epochs; expected {LEAST_EPOCHS} or more, of which a quarter and half screen"
        )
    fold, remaining = screening_fold("--halving", folds, known)
    rungs = [round(epochs * share) for share in SCREENING_SHARES]
    return Halving(fold=fold, seed=seeds[0], losses=racing, rungs=rungs), remaining


def screening_fold(flag: str, folds: list[int], known: list[int]) -> tuple[int, list[int]]:
    """The fold whose cases decide before the comparison, and the folds that remain to compare on.

    Args:
        flag: the option that needs one.
        folds: the folds asked for.
        known: the data set's folds.

    Raises:
        UserError: there is only one fold.
    """
    unused = [fold for fold in known if fold not in folds]
    fold = unused[0] if unused else folds[0]
    remaining = [other for other in folds if other != fold]
    if not remaining:
        raise UserError(
            f"{flag}: got a data set of one fold; expected two or more: the cases that decide before the comparison "
            "are not those that compare the losses"
        )
    return fold, remaining


# The rungs of a screening and the trials of a tuning: each is a comparison in the folder of the whole one.


@dataclass(frozen=True)
class Score:
    """The result of a rung's run.

    Attributes:
        score: mean of the primary metric; None: the run failed, or no case has the metric.
        error: why it failed.
        cases: how many it validated.
    """

    score: float | None
    error: str | None
    cases: int


def rung_folder(folder: Path, name: int | str) -> Path:
    """The folder of a rung (a number) or a trial (its name) of the comparison in `folder`."""
    return folder / "screening" / (name if isinstance(name, str) else f"rung{name}")


def adopt_rung(comparison: Comparison, name: int | str, changes: Mapping[str, Any]) -> Comparison:
    """Begin a rung, or resume it.

    Args:
        comparison: the whole one.
        name: as `rung_folder` takes it.
        changes: what the rung's plan has in place of the comparison's: `id`, `rung`, `runs` and so on.

    Raises:
        UserError: its folder holds another one.
    """
    path = rung_folder(comparison.folder, name)
    without: dict[str, Any] = {"asked": None, "told": [], "halving": None, "tuning": None}
    plan = adopt_plan(path, comparison.plan.model_copy(update=without | dict(changes)))
    # It shares the comparison's prepared cases.
    (comparison.folder / "cache").mkdir(exist_ok=True)
    if not (path / "cache").exists():
        (path / "cache").symlink_to(Path("..") / ".." / "cache", target_is_directory=True)
    return _rung(comparison, path, plan)


def begun_rungs(comparison: Comparison) -> list[Comparison]:
    """The trials of a comparison's tuning, and the rungs of its screening, that were begun, in that order.

    Raises:
        UserError: a rung's plan is damaged.
    """
    tuning, halving = comparison.plan.tuning, comparison.plan.halving
    names: list[int | str] = [f"rate{1 + place}" for place in range(len(tuning.factors) if tuning else 0)]
    names += [1 + place for place in range(len(halving.rungs) if halving else 0)]
    paths = [rung_folder(comparison.folder, name) for name in names]
    return [_rung(comparison, path, plan) for path in paths if (plan := read_plan(path)) is not None]


def scores(rung: Comparison) -> dict[str, Score]:
    """The result of each loss's run in a rung whose runs have ended."""
    found = {}
    for run in rung.plan.runs:
        run_dir = run_folder(rung.folder, run)
        result = run_dir.result or {"state": "failed", "error": "it never ended"}
        value = (result.get("metrics") or {}).get(rung.plan.metric) if result["state"] == "done" else None
        error = result.get("error") if value is None else None
        found[run.config.loss] = Score(value, error, len({row["case"] for row in run_dir.cases}))
    return found


def _rung(comparison: Comparison, folder: Path, plan: Plan) -> Comparison:
    return Comparison(folder, plan, comparison.execution, store=comparison.folder)


# Learning rates.

_STEP, _SHARE = 3.0, 0.5
#: Further from the recipe's rate than 3^4 nothing trains.
MOST_RATES = 9


def plan_tuning(
    count: int, configs: Sequence[RunConfig], folds: list[int], seeds: list[int], epochs: int, known: list[int]
) -> tuple[Tuning, list[int]]:
    """How the rates are tried, and the folds that remain to compare the losses on.

    Args:
        count: rates per loss.
        configs: one per loss.
        folds: the folds asked for.
        seeds: the seeds asked for; the first one tries.
        epochs: of the comparison's runs.
        known: the data set's folds.

    Raises:
        UserError: too few or too many rates, or too few folds.
    """
    if not 2 <= count <= MOST_RATES:
        raise UserError(f"--tune-lr: got {count}; expected 2 to {MOST_RATES} rates per loss")
    fold, remaining = screening_fold("--tune-lr", folds, known)
    # The recipe's first: of equals it is chosen.
    exponents = [0, *(sign * k for k in range(1, MOST_RATES) for sign in (-1, 1))][:count]
    factors = [_STEP**exponent for exponent in exponents]
    for config in configs:
        if not (rate := _times(config, max(factors))) < 10:
            raise UserError(f"--tune-lr: {config.loss} would be tried at {rate:g}; expected rates below 10: lower --lr")
    return Tuning(fold=fold, seed=seeds[0], epochs=math.ceil(epochs * _SHARE), factors=factors), remaining


def tuned(config: RunConfig, tuning: Tuning | None) -> RunConfig:
    """A loss's config at the rate chosen for it; unchanged before the choice."""
    if tuning is None or config.loss not in tuning.chosen:
        return config
    return _at_rate(config, tuning.chosen[config.loss])


def tune(comparison: Comparison, configs: Sequence[RunConfig]) -> Comparison:
    """Carry out a comparison's tuning, or what remains of it.

    Args:
        comparison: the trials are comparisons in its `screening/`.
        configs: of all losses.

    Returns:
        The comparison with the chosen rates in its runs.
    """
    plan = comparison.plan
    tuning = plan.tuning
    if tuning is None or tuning.over:
        return comparison
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
        trial = adopt_rung(comparison, f"rate{number}", changes)
        if comparison.execution.retry_failed:
            trial.forget_failures()
        train_rung(trial)
        tried += _tried(trial)
    sign = METRICS[plan.metric].sign
    chosen = {}
    for config in configs:
        trials = [trial for trial in tried if trial.loss == config.loss]
        # The first of equals is the one nearest to the recipe's.
        chosen[config.loss] = max(trials, key=lambda t: -math.inf if t.score is None else sign * t.score).rate
    over = tuning.model_copy(update={"over": True, "tried": tried, "chosen": chosen})
    runs = [run.model_copy(update={"config": tuned(run.config, over)}) for run in plan.runs]
    return comparison.with_plan(plan.model_copy(update={"runs": runs, "tuning": over}))


def screen(comparison: Comparison, configs: Sequence[RunConfig]) -> Comparison:
    """Carry out a comparison's screening, or what remains of it: train each rung, and drop its worse half.

    Args:
        comparison: the rungs are comparisons in its `screening/`.
        configs: of all losses.

    Returns:
        The comparison of the reference and the survivors.

    Raises:
        UserError: all losses failed.
    """
    plan = comparison.plan
    halving = plan.halving
    if halving is None or halving.over:
        return comparison
    by_loss = {config.loss: tuned(config, plan.tuning) for config in configs}
    racing, dropped, cases = list(halving.losses), list[Dropped](), 0
    for number, epochs in enumerate(halving.rungs, start=1):
        short = [by_loss[loss].model_copy(update={"epochs": epochs}) for loss in racing]
        runs = planned_runs(short, [halving.fold], [halving.seed])
        changes = {"id": f"{plan.id}-rung{number}", "rung": number, "runs": runs, "reference": NO_REFERENCE}
        rung = adopt_rung(comparison, number, changes)
        # The failures of earlier rungs stay: the next rung was built on them.
        if comparison.execution.retry_failed and read_plan(rung_folder(comparison.folder, number + 1)) is None:
            rung.forget_failures()
        train_rung(rung)
        racing, rung_dropped, rung_cases = judge(rung)
        dropped += rung_dropped
        cases = max(cases, rung_cases)
    first = plan.runs[0].config
    folds = list(dict.fromkeys(run.config.fold for run in plan.runs))
    seeds = list(dict.fromkeys(run.config.seed for run in plan.runs))
    full = [by_loss[loss].model_copy(update={"epochs": first.epochs}) for loss in (first.loss, *racing)]
    over = halving.model_copy(update={"over": True, "dropped": dropped, "cases": cases})
    return comparison.with_plan(plan.model_copy(update={"runs": planned_runs(full, folds, seeds), "halving": over}))


def judge(rung: Comparison) -> tuple[list[str], list[Dropped], int]:
    """Which losses survive a rung whose runs have ended, which are dropped, and how many cases decided.

    Of equal scores the loss that comes first in the plan is the better one.

    Raises:
        UserError: all losses failed.
    """
    plan = rung.plan
    metric = METRICS[plan.metric]
    found = scores(rung)
    cases = max(score.cases for score in found.values())

    def rank(loss: str) -> float:
        value = found[loss].score
        return math.inf if value is None else -metric.sign * value

    order = sorted(plan.losses, key=rank)
    better = order[: better_half(len(order))]
    kept = [loss for loss in plan.losses if loss in better and found[loss].score is not None]
    if not kept:
        raise UserError(
            f"--halving: all losses failed in the screening; {order[0]}: {found[order[0]].error}; see {rung.folder}, "
            "and run the same command with --retry-failed"
        )
    bound = found[[loss for loss in order if loss in kept][-1]].score
    dropped = []
    for loss in (loss for loss in order if loss not in kept):
        score = found[loss]
        error = None if score.score is not None else score.error or f"no case has a {metric.label}"
        dropped.append(
            Dropped(loss=loss, rung=plan.rung or 0, epochs=rung.epochs, score=score.score, bound=bound, error=error)
        )
    return kept, dropped, cases


def train_rung(rung: Comparison) -> None:
    """Train the remaining runs of a rung, or a trial, on this machine; show and mirror them, and who is dropped.

    Raises:
        KeyboardInterrupt: it was interrupted, as MLflow shows.
    """
    # Not above: `status` imports this module, and does not wait for MLflow.
    from pipelines.tracking.findings import Findings
    from pipelines.tracking.mlflow_mirror import mirroring

    if rung.unfinished:
        prepare_cases(rung)
        where = f"{counted(rung.epochs, 'epoch')} on fold {rung.plan.runs[0].config.fold}"
        click.echo(f"{rung_title(rung.plan)}: {counted(len(rung.plan.runs), 'loss')}, {where}", err=True)
        mirror = rung.mirror()
        with mirroring(mirror) as to_mlflow:
            train_remaining(rung, to_mlflow)
        mirror.finish(rung.states, Findings())
    if rung.plan.factor is None:  # nothing is decided before all rates were tried
        for dropped in judge(rung)[1]:
            click.echo(dropped_note(rung.plan, dropped), err=True)


def _tried(trial: Comparison) -> list[Tried]:
    found = scores(trial)
    return [
        Tried(loss=run.config.loss, rate=recipe_rate(run.config), score=found[run.config.loss].score,
              error=found[run.config.loss].error)
        for run in trial.plan.runs
    ]  # fmt: skip


def _times(config: RunConfig, factor: float) -> float:
    """A config's rate times a factor, in a few digits: people read it."""
    return float(f"{recipe_rate(config) * factor:.4g}")


def _at_rate(config: RunConfig, rate: float, **changes: int) -> RunConfig:
    return config.model_copy(update={"learning_rates": {**config.learning_rates, config.loss: rate}, **changes})
