"""`medloss predict`: geometry of the maps, agreement with validation, and reports on bad images."""

import csv
import gzip
import math
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from cli_call import call_medloss
from faults import FAULTS, Fault, cut, linked, linked_outside, padded, with_trailing_axes
from small_files import SHAPE, affine_of, array_of, rewrite, small_folder
from tiny import tiny_manifest

from pipelines.data.manifest import load_manifest
from pipelines.data.manifest_writer import FoldSettings, make_manifest, manifest_text
from pipelines.data.nifti import write_labels
from pipelines.evaluation.metrics.base import default_metrics
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.training.networks import create_network
from pipelines.training.run import train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.training.saved_model import NAME, label_map, load_model, save_model

#: Label values with gaps, some too large for a byte.
CLASSES = {0: "background", 2: "organ", 7: "shell", 300: "lesion"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Networks with random weights, which predict some of every class, for a grid of 2 mm."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for dims in (2, 3):
        manifest = load_manifest(tiny_manifest(folder, dims, classes=CLASSES))
        config = RunConfig(
            manifest="none", levels=2, base_channels=4, patch_size=(8,) * dims, precision="float32", flip_axes=(0,)
        )
        torch.manual_seed(3)
        network = create_network(config, dims, 4)
        made[dims] = folder / f"{dims}d" / NAME
        save_model(made[dims], network, config, manifest, Preprocessing(dimensions=dims, spacing=(2.0,) * dims))
    return made


def _predict(model: Path, *words: object) -> tuple[int, str, str]:
    code, out, err = call_medloss("predict", "--model", model, "--device", "cpu", *words)
    assert "Traceback" not in out + err
    return code, out, err


def _rotation(x: float, y: float, z: float) -> np.ndarray:
    turned = np.eye(3)
    for axis, angle in enumerate((x, y, z)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        turned = turned @ turn
    return turned


def _affine(directions: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions @ np.diag(spacing)
    affine[:3, 3] = (-31.5, 12.25, 807.125)
    return affine


def _image(kind: type, shape: tuple[int, ...] = (11, 14, 9), seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) * 100 + 200).clip(0, 500).astype(kind)


OBLIQUE = _rotation(0.3, -0.2, 0.9)
FLIPPED = np.diag([-1.0, 1.0, -1.0])
TURNED = np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]])


def _plain(path: Path) -> None:
    nib.Nifti1Image(_image(np.int16), _affine(np.eye(3), (1, 1, 1))).to_filename(path)


def _oblique(path: Path) -> None:
    nib.Nifti1Image(_image(np.float32), _affine(OBLIQUE, (0.7, 2.5, 1.3))).to_filename(path)


def _flipped(path: Path) -> None:
    nib.Nifti1Image(_image(np.uint16), _affine(FLIPPED, (3.0, 0.9, 0.9))).to_filename(path)


def _left_handed(path: Path) -> None:
    nib.Nifti1Image(_image(np.int16), _affine(np.diag([1.0, -1.0, 1.0]) @ OBLIQUE, (1, 2, 3))).to_filename(path)


def _turned(path: Path) -> None:
    nib.Nifti1Image(_image(np.float64), _affine(TURNED, (1.1, 2.2, 0.8))).to_filename(path)


def _of_qform_alone(path: Path) -> None:
    image = nib.Nifti1Image(_image(np.int16), None)
    image.set_qform(_affine(OBLIQUE, (1.5, 0.8, 2.25)), 1)
    image.set_sform(None, 0)
    image.to_filename(path)


def _of_sform_alone(path: Path) -> None:
    image = nib.Nifti1Image(_image(np.int16), None)
    image.set_sform(_affine(OBLIQUE, (1.5, 0.8, 2.25)), 4)
    image.header.set_zooms((1.5, 0.8, 2.25))
    image.to_filename(path)


def _of_neither(path: Path) -> None:
    image = nib.Nifti1Image(_image(np.int16), None)
    image.header.set_zooms((1.5, 0.8, 2.25))
    image.to_filename(path)


def _scaled(path: Path) -> None:
    image = nib.Nifti1Image(_image(np.int16), _affine(OBLIQUE, (1, 1, 2)))
    image.header.set_slope_inter(0.25, -1024)
    image.header["cal_max"] = 500
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"made by a scanner"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    image.to_filename(path)


