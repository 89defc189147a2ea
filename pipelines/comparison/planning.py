"""Makes the plan of a comparison from what is asked for: fitted into a budget, with tuning or screening."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.comparison.budget import PLANNED_SHARE, Costs, Fitted, Forecast, Limits, fit
from pipelines.comparison.screening import LEAST_EPOCHS, LEAST_LOSSES, plan_halving, plan_tuning, tuned
from pipelines.comparison.step_timing import Measured, measure
from pipelines.data.manifest import Manifest
from pipelines.runs.comparison_folder import cache_folder, read_plan, refuse_another, refuse_foreign
from pipelines.runs.plan import NO_REFERENCE, Asked, Halving, Plan, RunGrid, Tuning, make_plan, planned_runs
from pipelines.training.run_config import RunConfig, as_begun
from pipelines.utils import UserError

#: Optimizer steps per network up to which a budget is filled: nnU-Net's 1000 epochs of 250.
MOST_STEPS = 250_000


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    configs: list[RunConfig]  #: one per loss, with the epochs that are asked for, or the recipe's
    folds: list[int]
    seeds: list[int]
    manifest: Manifest
    about: dict[str, Any]  #: reference, metric and margin, as `make_plan` takes them
    epochs: int | None = None  #: asked for; None: the recipe's
    budget: float | None = None  #: minutes, counted from `began`; None: no limit
    halving: bool = False
    tune_lr: int | None = None  #: learning rates that are tried per loss; None: only the recipe's
    jobs: int = 1
    cores: int = 1  #: divided among the jobs
    began: float = field(default_factory=time.monotonic)  #: when the command started

    @property
    def reference(self) -> str | None:
        """The reference's name; None: there is none."""
        return None if self.about["reference"] == NO_REFERENCE else self.about["reference"]

    @property
    def asked(self) -> Asked | None:
        """The plan's `asked`; None where the plan is exactly what is asked for."""
        if self.budget is None and not self.halving and self.tune_lr is None:
            return None
        losses = [config.loss for config in self.configs]
        return Asked(losses=losses, folds=self.folds, seeds=self.seeds, epochs=self.epochs,
                     budget_minutes=self.budget, halving=self.halving, tune_lr=self.tune_lr)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """What is trained, and its forecast."""

    plan: Plan
    configs: list[RunConfig]  #: the request's, along the axes of a plan that has begun
    grid: RunGrid  #: with halving, as if no loss were dropped
    forecast: Forecast | None  #: None: nothing was measured
    seconds: float | None = None  #: of the whole command, where it was fitted into a budget
    #: the least `--budget` in which everything that is asked for gets enough steps; None: there is no budget
    enough_minutes: int | None = None


def plan_comparison(
    folder: Path,
    request: Request,
    *,
    measured: bool,
    message: Callable[[str], None] = lambda line: None,
    measure: Callable[..., Measured] = measure,
) -> Planned:
    """Plan what is asked for, with a forecast if it is `measured` or has a budget; nothing is written into the folder.

    A folder that has such a plan already keeps it: from new measurements, it would be a slightly different one.

    Raises:
        UserError: the folder holds another comparison, nothing fits, or there is too little to screen.
    """
    refuse_foreign(folder)
    begun = read_plan(folder)
    if begun is not None:  # perhaps by an older version
        request = replace(request, configs=[as_begun(config, begun.runs[0].config) for config in request.configs])
    # Refuses repeated losses, folds and seeds.
    simple = make_plan(request.configs, request.folds, request.seeds, request.manifest.name, request.manifest.sha256,
                       **request.about)  # fmt: skip
    if request.budget is not None and not (math.isfinite(request.budget) and request.budget > 0):
        raise UserError(f"--budget: got {request.budget:g}; expected minutes, above 0")
    if request.halving and request.reference is None:
        raise UserError("--halving: got no reference; expected one, which is never dropped: name a --reference")
    asked = RunGrid(tuple(simple.losses), tuple(request.folds), tuple(request.seeds), request.configs[0].epochs)
    asked = replace(asked, folds=_before(request, asked)[2])
    if begun is not None and (begun.asked is None) == (request.asked is None):
        plan = _resumed(folder, begun, simple, request)
        refuse_another(folder, plan)
        forecast = _forecast(folder, request, message, measure) if measured else None
        enough = None if request.budget is None or forecast is None else _enough_minutes(request, asked, forecast)
        return Planned(plan, request.configs, _grid(plan), forecast, enough_minutes=enough)
    # Before the measurement, which takes time.
    refuse_another(folder, simple.model_copy(update={"asked": request.asked}))
    forecast = _forecast(folder, request, message, measure) if measured or request.budget is not None else None
    fitted, enough = Fitted(asked, None, ()), None
    if request.budget is not None and forecast is not None:
        fitted, enough = _fitted(request, asked, forecast), _enough_minutes(request, asked, forecast)
    grid = fitted.grid
    by_loss = {config.loss: config.model_copy(update={"epochs": grid.epochs}) for config in request.configs}
    halving, tuning, _ = _before(request, grid)
    # Until the screening is over, only the reference is known to survive.
    losses = grid.losses if halving is None else (str(request.reference),)
    runs = planned_runs([by_loss[loss] for loss in losses], list(grid.folds), list(grid.seeds))
    update = {"runs": runs, "asked": request.asked, "told": list(fitted.changes)}
    plan = simple.model_copy(update=update | {"halving": halving, "tuning": tuning})
    return Planned(plan, request.configs, grid, forecast, fitted.seconds, enough)


