"""nnU-Net's own commands, from a manifest to a prediction, with nothing replaced and short epochs."""

import csv
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: `make test-nnunet` makes an environment for it")

import nibabel as nib
import numpy as np
import torch
from cli_call import call_medloss
from tiny import tiny_manifest

from pipelines.nnunet import trainer_folder

pytestmark = pytest.mark.slow

#: A separate folder next to ours: the same trainers, with few steps per epoch.
SHORT = """
from pipelines.nnunet import trainers

def __getattr__(name):
    if not name.endswith("_short"):
        raise AttributeError(name)
    class Short(getattr(trainers, name.removesuffix("_short"))):
        def __init__(self, plans, configuration, fold, dataset_json, device):
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 3, 1
    Short.__name__ = name
    return Short
"""
SHAPE, SPACING = (12, 24, 28), (3.0, 1.0, 1.5)


@dataclass(frozen=True)
class Training:
    """One call of `nnUNetv2_train`."""

    dataset: int
    configuration: str
    trainer: str

    @property
    def name(self) -> str:
        """The trainer's name."""
        return f"nnUNetTrainerMedloss_{self.trainer}_2epochs_short"


TRAININGS = {
    "region": Training(1, "3d_fullres", "focal_tversky"),
    "distance": Training(1, "3d_fullres", "hausdorff_dt"),
    "combination": Training(1, "3d_fullres", "dice_plus_binary_cross_entropy"),
    "regions_and_ignore": Training(2, "3d_fullres", "dice_plus_0p5_times_focal"),
    "2d": Training(1, "2d", "tversky"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two planned and preprocessed data sets: labels, and regions with an ignore label."""
    folder: Path = tmp_path_factory.mktemp("nnunet")
    (folder / "short").mkdir()
    (folder / "short" / "short_trainers.py").write_text(SHORT)
    made = {"spacing": list(SPACING), "generator": {"shape": list(SHAPE)}}
    manifest = tiny_manifest(folder / "made", cases=6, **made)
    raw = ["--raw", folder / "raw", "--data-root", folder / "made"]
    code, _, err = call_medloss("nnunet", "dataset", manifest, *raw)
    assert (code, err) == (0, "")
    _regions_and_ignore(folder / "raw")
    call_nnunet(
        folder, "plan_and_preprocess", "-d", "1", "2", "-c", "2d", "3d_fullres", "-np", "1", "1", "-npfp", "1",
        "--verify_dataset_integrity",
    )  # fmt: skip
    return folder


def dataset(raw: Path, number: int) -> Path:
    return next(raw.glob(f"Dataset{number:03d}_*"))


def _regions_and_ignore(raw: Path) -> None:
    """The first data set with overlapping regions, and a slab that nobody labelled."""
    first, second = dataset(raw, 1), raw / "Dataset002_regions"
    shutil.copytree(first, second)
    for path in (second / "labelsTr").iterdir():
        image = nib.load(path)
        label = np.asanyarray(image.dataobj).copy()
        label[:3] = 4
        nib.save(nib.Nifti1Image(label, image.affine, image.header), path)
    content = json.loads((second / "dataset.json").read_text())
    content["labels"] = {"background": 0, "all": [1, 2, 3], "core": [2, 3], "lesions": 3, "ignore": 4}
    content["regions_class_order"] = [1, 2, 3]
    (second / "dataset.json").write_text(json.dumps(content))


def call_nnunet(folder: Path, command: str, *arguments: str, outside: bool = False) -> str:
    """Call one of nnU-Net's commands; `outside`: with our trainers. Returns what it printed."""
    places = {f"nnUNet_{name}": str(folder / name) for name in ("raw", "preprocessed", "results")}
    # Threads: planning wants at least one for augmentation, training may do without.
    processes = {"nnUNet_n_proc_DA": "0" if command == "train" else "1", "nnUNet_def_n_proc": "1"}
    environment = {**os.environ, **places, **processes}
    environment.pop("nnUNet_extTrainer", None)
    if outside:
        environment["nnUNet_extTrainer"] = os.pathsep.join([str(trainer_folder()), str(folder / "short")])
    program = Path(sys.executable).with_name(f"nnUNetv2_{command}")
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Path]:
    """Each training's folder of fold 0; two at a time."""

    def train(training: Training) -> Path:
        where = (str(training.dataset), training.configuration, "0")
        call_nnunet(folder, "train", *where, "-tr", training.name, "-device", "cpu", outside=True)
        results = dataset(folder / "results", training.dataset)
        return results / f"{training.name}__nnUNetPlans__{training.configuration}" / "fold_0"

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(TRAININGS, pool.map(train, TRAININGS.values()), strict=True))


