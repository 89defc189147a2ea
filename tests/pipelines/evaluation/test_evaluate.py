"""`medloss evaluate`: its metrics, its messages, and its refusals."""

import csv
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from class_metrics import case_metrics
from cli_call import call_medloss
from faults import (
    cut,
    flip,
    linked,
    moved,
    padded,
    resaved_from_float,
    reshaped,
    sheared,
    stretched,
    with_trailing_axes,
    with_voxel,
)
from small_files import SHAPE, SPACING, affine_of, array_of, rewrite, small_folder

from pipelines.data.manifest import load_manifest
from pipelines.data.manifest_writer import FoldSettings, make_manifest, manifest_text
from pipelines.evaluation.evaluate import evaluate, mean_metrics
from pipelines.evaluation.metrics.base import MetricSettings, default_metrics
from pipelines.evaluation.references import folder_references, match
from pipelines.utils import UserError

HEADINGS = "class cases Dice IoU sensitivity specificity HD95 (mm) ASSD (mm)"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases, predictions that are the labels moved by a voxel and cut in every third plane, and a manifest."""
    folder = tmp_path_factory.mktemp("small")
    data = small_folder(folder)
    predictions = Path(shutil.copytree(data / "labels", folder / "predictions"))
    for path in predictions.iterdir():
        array = np.roll(array_of(path), 1, axis=0)
        array[:, ::3] = 0
        rewrite(path, array)
    (folder / "set.yaml").write_text(manifest_text(make_manifest(data, folds=FoldSettings(2))))
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "set"))


def _call(folder: Path, *options: object, manifest: bool = False) -> tuple[int, str, str]:
    labels = ("--manifest", folder / "set.yaml", "--data-root", folder / "data") if manifest else ()
    return call_medloss("evaluate", folder / "predictions", *(labels or ("--labels", folder / "data/labels")), *options)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == ("case", "class", *default_metrics())
        return list(reader)


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _expected(folder: Path, tolerance: float = 1.0) -> list[dict[str, Any]]:
    """Each case's metrics, from the files' arrays and the known spacing."""
    rows = []
    for path in sorted((folder / "data" / "labels").iterdir()):
        maps = [torch.from_numpy(array_of(file)) for file in (folder / "predictions" / path.name, path)]
        metrics = case_metrics(*maps, 4, SPACING, MetricSettings(nsd_tolerance_mm=tolerance))
        rows += [{"case": path.name.split(".")[0], "class": c, **m} for c, m in enumerate(metrics, 1)]
    return rows


@pytest.mark.parametrize("manifest", [False, True])
def test_the_csv_has_every_case_and_class(folder: Path, manifest: bool) -> None:
    code, out, err = _call(folder, "--out", folder / "new" / "all.csv", "--tolerance", 2.5, manifest=manifest)
    assert (code, err) == (0, "")
    expected = _expected(folder, 2.5)
    rows = _rows(folder / "new" / "all.csv")
    assert [row["case"] for row in rows] == [case for case in "abcd" for _ in range(3)]
    names = load_manifest(folder / "set.yaml").scheme.names if manifest else ["1", "2", "3"]
    assert [row["class"] for row in rows] == names * 4
    for row, wanted in zip(rows, expected, strict=True):
        values = [float(row[name]) if row[name] else math.nan for name in default_metrics()]
        assert values == pytest.approx([wanted[name] for name in default_metrics()], rel=1e-12, nan_ok=True)
    assert out.splitlines()[-1] == f"written to {folder / 'new' / 'all.csv'}"
    assert [path.name for path in (folder / "new").iterdir()] == ["all.csv"]  # nothing temporary is left


def test_regions_ignored_voxels_and_partial_labels(folder: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((folder / "set.yaml").read_text())
    organ, shell, lesions = (content["classes"][value] for value in (1, 2, 3))
    regions = {"whole": [1, 2, 3], "core": [2, 3], "lesions": [3]}
    content |= {"regions": regions, "region_order": [1, 2, 3], "ignore": 9}
    assert [case["id"] for case in content["cases"]] == list("abcd")
    # Cases a and b annotate some classes only, so that a has no region, and b the inner ones.
    content["cases"][0]["labelled"], content["cases"][1]["labelled"] = [organ], [shell, lesions]
    for case in content["cases"]:
        del case["label_sha256"]
    (folder / "set.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    for case in ("c.nii.gz", "d.nii"):
        label = array_of(folder / "data/labels" / case)
        label[:3] = 9
        rewrite(folder / "data/labels" / case, label)
    code, out, err = _call(folder, "--out", tmp_path / "all.csv", manifest=True)
    assert (code, err) == (0, "")
    rows = _rows(tmp_path / "all.csv")
    expected = [("b", "core"), ("b", "lesions"), *((case, name) for case in "cd" for name in regions)]
    assert [(row["case"], row["class"]) for row in rows] == expected
    for row in rows:
        ending = ".nii" if row["case"] == "d" else ".nii.gz"
        one, other = (array_of(folder / where / f"{row['case']}{ending}") for where in ("predictions", "data/labels"))
        counted = other != 9
        one, other = (np.isin(array, regions[row["class"]]) & counted for array in (one, other))
        assert float(row["dice"]) == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()), abs=1e-12)
        outside = ~other & counted
        assert float(row["specificity"]) == pytest.approx((outside & ~one).sum() / outside.sum(), abs=1e-12)
    table = [line.split() for line in out.splitlines()[1:4]]
    assert [(line[0], line[1]) for line in table] == [("whole", "2"), ("core", "3"), ("lesions", "3")]
    # What is predicted where nobody annotated changes nothing.
    for case in ("c.nii.gz", "d.nii"):
        prediction = array_of(folder / "predictions" / case)
        prediction[:3] = 3
        rewrite(folder / "predictions" / case, prediction)
    assert _call(folder, "--out", tmp_path / "other.csv", manifest=True)[0] == 0
    assert (tmp_path / "other.csv").read_bytes() == (tmp_path / "all.csv").read_bytes()
    # But a prediction has no ignored voxels.
    prediction[:3] = 9
    rewrite(folder / "predictions/d.nii", prediction)
    code, _, err = _call(folder, manifest=True)
    assert (code, err.count("\n"), "label values without a class: 9 (" in err) == (2, 1, True)


@pytest.mark.parametrize(
    ("options", "tolerance"), [((), 3.0), (("--tolerance", 1), 1.0)], ids=["the largest voxel side", "an option"]
)
def test_the_table_has_means_per_class_and_of_the_foreground(
    folder: Path, options: tuple[object, ...], tolerance: float
) -> None:
    code, out, err = _call(folder, *options)
    assert (code, err) == (0, "")
    head, *lines = [" ".join(line.split()) for line in out.splitlines()]
    assert head == f"{HEADINGS} NSD ({tolerance:g} mm)"
    rows = _expected(folder, tolerance)
    digits = {name: 2 if name in ("hd95_mm", "assd_mm") else 4 for name in default_metrics()}
    for c in (1, 2, 3):
        of_class = [row for row in rows if row["class"] == c]
        means = [f"{sum(row[name] for row in of_class) / 4:.{digits[name]}f}" for name in default_metrics()]
        assert lines[c - 1] == f"{c} 4 {' '.join(means)}"
    foreground = mean_metrics(rows)
    assert lines[3] == "mean foreground " + " ".join(
        f"{foreground[name]:.{digits[name]}f}" for name in default_metrics()
    )
    assert len(lines) == 4


def test_named_metrics_and_a_table_of_lesions(folder: Path) -> None:
    named, lesions = folder / "named.csv", folder / "lesions.csv"
    options = ("--metrics", "lesion_f1, lesion_dice,dice", "--overlap", 0.1, "--connectivity", 6, "--sizes", "30,100")
    code, out, err = _call(folder, *options, "--out", named, "--lesions", lesions)
    assert (code, err) == (0, "")
    assert " ".join(out.splitlines()[0].split()) == "class cases Dice lesion F1 lesion-wise Dice"
    rows, found = _table(named), _table(lesions)
    assert list(rows[0]) == ["case", "class", "dice", "lesion_f1", "lesion_dice"]
    columns = "case class lesion state stratum volume_mm3 predicted_volume_mm3 iou dice hd95_mm"
    assert list(found[0]) == columns.split()
    for row in rows:
        of_case = [lesion for lesion in found if (lesion["case"], lesion["class"]) == (row["case"], row["class"])]
        states = [lesion["state"] for lesion in of_case]
        assert [int(lesion["lesion"]) for lesion in of_case] == list(range(1, len(of_case) + 1))
        doubled = 2 * states.count("matched")
        assert float(row["lesion_f1"]) == pytest.approx(doubled / (doubled + len(of_case) - doubled / 2))
        mean = sum(float(lesion["dice"]) for lesion in of_case) / len(of_case)
        assert float(row["lesion_dice"]) == pytest.approx(mean)
    assert {lesion["state"] for lesion in found} == {"matched", "missed", "false"}
    for lesion in found:
        sizes = {"<= 30 mm^3": 30, "30 to 100 mm^3": 100, "> 100 mm^3": math.inf}
        assert lesion["stratum"] == next(name for name, most in sizes.items() if float(lesion["volume_mm3"]) <= most)
    # Below the means: a row per class and stratum.
    heading, *strata = [" ".join(line.split()) for line in out.splitlines()[6:-2]]
    assert heading == "class lesions of matched missed false sensitivity lesion-wise Dice"
    of_first = [lesion for lesion in found if lesion["class"] == "1" and lesion["stratum"] == "<= 30 mm^3"]
    states = [lesion["state"] for lesion in of_first]
    counts = " ".join(str(states.count(state)) for state in ("matched", "missed", "false"))
    assert strata[0].startswith(f"1 <= 30 mm^3 {counts} ")
    code, _, err = _call(folder, "--lesions", lesions)
    assert code == 2 and err.startswith(f"error: --lesions: {lesions} is there already")


def test_a_manifest_names_metrics_tolerance_and_lesions(folder: Path) -> None:
    with (folder / "set.yaml").open("a") as file:
        file.write("nsd_tolerance: 2.5\nmetrics: [lesion_precision]\nlesions: {overlap: 0.2}\n")
    code, out, err = _call(folder, "--out", folder / "o.csv", manifest=True)
    assert (code, err) == (0, "")
    assert " ".join(out.splitlines()[0].split()) == f"{HEADINGS} NSD (2.5 mm) lesion precision"
    by_option = folder / "named.csv"
    names = ("--metrics", "default,lesion_precision", "--tolerance", 2.5, "--overlap", 0.2)
    assert _call(folder, *names, "--out", by_option)[0] == 0
    ours, theirs = _table(folder / "o.csv"), _table(by_option)
    for row, other in zip(ours, theirs, strict=True):
        assert row | {"class": ""} == other | {"class": ""}


def test_distances_use_the_labels_spacing_per_axis(folder: Path) -> None:
    # One voxel, moved by two steps along each axis in turn: 6, 2 and 4 mm.
    for axis, (name, distance) in enumerate(zip("abc", (6.0, 2.0, 4.0), strict=True)):
        file = f"{name}.nii.gz"
        label = np.zeros(SHAPE, np.uint8)
        label[6, 8, 7] = 1
        rewrite(folder / "data/labels" / file, label)
        rewrite(folder / "predictions" / file, np.roll(label, 2, axis))
        assert _call(folder, "--out", folder / "o.csv", "--force", "--tolerance", distance)[0] == 0
        row = next(row for row in _rows(folder / "o.csv") if (row["case"], row["class"]) == (name, "1"))
        assert (float(row["hd95_mm"]), float(row["assd_mm"]), float(row["nsd"])) == (distance, distance, 1.0)


def test_files_saved_again_from_floats_have_the_same_metrics(folder: Path) -> None:
    before = _call(folder)
    for part in ("predictions", "data/labels"):
        resaved_from_float(folder / part / "b.nii.gz")
        resaved_from_float(folder / part / "d.nii")
    assert _call(folder) == before


def test_trailing_axes_padding_and_a_small_shift_change_nothing(folder: Path) -> None:
    before = _call(folder)
    with_trailing_axes(folder / "predictions" / "a.nii.gz")
    with_trailing_axes(folder / "data/labels" / "b.nii.gz", 2)
    padded(folder / "predictions" / "d.nii")
    assert _call(folder) == before
    moved(folder / "predictions" / "b.nii.gz", 0, 0.035)
    code, out, err = _call(folder)
    message = "lies 0.035 mm off its label; up to 0.1 voxels count as the same grid"
    assert (code, out, err) == (0, before[1], f"note: {folder}/predictions/b.nii.gz {message}\n")


def test_a_missing_class_is_empty_and_not_counted(folder: Path) -> None:
    for part in ("data/labels", "predictions"):
        label = array_of(folder / part / "b.nii.gz")
        rewrite(folder / part / "b.nii.gz", np.where(label == 3, 0, label))
    code, out, _ = _call(folder, "--out", folder / "o.csv")
    assert code == 0
    row = next(row for row in _rows(folder / "o.csv") if (row["case"], row["class"]) == ("b", "3"))
    assert {name: value for name, value in row.items() if value} == {"case": "b", "class": "3", "specificity": "1.0"}
    assert out.splitlines()[3].split()[:2] == ["3", "3"]


def test_two_dimensions_floats_and_values_with_gaps(tmp_path: Path) -> None:
    label = np.zeros((9, 7))
    label[2:6, 1:5], label[7, 6] = 300, 1000
    affine = np.diag([1.5, 0.8, 1.0, 1.0])
    for part, array in (("labels", label.astype(np.int16)), ("predictions", np.roll(label, 1, 1).astype(np.float32))):
        (tmp_path / part).mkdir()
        path = tmp_path / part / "x.nii"
        path.write_bytes(_nifti(array, affine))
    evaluation = evaluate(
        tmp_path / "predictions",
        folder_references(tmp_path / "labels"),
        _matched(tmp_path),
        MetricSettings(nsd_tolerance_mm=0.5),
    )
    assert evaluation.classes == ["300", "1000"]
    first, second = evaluation.rows
    assert (first["dice"], first["hd95_mm"]) == pytest.approx((0.75, 0.8))
    assert (second["dice"], second["hd95_mm"], second["nsd"]) == pytest.approx((0, 4.8, 0))


def _nifti(array: np.ndarray, affine: np.ndarray) -> bytes:
    import nibabel as nib

    content: bytes = nib.Nifti1Image(array, affine).to_bytes()
    return content


def _matched(folder: Path) -> Any:
    return match(folder_references(folder / "labels"), folder / "predictions")


BAD: list[tuple[str, Callable[[Path], Any], str]] = [
    ("another shape", lambda p: reshaped(p, (12, 16, 15)), "15 x 16 x 12 voxels, but its label has 14 x 16 x 12"),
    ("another spacing", stretched, "spacing 2.4 x 1.2 x 3.6 mm, but its label has 2 x 1 x 3 mm"),
    ("moved", lambda p: moved(p, 1, 0.5), "its affine differs from its label's: it lies up to 0.5 mm off"),
    ("flipped", lambda p: rewrite(p, affine=affine_of(p) @ np.diag([-1, 1, 1, 1])), "its affine differs from its la"),
    ("sheared", sheared, "its direction matrix is sheared: "),
    (
        "4D",
        lambda p: reshaped(p, (*SHAPE, 2)),
        r"4 axes \(12 x 16 x 14 x 2 voxels\); expected 2 or 3, one volume per file",
    ),
    (
        "unknown value",
        lambda p: with_voxel(p, 7, np.uint8, 5),
        r"label values without a class: 7 \(5 voxels\); .* 0, 1, 2, 3$",
    ),
    ("negative value", lambda p: with_voxel(p, -1, np.int16), r"label values without a class: -1 \(1 voxels\)"),
    ("probabilities", lambda p: with_voxel(p, 0.7, np.float32, 2), r"label values without a class: 0.7 \(2 voxels\)"),
    (
        "more than 1e-3 off a class",
        lambda p: with_voxel(p, 3.0010002, np.float32, 2),
        r"label values without a class: 3\.0010002 \(2 voxels\)",
    ),
    ("NaN", lambda p: with_voxel(p, np.nan), r"label values without a class: nan \(1 voxels\)"),
    ("truncated", lambda p: cut(p, 0.7), "truncated: its gzip stream ends early"),
    ("0 bytes", lambda p: cut(p, 0), "0 bytes"),
    ("a flipped byte", lambda p: flip(p, 0.9999), "damaged|truncated"),
    ("a link to nothing", lambda p: linked(p, Path("none.nii.gz")), "a symbolic link to nothing"),
    ("no NIfTI", lambda p: p.write_bytes(b"text"), "not a gzip file, though its name ends in .gz"),
]


@pytest.mark.parametrize(("spoil", "reason"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_bad_prediction_is_reported_in_one_line(folder: Path, spoil: Callable[[Path], Any], reason: str) -> None:
    path = folder / "predictions" / "b.nii.gz"
    spoil(path)
    code, out, err = _call(folder, "--out", folder / "o.csv")
    assert (code, out) == (2, "")
    assert re.fullmatch(f"error: {re.escape(str(path))}: (?:{reason.rstrip('$')}).*\n", err), err
    assert not (folder / "o.csv").exists()


def test_every_bad_file_is_reported(folder: Path) -> None:
    cut(folder / "predictions" / "a.nii.gz", 0)
    with_voxel(folder / "data/labels/b.nii.gz", 1.5, np.float32)
    with_voxel(folder / "predictions" / "d.nii", 9, np.uint8)
    code, _, err = _call(folder)
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 3
    for line, file in zip(lines, ("predictions/a.nii.gz", "data/labels/b.nii.gz", "predictions/d.nii"), strict=True):
        assert line.removeprefix("error: ").startswith(f"{folder / file}: ")


def test_a_label_with_another_checksum_than_the_manifests(folder: Path) -> None:
    with_voxel(folder / "data/labels/b.nii.gz", 2, np.uint8)
    code, _, err = _call(folder, manifest=True)
    reason = "its SHA-256 is not the recorded one: the file is damaged or was replaced"
    assert (code, err) == (2, f"error: {folder}/data/labels/b.nii.gz: {reason}\n")


def test_a_value_that_is_not_in_the_manifest(folder: Path) -> None:
    # Without the manifest it is a class, since the label has it; in the manifest it is not.
    for part in ("data/labels", "predictions"):
        with_voxel(folder / part / "b.nii.gz", 5, np.uint8)
    assert _call(folder)[0] == 0
    content = yaml.safe_load((folder / "set.yaml").read_text())
    for case in content["cases"]:
        case.pop("label_sha256"), case.pop("image_sha256")
    code, _, err = _call(folder, manifest=True)
    assert code == 2
    assert (
        f"{folder}/predictions/b.nii.gz: label values without a class: 5 (1 voxels); the classes are 0, 1, 2, 3" in err
    )


def test_labels_without_a_prediction(folder: Path) -> None:
    (folder / "predictions" / "a.nii.gz").unlink()
    (folder / "predictions" / "d.nii").unlink()
    shutil.copy(folder / "predictions" / "b.nii.gz", folder / "predictions" / "z.nii.gz")
    missing = f"{folder}/data/labels/a.nii.gz, {folder}/data/labels/d.nii"
    message = f"error: labels without a prediction: {missing}; pass --allow-missing to leave them out\n"
    for manifest in (False, True):
        assert _call(folder, "--out", folder / "o.csv", manifest=manifest) == (2, "", message)
        assert not (folder / "o.csv").exists()
        code, _, err = _call(folder, "--out", folder / "o.csv", "--force", "--allow-missing", manifest=manifest)
        assert code == 0
        assert err.splitlines() == [
            f"left out, predictions without a label: {folder}/predictions/z.nii.gz",
            f"left out, labels without a prediction: {missing}",
        ]
        assert {row["case"] for row in _rows(folder / "o.csv")} == {"b", "c"}
        (folder / "o.csv").unlink()


def test_long_lists_of_files_are_shortened(folder: Path) -> None:
    for name in "mnopqrs":
        shutil.copy(folder / "data/labels/b.nii.gz", folder / "data/labels" / f"{name}.nii.gz")
    code, _, err = _call(folder)
    assert code == 2
    assert "m.nii.gz" in err
    assert err.endswith("q.nii.gz and 2 more; pass --allow-missing to leave them out\n")


def test_one_fold_of_a_manifest(folder: Path) -> None:
    cases = yaml.safe_load((folder / "set.yaml").read_text())["cases"]
    held_out = [case["id"] for case in cases if case["fold"] == 1]
    code, _, err = _call(folder, "--fold", 1, "--out", folder / "o.csv", manifest=True)
    assert code == 0
    assert "left out, predictions without a label in fold 1: " in err
    assert list(dict.fromkeys(row["case"] for row in _rows(folder / "o.csv"))) == held_out
    assert len(held_out) == 2


def _named(folder: Path, **changes: str) -> None:
    """Give case b of the manifest other names, and its files with it."""
    content = yaml.safe_load((folder / "set.yaml").read_text())
    for case in content["cases"]:
        if case["id"] == "b":
            for role in ("image", "label"):
                (folder / "data" / case[role]).rename(folder / "data" / changes.get(role, case[role]))
            case.update(changes)
    (folder / "set.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("name", ["patient_b", "b_gt", "b_0000"])
def test_with_a_manifest_names_may_be_those_of_case_label_or_image(folder: Path, name: str) -> None:
    _named(folder, id="patient_b", label="labels/b_gt.nii.gz", image="images/b_0000.nii.gz")
    (folder / "predictions" / "b.nii.gz").rename(folder / "predictions" / f"{name}.nii.gz")
    code, _, err = _call(folder, "--out", folder / "o.csv", manifest=True)
    assert (code, err) == (0, "")
    row = next(row for row in _rows(folder / "o.csv") if row["case"] == "patient_b")
    assert float(row["dice"]) == next(row["dice"] for row in _expected_of(folder, f"{name}.nii.gz", "b_gt.nii.gz"))


def _expected_of(folder: Path, prediction: str, label: str) -> list[dict[str, float]]:
    paths = folder / "predictions" / prediction, folder / "data/labels" / label
    return case_metrics(*(torch.from_numpy(array_of(p)) for p in paths), 4, SPACING)


def test_two_predictions_of_one_case(folder: Path) -> None:
    _named(folder, id="patient_b")
    shutil.copy(folder / "predictions" / "b.nii.gz", folder / "predictions" / "patient_b.nii.gz")
    message = "b.nii.gz and patient_b.nii.gz are both named as predictions of patient_b; expected one"
    assert _call(folder, manifest=True) == (2, "", f"error: {folder}/predictions: {message}\n")


def test_one_prediction_of_two_cases(folder: Path) -> None:
    (folder / "data" / "other").mkdir()
    _named(folder, id="patient_b", label="other/c.nii.gz", image="other/b.nii.gz")
    content = yaml.safe_load((folder / "set.yaml").read_text())
    next(case for case in content["cases"] if case["id"] == "c")["id"] = "patient_c"
    (folder / "set.yaml").write_text(yaml.safe_dump(content))
    message = "may be of the cases patient_b and patient_c; expected patient_b.nii.gz"
    assert _call(folder, manifest=True) == (2, "", f"error: {folder}/predictions/c.nii.gz {message}\n")


def test_in_a_folder_names_may_differ_in_their_suffix(folder: Path) -> None:
    # Among images, labels are recognised by their suffix.
    side = folder / "side"
    shutil.copytree(folder / "data/images", side)
    for path in (folder / "data/labels").iterdir():
        name, _, rest = path.name.partition(".")
        shutil.copy(path, side / f"{name}_seg.{rest}")
    assert call_medloss("evaluate", folder / "predictions", "--labels", side, "--out", folder / "o.csv")[0] == 0
    rows = _rows(folder / "o.csv")
    assert [row["case"] for row in rows[::3]] == ["a_seg", "b_seg", "c_seg", "d_seg"]
    assert [float(row["dice"]) for row in rows] == [row["dice"] for row in _expected(folder)]


@pytest.mark.parametrize("part", ["predictions", "data/labels"])
def test_two_files_of_one_name_in_a_folder(folder: Path, part: str) -> None:
    shutil.copy(folder / part / "d.nii", folder / part / "b.nii")
    code, _, err = _call(folder)
    assert code == 2
    assert re.fullmatch(r"error: .*/b\.nii.*: another file has the same name except for suffixes; expected one\n", err)


CALLS: list[tuple[str, Callable[[Path], list[Any]], str]] = [
    ("neither", lambda f: [f / "predictions"], "pass the labels as one of the two: --labels FOLDER or --manifest"),
    (
        "both",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--manifest", f / "set.yaml"],
        "pass the labels as one of the two",
    ),
    (
        "a data root without a manifest",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--data-root", f],
        "--data-root: belongs to a manifest; pass --manifest with it",
    ),
    (
        "a fold without a manifest",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--fold", 0],
        "--fold: belongs to a manifest",
    ),
    ("no predictions", lambda f: [f / "none", "--labels", f / "data/labels"], "none: no such folder; expected one of"),
    ("a file", lambda f: [f / "set.yaml", "--labels", f / "data/labels"], "set.yaml: no such folder"),
    ("no files in it", lambda f: [f / "data", "--labels", f / "data/labels"], "data holds no NIfTI file"),
    ("no labels", lambda f: [f / "predictions", "--labels", f / "none"], "--labels: .*none: no such folder"),
    ("no files as labels", lambda f: [f / "predictions", "--labels", f], "--labels: .* holds no NIfTI file"),
    ("no manifest", lambda f: [f / "predictions", "--manifest", "none"], "no manifest 'none'"),
    (
        "another root",
        lambda f: [f / "predictions", "--manifest", f / "set.yaml", "--data-root", f / "predictions"],
        "predictions holds no label of 'data', for example labels/.*: pass the folder that does as --data-root\n",
    ),
    (
        "no such fold",
        lambda f: [f / "predictions", "--manifest", f / "set.yaml", "--data-root", f / "data", "--fold", 7],
        "fold: got 7; 'data' has folds 0, 1",
    ),
    (
        "tolerance below 0",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--tolerance", -1],
        "--tolerance: got -1.0; expected a finite number of mm, 0 or more",
    ),
    (
        "no such metric",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--metrics", "dice,lesion_f2"],
        "--metrics: no metric 'lesion_f2'; did you mean lesion_f1\\?\n",
    ),
    (
        "no metric",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--metrics", ","],
        "--metrics: got none; expected names by commas",
    ),
    (
        "connectivity in 2D",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--connectivity", 8, "--metrics", "lesion_f1"],
        "--connectivity: got 8; expected one of 6, 18, 26 in 3D\n",
    ),
    (
        "overlap",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--overlap", 50],
        "--overlap: got 50; expected an IoU from 0 to below 1\n",
    ),
    (
        "sizes",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--sizes", "27,8"],
        "--sizes: got '27,8'; expected ascending numbers above 0 and commas, such as 27,1000\n",
    ),
    (
        "one file for both tables",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--out", f / "o.csv", "--lesions", f / "o.csv"],
        "--lesions: got .*o.csv, as for --out; expected another file\n",
    ),
    (
        "tolerance NaN",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--tolerance", "nan"],
        "--tolerance: got nan",
    ),
    (
        "out is a folder",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--out", f],
        "--out: .* is a folder; expected a file to write",
    ),
    (
        "out is there",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--out", f / "predictions/a.nii.gz"],
        "--out: .*a.nii.gz is there already; pass --force to overwrite it, or name another file",
    ),
    (
        "out below a file",
        lambda f: [f / "predictions", "--labels", f / "data/labels", "--out", f / "set.yaml" / "o.csv"],
        "--out: .*o.csv cannot be written: ",
    ),
]


@pytest.mark.parametrize(("words", "message"), [row[1:] for row in CALLS], ids=[row[0] for row in CALLS])
def test_invalid_calls_exit_with_2_and_one_line(folder: Path, words: Callable[[Path], list[Any]], message: str) -> None:
    before = (folder / "predictions" / "a.nii.gz").read_bytes()
    code, _, err = call_medloss("evaluate", *words(folder))
    assert code == 2
    assert re.search(f"^error: .*{message}", err), err
    assert err.count("\n") == 1
    assert (folder / "predictions" / "a.nii.gz").read_bytes() == before


def test_no_name_in_common(folder: Path) -> None:
    for path in (folder / "predictions").iterdir():
        path.rename(path.with_name("x" + path.name))
    message = "no file is named like a label: xa.nii.gz, for example; expected a.nii.gz"
    assert _call(folder) == (2, "", f"error: {folder}/predictions: {message}\n")


def test_files_without_labels(folder: Path) -> None:
    for path in (folder / "data/labels").iterdir():
        rewrite(path, np.zeros(SHAPE, np.uint8))
    assert "have no values above 0, or not only whole numbers, or cannot be read" in _call(folder)[2]
    rewrite(folder / "data/labels/b.nii.gz", np.arange(math.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    assert re.search("hold 2687 values above 0; expected labels, not images", _call(folder)[2])


def test_control_characters_in_names_are_escaped(folder: Path) -> None:
    (folder / "predictions" / "b.nii.gz").rename(folder / "predictions" / "b\n\x1b[31m.nii.gz")
    code, _, err = _call(folder, "--allow-missing")
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "left out, predictions without a label",
        "left out, labels without a prediction",
    ]
    assert "\x1b" not in err


def test_links_to_anywhere_are_followed(folder: Path) -> None:
    plain, by_manifest = _call(folder)[1], _call(folder, manifest=True)[1]
    for part in ("predictions", "data/labels"):
        for file in list((folder / part).iterdir()):
            elsewhere = folder / f"store of {part.replace('/', ' ')}" / f"object-{file.name.partition('.')[0]}"
            elsewhere.parent.mkdir(exist_ok=True)
            file.rename(elsewhere)
            file.symlink_to(elsewhere)
    assert _call(folder)[:2] == (0, plain)
    assert _call(folder, manifest=True)[:2] == (0, by_manifest)
    (folder / "store of predictions" / "object-b").unlink()
    assert _call(folder)[2].endswith("predictions/b.nii.gz: a symbolic link to nothing\n")


def test_of_two_predictions_of_one_name_the_label_is_not_blamed(folder: Path) -> None:
    shutil.copy(folder / "predictions" / "d.nii", folder / "predictions" / "d_0000.nii")
    code, _, err = _call(folder)
    assert code == 2
    assert (
        err.startswith(f"error: {folder / 'predictions'}/d")
        and "another file has the same name except for suffixes; expected one" in err
    )


@pytest.mark.parametrize("manifest", [False, True])
def test_predictions_of_images_and_of_their_labels_are_refused(folder: Path, manifest: bool) -> None:
    """For a folder with both, side by side, the label maps may have been predicted as well."""
    side = folder / "side"
    side.mkdir()
    for kind, part in (("image", "images"), ("label", "labels")):
        for path in (folder / "data" / part).iterdir():
            shutil.copy(path, side / path.name.replace(".nii", f"_{kind}.nii"))
    for path in list((folder / "predictions").iterdir()):
        shutil.copy(path, path.with_name(path.name.replace(".nii", "_label.nii")))
        path.rename(path.with_name(path.name.replace(".nii", "_image.nii")))
    (folder / "side.yaml").write_text(manifest_text(make_manifest(side, folds=FoldSettings(2))))
    labels = ("--manifest", folder / "side.yaml", "--data-root", side) if manifest else ("--labels", side)
    code, out, err = call_medloss("evaluate", folder / "predictions", *labels)
    assert (code, out, err.count("\n")) == (2, "", 1)
    if manifest:
        assert "predictions: a_image.nii.gz and a_label.nii.gz are both named as predictions of a; expected one" in err
    else:
        message = "another file has the same name except for suffixes; expected one"
        assert err == f"error: {folder}/predictions/a_image.nii.gz: {message}\n"


def test_images_instead_of_labels_are_reported(folder: Path) -> None:
    for file in (folder / "data/labels").iterdir():
        with_voxel(file, 0.25, np.float32)
    code, _, err = _call(folder)
    assert (code, err.count("\n")) == (2, 1)
    assert "have no values above 0, or not only whole numbers, or cannot be read; expected label maps" in err


def test_an_unwritable_output_is_reported_first(folder: Path) -> None:
    code, shown, err = _call(folder, "--out", folder / "data/labels/b.nii.gz/o.csv")
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert "--out: " in err and "cannot be written" in err


def test_all_files_are_checked_even_if_the_first_is_bad(folder: Path) -> None:
    cut(folder / "predictions" / "a.nii.gz", 0)
    done: list[int] = []
    references = folder_references(folder / "data/labels")
    with pytest.raises(UserError, match=r"a\.nii\.gz: 0 bytes"):
        evaluate(
            folder / "predictions",
            references,
            match(references, folder / "predictions"),
            progress=lambda: done.append(1),
        )
    assert len(done) == 4
