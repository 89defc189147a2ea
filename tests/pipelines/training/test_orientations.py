"""However files are stored, cases, trained weights, metrics and predictions are the same in space."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_files import affine_of, rewrite
from tiny import TinySet, listed, tiny_manifest

from pipelines.data.manifest import Manifest, load_manifest
from pipelines.inference.predict import Settings, predict
from pipelines.inference.sources import image_sources
from pipelines.preprocessing import Augmentation
from pipelines.preprocessing.case_store import CaseStore
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.training.run import train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.training.saved_model import load_model

CPU = torch.device("cpu")
#: nibabel's orientations: where each axis of an array is to be, and whether it keeps its direction.
ALL_48 = [
    np.array([[axis, sign] for axis, sign in zip(order, signs, strict=True)], float)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
#: Those that keep a slice a slice.
IN_PLANE = [turn for turn in ALL_48 if turn[2, 0] == 2 and turn[2, 1] == 1]
#: A few in which every axis is at every place, in both directions.
SOME = [ALL_48[number] for number in (0, 7, 13, 27, 38, 42)]


def _turned(source: Path, target: Path, turn: np.ndarray) -> None:
    """Write a file again with its axes in another order and direction; the volume in space is the same."""
    image = nib.load(source)
    array = np.asanyarray(image.dataobj)
    whole = nib.Nifti1Image(array.reshape((*array.shape, 1)[:3]), image.affine)
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(whole.as_reoriented(turn), target)


def _stored(manifest: Manifest, source: Path, root: Path, turn: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Path:
    """A copy of a data set whose cases' images and labels are stored in the orientations that `turn` gives."""
    for number, case in enumerate(manifest.cases):
        for file, orientation in zip(case.files, turn(number), strict=True):
            _turned(source / file, root / file, orientation)
    return root


