"""From what is asked for to a plan: measured, where it has to be, and fitted into a budget, or with a screening."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.comparison.budget import Fitted, Forecast, fit
from pipelines.comparison.rounds import LEAST_EPOCHS, LEAST_LOSSES, plan_halving
from pipelines.comparison.screening import plan_tuning, tuned
from pipelines.comparison.step_timing import Measured, measure
from pipelines.data.manifest import Manifest
from pipelines.runs.comparison_folder import cache_folder, read_plan, refuse_another, refuse_foreign
from pipelines.runs.plan import NO_REFERENCE, Asked, Halving, Matrix, Plan, Tuning, make_plan, planned_runs
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        configs: one a loss, with the epochs that are asked for, or the recipe's.
        folds: that validate.
        seeds: of the trainings.
        manifest: of the data set.
        about: reference, metric and margin, as `make_plan` takes them.
        epochs: asked for; None: the recipe's.
        budget: minutes, from `began` on; None: no bound.
        halving: whether losses are screened.
        tune_lr: learning rates that are tried per loss; None: the recipe's alone.
        jobs: runs at a time.
        cores: of the processor, divided among the jobs.
        began: when the command was called, by `time.monotonic`.
    """

    configs: list[RunConfig]
    folds: list[int]
    seeds: list[int]
    manifest: Manifest
    about: dict[str, Any]
    epochs: int | None = None
    budget: float | None = None
    halving: bool = False
    tune_lr: int | None = None
    jobs: int = 1
    cores: int = 1
    began: float = field(default_factory=time.monotonic)

    @property
    def reference(self) -> str | None:
        """The reference's name; None: there is none."""
        return None if self.about["reference"] == NO_REFERENCE else self.about["reference"]

    @property
    def asked(self) -> Asked | None:
        """As the plan keeps it; None where the plan is simply what is asked for."""
        if self.budget is None and not self.halving and self.tune_lr is None:
            return None
        losses = [config.loss for config in self.configs]
        return Asked(losses=losses, folds=self.folds, seeds=self.seeds, epochs=self.epochs,
                     budget_minutes=self.budget, halving=self.halving, tune_lr=self.tune_lr)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A plan.

    Attributes:
        plan: what is trained.
        matrix: its runs; with halving, as if no loss were dropped.
        forecast: if something was measured.
        seconds: of everything, from the command's call on, where it was fitted into a budget.
    """

    plan: Plan
    matrix: Matrix
    forecast: Forecast | None
    seconds: float | None = None


def plan_comparison(
    folder: Path,
    request: Request,
    *,
    measured: bool,
    tell: Callable[[str], None] = lambda line: None,
    measure: Callable[..., Measured] = measure,
) -> Planned:
    """Plan what is asked for; the folder is read alone.

    A folder that has such a plan already keeps it: measured anew, it would come out a little different.

    Args:
        folder: the comparison's.
        request: what is asked for.
        measured: whether a forecast is wanted even where the plan does not need one.
        tell: called with a line for people while it is measured.
        measure: measures the losses.

    Raises:
        UserError: the folder holds another comparison, nothing fits, or there is too little to screen.
    """
    # Refuses what stands twice.
    simple = make_plan(request.configs, request.folds, request.seeds, request.manifest.name, request.manifest.sha256,
                       **request.about)  # fmt: skip
    if request.budget is not None and not (math.isfinite(request.budget) and request.budget > 0):
        raise UserError(f"--budget: got {request.budget:g}; expected minutes, above 0")
    if request.halving and request.reference is None:
        raise UserError("--halving: got no reference; expected one, which is never dropped: name a --reference")
    asked = Matrix(tuple(simple.losses), tuple(request.folds), tuple(request.seeds), request.configs[0].epochs)
    asked = replace(asked, folds=_before(request, asked)[2])
    refuse_foreign(folder)
    begun = read_plan(folder)
    if begun is not None and (begun.asked is None) == (request.asked is None):
        plan = _gone_on_with(folder, begun, simple, request)
        refuse_another(folder, plan)
        return Planned(plan, _matrix(plan), _forecast(folder, request, tell, measure) if measured else None)
    # Before anything is measured, which takes its time: most differences can be seen by now.
    refuse_another(folder, simple.model_copy(update={"asked": request.asked}))
    forecast = _forecast(folder, request, tell, measure) if measured or request.budget is not None else None
    fitted = Fitted(asked, None, ())
    if request.budget is not None and forecast is not None:
        fitted = _fitted(request, asked, forecast)
    matrix = fitted.matrix
    by_loss = {config.loss: config.model_copy(update={"epochs": matrix.epochs}) for config in request.configs}
    halving, tuning, _ = _before(request, matrix)
    # Until the screening is over, nobody knows who survives but the reference.
    losses = matrix.losses if halving is None else (str(request.reference),)
    runs = planned_runs([by_loss[loss] for loss in losses], list(matrix.folds), list(matrix.seeds))
    plan = simple.model_copy(
        update={"runs": runs, "asked": request.asked, "told": list(fitted.told), "halving": halving, "tuning": tuning}
    )
    return Planned(plan, matrix, forecast, fitted.seconds)


def _forecast(
    folder: Path, request: Request, tell: Callable[[str], None], measure: Callable[..., Measured]
) -> Forecast:
    cache = cache_folder(folder, request.configs[0])
    runs = len(request.configs) * len(request.folds) * len(request.seeds)
    jobs = min(request.jobs, runs)
    found = measure(request.configs, request.folds, jobs, max(1, request.cores // jobs), cache, tell)
    return Forecast(found, request.manifest)


def _before(request: Request, matrix: Matrix) -> tuple[Halving | None, Tuning | None, tuple[int, ...]]:
    """The screening and the tuning before a comparison, if asked for, and the folds that they leave to it.

    Both have the same fold: what either decides is decided on cases that the comparison does not have.
    """
    known = request.manifest.folds()
    halving, tuning, folds = None, None, list(matrix.folds)
    if request.halving:
        halving, folds = plan_halving(
            list(matrix.losses), str(request.reference), request.folds, request.seeds, matrix.epochs, known
        )
    if request.tune_lr is not None:
        tuning, folds = plan_tuning(
            request.tune_lr, request.configs, request.folds, request.seeds, matrix.epochs, known
        )
    return halving, tuning, tuple(folds)


def _fitted(request: Request, asked: Matrix, forecast: Forecast) -> Fitted:
    # Planning takes its time as well: measuring above all.
    spent = time.monotonic() - request.began

    def seconds(matrix: Matrix) -> float:
        halving, tuning, _ = _before(request, matrix)
        return spent + forecast.total_s(forecast.stages(matrix, halving, tuning), request.jobs)

    def patients(folds: tuple[int, ...]) -> int:
        return len({case.patient for fold in folds for case in request.manifest.split(fold)[1]})

    return fit(
        asked,
        request.budget or 0,
        seconds,
        patients,
        lambda loss: forecast.epoch_s(loss, asked.folds[0]),
        reference=request.reference,
        epochs_asked=request.epochs is not None,
        least_losses=1 + LEAST_LOSSES if request.halving else 2,
        least_epochs=LEAST_EPOCHS if request.halving else 1,
    )


def _gone_on_with(folder: Path, begun: Plan, simple: Plan, request: Request) -> Plan:
    """The folder's plan with the runs' settings as they are asked for now: `adopt_plan` then looks at those."""
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
        own = {"fold": run.config.fold, "seed": run.config.seed, "epochs": run.config.epochs}
        config = tuned(by_loss[run.config.loss], begun.tuning)
        runs.append(run.model_copy(update={"config": config.model_copy(update=own)}))
    kept = {"runs": runs, "asked": begun.asked, "told": begun.told, "halving": begun.halving, "tuning": begun.tuning}
    return simple.model_copy(update=kept)


def _matrix(plan: Plan) -> Matrix:
    losses = plan.losses
    if plan.halving is not None and not plan.halving.over:
        losses = [*losses, *(loss for loss in plan.halving.losses if loss not in losses)]
    configs = [run.config for run in plan.runs]
    folds, seeds = (tuple(dict.fromkeys(getattr(config, name) for config in configs)) for name in ("fold", "seed"))
    return Matrix(tuple(losses), folds, seeds, configs[0].epochs)
