"""Budgets: what gives way for time, in which order, and that a plan once made is kept."""

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_call import call_medloss
from tiny import tiny_manifest

from pipelines.comparison.budget import LEAST_STEPS, PLANNED_SHARE, Costs, Fitted, Forecast, Limits, fit
from pipelines.comparison.planning import Planned, Request, plan_comparison
from pipelines.comparison.step_timing import Measured
from pipelines.comparison.step_timing_process import Common, Step
from pipelines.data.manifest import load_manifest
from pipelines.runs.comparison_folder import adopt_plan, require_plan
from pipelines.runs.plan import Halving, RunGrid, RunShape
from pipelines.runs.summary import plan_lines
from pipelines.statistics.mean_difference import least_patients
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError

_SPEED = {"ref": 1.0, "dice": 1.0, "focal": 2.0, "slow": 10.0}


def _seconds(grid: RunGrid) -> float:
    each = sum(_SPEED[loss] for loss in grid.losses)
    return each * len(grid.folds) * len(grid.seeds) * grid.epochs


def _fit(minutes: float, *, folds: int = 5, seeds: int = 1, epochs: int = 20, asked: bool = True, per_fold: int = 10,
         losses: tuple[str, ...] = ("ref", "dice", "focal", "slow"), most: int = 0) -> Fitted:  # fmt: skip
    grid = RunGrid(losses, tuple(range(folds)), tuple(range(seeds)), epochs)
    costs = Costs(_seconds, lambda some: per_fold * len(some), _SPEED.__getitem__)
    return fit(grid, minutes, costs, Limits("ref", epochs_asked=asked, most_epochs=most))


def _minutes(seconds: float) -> float:
    return seconds / 60 / PLANNED_SHARE + 1e-9


def test_what_fits_is_left_as_it_was_asked_for() -> None:
    fitted = _fit(_minutes(14 * 5 * 20))
    assert (fitted.grid.folds, fitted.grid.epochs, fitted.changes) == ((0, 1, 2, 3, 4), 20, ())
    assert fitted.seconds == 14 * 5 * 20


def test_seeds_go_before_folds_folds_before_epochs_epochs_before_losses() -> None:
    whole = 14 * 20
    fitted = _fit(_minutes(whole * 5), seeds=3)
    assert (len(fitted.grid.seeds), len(fitted.grid.folds)) == (1, 5)
    fitted = _fit(_minutes(whole * 3))
    assert (fitted.grid.folds, fitted.grid.epochs, len(fitted.grid.losses)) == ((0, 1, 2), 20, 4)
    assert [re.match(r"Planned to fit [\d.]+ minutes: (.*?);", sentence)[1] for sentence in fitted.changes] == [
        "folds 0, 1, 2 of the 5 asked for"
    ]
    fitted = _fit(_minutes(14 * 15))
    assert (fitted.grid.folds, fitted.grid.epochs, len(fitted.grid.losses)) == ((0,), 15, 4)
    # Half of the epochs do not fit either: the slowest goes, and with what that frees, folds come back.
    fitted = _fit(_minutes(14 * 10 - 1))
    assert (fitted.grid.losses, fitted.grid.folds, fitted.grid.epochs) == (("ref", "dice", "focal"), (0,), 20)
    assert "slow is left out" in fitted.changes[-1]


def test_folds_stay_as_many_as_the_test_needs() -> None:
    # Sign flips need six patients: two folds of four.
    assert least_patients() == 6
    fitted = _fit(_minutes(14 * 2 * 12), per_fold=4)
    assert (fitted.grid.folds, fitted.grid.epochs) == ((0, 1), 12)


def test_epochs_that_were_not_asked_for_give_way_before_folds_and_grow_to_the_recipes() -> None:
    fitted = _fit(_minutes(14 * 5 * 13), asked=False)
    assert (len(fitted.grid.folds), fitted.grid.epochs) == (5, 13)
    assert _fit(1e6, asked=False).grid.epochs == 20
    fitted = _fit(_minutes(14 * 4 * 10), asked=False)
    assert (len(fitted.grid.folds), fitted.grid.epochs) == (4, 10)


