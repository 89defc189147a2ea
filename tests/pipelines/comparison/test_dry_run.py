"""Dry runs: measured, printed, and no trace left."""

import contextlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_call import call_medloss
from tiny import tiny_manifest

from pipelines.comparison import step_timing, step_timing_process
from pipelines.comparison.budget import Forecast
from pipelines.comparison.dry_run import ASSUMED_SD, detectable_difference, remaining_stages
from pipelines.comparison.dry_run import dry_run as dry_run_lines
from pipelines.comparison.step_timing import Measured
from pipelines.comparison.step_timing_process import Common, Step
from pipelines.data.manifest import load_manifest
from pipelines.runs.comparison_folder import adopt_plan, run_folder
from pipelines.runs.plan import Asked, RunGrid, RunShape, make_plan, run_shapes
from pipelines.statistics.results import least_difference
from pipelines.training.run_config import RunConfig


@pytest.fixture
def dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "made"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # else torch makes one there, once
    tiny_manifest(tmp_path, dims=2, cases=12)

    def call(*options: str) -> tuple[int, str, str]:
        arguments = ["compare", "tiny_2d.yaml", "--losses", "dice,focal", "--precision", "float32", "--device", "cpu"]
        code, shown, err = call_medloss(*arguments, "--jobs", "1", "--out", "out", "--dry-run", *options)
        assert list(temporary.iterdir()) == []
        assert max(map(len, shown.splitlines()), default=0) <= 100
        return code, shown, err

    return call


class _Killed(BaseException):
    """Ends a prober's thread as a signal would end its process."""


class _ThreadProcess:
    """As much of a prober's process as is looked at: a thread, in which a loss named Dies kills it."""

    def __init__(self, command: list[str], **_: Any) -> None:
        self.returncode: int | None = None
        folder, parent = command[-2:]

        def run() -> None:
            with contextlib.suppress(_Killed):
                step_timing_process.main(Path(folder), int(parent))
            self.returncode = -9

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        _over.add(self.thread.ident)

    def wait(self) -> None:
        self.thread.join()
        _over.discard(self.thread.ident)


