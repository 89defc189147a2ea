"""Learning rates per loss: which are tried, on which cases, and that the comparison trains at the best."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from cli_call import call_medloss
from page_reader import read_page
from tiny import tiny_manifest

from pipelines.comparison import screening
from pipelines.comparison.budget import Forecast
from pipelines.comparison.dry_run import remaining_stages
from pipelines.comparison.execution import Comparison, Execution
from pipelines.comparison.planning import Request, plan_comparison
from pipelines.comparison.screening import begun_rungs, plan_tuning, screen, tune
from pipelines.comparison.step_timing import Measured
from pipelines.comparison.step_timing_process import Common, Step
from pipelines.comparison.worker import work
from pipelines.data.manifest import load_manifest
from pipelines.report.collect import from_folder
from pipelines.report.write import write_report
from pipelines.runs.comparison_folder import adopt_plan, require_plan, run_folder
from pipelines.runs.plan import Plan, PlannedRun, RunShape, run_shapes
from pipelines.runs.summary import plan_lines, rung_title, screening_notes
from pipelines.training.auto_config import recipe_rate
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError

_LOSSES = ["dice", "focal", "tversky", "combo", "log_cosh_dice"]


def _request(manifest: Path, **changes: Any) -> Request:
    configs = [
        RunConfig(manifest=str(manifest), loss=loss, epochs=5, batch_size=2, precision="float32", device="cpu",
                  learning_rates={"focal": 1e-2})
        for loss in _LOSSES
    ]  # fmt: skip
    about = {"reference": "dice", "metric": "dice", "margin": 0.01}
    given: dict[str, Any] = {"folds": [0], "seeds": [3], "tune_lr": 3} | changes
    return Request(configs, given.pop("folds"), given.pop("seeds"), load_manifest(manifest), about, **given)


def _end(folder: Path, run: PlannedRun, dice: float | None) -> None:
    at = run_folder(folder, run)
    at.begin(run.config)
    if dice is None:
        at.write_result({"state": "failed", "error": "the loss is nan"})
        return
    at.write_cases([
        {"case": f"f{run.config.fold}c{i}", "patient": f"f{run.config.fold}c{i}", "class": "organ", "dice": dice,
         "iou": dice / 2, "sensitivity": dice, "specificity": 0.9, "hd95_mm": 1.0, "assd_mm": 1.0, "nsd": dice}
        for i in range(8)
    ])  # fmt: skip
    at.write_epochs([{"epoch": 1, "train_loss": 1.0, "epoch_s": 1.0}])
    at.write_result({"state": "done", "error": None, "metrics": {"dice": dice}, "seconds": 1.0, "epoch_s": 1.0,
                     "peak_mb": 1.0})  # fmt: skip


def _dice(config: RunConfig) -> float | None:
    """Best: dice at a third of its rate, focal at three times its own, tversky anywhere; of combo all runs fail."""
    rate = recipe_rate(config)
    best = {"dice": 1e-3, "focal": 3e-2, "log_cosh_dice": 3e-3}
    if config.loss == "combo":
        return None
    if config.loss == "focal" and rate < 0.01:
        return None
    return 0.8 if config.loss in best and rate == pytest.approx(best[config.loss]) else 0.6


def _train(comparison: Comparison) -> None:
    for run in comparison.plan.runs:
        if run_folder(comparison.folder, run).result is None:
            _end(comparison.folder, run, _dice(run.config))


def test_rates_are_factors_of_three_around_the_recipes() -> None:
    configs = [RunConfig(manifest="made", loss="dice")]
    tuning, folds = plan_tuning(5, configs, [0, 1], [7, 8], 11, [0, 1, 2])
    assert [recipe_rate(configs[0]) * factor for factor in tuning.factors] == pytest.approx(
        [3e-3, 1e-3, 9e-3, 3e-3 / 9, 27e-3]
    )
    assert (tuning.fold, tuning.seed, tuning.epochs, folds) == (2, 7, 6, [0, 1])
    # All folds were asked for: the comparison goes without the first.
    assert plan_tuning(2, configs, [0, 1, 2], [0], 1, [0, 1, 2])[1] == [1, 2]


@pytest.mark.parametrize(
    ("count", "folds", "rate", "message"),
    [
        (1, [0, 1], 1e-3, "--tune-lr: got 1; expected 2 to 9 rates per loss"),
        (10, [0, 1], 1e-3, "--tune-lr: got 10; expected 2 to 9"),
        (3, [0], 1e-3, "--tune-lr: got a data set of one fold; expected two or more"),
        (3, [0, 1], 5.0, "--tune-lr: dice would be tried at 15; expected rates below 10"),
    ],
)
def test_what_cannot_be_tuned(count: int, folds: list[int], rate: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_tuning(count, [RunConfig(manifest="made", learning_rate=rate)], [0], [0], 8, folds)


def test_each_loss_is_trained_at_its_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = _request(tiny_manifest(tmp_path, dims=2))
    out = tmp_path / "out"

    def planned() -> Plan:
        return adopt_plan(out, plan_comparison(out, request, measured=False).plan)

    plan, trained = planned(), list[tuple[str, set[tuple[int, int, int]]]]()
    with pytest.raises(UserError, match="its learning rates are not chosen yet"):
        work(out)

    def train(trial: Comparison) -> None:
        runs = {(run.config.fold, run.config.seed, run.config.epochs) for run in trial.plan.runs}
        trained.append((trial.folder.name, runs))
        if len(trained) == 2:
            raise KeyboardInterrupt
        _train(trial)

    monkeypatch.setattr(screening, "train_rung", train)
    with pytest.raises(KeyboardInterrupt):
        tune(Comparison(out, plan), request.configs)
    assert planned() == plan == require_plan(out)
    assert "Tuning is under way: 3 learning rates per loss (1/3, 1, 3 of the recipe's)" in screening_notes(plan)[0]
    plan = tune(Comparison(out, plan), request.configs).plan
    # On cases of another fold than the comparison's.
    assert trained[2:] == [(f"rate{number}", {(1, 3, 3)}) for number in (1, 2, 3)]
    rates = {run.config.loss: recipe_rate(run.config) for run in plan.runs}
    # Of equals the recipe's is chosen, and where every run failed, too.
    assert rates == {"dice": 1e-3, "focal": 0.03, "tversky": 3e-3, "combo": 3e-3, "log_cosh_dice": 3e-3}
    assert {(run.config.fold, run.config.epochs) for run in plan.runs} == {(0, 5)}
    # Called again, nothing is tried again, and the plan is the same.
    assert planned() == plan == require_plan(out)
    assert tune(Comparison(out, plan), request.configs).plan == plan and len(trained) == 5
    with pytest.raises(UserError, match="planned for tune_lr 3, and 4 was asked for"):
        plan_comparison(out, dataclasses.replace(request, tune_lr=4), measured=False)
    with pytest.raises(UserError, match="it is planned with --budget, --tune-lr or --halving, and this one is not"):
        plan_comparison(out, dataclasses.replace(request, tune_lr=None), measured=False)

    _train(Comparison(out, plan))
    collected = from_folder(out)
    assert "tried on fold 1, in one run each of 3 epochs" in collected.notes[0]
    assert "Chosen rates: dice 0.001, focal 0.03, tversky 0.003" in collected.notes[1]
    assert collected.notes[1].endswith("Every run failed, so at the recipe's rate: combo.")
    facts = dict(collected.facts)["learning rates of their own"]
    assert "dice 0.001" in facts and "focal 0.03" in facts
    page = read_page(write_report(collected, tmp_path / "report", bootstraps=20)[0]).text
    assert "dice 0.001 0.003: 0.6000; 0.001: 0.8000; 0.009: 0.6000" in page
    assert "focal 0.03 0.01: 0.6000; 0.003333: failed; 0.03: 0.8000" in page
    assert (tmp_path / "report" / "tables" / "learning_rates.csv").is_file()
    code, shown, _ = call_medloss("status", out)
    assert code == 0 and "tuning, learning rates x 1/3, 3 epochs" in shown and "Chosen rates:" in shown


def test_failed_runs_are_tried_again_until_the_rates_are_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = _request(tiny_manifest(tmp_path, dims=2), tune_lr=2)
    out, waiting = tmp_path / "out", list[tuple[str, list[str]]]()
    plan = adopt_plan(out, plan_comparison(out, request, measured=False).plan)

    def train(trial: Comparison) -> None:
        waiting.append((trial.folder.name, [s.run.config.loss for s in trial.states if not s.finished]))
        _train(trial)
        if len(waiting) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(screening, "train_rung", train)
    comparison = Comparison(out, plan, Execution(retry_failed=True))
    with pytest.raises(KeyboardInterrupt):
        tune(comparison, request.configs)
    tuned = tune(comparison, request.configs)
    assert tune(tuned, request.configs) == tuned
    assert waiting == [("rate1", _LOSSES), ("rate1", ["combo"]), ("rate2", _LOSSES)]


def test_tuning_and_halving_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First the rates, then the screening at those; both on the same cases, which the comparison does not have."""
    request = _request(tiny_manifest(tmp_path, dims=2), halving=True)
    out = tmp_path / "out"
    planned = plan_comparison(out, request, measured=False)
    assert "each of 5 losses is trained on fold 1 at 3 learning rates" in " ".join(
        " ".join(plan_lines(planned.plan, planned.grid)).split()
    )
    plan = adopt_plan(out, planned.plan)
    monkeypatch.setattr(screening, "train_rung", _train)
    comparison = screen(tune(Comparison(out, plan), request.configs), request.configs)
    plan = comparison.plan
    assert plan.losses == ["dice", "focal"]
    rungs = begun_rungs(comparison)
    assert [rung_title(rung.plan) for rung in rungs] == [
        "tuning, learning rates x 1", "tuning, learning rates x 1/3", "tuning, learning rates x 3",
        "screening, rung 1", "screening, rung 2",
    ]  # fmt: skip
    assert {recipe_rate(run.config) for rung in rungs[3:] for run in rung.plan.runs if run.config.loss == "focal"} == {
        0.03
    }
    assert {run.config.loss: recipe_rate(run.config) for run in plan.runs} == {"dice": 1e-3, "focal": 0.03}
    assert plan == adopt_plan(out, plan_comparison(out, request, measured=False).plan)