@pytest.mark.parametrize("minutes", [30, 100, 333])
def test_epochs_that_were_not_asked_for_fill_the_budget(minutes: float) -> None:
    fitted = _fit(minutes, asked=False, most=1000)
    one_more = _seconds(replace(fitted.grid, epochs=fitted.grid.epochs + 1))
    assert fitted.seconds is not None and fitted.seconds <= minutes * 60 * PLANNED_SHARE < one_more
    assert (len(fitted.grid.losses), len(fitted.grid.folds), fitted.grid.epochs > 20) == (4, 5, True)
    epochs = fitted.grid.epochs
    assert fitted.changes == (f"Planned to fit {minutes} minutes: {epochs} epochs, as many as fit, instead of the "
                              "recipe's 20.",)  # fmt: skip
    # Not without end, and not where they were asked for.
    assert _fit(1e6, asked=False, most=1000).grid.epochs == 1000
    assert _fit(minutes, asked=True, most=1000).grid.epochs == 20


def test_the_reference_is_never_left_out_though_it_be_the_slowest() -> None:
    slow = ("dice", "focal", "slow")
    grid = RunGrid(slow, (0,), (0,), 4)
    costs = Costs(_seconds, lambda some: 50, _SPEED.__getitem__)
    fitted = fit(grid, _minutes(11 * 2), costs, Limits("slow", epochs_asked=True))
    assert fitted.grid.losses == ("dice", "slow")


def test_a_budget_in_which_nothing_fits_is_refused() -> None:
    with pytest.raises(UserError) as refusal:
        _fit(0.1, folds=1)
    assert str(refusal.value) == (
        "--budget: got 0.1 minutes, of which 90% are planned; the smallest comparison (ref, dice; fold 0; 10 epochs) "
        "takes about 20 s, including the measurement"
    )


@pytest.mark.parametrize("minutes", [1, 2.5, 4, 7, 11, 16, 30, 60])
@pytest.mark.parametrize("asked", [True, False])
def test_no_plan_takes_longer_than_its_budget(minutes: float, asked: bool) -> None:
    fitted = _fit(minutes, seeds=2, asked=asked)
    assert fitted.seconds <= minutes * 60 * PLANNED_SHARE
    assert 10 <= fitted.grid.epochs <= 20 and fitted.grid.losses[0] == "ref"


def _measured(**steps: Step) -> Measured:
    config = RunConfig(manifest="tiny", batch_size=2, val_interval=2)
    common = Common(case_s=0.5, start_s=3.0, save_s=0.25, checkpoint_mb=10, model_mb=2)
    return Measured(config, "cpu", steps, common, worker_s=10.0, prepare_s=7.0, cache_mb=5, labels_mb=1.5,
                    probabilities_mb=20)  # fmt: skip


def test_a_run_takes_its_start_steps_validations_and_checkpoints(tmp_path: Path) -> None:
    manifest = load_manifest(tiny_manifest(tmp_path, dims=2))
    forecast = Forecast(_measured(dice=Step(1.0), broken=Step(None, error="nan")), manifest)
    assert forecast.steps(0) == 2  # four cases train
    # Start, five epochs of two steps and a checkpoint, three validations of two cases.
    assert forecast.run_s(RunShape("dice", 0, 5)) == 3 + 5 * (2 + 0.25) + 3 * 2 * 0.5
    # Of one that was interrupted, what is left: two epochs, and the validation after the fifth.
    assert forecast.run_s(RunShape("dice", 0, 5, done=4)) == 3 + 1 * (2 + 0.25) + 1 * 2 * 0.5
    assert forecast.run_s(RunShape("broken", 0, 5)) == 3


