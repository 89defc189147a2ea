"""`medloss compare --trainer nnunet`: real nnU-Net, from the manifest to the report, killed in the middle; and 2D."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: `make test-nnunet` makes an environment for it")

import nibabel as nib
import numpy as np
import torch
from cli_call import call_medloss
from small_files import rewrite
from tiny import tiny_manifest

from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import load_manifest
from pipelines.report.collect import from_folder
from pipelines.runs.comparison_folder import require_plan, run_folder
from pipelines.tracking.mlflow_store import local_uri, open_client
from pipelines.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

EPOCHS, LOSSES = 3, ("dice+binary_cross_entropy", "hausdorff_dt", "odd.NotANumber")
MADE = {"spacing": [3.0, 1.0, 1.5], "generator": {"shape": [12, 24, 28]}}
#: Trained well by a step, then infinitely badly.
ODD = """
from torch import nn
from torch.nn.functional import cross_entropy

class NotANumber(nn.Module):
    steps = 0
    def forward(self, logits, target):
        self.steps += self.training
        loss = cross_entropy(logits, target.squeeze(1).long())
        return loss * (float("nan") if self.steps > 4 else 1)
"""


def compare(manifest: Path, out: Path, *options: object) -> tuple[int, str, str]:
    """`medloss compare` with nnU-Net, in a separate process."""
    command = [sys.executable, "-m", "pipelines.cli", "compare", manifest, "--data-root", manifest.parent, "--out", out]
    command += ["--trainer", "nnunet", "--nnunet-iterations", "3", "--device", "cpu", *options]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=500, env=environment(manifest.parent)
    )
    return done.returncode, done.stdout, done.stderr


def environment(modules: Path) -> dict[str, str]:
    """The environment of a user with a module of losses, and without nnU-Net's variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    return environment | {"PYTHONPATH": os.pathsep.join(filter(None, (str(modules), os.environ.get("PYTHONPATH"))))}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "odd.py").write_text(ODD)
    return tiny_manifest(folder, **MADE)


