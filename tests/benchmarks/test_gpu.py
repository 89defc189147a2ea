"""`benchmarks/gpu.sh`: its checks on a GPU, and on the CPU that it runs, resumes and records failures."""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from bare import run_bare

# They belong to the checkout, not to the wheel. `python -m pytest` finds them in the folder where it was started.
pytest.importorskip("benchmarks.gpu", reason="benchmarks/ is not here: these tests run in the checkout")
pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks import gpu, gpu_bench, gpu_checks, gpu_report, gpu_training, gpu_worker
from benchmarks.gpu_worker import DONE, FAILED, NOT_REACHED, SKIPPED, TIMED_OUT

needs_interpreter = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is off on a GPU")
DRY = gpu_checks.Machine(dry=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", gpu_checks.CHECKS)
def test_on_a_gpu(name: str) -> None:
    try:
        gpu_checks.CHECKS[name](gpu_checks.Machine(dry=False))
    except gpu_checks.Skipped as reason:
        pytest.skip(str(reason))


@needs_interpreter
@pytest.mark.parametrize("name", ["contract", "half_precision", "distances", "large"])
def test_checks_pass_in_the_interpreter(name: str) -> None:
    with np.errstate(all="ignore"):
        assert gpu_checks.CHECKS[name](DRY)


@needs_interpreter
@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("contract", ("medloss.kernels.triton", "voxel_sums_backward")),
        ("half_precision", ("medloss.kernels.triton", "voxel_sums")),
        ("distances", ("medloss.kernels.triton.distance", "signed_distances")),
        ("large", ("medloss.kernels.triton.distance", "inside_distances")),
    ],
)
def test_checks_notice_a_wrong_kernel(name: str, broken: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(broken[0])
    right = getattr(module, broken[1])
    calls: list[int] = []

    def wrong(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return right(*arguments) * (1 + 0.05 * len(calls))

    monkeypatch.setattr(module, broken[1], wrong)
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        gpu_checks.CHECKS[name](DRY)


def _options(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"dry": True, "again": False, "only": [], "minutes": 1.0, "data": None} | more)


class _Here:
    """Runs a step in this process, as the worker does."""

    started: list[str]

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.description, self._options = {"processor": "this one"}, options
        _Here.started.append("worker")

    def run(self, name: str, limit: float, code: str) -> Any:
        _Here.started.append(name)
        entries: list[dict[str, Any]] = []
        gpu_worker.run_step(gpu.steps()[name], self._options, entries.append)
        found = {key: value for entry in entries for key, value in entry.items()}
        rows = [entry["row"] for entry in entries if "row" in entry]
        return gpu_worker.Outcome(found.get("status", DONE), found["note"], 0.1, code, "2026-01-01", rows)

    def stop(self) -> None:
        pass


def _fails(options: argparse.Namespace) -> str:
    raise ValueError("this | and\nthat")


def _skips(options: argparse.Namespace) -> str:
    raise gpu_checks.Skipped("needs a GPU")


def _measures(options: argparse.Namespace) -> Any:
    yield gpu_bench.row(
        gpu_bench._case(DRY, "grid", 8, 2, 1, "float32", "dice"),
        gpu_bench.Contender("MONAI", "dice"),
        "caching",
        forward=0.25,
        backward=0.25,
        total=0.5,
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    works = {"measures": _measures, "fails": _fails, "skips": _skips, "notes": lambda options: "fine"}
    monkeypatch.setattr(gpu, "steps", lambda: {name: gpu_worker.Step(30, work) for name, work in works.items()})
    monkeypatch.setattr(gpu, "Worker", _Here)
    _Here.started = []
    return lambda **more: gpu.run(_options(**more), tmp_path)


def test_a_failure_is_recorded_and_the_others_follow(run: Callable[..., Any], tmp_path: Path) -> None:
    outcomes = run()
    assert [o.status for o in outcomes.values()] == [DONE, FAILED, SKIPPED, DONE]
    assert _Here.started == ["worker", "measures", "fails", "worker", "skips", "notes"]
    text = (tmp_path / "gpu.md").read_text()
    assert "| fails | **failed** | 0 | 2026-01-01 | ValueError: this \\| and that |" in text
    assert "| dice | 1 x 2 x 8^3 | MONAI | 500.0 (250.0 + 250.0) | 1.00 |" in text
    assert json.loads((tmp_path / "gpu.json").read_text())["steps"]["measures"]["rows"][0]["total"] == 0.5


def test_finished_steps_are_not_repeated_until_the_code_changes(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    _Here.started = []
    assert len(run()) == 4
    assert _Here.started == ["worker", "fails"]
    _Here.started = []
    run(again=True, only=["notes"])
    assert _Here.started == ["worker", "notes"]
    monkeypatch.setattr(gpu, "code_digest", lambda: "other")
    _Here.started = []
    assert [o.code for o in run().values()] == ["other"] * 4


def test_no_step_begins_when_the_time_is_over(run: Callable[..., Any]) -> None:
    outcomes = run(minutes=0.0)
    assert {o.status for o in outcomes.values()} == {NOT_REACHED} and not _Here.started
    assert next(o.status for o in run().values()) == DONE


def test_a_step_that_takes_too_long_is_ended_and_keeps_its_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = (
        'import sys, time\nfor line in sys.stdin:\n    open(sys.argv[1], \'w\').write(\'{"row": {"a": 1}}\\n{"ro\')\n'
    )
    (tmp_path / "slow.py").write_text(script + "    time.sleep(1000)\n")
    (tmp_path / "dies.py").write_text("import sys; sys.stdin.readline(); sys.exit(3)")
    started = subprocess.Popen
    for name, status in (("slow", TIMED_OUT), ("dies", FAILED)):
        words = [sys.executable, str(tmp_path / f"{name}.py"), str(tmp_path / "gpu_step.jsonl")]
        monkeypatch.setattr(gpu_worker.subprocess, "Popen", lambda _, words=words, **more: started(words, **more))
        worker = gpu_worker.Worker(_options(), tmp_path)
        limit = 600.0 if name == "dies" else _until(tmp_path / "gpu_step.jsonl", monkeypatch)
        outcome = worker.run("any", limit, "")
        worker.stop()
        assert outcome.status == status
        assert outcome.rows == ([{"a": 1}] if name == "slow" else [])
    assert "status 3" in outcome.note


def _until(path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """The limit passes when the process has written, however slow the machine is."""

    def wait(*_: Any) -> Any:
        while not path.is_file() or not path.stat().st_size:
            time.sleep(0.01)
        monkeypatch.undo()
        return [], [], []

    monkeypatch.setattr(gpu_worker.select, "select", wait)
    return 1.0


def test_the_page_without_a_gpu_says_so() -> None:
    text = gpu_report.not_measured()
    assert gpu.NOT_MEASURED in text and "benchmarks/gpu.sh" in text and "| not measured |" in text
    page = Path(__file__).parents[2] / "docs" / "benchmarks" / "losses" / "gpu.md"
    if not page.with_name("gpu.json").is_file():
        assert page.read_text() == text


def test_a_short_training_reads_its_volumes_without_nibabel(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(4):
        label = generator.integers(0, 3, (9, 17, 8)).astype(np.uint8)
        image = (label + generator.random(label.shape)).astype(np.float32)
        for folder, array in (("imagesTr", image), ("labelsTr", label)):
            (tmp_path / folder).mkdir(exist_ok=True)
            path = tmp_path / folder / f"case_{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), path)
            assert np.array_equal(gpu_training._read_nifti(path), array)
    assert gpu_training.training(DRY, tmp_path, 0.0).startswith("2 steps, loss ")
    with pytest.raises(gpu_checks.Skipped, match="--data FOLDER"):
        gpu_training.training(DRY, tmp_path / "none", 0.0)


def test_unknown_steps_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--only", "graph"])
    assert "--only graph: no such step; expected one of install, self_checks" in capsys.readouterr().err


@pytest.mark.slow
@needs_interpreter
def test_the_script_needs_no_more_than_torch_monai_triton_numpy_and_scipy(tmp_path: Path) -> None:
    code = """
import argparse, os
os.environ["TRITON_INTERPRET"] = "1"
import numpy
numpy.seterr(all="ignore")
from benchmarks import gpu, gpu_checks, gpu_report, gpu_worker
options = argparse.Namespace(dry=True, data=None)
for name in ("contract", "losses, 128^3, float32", "other losses", "transforms", "training"):
    gpu_worker.run_step(gpu.steps()[name], options, lambda entry: print(entry.get("status", "")))
print(gpu_report.page({}, {}, True)[:5])
"""
    assert set(run_bare(code, Path(gpu.__file__).parents[1]).split()) == {"skipped", "#", "The"}


@pytest.mark.slow
@needs_interpreter
def test_a_dry_run_goes_through_all_steps(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", "--dry", "--out", str(tmp_path), "--data", str(tmp_path)]
    ran = subprocess.run(words, cwd=Path(gpu.__file__).parents[1], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    steps = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert {name: step["note"] for name, step in steps.items() if step["status"] not in (DONE, SKIPPED)} == {}
    assert list(steps) == list(gpu.steps())
    notes = [row.get("note") for step in steps.values() for row in step["rows"] if row.get("note")]
    assert notes == []