def test_runs_are_dealt_to_the_worker_that_is_free(tmp_path: Path) -> None:
    forecast = Forecast(_measured(dice=Step(1.0), focal=Step(2.0)), load_manifest(tiny_manifest(tmp_path, dims=2)))
    stages = forecast.stages(RunGrid(("dice", "focal"), (0, 1), (0,), 5))
    dice, focal = (forecast.run_s(RunShape(loss, 0, 5)) for loss in ("dice", "focal"))
    # Preparation, a worker's start, the runs, and three starts' time for the rest.
    assert forecast.total_s(stages, 1) == pytest.approx(7 + 10 + 2 * (dice + focal) + 3 * 10)
    # Dice ends first, and its worker takes the next dice; then the other one takes focal.
    assert forecast.total_s(stages, 2) == pytest.approx(7 + 10 + max(2 * dice, 2 * focal) + 3 * 10)
    assert forecast.total_s(stages, 9) == pytest.approx(7 + 10 + focal + 3 * 10)
    assert forecast.total_s([[]], 2) == 7 + 3 * 10
    disk = forecast.disk_mb(stages, 2)
    # Four runs keep two checkpoints each, and two are being written; MLflow has one model more.
    assert (disk["prepared cases"], disk["checkpoints"], disk["models"], disk["predictions"]) == (5, 100, 10, 6)
    assert "probabilities, at most" not in disk
    # Probabilities come with label maps, also where these were not asked for.
    for labels in (True, False):
        config = forecast.measured.config.model_copy(update={"keep_probabilities": True, "keep_predictions": labels})
        kept = replace(forecast, measured=replace(forecast.measured, config=config)).disk_mb(stages, 2)
        assert (kept["predictions"], kept["probabilities, at most"]) == (6, 80)


def test_a_rung_is_over_before_the_next_begins(tmp_path: Path) -> None:
    steps = {"ref": Step(1.0), "a": Step(1.0), "b": Step(2.0), "c": Step(3.0), "d": Step(4.0), "e": Step(5.0)}
    forecast = Forecast(_measured(**steps), load_manifest(tiny_manifest(tmp_path, dims=2)))
    halving = Halving(fold=2, seed=0, losses=["a", "b", "c", "d", "e"], rungs=[5, 10])
    stages = forecast.stages(RunGrid(tuple(steps), (0, 1), (0,), 20), halving)
    # Nobody knows who survives: the slowest are counted.
    assert [[run.loss for run in stage] for stage in stages] == [
        ["e", "d", "c", "b", "a"], ["e", "d", "c"], ["ref", "e", "d", "ref", "e", "d"],
    ]  # fmt: skip
    assert [{(run.fold, run.epochs) for run in stage} for stage in stages] == [
        {(2, 5)}, {(2, 10)}, {(0, 20), (1, 20)},
    ]  # fmt: skip
    apart = sum(forecast.total_s([stage], 2) - 37 for stage in stages)
    assert forecast.total_s(stages, 2) == pytest.approx(37 + apart)


def _request(manifest: Path, **changes: Any) -> Request:
    loaded = load_manifest(manifest)
    losses = ("dice", "focal", "tversky")
    configs = [RunConfig(manifest=str(manifest), loss=loss, epochs=4, precision="float32", device="cpu")
               for loss in losses]  # fmt: skip
    about = {"reference": "dice", "metric": "dice", "margin": 0.01}
    return Request(configs, [0, 1], [0], loaded, about, **changes)


def _measure(*_: Any) -> Measured:
    return _measured(dice=Step(1.0), focal=Step(1.0), tversky=Step(4.0))


def test_a_plan_once_made_is_gone_on_with(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, dims=2)
    out = tmp_path / "out"

    def plan(**changes: Any) -> Planned:
        return plan_comparison(out, _request(manifest, **changes), measured=False, measure=_measure)

    first = plan(budget=60.0)
    assert first.forecast is not None and not out.exists()
    grown = first.grid.epochs
    assert (len(first.plan.runs), first.plan.told) == (6, [f"Planned to fit 60 minutes: {grown} epochs, as many as "
                                                           "fit, instead of the recipe's 4."])  # fmt: skip
    assert first.seconds is not None and 0.8 < first.seconds / 3600 <= PLANNED_SHARE
    assert {run.config.epochs for run in first.plan.runs} == {grown}
    (line,) = (line for line in plan_lines(first.plan, first.grid, first.seconds) if line.startswith("time"))
    assert line.endswith("including the measurement, of a budget of 60 minutes")
    asked = plan(budget=60.0, epochs=4)
    assert (asked.grid.epochs, asked.plan.told) == (4, [])
    shown = " ".join(" ".join(plan_lines(asked.plan, asked.grid, asked.seconds)).split())
    assert shown.endswith("of a budget of 60 minutes: without --epochs, they would fill it")
    # As if it had been measured on a slower day.
    slower = first.plan.model_copy(update={"runs": first.plan.runs[:3], "told": ["fewer folds"]})
    adopt_plan(out, slower)
    again = plan(budget=60.0)
    assert again.forecast is None  # nothing is measured again
    assert adopt_plan(out, again.plan) == slower == require_plan(out)
    assert again.grid.folds == (0,)
    for other, err in (({"budget": 30.0}, "planned for budget_minutes 60.0, and 30.0 was asked for"),
                        ({"budget": 60.0, "epochs": 4}, "planned for epochs None, and 4 was asked for"),
                        ({}, "it is planned with --budget, --tune-lr or --halving, and this one is not")):  # fmt: skip
        with pytest.raises(UserError, match=err):
            plan(**other)