def test_the_trials_are_counted_in_forecasts_and_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = _request(tiny_manifest(tmp_path, dims=2), tune_lr=2)
    steps = {config.loss: Step(1.0) for config in request.configs}
    common = Common(case_s=0.5, start_s=3.0, save_s=0.25)
    found = Measured(request.configs[0], "cpu", steps, common, worker_s=10.0, prepare_s=7.0, cache_mb=5)
    forecast = Forecast(found, request.manifest)
    out = tmp_path / "out"
    planned = plan_comparison(out, request, measured=False)
    trial = [RunShape(loss, 1, 3) for loss in _LOSSES]
    stages = [trial, trial, run_shapes(planned.grid)]
    assert remaining_stages(out, planned.plan, planned.grid, forecast) == stages
    plan = adopt_plan(out, planned.plan)

    def train(trial: Comparison) -> None:
        _end(trial.folder, trial.plan.runs[0], 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(screening, "train_rung", train)
    with pytest.raises(KeyboardInterrupt):
        tune(Comparison(out, plan), request.configs)
    assert remaining_stages(out, plan, planned.grid, forecast) == [trial[1:], *stages[1:]]
    budget = dataclasses.replace(request, budget=30.0, epochs=planned.grid.epochs)
    fitted = plan_comparison(tmp_path / "other", budget, measured=False, measure=lambda *_: found)
    assert fitted.seconds is not None
    assert fitted.seconds == pytest.approx(forecast.total_s(stages, 1), abs=5)


@pytest.mark.slow
def test_tuning_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "made"))
    out = tmp_path / "out"
    arguments = ["compare", str(tiny_manifest(tmp_path, dims=2)), "--losses", "dice", "--reference", "log_cosh_dice"]
    arguments += ["--tune-lr", "2", "--epochs", "2", "--batch-size", "2", "--precision", "float32", "--device", "cpu"]
    arguments += ["--jobs", "1", "--out", str(out)]
    code, shown, err = call_medloss(*arguments)
    assert code == 0, err
    plan = require_plan(out)
    assert plan.tuning is not None and plan.tuning.over
    assert "tuning, learning rates x 1/3: 2 losses, 1 epoch on fold 1" in err
    assert "Chosen rates: log_cosh_dice" in shown
    rates = {run.config.loss: recipe_rate(run_folder(out, run).config or run.config) for run in plan.runs}
    assert rates == plan.tuning.chosen
    assert call_medloss(*arguments)[0] == 0