def _cases(manifest: Manifest, root: Path, processed: Preprocessing, count: int) -> list[dict[str, Any]]:
    return list(CaseStore(manifest, manifest.cases[:count], root, processed))


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two prepared cases are equal to the bit, with the same order of axes in memory."""

    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, list):
            return len(a) == len(b) and all(map(equal, a, b))
        if isinstance(a, torch.Tensor):
            return bool(a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b))
        return bool(a == b)

    return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("spacing", [None, (1.7, 1.2, 2.1)], ids=["one grid", "resampled"])
def test_prepared_cases_in_all_48_orientations(
    tmp_path: Path, spacing: tuple[float, ...] | None, oblique: bool
) -> None:
    path, data = listed(tiny_manifest(tmp_path, cases=3), tmp_path / "data")
    manifest = load_manifest(path)
    if oblique:
        turned = np.eye(4)
        turned[:3, :3] = Rotation.from_rotvec([0.2, -0.3, 0.35]).as_matrix()
        for file in manifest.cases[0].files:
            rewrite(data / file, affine=turned @ affine_of(data / file))
    processed = Preprocessing(dimensions=3, spacing=spacing, orientation="canonical")
    (expected,) = _cases(manifest, data, processed, 1)
    assert expected["label"].unique().numel() > 2
    shapes = set()
    for number, turn in enumerate(ALL_48):
        root = tmp_path / str(number)
        for file in manifest.cases[0].files:
            _turned(data / file, root / file, turn)
        shapes.add(nib.load(root / manifest.cases[0].label).shape)
        (case,) = _cases(manifest, root, processed, 1)
        assert _same(case, expected), turn
    assert len(shapes) == 6 / 2  # two axes have the same number of voxels


def test_prepared_slices_in_every_orientation_within_the_slice(tmp_path: Path) -> None:
    path, data = listed(tiny_manifest(tmp_path, 2, cases=3), tmp_path / "data")
    manifest = load_manifest(path)
    processed = Preprocessing(dimensions=2, spacing=(1.1, 0.9), orientation="canonical")
    (expected,) = _cases(manifest, data, processed, 1)
    assert len(IN_PLANE) == 8
    for number, turn in enumerate(IN_PLANE):
        root = tmp_path / str(number)
        for file in manifest.cases[0].files:
            _turned(data / file, root / file, turn)
        (case,) = _cases(manifest, root, processed, 1)
        assert _same(case, expected), turn


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("orientations")
    return listed(tiny_manifest(folder, generator={"shape": [12, 16, 20]}), folder / "data")


def _config(manifest: Path, root: Path) -> RunConfig:
    varied = Augmentation(rotation=20, scaling=(0.8, 1.3), spatial_share=0.7, noise_share=0.5)
    return TinySet(manifest, root).config(
        patch_size=(12, 16, 8), levels=2, base_channels=4, flip_axes=(0, 2), augmentation=varied, learning_rate=1e-2
    )


@pytest.fixture(scope="module")
def trained(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train_run(_config(*made), run)
    return run


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run, CPU).network.state_dict()


MIXED: dict[str, Callable[[int], tuple[np.ndarray, np.ndarray]]] = {
    "all alike": lambda number: (ALL_48[29], ALL_48[29]),
    "each case another": lambda number: (ALL_48[7 * number], ALL_48[7 * number]),
    "image and label differ": lambda number: (ALL_48[11 * number % 48], ALL_48[(17 * number + 5) % 48]),
}


@pytest.mark.parametrize("name", MIXED)
def test_training_does_not_depend_on_how_files_are_stored(
    made: tuple[Path, Path], trained: Path, tmp_path: Path, name: str
) -> None:
    manifest, data = made
    loaded = load_manifest(manifest)
    root = _stored(loaded, data, tmp_path / "data", MIXED[name])
    train_run(_config(manifest, root), tmp_path / "run")
    weights, expected = _weights(tmp_path / "run"), _weights(trained)
    assert weights.keys() == expected.keys() and all(torch.equal(weights[key], expected[key]) for key in weights)
    rows, before = RunFolder(tmp_path / "run").cases, RunFolder(trained).cases
    assert len(rows) == 6 and str(rows) == str(before)  # some are NaN
    for case in loaded.split(0)[1]:
        kept = nib.load(RunFolder(tmp_path / "run").prediction(case.id))
        label = nib.load(root / case.label)
        assert kept.shape == label.shape and np.array_equal(kept.affine, label.affine)
        other = nib.load(RunFolder(trained).prediction(case.id))
        _check_same_in_space(kept, other)


def _check_same_in_space(one: Any, other: Any) -> None:
    one, other = nib.as_closest_canonical(one), nib.as_closest_canonical(other)
    assert np.allclose(one.affine, other.affine, atol=1e-4)
    assert np.array_equal(np.asanyarray(one.dataobj), np.asanyarray(other.dataobj))


def test_predictions_are_the_same_in_space_and_on_each_files_grid(
    made: tuple[Path, Path], trained: Path, tmp_path: Path
) -> None:
    manifest, data = made
    model, settings = load_model(trained, CPU), Settings(probabilities=True, flips=True)
    image = data / load_manifest(manifest).cases[0].image
    for number, turn in enumerate(SOME):
        _turned(image, tmp_path / "images" / f"{number}.nii.gz", turn)
    sources, _ = image_sources([tmp_path / "images", image])
    assert predict(model, sources, tmp_path / "out", settings) == []
    for source in sources:
        stored = nib.load(source.path)
        for file in (source.labels(tmp_path / "out"), source.probabilities(tmp_path / "out")):
            written = nib.load(file)
            assert written.shape[:3] == stored.shape and np.array_equal(written.affine, stored.affine)
            _check_same_in_space(written, nib.load(tmp_path / "out" / file.name.replace(source.name, sources[-1].name)))
    labels = np.asanyarray(nib.load(sources[-1].labels(tmp_path / "out")).dataobj)
    assert len(np.unique(labels)) > 1
    shapes = {nib.load(source.path).shape for source in sources}
    assert len(shapes) > 3


def test_along_the_files_axes_orientations_differ(made: tuple[Path, Path], tmp_path: Path) -> None:
    """As in models of older versions: their arrays are those of the files."""
    manifest, data = made
    loaded, turn = load_manifest(manifest), ALL_48[29]
    root = _stored(loaded, data, tmp_path, lambda number: (turn, turn))
    for folder in (data, root):
        (case,) = _cases(loaded, folder, Preprocessing(dimensions=3), 1)
        raw = np.asanyarray(nib.load(folder / loaded.cases[0].label).dataobj)
        assert np.array_equal(case["label"][0].numpy(), raw)