@pytest.fixture(scope="module")
def handed_out(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison whose workers others start; its first run is killed in the middle, and resumed."""
    out = tmp_path_factory.mktemp("compared") / "out"
    asked = ("--losses", ",".join(LOSSES), "--epochs", EPOCHS, "--executor", "none")
    code, lines, err = compare(manifest, out, *asked)
    assert (code, lines.count("medloss worker")) == (0, 3), err
    run_dir = run_folder(out, require_plan(out).runs[0])
    command = [sys.executable, "-m", "pipelines.cli", "worker", str(out), "--index", "0", "--threads", "1", "--trust"]
    worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment(manifest.parent))
    deadline = time.monotonic() + 200
    while (run_dir.progress or {}).get("epoch", 0) < 1:
        assert worker.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert run_dir.result is None
    return out


@pytest.fixture(scope="module")
def out(manifest: Path, handed_out: Path) -> Path:
    """The same comparison, finished by `medloss compare` itself."""
    before = run_folder(handed_out, require_plan(handed_out).runs[0]).epochs
    assert 1 <= len(before) < EPOCHS
    code, printed, err = compare(manifest, handed_out, "--losses", ",".join(LOSSES), "--epochs", EPOCHS, "--jobs", "2")
    assert code == 1, err  # one of them fails
    assert "preparing" not in err
    assert "odd.NotANumber" in printed
    after = run_folder(handed_out, require_plan(handed_out).runs[0]).epochs
    # When an epoch ended is known to the microsecond: it was not trained again.
    assert [row["time"] for row in after[: len(before)]] == [row["time"] for row in before]
    return handed_out


def finished(out: Path) -> list[RunFolder]:
    return [run_folder(out, run) for run in require_plan(out).runs if run.config.loss in LOSSES[:2]]


def results(run_dir: RunFolder) -> Path:
    """nnU-Net's folder of a run."""
    return next((run_dir.path / "nnunet").glob("*/*/fold_0"))


def test_runs_end_as_those_of_our_engines_do(out: Path) -> None:
    for run_dir in finished(out):
        result = run_dir.result
        assert result is not None and result["state"] == "done", result
        assert result["versions"]["nnunetv2"]
        assert result["seconds"] > 0 and result["peak_mb"] > 0
        assert run_dir.config is not None
        # In the order of the files' axes, whatever nnU-Net's is.
        assert run_dir.config.spacing == tuple(MADE["spacing"])
        rows = run_dir.epochs
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        assert np.isfinite([[row["train_loss"], row["epoch_s"], row["peak_mb"]] for row in rows]).all()
        assert np.isnan([row["val_dice"] for row in rows[:2]]).all()
        assert rows[2]["val_dice"] == result["metrics"]["dice"]


def nnunets_dice(run_dir: RunFolder) -> dict[tuple[str, str], float]:
    """The Dice of each case and label in nnU-Net's own validation."""
    summary = json.loads((results(run_dir) / "validation" / "summary.json").read_text())
    found: dict[tuple[str, str], float] = {}
    for case in summary["metric_per_case"]:
        name = Path(case["prediction_file"]).name.removesuffix(".nii.gz")
        found |= {(name, label): metrics["Dice"] for label, metrics in case["metrics"].items()}
    return found


def our_dice(run_dir: RunFolder, classes: dict[str, str]) -> dict[tuple[str, str], float]:
    return {(row["case"], classes[row["class"]]): float(row["dice"] or "nan") for row in run_dir.cases}


def test_metrics_are_those_of_nnunets_own_validation(out: Path) -> None:
    """Although ours are from files on the labels' own grid."""
    for run_dir in finished(out):
        found = our_dice(run_dir, {"organ": "1", "shell": "2", "lesion": "3"})
        assert found == pytest.approx(nnunets_dice(run_dir), nan_ok=True)
        assert {case for case, _ in found} == {"phantom_000", "phantom_003"}


def test_it_is_nnunets_training_with_our_loss(out: Path) -> None:
    for run_dir, name in zip(finished(out), ("dice_plus_binary_cross_entropy", "hausdorff_dt"), strict=True):
        fold = results(run_dir)
        trainer = f"nnUNetTrainerMedloss_{name}_{EPOCHS}epochs"
        assert fold.parent.name == f"{trainer}__nnUNetPlans__3d_fullres"
        checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
        assert (checkpoint["trainer_name"], checkpoint["current_epoch"]) == (trainer, EPOCHS)
        assert not list(fold.glob("*.partial"))
        assert "Using splits from existing split file" in next(iter(sorted(fold.glob("training_log_*")))).read_text()


def test_a_killed_run_ends_in_the_weights_of_one_that_was_not(out: Path, manifest: Path, tmp_path: Path) -> None:
    """In another folder, from the same prepared cases."""
    asked = ("--losses", LOSSES[0], "--reference", LOSSES[0], "--epochs", EPOCHS, "--cache-dir", out / "cache")
    code, _, err = compare(manifest, tmp_path / "out", *asked, "--executor", "none", "--threads", "1")
    assert (code, "preparing" in err) == (0, False), err
    code, _, err = call_medloss("worker", tmp_path / "out", "--threads", "1", "--trust")
    assert code == 0, err
    other = run_folder(tmp_path / "out", require_plan(tmp_path / "out").runs[0])
    weights = [
        torch.load(results(run_dir) / "checkpoint_final.pth", weights_only=False)["network_weights"]
        for run_dir in (finished(out)[0], other)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    assert finished(out)[0].cases == other.cases


def test_killed_in_its_validation_a_run_trains_no_more(out: Path) -> None:
    run_dir = finished(out)[1]
    checkpoint = results(run_dir) / "checkpoint_final.pth"
    before = run_dir.cases, run_dir.epochs[-1]["train_loss"], checkpoint.stat().st_mtime_ns
    (run_dir.path / "result.json").unlink()
    code, _, err = call_medloss("worker", out, "--index", "1", "--threads", "1", "--trust")
    assert code == 0, err
    assert (run_dir.result or {})["state"] == "done"
    assert (run_dir.cases, run_dir.epochs[-1]["train_loss"], checkpoint.stat().st_mtime_ns) == before


def test_weights_that_are_not_finite_end_a_run(out: Path) -> None:
    run_dir = next(run_folder(out, run) for run in require_plan(out).runs if run.config.loss == "odd.NotANumber")
    assert run_dir.result is not None
    assert run_dir.result["error"] == "after epoch 2 the network's weights are not finite any more"


def test_report_and_mlflow_are_as_ever(out: Path) -> None:
    collected = from_folder(out)
    facts = dict(collected.facts)
    assert facts["trainer"] == "nnU-Net, 3d_fullres, 3 steps per epoch"
    assert facts["training grid, mm"] == "3 x 1 x 1.5"
    assert [failure.loss for failure in collected.failures] == ["odd.NotANumber"]
    assert collected.no_pictures is None
    assert (out / "report" / "report.html").is_file()
    client = open_client(local_uri(out))
    experiment = client.get_experiment_by_name("tiny_3d")
    runs = {run.data.tags["medloss.run"]: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 4
    child = runs["hausdorff_dt-fold0-seed0"].data
    assert child.metrics.keys() >= {"val/dice", "val/hd95_mm", "val/pseudo_dice", "train/loss"}
    assert child.tags["medloss.loss"] == "hausdorff_dt"


def test_its_folders_are_read_as_nnunets_results(out: Path, tmp_path: Path) -> None:
    named = [f"{name}={results(run_dir).parent}" for name, run_dir in zip(("a", "b"), finished(out), strict=True)]
    labels = ["--labels", next((out / "cache").glob("nnunet-*/preprocessed/*/gt_segmentations"))]
    code, printed, err = call_medloss(
        "report", "--predictions", named[0], named[1], *labels, "--folds", "0", "--out", tmp_path / "report"
    )
    assert code == 0, err
    assert "Too few" in printed


def test_in_two_dimensions(tmp_path: Path) -> None:
    """Files that SimpleITK can read in 2D: their axes are the patient's first two."""
    made = tiny_manifest(tmp_path / "made", dims=2, generator={"shape": [40, 32]})
    root = resolve_data(load_manifest(made), tmp_path / "made")
    for path in root.glob("*/*.nii.gz"):
        rewrite(path, affine=np.diag([-1.5, -0.8, 1.0, 1.0]), zooms=(1.5, 0.8))
    manifest = root / "flat.yaml"
    code, _, err = call_medloss("manifest", root, "--out", manifest, "--folds", 3)
    assert code == 0, err
    asked: tuple[Any, ...] = ("--losses", "tversky,dice", "--reference", "dice", "--epochs", 1, "--no-predictions")
    # The axes of its probabilities are right: others would disagree with its label maps, and be refused.
    code, _, err = compare(manifest, tmp_path / "out", *asked, "--metrics", "ece,brier")
    assert code == 0, err
    _, cases = load_manifest(manifest).split(0)
    for run in require_plan(tmp_path / "out").runs:
        run_dir = run_folder(tmp_path / "out", run)
        assert run_dir.config is not None and run_dir.config.nnunet is not None
        assert run_dir.config.nnunet.configuration == "2d"
        assert run_dir.config.spacing == pytest.approx((1.5, 0.8))
        assert {row["case"] for row in run_dir.cases} == {case.id for case in cases}
        classes = {name: str(value) for value, name in load_manifest(manifest).classes.items()}
        assert our_dice(run_dir, classes) == pytest.approx(nnunets_dice(run_dir), nan_ok=True)
        assert not (run_dir.path / "predictions").exists()
        assert run_dir.calibration and all(0 <= float(row["brier"]) <= 1 for row in run_dir.cases if row["brier"])
        assert all(nib.load(path).shape[:2] == (40, 32) for path in results(run_dir).glob("validation/*.nii.gz"))


def test_channels_regions_and_the_ignore_label(tmp_path: Path) -> None:
    """The Dice of each region is that of nnU-Net's own validation, which leaves ignored voxels out as well."""
    regions = {"whole": [1, 2, 3], "core": [2, 3], "centre": [3]}
    manifest = tiny_manifest(
        tmp_path / "data", modality=None, channels=[{"name": "PET"}, {"name": "CT"}], ignore=255,
        classes={0: "background", 1: "rim", 2: "core", 3: "centre"}, regions=regions, region_order=[1, 2, 3],
        spacing=[3.0, 1.5, 1.5], spacing_tolerance=0.25,
        generator={"name": "phantom_regions", "shape": [12, 24, 28]},
    )  # fmt: skip
    out = tmp_path / "out"
    code, _, err = compare(manifest, out, "--losses", "dice", "--reference", "dice", "--epochs", 1, "--jobs", 1)
    assert code == 0, err
    (run,) = require_plan(out).runs
    run_dir = run_folder(out, run)
    found = our_dice(run_dir, {name: str(tuple(labels)) for name, labels in regions.items()})
    assert found == pytest.approx(nnunets_dice(run_dir), nan_ok=True)
    assert {case for case, _ in found} == {"phantom_regions_000", "phantom_regions_003"}
    for case in ("phantom_regions_000", "phantom_regions_003"):
        theirs = nib.load(results(run_dir) / "validation" / f"{case}.nii.gz")
        ours = nib.load(run_dir.prediction(case))
        np.testing.assert_array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj))
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
