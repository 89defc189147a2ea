"""`medloss predict` with several channels, and with regions."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from cli_call import call_medloss
from small_files import array_of
from tiny import tiny_manifest

from pipelines.data.manifest import load_manifest
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.training.networks import create_network
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import NAME, save_model

#: Of a network for PET and CT whose regions overlap.
REGIONS: dict[str, Any] = {
    "modality": None, "channels": [{"name": "PET"}, {"name": "CT"}],
    "classes": {0: "background", 1: "rim", 2: "core", 3: "centre"},
    "regions": {"whole": [1, 2, 3], "the core": [2, 3], "centre": [3]}, "region_order": [1, 2, 3], "ignore": 255,
    "generator": {"name": "phantom_regions"},
}  # fmt: skip


@pytest.fixture(scope="module")
def of_regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with random weights for images of two channels, which predicts three regions."""
    folder = tmp_path_factory.mktemp("regions")
    return _saved(folder, REGIONS)


def _predict(model: Path, *words: object) -> tuple[int, str, str]:
    code, out, err = call_medloss("predict", "--model", model, "--device", "cpu", *words)
    assert "Traceback" not in out + err
    return code, out, err


def _image(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(9, 8, 10)) * 100 + 200).clip(0, 500).astype(np.int16)


def _saved(folder: Path, changes: dict[str, Any]) -> Path:
    manifest = load_manifest(tiny_manifest(folder, 3, **changes))
    config = RunConfig(manifest="none", levels=2, base_channels=4, patch_size=(8, 8, 8), precision="float32")
    torch.manual_seed(3)
    network = create_network(config, 3, manifest.scheme.channels, len(manifest.image_channels))
    processed = Preprocessing(dimensions=3, spacing=(2.0,) * 3, orientation="canonical")
    save_model(folder / NAME, network, config, manifest, processed)
    return folder / NAME


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Images of PET and CT, with axes to the left, posterior and superior: by number, by name, and in one file."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    channels = [_image(seed) for seed in (0, 1)]
    affine = np.diag([-2.0, -2, 1, 1])
    for array, ends in zip(channels, (("_0000", "_pet"), ("_0001", "-CT")), strict=True):
        for name, end in zip(("a", "B"), ends, strict=True):
            nib.Nifti1Image(array, affine).to_filename(folder / f"{name}{end}.nii.gz")
    nib.Nifti1Image(np.stack(channels, -1), affine).to_filename(folder / "four.nii.gz")
    return folder


def test_channels_in_one_file_or_in_several(tmp_path: Path, of_regions: Path, pairs: Path) -> None:
    code, _, err = _predict(of_regions, pairs, "--out", tmp_path / "out", "--regions", "--probabilities")
    assert code == 0, err
    assert [line.split(": ")[0] for line in err.splitlines()] == ["[1/3] B", "[2/3] a", "[3/3] four"]
    ends = ["", "_centre", "_probabilities", "_the_core", "_whole"]
    made = [path.name for path in (tmp_path / "out").iterdir()]
    assert sorted(made) == sorted(f"{name}{end}.nii.gz" for name in ("a", "B", "four") for end in ends)
    for end in ends:
        alike = [array_of(tmp_path / "out" / f"{name}{end}.nii.gz") for name in ("a", "B", "four")]
        np.testing.assert_array_equal(alike[0], alike[1])
        np.testing.assert_array_equal(alike[0], alike[2])
    labels, odds, *regions = (
        nib.load(tmp_path / "out" / f"a{end}.nii.gz")
        for end in ("", "_probabilities", "_whole", "_the_core", "_centre")
    )
    for image in (labels, odds, *regions):
        np.testing.assert_array_equal(image.affine, nib.load(pairs / "a_0000.nii.gz").affine)
    expected = np.zeros((9, 8, 10), np.uint8)
    for value, region in enumerate(regions):
        inside = np.asanyarray(region.dataobj)
        np.testing.assert_array_equal(inside, np.asanyarray(odds.dataobj)[..., value] > 0.5)
        assert 0 < inside.mean() < 1
        expected[inside > 0] = value + 1
    np.testing.assert_array_equal(np.asanyarray(labels.dataobj), expected)
    # Which channel is which matters.
    for name in ("0000", "0001"):
        (pairs / f"a_{name}.nii.gz").rename(pairs / f"swapped_{1 - int(name):04d}.nii.gz")
    assert _predict(of_regions, *sorted(pairs.glob("swapped*")), "--out", tmp_path / "out")[0] == 0
    assert (array_of(tmp_path / "out" / "swapped.nii.gz") != expected).any()


