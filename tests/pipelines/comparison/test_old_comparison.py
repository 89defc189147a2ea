"""A comparison's folder that an earlier version left, killed: it is reported, resumed and mirrored by this one."""

import csv
import shutil
from pathlib import Path

import pytest
from cli_call import call_medloss
from mirrored import stored

from pipelines.utils.files import read_json

_KEPT = Path(__file__).with_name("old_comparison")
_FINISHED = (
    "dice-fold0-seed0",
    "dice-fold1-seed0",
    "dice_plus_binary_cross_entropy-fold1-seed0",
    "hausdorff_dt-fold0-seed0",
)
_KILLED, _STARTED = "hausdorff_dt-fold1-seed0", "dice_plus_binary_cross_entropy-fold0-seed0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the kept folder, whose paths are those of the copy."""
    shutil.copytree(_KEPT, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*.json"):
        path.write_text(path.read_text(encoding="utf-8").replace("FOLDER", str(tmp_path)), encoding="utf-8")
    return tmp_path


def _epochs(run: Path) -> list[dict[str, str]]:
    with (run / "epochs.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_an_old_folder_is_reported_before_it_is_resumed(folder: Path) -> None:
    code, out, _ = call_medloss("status", folder / "comparison")
    assert code == 0
    assert out.count("done") >= len(_FINISHED)
    code, _, err = call_medloss("report", folder / "comparison")
    assert code == 0, err
    assert (folder / "comparison/report/report.html").is_file()


def test_an_old_folder_is_resumed_and_mirrored(folder: Path) -> None:
    comparison = folder / "comparison"
    before = {name: read_json(comparison / "runs" / name / "result.json") for name in _FINISHED}
    begun = _epochs(comparison / "runs" / _KILLED)
    assert len(begun) == 2
    arguments = "--losses dice,hausdorff_dt --folds 0,1 --batch-size 2 --val-interval 1 --precision float32 --jobs 1"
    code, _, err = call_medloss(
        "compare", folder / "tiny_2d.yaml", "--data-root", folder / "data", "--recipe", folder / "recipe.yaml",
        *arguments.split(), "--out", comparison,
    )  # fmt: skip
    assert code == 0, err
    assert {name: read_json(comparison / "runs" / name / "result.json") for name in _FINISHED} == before
    assert _epochs(comparison / "runs" / _KILLED)[:2] == begun
    for name in (_KILLED, _STARTED):
        assert len(_epochs(comparison / "runs" / name)) == 3
        assert (read_json(comparison / "runs" / name / "result.json") or {})["state"] == "done"
    mirrored = stored(f"sqlite:///{comparison / 'mlflow.db'}", "tiny_2d")
    assert {*_FINISHED, _KILLED, _STARTED} <= set(mirrored)
    analysis = read_json(comparison / "report/analysis.json") or {}
    assert len(analysis["scores"]) == 3
    # Earlier versions had a tolerance of 1 mm, though the manifest's voxels are larger.
    configs = [read_json(run / "config.json") for run in (comparison / "runs").iterdir()]
    assert {config.get("nsd_tolerance", 1.0) for config in configs} == {1.0}
    assert "NSD (1 mm)" in (comparison / "table.md").read_text(encoding="utf-8")


def test_one_of_its_runs_is_resumed_alone(folder: Path) -> None:
    run = folder / "comparison/runs" / _KILLED
    begun = _epochs(run)
    arguments = "--loss hausdorff_dt --fold 1 --batch-size 2 --val-interval 1 --precision float32 --resume"
    code, _, err = call_medloss(
        "train", folder / "tiny_2d.yaml", "--data-root", folder / "data", "--recipe", folder / "recipe.yaml",
        *arguments.split(), "--out", run,
    )  # fmt: skip
    assert code == 0, err
    assert _epochs(run)[:2] == begun and len(_epochs(run)) == 3
    config = read_json(run / "config.json")
    assert config["orientation"] == "file" and config["nsd_tolerance"] == 1.0
