"""Tunes each loss's learning rate: a few rates per loss, tried on cases that the verdict does not use.

One rate for all losses decides more than the loss does. So `--tune-lr N` tries N rates per loss, factors of 3 around
the recipe's, and the comparison trains each loss at its best. As in a screening (`halving.py`):

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

from pipelines.comparison.plan import NO_REFERENCE, Plan, keep_plan, planned_runs
from pipelines.comparison.planning.halving import screening_fold
from pipelines.comparison.planning.records import Tried, Tuning
from pipelines.comparison.planning.rungs import Rung, adopt_rung, scores
from pipelines.errors import UserError
from pipelines.evaluation.registry import METRICS
from pipelines.training.planning import recipe_rate
from pipelines.training.run_config import RunConfig

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
