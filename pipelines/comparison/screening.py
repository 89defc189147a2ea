"""Before a comparison: successive halving drops losses after short runs, and tuning picks each loss's learning rate.

Both use cases that the comparison does not have; rungs (halving) and trials (tuning) are comparisons in `screening/`.
"""

import math
from collections.abc import Mapping, Sequence
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
)  # fmt: skip
from pipelines.runs.summary import dropped_note, rung_title
from pipelines.training.auto_config import recipe_rate
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError
from pipelines.utils.text import counted


def screening_fold(flag: str, folds: list[int], known: list[int]) -> tuple[int, list[int]]:
    """The fold whose cases decide before the comparison, and the folds that remain to compare on.

    That is a fold of the data (`known`) that was not asked for, or, where all were, the first: losses that are chosen
    and compared on the same cases look better than they are.

    Raises:
        UserError: there is only one fold; the message names `flag`, the option that needs another.
    """
    fold = next((fold for fold in known if fold not in folds), folds[0])
    remaining = [other for other in folds if other != fold]
    if not remaining:
        raise UserError(
            f"{flag}: got a data set of one fold; expected two or more: the cases that decide before the comparison "
            "are not those that compare the losses"
        )
    return fold, remaining


# Rounds: the rungs of a screening and the trials of a tuning. Each is a comparison in the folder of the whole one.


def rung_folder(folder: Path, name: int | str) -> Path:
    """The folder of a rung (a number) or a trial (its name) of the comparison in `folder`."""
    return folder / "screening" / (name if isinstance(name, str) else f"rung{name}")


def adopt_rung(comparison: Comparison, name: int | str, changes: Mapping[str, Any]) -> Comparison:
    """Begin a rung, or resume it; its plan is the comparison's with `changes`: `id`, `rung`, `runs` and so on.

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


def _rung(comparison: Comparison, folder: Path, plan: Plan) -> Comparison:
    return Comparison(folder, plan, comparison.execution, store=comparison.folder)


def results(rung: Comparison) -> list[Tried]:
    """The result of each run of a rung whose runs have ended."""
    found = []
    for run in rung.plan.runs:
        result = run_folder(rung.folder, run).result or {"state": "failed", "error": "it never ended"}
        score = (result.get("metrics") or {}).get(rung.plan.metric) if result["state"] == "done" else None
        error = result.get("error") if score is None else None
        found.append(Tried(loss=run.config.loss, rate=recipe_rate(run.config), score=score, error=error))
    return found


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


# Learning rates. Each trial has its own whole schedule, of half the comparison's epochs.

_STEP, _SHARE = 3.0, 0.5
#: Further from the recipe's rate than 3^4 nothing trains.
MOST_RATES = 9


def plan_tuning(
    count: int, configs: Sequence[RunConfig], folds: list[int], seeds: list[int], epochs: int, known: list[int]
) -> tuple[Tuning, list[int]]:
    """How `count` rates per loss are tried, with the first seed, and the folds that remain to compare the losses on.

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
    """Carry out a comparison's tuning, or what remains of it; returns it with the chosen rates in its runs."""
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
        tried += results(trial)
    sign = METRICS[plan.metric].sign
    chosen = {}
    for config in configs:
        trials = [trial for trial in tried if trial.loss == config.loss]
        # The first of equals is the one nearest to the recipe's.
        chosen[config.loss] = max(trials, key=lambda t: -math.inf if t.score is None else sign * t.score).rate
    over = tuning.model_copy(update={"over": True, "tried": tried, "chosen": chosen})
    runs = [run.model_copy(update={"config": tuned(run.config, over)}) for run in plan.runs]
    return comparison.with_plan(plan.model_copy(update={"runs": runs, "tuning": over}))


def _times(config: RunConfig, factor: float) -> float:
    """A config's rate times a factor, in a few digits: people read it."""
    return float(f"{recipe_rate(config) * factor:.4g}")


def _at_rate(config: RunConfig, rate: float, **changes: int) -> RunConfig:
    return config.model_copy(update={"learning_rates": {**config.learning_rates, config.loss: rate}, **changes})


# Successive halving (Karnin et al. 2013; Jamieson and Talwalkar 2016, arXiv 1502.07943), but each rung trains from
# scratch with its own whole schedule: a run stopped at a quarter of its epochs has never had a low learning rate.

#: With fewer losses next to the reference, or fewer epochs, there is nothing to halve.
LEAST_LOSSES = LEAST_EPOCHS = 4


def plan_halving(
    losses: list[str], reference: str, folds: list[int], seeds: list[int], epochs: int, known: list[int]
) -> tuple[Halving, list[int]]:
    """How all losses but the reference are screened, with the first seed, and the folds that remain to compare on.

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


def screen(comparison: Comparison, configs: Sequence[RunConfig]) -> Comparison:
    """Carry out a comparison's screening, or what remains of it: train each rung, and drop its worse half.

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
    folds, seeds = (list(dict.fromkeys(getattr(run.config, name) for run in plan.runs)) for name in ("fold", "seed"))
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
    found = {result.loss: result for result in results(rung)}
    cases = max(len({row["case"] for row in run_folder(rung.folder, run).cases}) for run in plan.runs)

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
        about: dict[str, Any] = {"score": score.score, "bound": bound, "error": error}
        dropped.append(Dropped(loss=loss, rung=plan.rung or 0, epochs=rung.epochs, **about))
    return kept, dropped, cases