def _big_endian(path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(_image(np.int16).astype(">i2"), _affine(OBLIQUE, (1, 1, 2)), header)
    image.to_filename(path)
    assert nib.load(path).header.endianness == ">"


def _nifti_2(path: Path) -> None:
    nib.Nifti2Image(_image(np.int16), _affine(OBLIQUE, (1, 1, 2))).to_filename(path)


def _flat(path: Path) -> None:
    nib.Nifti1Image(_image(np.int16, (21, 14)), _affine(np.diag([-1.0, -1, 1]), (0.8, 1.75, 1))).to_filename(path)


def _flat_without_a_third_zoom(path: Path) -> None:
    _flat(path)
    rewrite(path, raw={"pixdim": [1, 0.8, 1.75, 0, 0, 0, 0, 0], "qform_code": 0})


GEOMETRIES: list[Callable[[Path], None]] = [
    _plain, _oblique, _flipped, _left_handed, _turned, _of_qform_alone, _of_sform_alone, _of_neither, _scaled,
    _big_endian, _nifti_2, _flat, _flat_without_a_third_zoom,
]  # fmt: skip


def _itk(path: Path) -> list[np.ndarray]:
    read = SimpleITK.ReadImage(str(path))
    return [np.array(part) for part in (read.GetSize(), read.GetSpacing(), read.GetOrigin(), read.GetDirection())]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("make", GEOMETRIES, ids=lambda make: make.__name__[1:])
def test_maps_have_the_geometry_of_their_image(
    tmp_path: Path, models: dict[int, Path], make: Callable[[Path], None], ending: str
) -> None:
    image = tmp_path / f"case.1{ending}"
    make(image)
    content = image.read_bytes()
    old = nib.load(image)
    code, _, err = _predict(models[old.ndim], image, "--out", tmp_path / "out", "--probabilities")
    assert (code, len(err.splitlines())) == (0, 1)
    assert image.read_bytes() == content
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"case.1.nii.gz", "case.1_probabilities.nii.gz"}
    labels, odds = (nib.load(tmp_path / "out" / f"case.1{e}.nii.gz") for e in ("", "_probabilities"))

    values = np.asanyarray(labels.dataobj)
    assert labels.get_data_dtype().newbyteorder("=") == np.int16  # needed for 300
    assert labels.shape == old.shape
    assert set(np.unique(values)) <= set(CLASSES)
    assert len(np.unique(values)) > 1
    assert odds.get_data_dtype().newbyteorder("=") == np.float32
    flat = (1,) * (3 - old.ndim)
    assert odds.shape == (*old.shape, *flat, 4)
    shares = np.asanyarray(odds.dataobj).reshape(*old.shape, 4)
    np.testing.assert_allclose(shares.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(np.array(list(CLASSES))[shares.argmax(-1)], values)

    for made in (labels, odds):
        assert type(made) is type(old)
        np.testing.assert_array_equal(made.affine, old.affine)
        for field in ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
                      "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units"):  # fmt: skip
            np.testing.assert_array_equal(made.header[field], old.header[field], err_msg=field)
        np.testing.assert_array_equal(made.header["pixdim"][: 1 + old.ndim], old.header["pixdim"][: 1 + old.ndim])
        # Read from the file, since nibabel repairs what other readers reject.
        raw = nib.Nifti1Header if type(old) is nib.Nifti1Image else nib.Nifti2Header
        raw = raw(gzip.decompress(Path(made.get_filename()).read_bytes())[: raw.sizeof_hdr], check=False)
        assert (raw["scl_slope"], raw["scl_inter"]) == (1, 0)
        assert (raw["pixdim"][1 : 1 + made.ndim] > 0).all()
        assert (made.header["cal_max"], made.header["cal_min"]) == (0, 0)
        assert not made.header.extensions
        assert made.header["descrip"].item().startswith(b"medloss: ")

    # As in viewers based on ITK, which do not support NIfTI-2 either.
    if make is _nifti_2:
        return
    size, spacing, origin, direction = _itk(image)
    for ours, theirs in zip(_itk(tmp_path / "out" / "case.1.nii.gz"), _itk(image), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    seen = SimpleITK.ReadImage(str(tmp_path / "out" / "case.1.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(seen).T, values)
    four = SimpleITK.ReadImage(str(tmp_path / "out" / "case.1_probabilities.nii.gz"))
    assert four.GetSize() == (*size, *flat, 4)
    np.testing.assert_array_equal(four.GetSpacing()[: old.ndim], spacing)
    np.testing.assert_array_equal(four.GetOrigin()[: old.ndim], origin)
    matrix = np.array(four.GetDirection()).reshape(4, 4)[: old.ndim, : old.ndim]
    np.testing.assert_array_equal(matrix.ravel(), direction)


def test_the_map_is_that_of_the_networks_logits(tmp_path: Path, models: dict[int, Path]) -> None:
    """On the network's grid the file has its logits' classes; on another, those after linear interpolation."""
    model = load_model(models[3], CPU)
    for name, spacing, grid in (("same", (2.0, 2.0, 2.0), (11, 14, 9)), ("other", (1.0, 2.0, 4.0), (6, 14, 18))):
        array = _image(np.float32)
        nib.Nifti1Image(array, np.diag([*spacing, 1])).to_filename(tmp_path / f"{name}.nii.gz")
        assert _predict(models[3], tmp_path / f"{name}.nii.gz", "--out", tmp_path)[0] == 2  # would overwrite the image
        assert _predict(models[3], tmp_path / f"{name}.nii.gz", "--out", tmp_path / "out")[0] == 0
        volume = torch.from_numpy((array - array.mean()) / array.std())[None, None]
        volume = torch.nn.functional.interpolate(volume, size=grid, mode="trilinear")
        logits = model.logits(volume[0])
        logits = torch.nn.functional.interpolate(logits[None], size=array.shape, mode="trilinear")[0]
        expected = np.array(list(CLASSES))[logits.argmax(0).numpy()]
        assert (array_of(tmp_path / "out" / f"{name}.nii.gz") != expected).mean() < 1e-3


@pytest.mark.parametrize(
    ("highest", "kind"),
    [(0, np.uint8), (255, np.uint8), (256, np.int16), (40_000, np.int32), (2**40, np.int64)],
)
def test_the_smallest_type(tmp_path: Path, highest: int, kind: type) -> None:
    labels = np.zeros((3, 4, 5), np.int64)
    labels[1, 2, 3] = highest
    write_labels(tmp_path / "a.nii.gz", labels, nib.Nifti1Header())
    made = nib.load(tmp_path / "a.nii.gz")
    assert made.get_data_dtype() == kind
    np.testing.assert_array_equal(np.asanyarray(made.dataobj), labels)


def test_the_same_prediction_is_the_same_file(tmp_path: Path, models: dict[int, Path]) -> None:
    _oblique(tmp_path / "a.nii.gz")
    words = [tmp_path / "a.nii.gz", "--probabilities", "--out"]
    for folder in ("one", "two"):
        assert _predict(models[3], *words, tmp_path / folder)[0] == 0
    for name in ("a.nii.gz", "a_probabilities.nii.gz"):
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert content[3:8] == b"\0" * 5  # neither a name nor a time
    # Writing probabilities does not change the labels; flips and lower precision change probabilities.
    assert _predict(models[3], tmp_path / "a.nii.gz", "--out", tmp_path / "three")[0] == 0
    assert (tmp_path / "three" / "a.nii.gz").read_bytes() == (tmp_path / "one" / "a.nii.gz").read_bytes()
    for option in (["--flips"], ["--precision", "bfloat16"]):
        assert _predict(models[3], *words, tmp_path / "four", "--force", *option)[0] == 0
        assert (tmp_path / "four" / "a_probabilities.nii.gz").read_bytes() != content


@pytest.mark.parametrize("varied", [False, True], ids=["one grid", "resampled"])
def test_predictions_have_the_metrics_of_validation(tmp_path: Path, varied: bool) -> None:
    data = small_folder(tmp_path)
    if varied:
        for scale, case in zip((1.0, 0.7, 1.3, 0.85), ("a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii"), strict=True):
            for kind in ("images", "labels"):
                stretch = np.diag([1, scale, scale, 1])
                rewrite(data / kind / case, affine=affine_of(data / kind / case) @ stretch)
    manifest = tmp_path / "set.yaml"
    manifest.write_text(manifest_text(make_manifest(data, folds=FoldSettings(2))))
    config = RunConfig(
        manifest=str(manifest), data_root=str(data), fold=1, epochs=3, batch_size=2, base_channels=4, levels=2,
        patch_size=(8, 12, 8), spacing=(3.0, 1.2, 1.6) if varied else None, threads=1, device="cpu", ema=0.5,
    )  # fmt: skip
    _check_metrics_of_validation(tmp_path, config)


def test_2d_predictions_with_deep_supervision_have_the_metrics_of_validation(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, 2, modality="CT", classes=CLASSES)
    config = RunConfig(
        manifest=str(manifest), data_root=str(tmp_path / "data"), fold=1, epochs=3, batch_size=2, base_channels=4,
        network="dynunet", deep_supervision=1, patch_size=(16, 24), spacing=(1.2, 1.0), threads=1, device="cpu",
        precision="float32",
    )  # fmt: skip
    _check_metrics_of_validation(tmp_path, config)
    assert load_model(tmp_path / "run", CPU).preprocessing.clip is not None


def _check_metrics_of_validation(folder: Path, config: RunConfig) -> None:
    train_run(config, folder / "run")
    where = ("--manifest", config.manifest, "--data-root", config.data_root, "--fold", config.fold)
    code, out, err = call_medloss("predict", "--run", folder / "run", *where, "--out", folder / "out")
    assert (code, out.count("\n"), err.count("\n")) == (0, 1, 2)
    assert re.fullmatch(r"\[1/2\] \w+: \d+\.\d s\n\[2/2\] \w+: \d+\.\d s\n", err)
    assert out.startswith(f"2 predicted in {folder / 'out'}: 0 background, ")
    code, _, err = call_medloss("evaluate", folder / "out", *where, "--out", folder / "all.csv")
    assert (code, err) == (0, "")
    with (folder / "all.csv").open(newline="") as file:
        evaluated = list(csv.DictReader(file))
    validated = RunFolder(folder / "run").cases
    assert len(evaluated) == len(validated) == 6
    for ours, theirs in zip(evaluated, validated, strict=True):
        assert (ours["case"], ours["class"]) == (theirs["case"], theirs["class"])
        for metric in default_metrics():
            one, other = (float(row[metric] or "nan") for row in (ours, theirs))
            # Spacings of manifests are rounded to a nanometre.
            assert one == pytest.approx(other, rel=1e-5 if metric.endswith("mm") else 0, abs=0, nan_ok=True), metric
    assert any(0 < float(row["dice"] or 0) < 1 for row in validated)


def test_a_label_map_has_the_class_of_the_largest_logit() -> None:
    logits = torch.randn(5, 7, 6, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(label_map(logits, (7, 6, 4)), logits.argmax(0))
    finer = torch.nn.functional.interpolate(logits[None], size=(9, 11, 5), mode="trilinear")[0]
    assert torch.equal(label_map(logits, (9, 11, 5)), finer.argmax(0))
    before = logits.clone()
    label_map(logits, (7, 6, 4))
    assert torch.equal(logits, before)
    assert label_map(torch.eye(300)[:, :, None], (300, 1)).flatten().tolist() == list(range(300))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four small images, the third of them not compressed."""
    folder = tmp_path / "images"
    folder.mkdir()
    for seed, name in enumerate(("a.nii.gz", "b.nii.gz", "c.nii", "d.nii.gz")):
        nib.Nifti1Image(_image(np.int16, (9, 8, 10), seed), np.diag([2.0, 2, 2, 1])).to_filename(folder / name)
    (folder / "notes.txt").touch()
    (folder / ".hidden.nii").touch()
    return folder


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ALL = ["a.nii.gz", "b.nii.gz", "c.nii.gz", "d.nii.gz"]


def test_files_and_folders(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    other = tmp_path / "e.nii.gz"
    shutil.move(images / "a.nii.gz", other)
    code, out, err = _predict(models[3], images, other, "--out", tmp_path / "deep" / "out")
    assert code == 0
    assert _names(tmp_path / "deep" / "out") == [*ALL[1:], "e.nii.gz"]
    assert [line.split(": ")[0] for line in err.splitlines()] == ["[1/4] b", "[2/4] c", "[3/4] d", "[4/4] e"]
    labels = "0 background, 2 organ, 7 shell, 300 lesion"
    assert out == f"4 predicted in {tmp_path / 'deep' / 'out'}: {labels}\n"


def test_existing_files_are_kept(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    out = tmp_path / "out"
    assert _predict(models[3], images / "a.nii.gz", "--out", out)[0] == 0
    first = (out / "a.nii.gz").read_bytes()
    (out / "a.nii.gz").write_bytes(b"mine")
    code, _, err = _predict(models[3], images, "--out", out)
    assert code == 2
    assert re.fullmatch(r"error: --out: there already: \S*/out/a\.nii\.gz; pass --force .*--resume .*\n", err)
    assert _names(out) == ["a.nii.gz"]
    code, stdout, err = _predict(models[3], images, "--out", out, "--resume")
    assert code == 0
    assert stdout.splitlines()[1] == "1 were there already"
    assert err.splitlines()[0].startswith("[1/3] b: ")
    assert (out / "a.nii.gz").read_bytes() == b"mine"
    assert _predict(models[3], images, "--out", out, "--force")[0] == 0
    assert (out / "a.nii.gz").read_bytes() == first
    # Label maps alone are incomplete if probabilities are to be written as well.
    code, stdout, _ = _predict(models[3], images, "--out", out, "--resume", "--probabilities")
    assert (code, stdout.splitlines()[0][:11]) == (0, "4 predicted")


def test_images_are_never_overwritten(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    before = {path.name: path.read_bytes() for path in images.iterdir()}
    (tmp_path / "link").symlink_to(images)
    for out in (images, tmp_path / "link", images / ".." / "images"):
        code, _, err = _predict(models[3], images, "--out", out, "--force")
        assert code == 2
        assert re.fullmatch(r"error: --out: .*a\.nii\.gz would overwrite the image .*; name another folder\n", err)
    # The image is a link in the output folder, or the target of such a link.
    out = tmp_path / "out"
    out.mkdir()
    linked_to = out / "b.nii.gz"
    linked_to.symlink_to(images / "b.nii.gz")
    for image in (linked_to, images / "b.nii.gz"):
        code, _, err = _predict(models[3], image, "--out", out, "--force")
        assert code == 2
        assert "would overwrite the image" in err
    assert {path.name: path.read_bytes() for path in images.iterdir()} == before
    assert linked_to.is_symlink()


def test_two_images_of_one_name(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    shutil.copy(images / "c.nii", tmp_path / "c.nii")
    for words in (
        [images, tmp_path / "c.nii"],
        [images / "a.nii.gz", images],
        [images / "c.nii", shutil.copy(images / "a.nii.gz", tmp_path / "c.nii.gz")],
    ):
        code, _, err = _predict(models[3], *words, "--out", tmp_path / "out")
        assert code == 2
        assert re.fullmatch(
            r"error: \S+ and \S+ would both be predicted as [ac]\.nii\.gz; predict them separately\n", err
        )
    shutil.copy(images / "a.nii.gz", images / "a_probabilities.nii.gz")
    assert _predict(models[3], images, "--out", tmp_path / "out", "--probabilities")[0] == 2
    assert not (tmp_path / "out").exists()


#: Faults of an image that the check also reports, without those of labels and of the manifest's checksums.
IMAGE_FAULTS = [
    fault for fault in FAULTS
    if fault.file.startswith("images/b") and not fault.old_checksums and not fault.name.startswith("link")
    and "SHA-256" not in fault.reason and "affine differs" not in fault.reason
]  # fmt: skip


@pytest.mark.parametrize("fault", IMAGE_FAULTS, ids=lambda fault: fault.name)
def test_a_bad_image_is_reported_and_stops_no_other(tmp_path: Path, models: dict[int, Path], fault: Fault) -> None:
    data = small_folder(tmp_path)
    if fault.name == "image missing":
        pytest.skip("a missing image of a folder is unknown")
    fault.make(data)
    code, out, err = _predict(models[3], data / "images", "--out", tmp_path / "out")
    assert code == 1
    *progress, message = err.splitlines()
    assert [line.split(": ")[0] for line in progress] == ["[1/4] a", "[2/4] b", "[3/4] c", "[4/4] d"]
    assert progress[1] == "[2/4] b: left out"
    reason = message.removeprefix(f"error: {data / 'images' / 'b.nii.gz'}: ")
    assert reason != message
    if "NaN in" in fault.reason or "float32" in fault.reason:
        assert re.fullmatch(r"NaN, Inf, or too large for float32, in \d voxels?", reason)
    else:
        assert re.search(fault.reason, reason)
    assert out.startswith("3 predicted in ")
    assert _names(tmp_path / "out") == ["a.nii.gz", "c.nii.gz", "d.nii.gz"]


def test_images_of_a_manifest(tmp_path: Path, models: dict[int, Path]) -> None:
    data = small_folder(tmp_path)
    manifest = tmp_path / "set.yaml"
    manifest.write_text(manifest_text(make_manifest(data, folds=FoldSettings(2))).replace("id: a,", "id: first,"))
    rewrite(data / "images/b.nii.gz", np.ones(SHAPE, np.int16))
    linked_outside(data / "images/c.nii.gz")
    (data / "images/d.nii").unlink()
    where = ["--manifest", manifest, "--data-root", data, "--out", tmp_path / "out"]
    code, _, err = _predict(models[3], *where)
    assert code == 1
    assert _names(tmp_path / "out") == ["c.nii.gz", "first.nii.gz"]
    messages = [line.rsplit("/", 1)[1] for line in err.splitlines() if line.startswith("error: ")]
    assert messages == [
        "b.nii.gz: its SHA-256 is not the recorded one: the file is damaged or was replaced",
        "d.nii: missing",
    ]
    shutil.rmtree(data / "images")
    code, _, err = _predict(models[3], *where, "--force")
    assert code == 2
    assert re.fullmatch(
        r"error: .*/data holds no image of 'data', for example .*: pass the folder that does as --data-root\n", err
    )


def test_links_to_other_folders(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    """Many users keep lists of cases as folders of links."""
    (tmp_path / "list").mkdir()
    blob = shutil.move(images / "a.nii.gz", tmp_path / "blob")
    (tmp_path / "list" / "x.nii.gz").symlink_to(blob)
    linked(images / "d.nii.gz", Path("none.nii.gz"))
    code, _, err = _predict(models[3], tmp_path / "list", images / "d.nii.gz", "--out", tmp_path / "out")
    assert code == 1
    assert err.splitlines()[-1].endswith("d.nii.gz: a symbolic link to nothing")
    assert _names(tmp_path / "out") == ["x.nii.gz"]


@pytest.mark.parametrize("dims", [2, 3])
def test_trailing_axes_of_length_1_are_dropped(tmp_path: Path, models: dict[int, Path], dims: int) -> None:
    image = tmp_path / "x.nii.gz"
    array = _image(np.int16, (9, 8, 10), 3)[..., : 10 if dims == 3 else 1]
    array = array if dims == 3 else array[..., 0]
    nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1])).to_filename(image)
    assert _predict(models[dims], image, "--out", tmp_path / "plain", "--probabilities")[0] == 0
    with_trailing_axes(image, 2)
    padded(image)
    code, _, err = _predict(models[dims], image, "--out", tmp_path / "more", "--probabilities")
    assert (code, err.count("\n")) == (0, 1), err
    # Other tools support at most three spatial axes, and a 2D image may be stored as a slice.
    expected = (9, 8, 10) if dims == 3 else (9, 8, 1)
    for name in ("x.nii.gz", "x_probabilities.nii.gz"):
        plain, more = (nib.load(tmp_path / part / name) for part in ("plain", "more"))
        assert more.shape[:3] == expected
        np.testing.assert_array_equal(np.asanyarray(more.dataobj).ravel(), np.asanyarray(plain.dataobj).ravel())
        np.testing.assert_array_equal(more.affine, plain.affine)
    assert more.shape == (*expected, more.shape[-1])


@pytest.fixture
def side(tmp_path: Path, images: Path) -> Path:
    """Images with their labels, side by side, and a label alone."""
    folder = tmp_path / "side"
    folder.mkdir()
    for name in ("a", "b"):
        shutil.copy(images / f"{name}.nii.gz", folder / f"{name}_image.nii.gz")
        shutil.copy(images / f"{name}.nii.gz", folder / f"{name}_label.nii.gz")
    shutil.copy(images / "d.nii.gz", folder / "z_seg.nii.gz")
    return folder


def _labels_alone(images: Path) -> Path:
    folder = images.with_name("masks")
    folder.mkdir()
    shutil.copy(images / "a.nii.gz", folder / "a_gt.nii.gz")
    return folder


def test_labels_next_to_images_are_left_out(tmp_path: Path, models: dict[int, Path], side: Path) -> None:
    code, _, err = _predict(models[3], side, "--out", tmp_path / "out")
    labels = ", ".join(str(side / f"{name}.nii.gz") for name in ("a_label", "b_label", "z_seg"))
    assert (code, err.splitlines()[0]) == (0, f"left out, labels by their names: {labels}")
    assert _names(tmp_path / "out") == ["a_image.nii.gz", "b_image.nii.gz"]
    # Named one by one, as a shell does for *: labels whose image is also named.
    code, _, err = _predict(models[3], *sorted(side.iterdir()), "--out", tmp_path / "each")
    assert (code, err.splitlines()[0]) == (0, f"left out, labels by their names: {labels.rpartition(', ')[0]}")
    assert _names(tmp_path / "each") == ["a_image.nii.gz", "b_image.nii.gz", "z_seg.nii.gz"]
    # A name alone does not make a label, nor does it in a folder of images.
    assert _predict(models[3], side / "a_label.nii.gz", "--out", tmp_path / "one")[0] == 0
    assert _names(tmp_path / "one") == ["a_label.nii.gz"]
    side.rename(tmp_path / "imagesTs")
    code, _, err = _predict(models[3], tmp_path / "imagesTs", "--out", tmp_path / "all")
    assert (code, "left out" in err, len(_names(tmp_path / "all"))) == (0, False, 5)


CALLS: list[tuple[str, Callable[[Path, Path], list[Any]], str]] = [
    ("no network", lambda m, i: [i, "--out", "o"], "pass the network as one of the two: --run FOLDER or --model FILE"),
    ("two networks", lambda m, i: ["--run", i, "--model", m, i, "--out", "o"], "pass the network as one of the two"),
    ("no such run", lambda m, i: ["--run", "none", i, "--out", "o"], "--run: none: no such folder"),
    ("no run", lambda m, i: ["--run", i, i, "--out", "o"], "--run: .*images holds no finished run; finish it by"),
    ("a folder", lambda m, i: ["--model", m.parent, i, "--out", "o"], "--model: .*3d is a folder; expected a file"),
    ("no model", lambda m, i: ["--model", i / "a.nii.gz", i, "--out", "o"], "a.nii.gz: (damaged|refused)"),
    ("no such model", lambda m, i: ["--model", "none.pt", i, "--out", "o"], "none.pt: no model there"),
    ("no images", lambda m, i: ["--model", m, "--out", "o"], "pass the images as one of the two: IMAGES"),
    ("both", lambda m, i: ["--model", m, i, "--manifest", "phantom", "--out", "o"], "pass the images as one of"),
    ("a lone fold", lambda m, i: ["--model", m, i, "--fold", 0, "--out", "o"], "--fold: belongs to a manifest"),
    ("a lone root", lambda m, i: ["--model", m, i, "--data-root", i, "--out", "o"], "--data-root: belongs to a"),
    ("no such image", lambda m, i: ["--model", m, i / "z.nii", "--out", "o"], "z.nii: no such file or folder"),
    ("no such folder", lambda m, i: ["--model", m, "none", "--out", "o"], "none: no such file or folder"),
    ("no NIfTI", lambda m, i: ["--model", m, i / "notes.txt", "--out", "o"], "notes.txt: not a NIfTI file by its name"),
    ("an empty folder", lambda m, i: ["--model", m, m.parent, "--out", "o"], "3d holds no NIfTI file"),
    (
        "labels alone",
        lambda m, i: ["--model", m, _labels_alone(i), "--out", "o"],
        "only labels, by .* such as a_gt.nii.gz; to",
    ),
    ("no such fold", lambda m, i: ["--model", m, "--manifest", "phantom", "--fold", 9, "--out", "o"], "fold: got 9"),
    ("out is a file", lambda m, i: ["--model", m, i, "--out", m], "--out: .*model.pt is no folder; name another"),
    ("out below a file", lambda m, i: ["--model", m, i, "--out", m / "o"], "--out: cannot write in .*/o: Not a dir"),
    ("two ways", lambda m, i: ["--model", m, i, "--out", "o", "--force", "--resume"], "--force and --resume: the one"),
    ("float16", lambda m, i: ["--model", m, i, "--out", "o", "--precision", "float16"], "precision: got float16"),
    ("no device", lambda m, i: ["--model", m, i, "--out", "o", "--device", "toaster"], "device: got 'toaster'"),
]


@pytest.mark.parametrize(("words", "message"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_invalid_calls_exit_with_2_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models: dict[int, Path], images: Path, words: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call_medloss("predict", *words(models[3], images))
    assert (code, out) == (2, "")
    assert re.fullmatch(f"error: .*{message}.*\n", err), err
    assert not (tmp_path / "o").exists()


def test_flips_need_axes_that_training_flipped(tmp_path: Path, images: Path) -> None:
    config = RunConfig(manifest="none", levels=2, base_channels=2, patch_size=(8, 8, 8), precision="float32")
    manifest = load_manifest(tiny_manifest(tmp_path, 3))
    save_model(tmp_path / NAME, create_network(config, 3, 4), config, manifest, Preprocessing(dimensions=3))
    code, _, err = _predict(tmp_path / NAME, images, "--out", tmp_path / "out", "--flips")
    assert (code, err) == (2, "error: --flips: this network's training flipped no axis; leave it out\n")


def test_an_unfinished_run_is_refused(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(models[3].parent, run)
    RunFolder(run).write_result({"state": "failed", "error": "the loss is nan"})
    code, _, err = call_medloss("predict", "--run", run, images, "--out", tmp_path / "out")
    assert (code, err) == (2, f"error: --run: {run} holds no finished run; finish it by `medloss train --resume`\n")


def test_a_network_that_returns_nan(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    model = load_model(models[3], CPU)
    with torch.no_grad():
        next(model.network.parameters()).fill_(math.nan)
    manifest = load_manifest(tiny_manifest(tmp_path, 3, classes=CLASSES))
    save_model(tmp_path / NAME, model.network, model.config, manifest, model.preprocessing)
    code, out, err = _predict(tmp_path / NAME, images / "a.nii.gz", "--out", tmp_path / "out")
    assert (code, out) == (1, "")
    assert err.endswith("a.nii.gz: the network returned NaN or Inf; try --precision float32\n")


LITTLE_MEMORY = """
import resource, sys, torch
from pipelines.cli import main
import pipelines.inference.predict
torch.set_num_threads(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
sys.argv = ["medloss", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_insufficient_memory(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    # 400 million voxels on the network's grid, of a few hundred in the file.
    nib.Nifti1Image(_image(np.int16, (9, 8, 10)), np.diag([160.0, 160, 160, 1])).to_filename(images / "b.nii.gz")
    words = ["predict", "--model", models[3], images, "--out", tmp_path / "out", "--device", "cpu", "--probabilities"]
    command = [sys.executable, "-c", LITTLE_MEMORY, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1, done.stderr
    message = "out of memory, with 720 x 640 x 800 voxels; lower --batch-size (4 windows at once), or leave out "
    assert done.stderr.splitlines()[-1] == f"error: {images}/b.nii.gz: {message}--probabilities"
    assert len(_names(tmp_path / "out")) == 6  # the others were predicted, before and after


def test_a_full_disk(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    out = tmp_path / "out"
    assert _predict(models[3], images / "a.nii.gz", "--out", out)[0] == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code, _, err = _predict(models[3], images, "--out", out, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, err) == (2, f"error: --out: cannot write in {out}: File too large\n")
    assert _names(out) == ["a.nii.gz"]  # no partial file


def test_control_characters_in_names_are_escaped(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    (images / "b.nii.gz").rename(images / "b\n\x1b[31m.nii.gz")
    cut(images / "b\n\x1b[31m.nii.gz", 0)
    code, _, err = _predict(models[3], images, "--out", tmp_path / "out")
    assert (code, len(err.splitlines())) == (1, 5)
    assert "\x1b" not in err


def test_the_output_has_the_size_in_its_header(tmp_path: Path, models: dict[int, Path], images: Path) -> None:
    assert _predict(models[3], images, "--out", tmp_path / "out")[0] == 0
    for path in (tmp_path / "out").iterdir():
        assert len(gzip.decompress(path.read_bytes())) == 352 + 9 * 8 * 10 * 2