#: The threads that were killed.
_over: set[int | None] = set()


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing processes are threads of this process, and time few steps."""
    measured = step_timing_process.measured

    def until_killed(config: RunConfig, folder: Path, common: bool) -> Any:
        if threading.get_ident() in _over or config.loss.endswith(".Dies"):
            raise _Killed
        return measured(config, folder, common)

    monkeypatch.setattr(step_timing_process, "measured", until_killed)
    monkeypatch.setattr(step_timing_process, "exit_with", lambda parent: None)
    monkeypatch.setattr(step_timing_process, "_LEAST_S", 0.01)
    # Its name alone: modules that are imported meanwhile need the real one.
    monkeypatch.setattr(step_timing, "subprocess", SimpleNamespace(Popen=_ThreadProcess, DEVNULL=subprocess.DEVNULL))


@pytest.fixture
def where(request: pytest.FixtureRequest) -> None:
    if request.param == "threads":
        request.getfixturevalue("in_threads")


#: Quick in threads; for real in processes.
_both = pytest.mark.parametrize("where", ["threads", pytest.param("processes", marks=pytest.mark.slow)], indirect=True)


def _flat(shown: str) -> str:
    """In one line, however it was wrapped."""
    return " ".join(shown.split())


# Once by real processes.
def test_everything_is_measured_and_no_file_remains(dry_run: Any, tmp_path: Path) -> None:
    code, shown, err = dry_run("--folds", "0,1", "--epochs", "5", "--jobs", "2", "--probabilities")
    assert code == 0, err
    assert not (tmp_path / "out").exists()
    assert "3 losses x 2 folds x 1 seed = 6 runs of 5 epochs on tiny_2d; folds 0, 1; seed 0" in _flat(shown)
    assert "there nothing yet in out" in _flat(shown)
    for loss in ("dice+binary_cross_entropy", "dice", "focal"):
        row = re.search(rf"^{re.escape(loss)} +2 +0 +(\d+\.\d+) +(\d+\.\d+) +\d+\.\d +\d+\.\d +(\d+)$", shown, re.M)
        assert row is not None, shown
        assert float(row[1]) > 0 and int(row[3]) > 50
    assert re.search(r"about [\d a-z]+ in all, 2 jobs at a time", _flat(shown))
    evidence = "evidence 8 of 12 cases validate, those of folds 0, 1, and decide the verdict; 2 comparisons with dice+"
    assert evidence in _flat(shown) and "patient" not in shown
    steps = re.search(r"8 cases train in (\d+) steps per epoch, and 4 validate", _flat(shown))
    assert steps is not None
    assert f"{5 * int(steps[1])} optimizer steps per network (5 epochs of {steps[1]})" in _flat(shown)
    assert re.search(r"^warning: +\d+ optimizer steps per network, fewer than 200: the verdict", shown, re.M)
    assert f"take --epochs {math.ceil(200 / int(steps[1]))} or more" in _flat(shown)
    alone, family = (least_difference(ASSUMED_SD, 8, comparisons=k) for k in (1, 2))
    assert f"{alone:.4f} Dice where it is the only one tested; {family:.4f} Dice as one of 2." in _flat(shown)
    assert "does not include the variation of retraining" in _flat(shown)
    assert "standard deviation of 0.018 Dice" in _flat(shown)
    assert re.search(r"^disk +\d+ MB more \(prepared cases", shown, re.M) and shown.count("warning") == 1
    assert "probabilities, at most under 1 MB" in _flat(shown)
    assert "Too few" not in shown


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
@pytest.mark.usefixtures("in_threads")
def test_existing_runs_are_counted_and_not_changed(
    dry_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    path = str(tmp_path / "tiny_2d.yaml")
    loaded = load_manifest(path)
    losses = ("dice+binary_cross_entropy", "dice", "focal")
    configs = [RunConfig(manifest=path, loss=loss, epochs=4, precision="float32", device="cpu") for loss in losses]
    plan = adopt_plan(out, make_plan(configs, [0], [0], loaded.name, loaded.sha256, reference=losses[0]))
    for run in plan.runs[:2]:
        run_folder(out, run).begin(run.config)
    run_folder(out, plan.runs[0]).write_result({"state": "done", "error": None, "metrics": {"dice": 0.5}})
    run_folder(out, plan.runs[1]).write_progress(3, 4, 1.0, 0.4)
    (out / "cache").mkdir()
    (out / "cache" / "0.pt").write_bytes(b"no entry")
    real = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=2**20))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, shown, err = dry_run("--epochs", "4")
    assert code == 0, err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert "there 1 done, 1 interrupted, 1 waiting of the runs, in out" in _flat(shown)
    assert re.search(r"^dice\+binary_cross_entropy +1 +1 ", shown, re.M) and re.search(r"^focal +1 +0 ", shown, re.M)
    assert re.search(r"^warning: +too little disk: \d+ MB are missing", shown, re.M)
    # Another comparison is refused before anything is measured.
    code, shown, err = dry_run("--epochs", "5")
    assert (code, shown) == (2, "")
    assert (
        err == "error: --out: out holds another comparison: its epochs is 4, and 5 was asked for; name another folder\n"
    )


def test_remaining_epochs_are_counted(tmp_path: Path) -> None:
    configs = [RunConfig(manifest="tiny", loss=loss, epochs=8) for loss in ("dice", "focal", "tversky")]
    plan = make_plan(configs, [0, 1], [0], "tiny", "0" * 64)
    grid = RunGrid(("dice", "focal", "tversky"), (0, 1), (0,), 8)
    steps = {loss: Step(1.0) for loss in grid.losses}
    found = Measured(configs[0], "cpu", steps, Common(), worker_s=1.0, prepare_s=1.0, cache_mb=1.0)
    forecast = Forecast(found, load_manifest(tiny_manifest(tmp_path, dims=2)))
    folder = tmp_path / "out"
    assert remaining_stages(folder, plan, grid, forecast) == [run_shapes(grid)]
    adopt_plan(folder, plan)
    run_folder(folder, plan.runs[0]).write_result({"state": "done", "error": None, "metrics": {"dice": 0.5}})
    run_folder(folder, plan.runs[1]).write_result({"state": "failed", "error": "the loss is nan"})
    run_folder(folder, plan.runs[2]).write_progress(3, 8, 1.0, 0.4)
    assert remaining_stages(folder, plan, grid, forecast) == [[RunShape("tversky", 0, 8, 3), *run_shapes(grid)[3:]]]


def test_enough_steps_are_no_warning_and_patients_are_counted_where_they_are_named(tmp_path: Path) -> None:
    loaded = load_manifest(tiny_manifest(tmp_path, dims=2, cases=12))
    cases = [case.model_copy(update={"patient": f"p{case.fold}"}) for case in loaded.cases]
    manifest = loaded.model_copy(update={"cases": cases})
    config = RunConfig(manifest="tiny", batch_size=2, accumulate=3, patch_size=(8, 8))
    steps = {"dice": Step(1.0), "focal": Step(1.0)}
    forecast = Forecast(Measured(config, "cpu", steps, Common(), 1.0, 1.0, 1.0), manifest)
    # Four batches of two, accumulated to two steps.
    for epochs, warned in ((99, True), (100, False)):
        plan = make_plan([config.model_copy(update={"loss": loss, "epochs": epochs}) for loss in steps], [0], [0],
                         "tiny", "0" * 64, reference="dice")  # fmt: skip
        grid = RunGrid(tuple(steps), (0,), (0,), epochs)
        shown = _flat("\n".join(dry_run_lines(tmp_path / "none", plan, grid, forecast, 1)))
        assert f"{2 * epochs} optimizer steps per network ({epochs} epochs of 2)" in shown
        assert ("fewer than 200" in shown, "take --epochs 100 or more" in shown) == (warned, warned)
        assert "1 of 3 patients (4 cases) validate, those of fold 0, and decide the verdict" in shown


@pytest.mark.parametrize(("folds", "losses", "epochs", "advice"), [
    ((0, 1), 3, None, "take --budget 31, or fewer folds or losses"),
    ((0,), 2, None, "take --budget 31"),
    ((0,), 2, 60, "take --epochs 100 and --budget 31"),
    ((0,), 2, 100, "take --budget 31"),
])  # fmt: skip
def test_with_a_budget_the_warning_of_few_steps_names_one_that_has_enough(
    tmp_path: Path, folds: tuple[int, ...], losses: int, epochs: int | None, advice: str
) -> None:
    manifest = load_manifest(tiny_manifest(tmp_path, dims=2, cases=12))
    config = RunConfig(manifest="tiny", batch_size=2, accumulate=3, patch_size=(8, 8), epochs=40)
    names = ("dice", "focal", "tversky")[:losses]
    forecast = Forecast(Measured(config, "cpu", {loss: Step(1.0) for loss in names}, Common(), 1.0, 1.0, 1.0), manifest)
    asked = Asked(losses=list(names), folds=list(folds), seeds=[0], epochs=epochs, budget_minutes=14, halving=False,
                  tune_lr=None)  # fmt: skip
    configs = [config.model_copy(update={"loss": loss}) for loss in names]
    plan = make_plan(configs, list(folds), [0], "tiny", "0" * 64, reference="dice").model_copy(update={"asked": asked})
    shown = _flat("\n".join(dry_run_lines(tmp_path / "none", plan, RunGrid(names, folds, (0,), 40), forecast, 1, 31)))
    assert f"not which is best; {advice} there nothing yet" in shown


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
@pytest.mark.usefixtures("where")
@_both
def test_failing_losses_are_reported_and_the_others_measured(
    dry_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing.py").write_text(
        "import os, signal\n"
        "from torch import nn\n"
        "class Diverges(nn.Module):\n"
        "    def forward(self, logits, target):\n"
        "        return logits.sum() * float('nan')\n"
        "class Dies(nn.Module):\n"
        "    def forward(self, logits, target):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "failing", raising=False)
    losses = "failing.Diverges,failing.Dies,dice"
    code, shown, _ = dry_run("--losses", losses, "--reference", "none", "--metric", "hd95_mm", "--epochs", "1")
    assert code == 0
    assert re.search(r"^failing\.Dies +1 +0 +- +- ", shown, re.M) and re.search(r"^dice +1 +0 +\d+\.\d+ ", shown, re.M)
    assert "warning: failing.Diverges fails: the loss is nan in epoch 1" in _flat(shown)
    assert "failing.Dies fails: its process died (signal 9); often a lack of memory" in _flat(shown)
    assert "4 of 12 cases validate, those of fold 0, and decide the verdict; 3 pairs of 3 losses" in _flat(shown)
    assert "Too few cases: none of 3 pairs can be significant below 6 cases" in _flat(shown)
    assert "found with 80 % power: none at all" in _flat(shown)


def _plan(**further: float | None) -> Any:
    return SimpleNamespace(
        halving=None, has_reference=True, reference="dice", metric="dice", margin=0.01, further_metrics=further
    )


def test_several_primary_metrics_are_one_family() -> None:
    cases = [SimpleNamespace(id=f"c{number}", patient=f"c{number}") for number in range(16)]
    manifest: Any = SimpleNamespace(split=lambda fold: ([], cases), folds=lambda: (0,))
    grid = RunGrid(("dice", "focal", "tversky"), (0,), (0,), 1)
    shown = _flat("\n".join(detectable_difference(_plan(nsd=None, hd95_mm=1.0), grid, manifest)))
    family = least_difference(ASSUMED_SD, 16, level=0.05 / 6)
    validating = "all 16 cases validate, those of fold 0, and decide the verdict"
    assert f"{validating}; 2 comparisons with dice, in each of 3 primary metrics" in shown
    assert f"{family:.4f} Dice as one of 6." in shown
    few = SimpleNamespace(split=lambda fold: ([], cases[:7]), folds=lambda: (0,))
    shown = _flat("\n".join(detectable_difference(_plan(nsd=None, hd95_mm=1.0), grid, few)))
    assert "none of 2 comparisons can be significant below 8 cases" in shown


def test_the_unit_is_the_patient_where_patients_have_names() -> None:
    cases = [SimpleNamespace(id=f"c{number}", patient=f"p{number // 2}") for number in range(16)]
    manifest: Any = SimpleNamespace(split=lambda fold: ([], cases), folds=lambda: (0,))
    plan = _plan()
    shown = _flat("\n".join(detectable_difference(plan, RunGrid(("dice", "focal"), (0,), (0,), 1), manifest)))
    assert (
        "all 8 patients (16 cases) validate, those of fold 0, and decide the verdict; 1 comparison with dice" in shown
    )
    assert "Dice over patients, as" in shown and re.search(r"0\.01, needs \d+ patients\.", shown)