def _forecast(
    folder: Path, request: Request, message: Callable[[str], None], measure: Callable[..., Measured]
) -> Forecast:
    cache = cache_folder(folder, request.configs[0])
    runs = len(request.configs) * len(request.folds) * len(request.seeds)
    jobs = min(request.jobs, runs)
    found = measure(request.configs, request.folds, jobs, max(1, request.cores // jobs), cache, message)
    return Forecast(found, request.manifest)


def _before(request: Request, grid: RunGrid) -> tuple[Halving | None, Tuning | None, tuple[int, ...]]:
    """The screening and the tuning before a comparison, on the same fold, and the folds that remain for it."""
    common = request.folds, request.seeds, grid.epochs, request.manifest.folds()
    halving, tuning, folds = None, None, list(grid.folds)
    if request.halving:
        halving, folds = plan_halving(list(grid.losses), str(request.reference), *common)
    if request.tune_lr is not None:
        tuning, folds = plan_tuning(request.tune_lr, request.configs, *common)
    return halving, tuning, tuple(folds)


def _total_s(request: Request, forecast: Forecast) -> Callable[[RunGrid], float]:
    """The seconds that a grid's runs take, with all around them."""
    # Planning takes time as well, above all the measurement.
    spent = time.monotonic() - request.began

    def seconds(grid: RunGrid) -> float:
        halving, tuning, _ = _before(request, grid)
        return spent + forecast.total_s(forecast.stages(grid, halving, tuning), request.jobs)

    return seconds


def _enough_minutes(request: Request, asked: RunGrid, forecast: Forecast) -> int:
    """The least budget in which everything that is asked for has `LEAST_STEPS`."""
    epochs = forecast.epochs_of_enough_steps(asked.folds[0])
    grid = replace(asked, epochs=max(epochs, LEAST_EPOCHS) if request.halving else epochs)
    return math.ceil(_total_s(request, forecast)(grid) / 60 / PLANNED_SHARE)


def _fitted(request: Request, asked: RunGrid, forecast: Forecast) -> Fitted:
    seconds = _total_s(request, forecast)

    def patients(folds: tuple[int, ...]) -> int:
        return len({case.patient for fold in folds for case in request.manifest.split(fold)[1]})

    most = MOST_STEPS // forecast.optimizer_steps(asked.folds[0])
    limits = Limits(request.reference, epochs_asked=request.epochs is not None, most_epochs=most)
    if request.halving:
        limits = replace(limits, losses=1 + LEAST_LOSSES, epochs=LEAST_EPOCHS)
    costs = Costs(seconds, patients, slowness=lambda loss: forecast.epoch_s(loss, asked.folds[0]))
    return fit(asked, request.budget or 0, costs, limits)


def _resumed(folder: Path, begun: Plan, simple: Plan, request: Request) -> Plan:
    """The folder's plan with the settings that are asked for now, which `adopt_plan` compares."""
    now = request.asked
    if begun.asked is None or now is None:
        return simple
    if begun.asked != now:
        theirs, ours = begun.asked.model_dump(), now.model_dump()
        field = next(name for name in theirs if theirs[name] != ours[name])
        raise UserError(
            f"--out: {folder} holds another comparison: planned for {field} {theirs[field]}, and {ours[field]} was "
            "asked for; name another folder"
        )
    by_loss = {config.loss: config for config in request.configs}
    runs = []
    for run in begun.runs:
        planned = {"fold": run.config.fold, "seed": run.config.seed, "epochs": run.config.epochs}
        config = tuned(by_loss[run.config.loss], begun.tuning)
        runs.append(run.model_copy(update={"config": config.model_copy(update=planned)}))
    kept = {"runs": runs, "asked": begun.asked, "told": begun.told, "halving": begun.halving, "tuning": begun.tuning}
    return simple.model_copy(update=kept)


def _grid(plan: Plan) -> RunGrid:
    losses = plan.losses
    if plan.halving is not None and not plan.halving.over:
        losses = [*losses, *(loss for loss in plan.halving.losses if loss not in losses)]
    configs = [run.config for run in plan.runs]
    folds, seeds = (tuple(dict.fromkeys(getattr(config, name) for config in configs)) for name in ("fold", "seed"))
    return RunGrid(tuple(losses), folds, seeds, configs[0].epochs)