def plan(folder: Path, training: Training) -> dict[str, Any]:
    plans = json.loads((dataset(folder / "preprocessed", training.dataset) / "nnUNetPlans.json").read_text())
    configuration: dict[str, Any] = plans["configurations"][training.configuration]
    return configuration


def test_the_folds_are_the_manifests(folder: Path) -> None:
    splits = json.loads((dataset(folder / "preprocessed", 1) / "splits_final.json").read_text())
    assert [split["val"] for split in splits] == [
        ["phantom_000", "phantom_003"], ["phantom_001", "phantom_004"], ["phantom_002", "phantom_005"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", TRAININGS)
def test_nnunet_trains_and_validates(name: str, folder: Path, trained: dict[str, Path]) -> None:
    fold = trained[name]
    log = next(fold.glob("training_log_*.txt")).read_text()
    losses = [float(line.split("train_loss")[1]) for line in log.splitlines() if "train_loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert "Using splits from existing split file" in log
    # The distance's spacing, in the plan's order of axes.
    spacing = tuple(plan(folder, TRAININGS[name])["spacing"])
    assert f"spacing={spacing}" in log
    assert ("ignore_label=4" in log) == (name == "regions_and_ignore")
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["trainer_name"] == TRAININGS[name].name
    assert checkpoint["current_epoch"] == 2
    carried = checkpoint["logging"].get("medloss_loss_state")
    assert (carried is not None) == (name == "distance")


def test_the_plans_spacing_belongs_to_the_patches_axes(folder: Path, trained: dict[str, Path]) -> None:
    """nnU-Net puts the thickest axis first, whatever the file's order: the data's axes, and the spacing's."""
    import blosc2

    assert plan(folder, TRAININGS["distance"])["spacing"] == [3.0, 1.5, 1.0]
    assert plan(folder, TRAININGS["2d"])["spacing"] == [1.5, 1.0]
    cases = dataset(folder / "preprocessed", 1) / "nnUNetPlans_3d_fullres"
    assert blosc2.open(str(cases / "phantom_000.b2nd")).shape == (1, 12, 28, 24)


@pytest.mark.parametrize("name", ["combination", "regions_and_ignore"])
def test_others_predict_with_the_exported_checkpoint(
    name: str, folder: Path, trained: dict[str, Path], tmp_path: Path
) -> None:
    """Without this package's folder: as nnU-Net's validation predicted by the checkpoint itself."""
    training, fold = TRAININGS[name], trained[name]
    code, out, err = call_medloss("nnunet", "export", fold / "checkpoint_final.pth")
    assert (code, err) == (0, "")
    assert "checkpoint_stock.pth" in out
    (tmp_path / "images").mkdir()
    for case in ("phantom_000", "phantom_003"):
        image = dataset(folder / "raw", training.dataset) / "imagesTr" / f"{case}_0000.nii.gz"
        shutil.copy(image, tmp_path / "images")
    call_nnunet(
        folder, "predict", "-i", str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-d", str(training.dataset),
        "-c", training.configuration, "-tr", training.name, "-f", "0", "-chk", "checkpoint_stock.pth",
        "-device", "cpu", "-npp", "0", "-nps", "0",
    )  # fmt: skip
    for case in ("phantom_000", "phantom_003"):
        predicted = np.asanyarray(nib.load(tmp_path / "out" / f"{case}.nii.gz").dataobj)
        expected = np.asanyarray(nib.load(fold / "validation" / f"{case}.nii.gz").dataobj)
        assert predicted.shape == SHAPE
        assert (predicted == expected).mean() > 0.999


def test_the_results_can_be_reported(
    folder: Path, trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three losses, whose folders lie where nnU-Net put them: classes, references and images are found there."""
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(folder / name))
    losses = ("combination", "region", "distance")
    named = [f"{loss}={trained[loss].parent}" for loss in losses]
    code, printed, err = call_medloss(
        "report", "--predictions", *named, "--folds", "0", "--reference", "combination", "--out", tmp_path / "report"
    )
    assert (code, err) == (0, "")
    assert "3 folders, 2 cases, 3 classes: 6 pairs evaluated" in printed
    assert (tmp_path / "report" / "report.html").is_file()
    rows = list(csv.DictReader((tmp_path / "report" / "cases.csv").read_text().splitlines()))
    for loss in losses:
        summary = json.loads((trained[loss] / "validation" / "summary.json").read_text())
        dice = [float(row["dice"]) for row in rows if row["loss"] == loss and row["dice"]]
        per_case = [case["metrics"][label]["Dice"] for case in summary["metric_per_case"] for label in ("1", "2", "3")]
        assert np.mean(dice) == pytest.approx(np.nanmean(per_case))