def test_resume_and_collisions_with_channels_and_regions(tmp_path: Path, of_regions: Path, pairs: Path) -> None:
    out = tmp_path / "out"
    assert _predict(of_regions, pairs / "a_0000.nii.gz", pairs / "a_0001.nii.gz", "--out", out)[0] == 0
    code, _, err = _predict(of_regions, pairs, "--out", out)
    assert (code, err.split(";")[0]) == (2, f"error: --out: there already: {out / 'a.nii.gz'}")
    code, stdout, _ = _predict(of_regions, pairs, "--out", out, "--resume")
    assert (code, stdout.splitlines()[1]) == (0, "1 were there already")
    # Of maps of regions, too.
    code, stdout, _ = _predict(of_regions, pairs, "--out", out, "--resume", "--regions")
    assert (code, stdout[:11], stdout.count("\n")) == (0, "3 predicted", 1)
    (pairs / "four.nii.gz").rename(pairs / "a_whole.nii.gz")
    code, _, err = _predict(of_regions, pairs, "--out", tmp_path / "new", "--regions")
    assert (code, "would both be predicted as a_whole.nii.gz" in err) == (2, True)
    (pairs / "a_whole.nii.gz").rename(pairs / "a.nii.gz")
    code, _, err = _predict(of_regions, pairs, "--out", tmp_path / "new")
    assert (code, "would both be predicted as a.nii.gz" in err) == (2, True)
    code, _, err = _predict(of_regions, pairs / "a.nii.gz", "--out", pairs)
    assert (code, "would overwrite the image" in err) == (2, True)


def _second(images: Path, name: str) -> Path:
    return Path(shutil.copy(images / "a_0001.nii.gz", images / name))


CALLS: list[tuple[str, Callable[[Path], list[Any]], str]] = [
    (
        "a lone number", lambda i: [i / "a_0001.nii.gz"],
        "a_0001.nii.gz: channel 0 \\(PET\\) of 'a' is missing; expected a_0000.nii.gz or a_PET.nii.gz next to it",
    ),
    ("a lone name", lambda i: [i / "B_pet.nii.gz"], "channel 1 \\(CT\\) of 'B' is missing; expected B_0001.nii.gz or "),
    ("a channel twice", lambda i: [i, _second(i, "a_CT.nii.gz")], "are both channel 1 \\(CT\\) of one image"),
    (
        "a manifest of one channel", lambda i: ["--manifest", "phantom"],
        "--manifest: 'phantom' has the channels MR; the network's are PET, CT",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_invalid_channels_exit_with_2_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_regions: Path, pairs: Path, words: Any, message: str
) -> None:
    monkeypatch.setenv("MEDLOSS_DATA", str(tmp_path / "data"))
    code, out, err = _predict(of_regions, *words(pairs), "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert re.fullmatch(f"error: .*{message}.*\n", err), err
    assert not (tmp_path / "out").exists()


def test_regions_need_a_network_of_regions_with_names_for_files(tmp_path: Path, pairs: Path) -> None:
    model = _saved(tmp_path / "classes", {})
    code, _, err = _predict(model, pairs / "a_0000.nii.gz", "--out", tmp_path / "out", "--regions")
    assert (code, err) == (2, "error: --regions: this network predicts classes and no regions; leave it out\n")
    changes = REGIONS | {"regions": {"a core": [1, 2, 3], "a/core": [2, 3], "centre": [3]}}
    code, _, err = _predict(_saved(tmp_path / "alike", changes), pairs, "--out", tmp_path / "out", "--regions")
    assert (code, err.count("\n"), "B_a_core.nii.gz would be written twice" in err) == (2, 1, True)
    assert not (tmp_path / "out").exists()


def test_an_image_with_another_number_of_channels(tmp_path: Path, of_regions: Path, pairs: Path) -> None:
    shutil.copy(pairs / "a_0000.nii.gz", pairs / "one.nii.gz")
    code, out, err = _predict(of_regions, pairs, "--out", tmp_path / "out")
    assert (code, out.split(" in ")[0]) == (1, "3 predicted")
    assert re.search(r"error: .*one\.nii\.gz: one volume \(.* voxels\); expected 2, one per channel\n$", err)
