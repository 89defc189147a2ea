"""A raw data set of nnU-Net as a manifest: labels, its folds, and channels that `dataset.json` does not name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cli_call import call_medloss
from small_files import small_folder

from pipelines.data.manifest import Manifest, load_manifest
from pipelines.utils.files import write_json

LABELS = {"background": 0, "organ": 1, "shell": 2, "lesions": 3}
SPLITS = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a"], "val": ["b", "c"]}]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture
def raw(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three cases in nnU-Net's layout."""
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "nnUNet_raw" / "Dataset042_Thing"
    for case in ("a", "b", "c"):
        for kind, name in (("images", f"imagesTr/{case}_0000"), ("labels", f"labelsTr/{case}")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(template / kind / f"{case}.nii.gz", folder / f"{name}.nii.gz")
    write_card(folder)
    return folder


def write_card(folder: Path, **changes: Any) -> None:
    card = {"channel_names": {"0": "CT"}, "labels": LABELS, "numTraining": 3, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(card | changes))


def manifest_of(folder: Path, *options: object) -> tuple[Manifest, str]:
    code, out, err = call_medloss("manifest", folder, "--out", "made.yaml", "--force", *options)
    assert (code, err) == (0, ""), err
    return load_manifest("made.yaml"), out


def folds(manifest: Manifest) -> dict[str, int]:
    return {case.id: case.fold for case in manifest.cases}


def test_labels_and_channels(raw: Path) -> None:
    shutil.copy(raw / "imagesTr/a_0000.nii.gz", raw / "imagesTr/a_0001.nii.gz")
    manifest, out = manifest_of(raw, "--folds", 3)
    assert manifest.name == "Dataset042_Thing"
    assert manifest.modality == "CT"
    assert manifest.classes == {value: name for name, value in LABELS.items()}
    assert [case.id for case in manifest.cases] == ["a", "b", "c"]
    assert manifest.cases[0].image == "imagesTr/a_0000.nii.gz"
    assert "left out: imagesTr/a_0001.nii.gz: not one of the channels CT" in out


def test_nnunets_folds_are_used_wherever_they_are_stored(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"a": 0, "b": 1, "c": 1}
    default = raw.parent.parent / "nnUNet_preprocessed" / raw.name / "splits_final.json"
    elsewhere = raw.parent.parent / "elsewhere" / raw.name / "splits_final.json"
    write_json(default, SPLITS)
    manifest, out = manifest_of(raw)
    assert folds(manifest) == expected
    assert f"folds: as in {default}" in out
    # If nnUNet_preprocessed is set, it replaces the default folder; the data set's own folder still comes first.
    monkeypatch.setenv("nnUNet_preprocessed", str(elsewhere.parent.parent))
    write_json(elsewhere, SPLITS[::-1])
    assert folds(manifest_of(raw)[0]) == {"a": 1, "b": 0, "c": 0}
    write_json(raw / "splits_final.json", SPLITS)
    assert folds(manifest_of(raw)[0]) == expected
    # Options draw other folds.
    for options in (("--folds", 3), ("--seed", 1, "--folds", 3)):
        manifest, out = manifest_of(raw, *options)
        assert manifest.folds() == [0, 1, 2]
        assert "folds: as in" not in out


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([{"train": ["a", "b"], "val": ["c"]}], "'a' is validated in no fold"),
        ([*SPLITS, {"train": ["b"], "val": ["a", "c"]}], "'a' is validated in folds [0, 2]"),
        ({"train": [], "val": []}, "not nnU-Net splits"),
        ([{"train": ["a"]}], "not nnU-Net splits"),
    ],
)
def test_splits_that_are_not_folds_are_refused(raw: Path, splits: Any, message: str) -> None:
    write_json(raw / "splits_final.json", splits)
    code, _, err = call_medloss("manifest", raw, "--out", "made.yaml")
    assert code == 2
    assert message in err
    assert "splits_final.json" in err
    assert not Path("made.yaml").exists()


def test_broken_splits_are_refused(raw: Path) -> None:
    (raw / "splits_final.json").write_text("[{")
    code, _, err = call_medloss("manifest", raw, "--out", "made.yaml")
    assert code == 2
    assert "not valid JSON" in err


def test_splits_in_a_folder_of_another_name_are_used(raw: Path) -> None:
    write_json(raw / "splits_final.json", SPLITS)
    other = raw.rename(raw.with_name("Task42"))
    manifest, out = manifest_of(other)
    assert folds(manifest) == {"a": 0, "b": 1, "c": 1}
    assert f"folds: as in {other / 'splits_final.json'}; pass --folds to have others drawn" in out
    assert manifest_of(other, "--folds", 3)[0].folds() == [0, 1, 2]


def test_regions_without_an_order_are_refused(raw: Path) -> None:
    write_card(raw, labels={"background": 0, "all": [1, 2, 3], "lesions": 3})
    code, _, err = call_medloss("manifest", raw, "--out", "made.yaml")
    assert code == 2
    assert err.count("\n") == 1
    assert "dataset.json: regions_class_order: got None" in err