@pytest.mark.parametrize("halving", [False, True])
def test_the_budget_that_is_named_for_enough_steps_has_them(tmp_path: Path, halving: bool) -> None:
    manifest = tiny_manifest(tmp_path, dims=2, cases=24)

    def plan(minutes: float) -> Planned:
        request = _request(manifest, budget=minutes)
        if halving:
            more = [request.configs[0].model_copy(update={"loss": loss}) for loss in ("combo", "lovasz")]
            request = replace(request, configs=[*request.configs, *more], halving=True)
        slow = {loss: Step(4.0) for loss in ("dice", "focal", "tversky", "combo", "lovasz")}
        return plan_comparison(tmp_path / "out", request, measured=False, measure=lambda *_: _measured(**slow))

    few = plan(30.0)
    assert few.forecast is not None and few.enough_minutes is not None and few.enough_minutes > 30
    per_epoch = few.forecast.optimizer_steps(0)
    assert few.grid.epochs * per_epoch < LEAST_STEPS
    enough, less = plan(few.enough_minutes).grid, plan(few.enough_minutes - 2).grid
    assert enough.epochs * per_epoch >= LEAST_STEPS > less.epochs * per_epoch
    assert enough.losses == tuple(config.loss for config in plan(few.enough_minutes).configs)
    assert plan_comparison(tmp_path / "out", _request(manifest), measured=True, measure=_measure).enough_minutes is None


def test_halving_of_data_whose_first_epoch_has_enough_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.comparison.budget.LEAST_STEPS", 2)
    losses = ("dice", "focal", "tversky", "combo", "lovasz")
    request = _request(tiny_manifest(tmp_path, dims=2, cases=24), budget=60.0, halving=True)
    request = replace(request, configs=[request.configs[0].model_copy(update={"loss": loss}) for loss in losses])
    steps = {loss: Step(1.0) for loss in losses}
    planned = plan_comparison(tmp_path / "out", request, measured=False, measure=lambda *_: _measured(**steps))
    assert planned.forecast is not None and planned.forecast.epochs_of_enough_steps(0) == 1
    # Fewer than four epochs cannot be halved.
    assert planned.enough_minutes is not None and planned.grid.epochs >= 4


def test_the_time_that_measuring_took_is_gone(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, dims=2, cases=24)
    # Three losses on two folds in one worker: four epochs of 16 steps, validated each; 47 s for the rest.
    takes = 2 * sum(3 + 4 * (8 * s + 0.25) + 2 * 8 * 0.5 for s in (1, 1, 4)) + 47
    minutes = (takes + 600) / 60 / PLANNED_SHARE

    def folds(began: float) -> tuple[int, ...]:
        request = _request(manifest, budget=minutes, epochs=4, began=began)
        return plan_comparison(tmp_path / "out", request, measured=False, measure=_measure).grid.folds

    assert folds(time.monotonic()) == (0, 1)
    assert folds(time.monotonic() - 700) == (0,)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan"])
def test_no_budget(tmp_path: Path, minutes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_manifest(tmp_path, dims=2)
    code, _, err = call_medloss("compare", "tiny_2d.yaml", "--losses", "dice", "--out", "out", "--budget", minutes)
    assert (code, err) == (2, f"error: --budget: got {float(minutes):g}; expected minutes, above 0\n")
    assert not (tmp_path / "out").exists()
