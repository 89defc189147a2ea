"""Halving: which losses are dropped, on which cases, and how this is reported."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cli_call import call_medloss
from mirrored import client_of
from thread_workers import WAITS, Workers
from tiny import tiny_manifest
from waiting import wait_for

from pipelines.comparison import screening
from pipelines.comparison.budget import PLANNED_SHARE
from pipelines.comparison.execution import Comparison, Execution
from pipelines.comparison.planning import Planned, Request, plan_comparison
from pipelines.comparison.screening import judge, plan_halving, screen
from pipelines.comparison.step_timing import Measured
from pipelines.comparison.step_timing_process import Common, Step
from pipelines.data.manifest import load_manifest
from pipelines.report.collect import from_folder
from pipelines.runs.comparison_folder import adopt_plan, require_plan, run_folder
from pipelines.runs.plan import Plan, PlannedRun, survivors
from pipelines.runs.summary import halving_notes
from pipelines.tracking.mlflow_store import local_uri
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import UserError
from pipelines.utils.files import read_json
from pipelines.utils.text import counted

_RACING = ["dice", "focal", "tversky", "combo", "binary_cross_entropy"]
_SCORES = {"dice": 0.8, "focal": 0.5, "tversky": 0.9, "combo": 0.7, "binary_cross_entropy": 0.6, "ref": 0.1}


def _request(manifest: Path, **changes: Any) -> Request:
    losses = ["log_cosh_dice", *_RACING]
    configs = [RunConfig(manifest=str(manifest), loss=loss, epochs=4, batch_size=2, precision="float32", device="cpu")
               for loss in losses]  # fmt: skip
    about = {"reference": "log_cosh_dice", "metric": "dice", "margin": 0.01}
    given: dict[str, Any] = {"folds": [0], "seeds": [0], "halving": True} | changes
    return Request(configs, given.pop("folds"), given.pop("seeds"), load_manifest(manifest), about, **given)


def _end(folder: Path, run: PlannedRun, dice: float | None) -> None:
    run_dir = run_folder(folder, run)
    run_dir.begin(run.config)
    if dice is None:
        run_dir.write_result({"state": "failed", "error": "the loss is nan"})
        return
    run_dir.write_cases([
        {"case": f"f{run.config.fold}c{i}", "patient": f"f{run.config.fold}c{i}", "class": "organ", "dice": dice,
         "iou": dice / 2, "sensitivity": dice, "specificity": 0.9, "hd95_mm": 1 / dice, "assd_mm": 1.0, "nsd": dice}
        for i in range(8)
    ])  # fmt: skip
    run_dir.write_epochs([{"epoch": 1, "train_loss": 1.0, "epoch_s": 1.0}])
    run_dir.write_result({"state": "done", "error": None, "metrics": {"dice": dice, "hd95_mm": 1 / dice},
                          "seconds": 1.0, "epoch_s": 1.0, "peak_mb": 1.0})  # fmt: skip


def test_the_cases_that_drop_are_never_those_that_judge() -> None:
    losses = ["ref", *_RACING]
    halving, folds = plan_halving(losses, "ref", [0, 1], [3, 4], 40, [0, 1, 2])
    assert (halving.fold, halving.seed, folds, halving.rungs) == (2, 3, [0, 1], [10, 20])
    halving, folds = plan_halving(losses, "ref", [0, 1, 2], [0], 4, [0, 1, 2])
    assert (halving.fold, folds, halving.rungs) == (0, [1, 2], [1, 2])
    assert "ref" not in halving.losses
    assert [survivors(count) for count in (4, 5, 8, 17)] == [1, 2, 2, 5]


def test_too_few_losses_epochs_or_folds() -> None:
    with pytest.raises(UserError, match="--halving: got 3 losses next to the reference; expected 4 or more"):
        plan_halving(["ref", *_RACING[:3]], "ref", [0], [0], 40, [0, 1])
    with pytest.raises(UserError, match="--halving: got 2 epochs; expected 4 or more"):
        plan_halving(["ref", *_RACING], "ref", [0], [0], 2, [0, 1])
    with pytest.raises(UserError, match="--halving: got a data set of one fold; expected two or more"):
        plan_halving(["ref", *_RACING], "ref", [0], [0], 40, [0])


def _judged(tmp_path: Path, metric: str, scores: dict[str, float | None]) -> tuple[list[str], Any, int]:
    from pipelines.runs.plan import make_plan

    configs = [RunConfig(manifest="made", loss=loss) for loss in scores]
    plan = make_plan(configs, [1], [0], "made", "0" * 64, metric=metric, rung=1)
    for run in plan.runs:
        _end(tmp_path, run, scores[run.config.loss])
    return judge(Comparison(tmp_path, plan))


@pytest.mark.parametrize("metric", ["dice", "hd95_mm"])
def test_the_better_half_is_kept(tmp_path: Path, metric: str) -> None:
    kept, dropped, cases = _judged(tmp_path, metric, {loss: _SCORES[loss] for loss in _RACING})
    assert (kept, cases) == (["dice", "tversky", "combo"], 8)
    assert [loss.loss for loss in dropped] == ["binary_cross_entropy", "focal"]
    bound = {"dice": 0.7, "hd95_mm": 1 / 0.7}[metric]
    assert {loss.bound for loss in dropped} == {bound}


def test_a_failed_run_is_dropped_even_from_the_better_half(tmp_path: Path) -> None:
    kept, dropped, _ = _judged(tmp_path, "dice", {"dice": None, "focal": 0.5, "tversky": None, "combo": None})
    assert kept == ["focal"]
    assert all(loss.error == "the loss is nan" and loss.score is None for loss in dropped)
    with pytest.raises(
        UserError, match=r"all losses failed in the screening; dice: the loss is nan; see .*--retry-failed"
    ):
        _judged(tmp_path / "all", "dice", {"dice": None, "focal": None})


def test_screening_resumes_and_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = tiny_manifest(tmp_path, dims=2)
    request = _request(manifest)
    out = tmp_path / "out"
    plan = adopt_plan(out, plan_comparison(out, request, measured=False).plan)
    # Until it is known who survives, the reference alone is there to be trained.
    assert [run.id for run in plan.runs] == ["log_cosh_dice-fold0-seed0"]
    trained: list[tuple[str, int, list[str], set[int]]] = []

    def train(rung: Comparison) -> None:
        folds = {run.config.fold for run in rung.plan.runs}
        trained.append((rung.folder.name, rung.epochs, rung.plan.losses, folds))
        for run in rung.plan.runs:
            _end(rung.folder, run, _SCORES[run.config.loss])
        if len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(screening, "train_rung", train)
    with pytest.raises(KeyboardInterrupt):
        screen(Comparison(out, plan), request.configs)
    assert require_plan(out) == plan
    again = adopt_plan(out, plan_comparison(out, request, measured=False).plan)
    assert again == plan
    plan = screen(Comparison(out, again), request.configs).plan
    assert [entry[:3] for entry in trained[2:]] == [("rung1", 1, _RACING), ("rung2", 2, ["dice", "tversky", "combo"])]
    assert all(entry[3] == {1} for entry in trained)
    assert plan.losses == ["log_cosh_dice", "dice", "tversky"]
    assert {(run.config.epochs, run.config.fold) for run in plan.runs} == {(4, 0)}
    # Once it is over, neither the folder nor another call begins it again.
    assert adopt_plan(out, plan_comparison(out, request, measured=False).plan) == plan == require_plan(out)
    assert screen(Comparison(out, plan), request.configs).plan == plan and len(trained) == 4
    assert (out / "screening" / "rung1" / "cache").resolve() == (out / "cache").resolve()

    for run in plan.runs:
        _end(out, run, {"log_cosh_dice": 0.7, "dice": 0.8, "tversky": 0.75}[run.config.loss])
    notes = from_folder(out).notes
    assert notes == halving_notes(plan)
    assert "5 losses were screened on fold 1 (8 cases) in one run each of 1 and 2 epochs" in notes[0]
    assert "focal: dropped after 1 epoch: Dice 0.5000; the lowest kept had 0.7000." in notes
    assert "combo: dropped after 2 epochs: Dice 0.7000; the lowest kept had 0.8000." in notes
    assert "focal" not in from_folder(out).table.losses


def test_failed_runs_of_the_rung_under_way_are_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = _request(tiny_manifest(tmp_path, dims=2))
    out = tmp_path / "out"
    plan = adopt_plan(out, plan_comparison(out, request, measured=False).plan)
    trained: list[tuple[str, int]] = []

    def train(rung: Comparison) -> None:
        waiting = [run for run in rung.plan.runs if run_folder(rung.folder, run).result is None]
        trained.append((rung.folder.name, len(waiting)))
        for run in waiting:
            fails = (rung.folder.name, run.config.loss) in {("rung1", "tversky"), ("rung2", "dice")}
            _end(rung.folder, run, None if fails else _SCORES[run.config.loss])
        if len(trained) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(screening, "train_rung", train)
    comparison = Comparison(out, plan, Execution(retry_failed=True))
    with pytest.raises(KeyboardInterrupt):
        screen(comparison, request.configs)
    plan = screen(comparison, request.configs).plan
    # Of the second rung, the failed run; the first rung's stays failed, since the second was built on it.
    assert trained == [("rung1", 5), ("rung2", 3), ("rung1", 0), ("rung2", 1)]
    assert plan.halving is not None
    assert [(loss.loss, loss.rung) for loss in plan.halving.dropped if loss.error] == [("tversky", 1), ("dice", 2)]


def test_budget_and_halving_together(tmp_path: Path) -> None:
    """Three folds were asked for, so the first screens; what is planned is fitted with the screening in it."""
    request = _request(tiny_manifest(tmp_path, dims=2, cases=24), budget=30.0, folds=[0, 1, 2], epochs=4)
    steps = {config.loss: Step(1.0) for config in request.configs}
    common = Common(case_s=0.5, start_s=3.0, save_s=0.25)
    found = Measured(request.configs[0], "cpu", steps, common, worker_s=10.0, prepare_s=7.0, cache_mb=5)

    def planned(minutes: float, **changes: Any) -> Planned:
        limited = dataclasses.replace(request, budget=minutes, **changes)
        return plan_comparison(tmp_path / "out", limited, measured=False, measure=lambda *_: found)

    whole = planned(30.0)
    assert whole.plan.halving is not None and whole.plan.halving.fold == 0
    assert (whole.grid.folds, whole.grid.epochs, whole.plan.told) == ((1, 2), 4, [])
    # Epochs that were not asked for fill the budget, with those of the screening.
    filled = planned(30.0, epochs=None)
    assert filled.plan.halving is not None and filled.seconds is not None and filled.grid.epochs > 4
    assert filled.plan.halving.rungs == [round(filled.grid.epochs / 4), round(filled.grid.epochs / 2)]
    assert 0.9 < filled.seconds / (30 * 60 * PLANNED_SHARE) <= 1
    # Of e epochs a run takes 3 + e * 12.25 s; in a stage more for its workers, and the rest.
    rungs, full = 5 * 15.25 + 3 * 27.5 + 20, 52.0
    less = planned((rungs + 6 * full + 47 - 1) / 60 / PLANNED_SHARE)
    # Two that survive, and eight patients of one fold: that would be enough.
    assert (less.grid.folds, less.grid.epochs, len(less.grid.losses)) == ((1,), 4, 6)


def _command(tmp_path: Path, out: Path) -> list[str]:
    arguments = ["compare", str(tiny_manifest(tmp_path, dims=2)), "--losses", "dice,focal,tversky,combo", "--halving"]
    arguments += ["--reference", "log_cosh_dice", "--epochs", "4", "--batch-size", "2", "--precision", "float32"]
    return [*arguments, "--device", "cpu", "--jobs", "1", "--out", str(out)]


def test_halving_interrupted_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "made"))
    out = tmp_path / "out"

    def make_store(folder: Path) -> None:
        if not (folder / "mlflow.db").exists():
            shutil.copy(empty_store, folder / "mlflow.db")

    monkeypatch.setattr("pipelines.tracking.mlflow_mirror.make_local_store", make_store)
    workers = Workers(monkeypatch)
    workers.behaviour = {"focal": WAITS}
    workers.waits = lambda: os.kill(os.getpid(), signal.SIGTERM)
    arguments = _command(tmp_path, out)
    first = out / "screening" / "rung1" / "runs" / "dice-fold1-seed0" / "result.json"
    # Its handler is the command's; nothing but that changes.
    before = signal.getsignal(signal.SIGTERM)
    try:
        code, _, err = call_medloss(*arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 130, err
    assert err.endswith("interrupted: run the same command again to resume\n")
    workers.behaviour = {}
    _resumed(out, arguments, first)
    assert workers.started["dice-fold1-seed0"] == 2  # once in each rung
    assert workers.started["focal-fold1-seed0"] == 3


@pytest.mark.slow
def test_halving_end_to_end_killed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "made"))
    out = tmp_path / "out"
    arguments = _command(tmp_path, out)
    first = out / "screening" / "rung1" / "runs" / "dice-fold1-seed0" / "result.json"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", *arguments], stdout=log, stderr=log)
    try:
        wait_for(lambda: first.is_file() or process.poll() is not None, what="the first run has ended")
    finally:
        process.kill()
        process.wait()
    assert first.is_file(), (tmp_path / "log").read_text()
    _resumed(out, arguments, first)


def _resumed(out: Path, arguments: list[str], first: Path) -> None:
    """Called again, it is carried through; what had ended is left as it was."""
    code, shown, _ = call_medloss("status", out)
    assert code == 0 and "screening, rung 1, 1 epoch" in shown and "Halving is under way: 4 losses" in shown
    finished = first.stat().st_mtime_ns
    code, shown, err = call_medloss(*arguments)
    assert code == 0, err
    assert first.stat().st_mtime_ns == finished  # it was not trained again
    final = require_plan(out)
    assert final.halving is not None and final.halving.over and len(final.halving.dropped) == 3
    assert len(final.losses) == 2 and final.losses[0] == "log_cosh_dice"
    assert "screening, rung 2: 2 losses, 2 epochs on fold 1" in err
    for dropped in final.halving.dropped:
        words = f"{dropped.loss}: dropped after {counted(dropped.epochs, 'epoch')}"
        assert words in shown and words in err
        assert not (out / "runs" / f"{dropped.loss}-fold0-seed0").exists()
    judged, screened = ({row["case"] for path in (out / where).glob("runs/*") for row in RunFolder(path).cases}
                        for where in (".", "screening/rung1"))  # fmt: skip
    assert len(judged) == len(screened) == 2 and not judged & screened
    notes = read_json(out / "report" / "analysis.json")["notes"]
    assert sum("dropped after" in note for note in notes) == 3
    assert "screening, rung 2, 2 epochs" in call_medloss("status", out)[1]
    _mlflow_has_the_rungs_too(out, final)
    (out / "mlflow.db").unlink()  # as if the server had been away all the time
    assert call_medloss(*arguments)[0] == 0
    _mlflow_has_the_rungs_too(out, final)


def _mlflow_has_the_rungs_too(out: Path, final: Plan) -> None:
    client = client_of(local_uri(out))
    (experiment,) = (found for found in client.search_experiments() if found.name == final.manifest_name)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    named = {run.info.run_id: run.info.run_name.partition(" · ")[0] for run in runs}
    trained = Counter(named[run.data.tags["mlflow.parentRunId"]] for run in runs if "loss" in run.data.params)
    assert trained == {
        "screening, rung 1: 4 losses": 4, "screening, rung 2: 2 losses": 2, "2 losses": 2,
    }  # fmt: skip
    assert all("val/dice" in run.data.metrics for run in runs if "loss" in run.data.params)
    assert len(named) == 3 + 8
