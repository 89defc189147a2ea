"""Calibration: ECE and Brier score by loops and by scikit-learn, files of probabilities, and where they are missing."""

import csv
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cli_call import call_medloss
from made_predictions import SHAPE, SPACING, label_map, made_folders, moved, write_map
from page_reader import read_page

from pipelines.data.nifti import read_labels, write_probabilities
from pipelines.data.probabilities import probability_file, read_probabilities, write_npz
from pipelines.evaluation.calibration import BINS, NOTHING, Calibration, Probabilities, bin_rows, from_rows, measure
from pipelines.evaluation.evaluate import region_masks, region_metrics
from pipelines.evaluation.metrics.base import MetricSettings
from pipelines.evaluation.probabilities import case_probabilities
from pipelines.report.plots.volumes import volumes

_SETTINGS = MetricSettings(("dice", "ece", "brier"))


def _softmax(seed: int, channels: int, shape: tuple[int, ...]) -> Any:
    found = np.exp(2 * np.random.default_rng(seed).normal(size=(channels, *shape)))
    return found / found.sum(0)


def _by_loops(
    p: Any, reference: Any, label: int, spacing: tuple[float, ...], ignored: int | None
) -> tuple[float, float]:
    """ECE and Brier score, voxel by voxel."""
    places = np.argwhere(reference == label)
    sums = [[0.0, 0.0, 0] for _ in range(BINS)]
    squares = count = 0.0
    for place in np.ndindex(reference.shape):
        steps = [math.ceil(5 / side) for side in spacing]
        ends = zip(place, places.min(0), places.max(0), steps, strict=True)
        near = all(low - step <= at <= high + step for at, low, high, step in ends)
        if not near or reference[place] == ignored:
            continue
        value, there = float(p[place]), float(reference[place] == label)
        entry = sums[min(int(value * BINS), BINS - 1)]
        entry[0] += value
        entry[1] += there
        entry[2] += 1
        squares += (value - there) ** 2
        count += 1
    ece = sum(n / count * abs(total / n - present / n) for total, present, n in sums if n)
    return ece, squares / count


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.8, 0.5), (6.0, 2.0, 2.5)])
@pytest.mark.parametrize("ignored", [None, 3])
def test_ece_and_brier_are_those_of_loops_around_the_reference(spacing: tuple[float, ...], ignored: int | None) -> None:
    random = np.random.default_rng(1)
    reference = np.zeros((14, 16, 18), np.int64)
    reference[4:7, 7:11, 12:18], reference[5, 8, 3] = 1, 2
    if ignored is not None:
        reference[random.random(reference.shape) < 0.1] = ignored
    p = _softmax(2, 3, reference.shape)
    found = region_metrics(
        p.argmax(0), reference, [(1,), (2,)], spacing, ignored=ignored, settings=_SETTINGS,
        probabilities=Probabilities(p, [(1,), (2,)]),
    )  # fmt: skip
    for label, of_class in enumerate(found, 1):
        expected = _by_loops(p[label], reference, label, spacing, ignored)
        assert (of_class["ece"], of_class["brier"]) == pytest.approx(expected, abs=1e-12)


def test_ece_and_brier_agree_with_scikit_learn() -> None:
    calibration = pytest.importorskip("sklearn.calibration")
    from sklearn.metrics import brier_score_loss

    random = np.random.default_rng(3)
    truth = random.random(4000) < 0.3
    p = np.clip(0.6 * truth + 0.4 * random.random(4000), 0, 1)
    found = measure(p, truth)
    assert found is not None
    assert found.brier == pytest.approx(brier_score_loss(truth, p), abs=1e-12)
    present, probability = calibration.calibration_curve(truth, p, n_bins=BINS)
    filled = found.voxels > 0
    np.testing.assert_allclose(found.present[filled] / found.voxels[filled], present, atol=1e-12)
    np.testing.assert_allclose(found.probability[filled] / found.voxels[filled], probability, atol=1e-12)


def test_worked_examples() -> None:
    # Four voxels at 0.75, two of them there, and one at 1 that is there: 4 * 0.25 / 5, and 2 * (0.0625 + 0.5625) / 5.
    found = measure(np.array([0.75, 0.75, 0.75, 0.75, 1.0]), np.array([1, 1, 0, 0, 1], bool))
    assert found is not None and found.ece == pytest.approx(0.2) and found.brier == pytest.approx(0.25)
    perfect = measure(np.array([0.0, 1.0]), np.array([False, True]))
    wrong = measure(np.array([1.0, 0.0]), np.array([False, True]))
    assert perfect is not None and (perfect.ece, perfect.brier) == (0, 0)
    assert wrong is not None and (wrong.ece, wrong.brier) == (1, 1)
    assert measure(np.zeros(2), np.zeros(2, bool), np.ones(2, bool)) is None


@pytest.mark.parametrize("size", [24, 96])
def test_the_example_of_the_page(size: int) -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    reference = np.zeros((size,) * 3, np.int64)
    reference[8:16, 8:16, 8:16] = 1
    p = np.zeros((2, *reference.shape))
    p[1, 8:16, 8:16, 7:17] = 0.7
    p[0] = 1 - p[1]
    (masks,) = region_masks(p.argmax(0), reference, [(1,)], (1, 1, 1), probabilities=Probabilities(p, [(1,)]))
    for name, found in (("all", measure(p[1], reference == 1)), ("within 5 mm of", masks.calibration)):
        row = next(line for line in page.splitlines() if line.startswith(f"| {name}"))
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        shown = (cells[0], cells[2]) if size == 24 else (cells[1], cells[3])
        assert found is not None and shown == (f"{found.ece:.4f}", f"{found.brier:.4f}")


def test_a_region_of_a_softmax_has_the_sum_of_its_classes() -> None:
    reference = np.zeros((10, 10), np.int64)
    reference[3:6, 3:6], reference[6:8, 3:6] = 1, 2
    p = _softmax(4, 3, reference.shape)
    regions = [(1, 2), (2,)]
    found = region_metrics(p.argmax(0), reference, regions, (9, 9), settings=_SETTINGS,
                           probabilities=Probabilities(p, regions))  # fmt: skip
    whole = region_metrics((p[0] < 0.5).astype(int), (reference > 0).astype(int), [(1,)], (9, 9), settings=_SETTINGS,
                           probabilities=Probabilities(np.stack([p[0], p[1] + p[2]]), [(1,)]))  # fmt: skip
    assert found[0]["brier"] == pytest.approx(whole[0]["brier"])
    assert found[0]["ece"] == pytest.approx(whole[0]["ece"])


def test_undefined_without_probabilities_or_reference() -> None:
    reference = np.zeros((5, 6), np.int64)
    reference[2, 2] = 1
    (without,) = region_metrics(reference, reference, [(1,)], (1, 1), settings=_SETTINGS)
    p = _softmax(5, 3, reference.shape)
    _, absent = region_metrics(reference, reference, [(1,), (2,)], (1, 1), settings=_SETTINGS,
                               probabilities=Probabilities(p, [(1,), (2,)]))  # fmt: skip
    for found in (without, absent):
        assert math.isnan(found["ece"]) and math.isnan(found["brier"])
    assert without["dice"] == 1
    with pytest.raises(ValueError, match="got probabilities of shape"):
        list(region_masks(reference, reference, [(1,)], (1, 1), probabilities=Probabilities(p[:, 1:], [(1,)])))


def test_a_far_false_positive_cannot_improve_the_calibration() -> None:
    reference = np.zeros((60, 10), np.int64)
    reference[2:5, 3:6] = 1
    p = _softmax(6, 2, reference.shape)
    p[:, 15:] = np.array([1.0, 0.0])[:, None, None]
    far = p.copy()
    far[:, 59, 9] = (0.0, 1.0)
    values = [region_metrics(q.argmax(0), reference, [(1,)], (1, 1), settings=_SETTINGS,
                             probabilities=Probabilities(q, [(1,)]))[0]["ece"] for q in (p, far)]  # fmt: skip
    assert values[0] == values[1]


def test_bins_survive_their_tables() -> None:
    found = measure(*(lambda r: (r.random(500), r.random(500) < 0.4))(np.random.default_rng(7)))
    assert found is not None
    again = Calibration.from_list(found.to_list())
    assert again is not None and again.to_list() == found.to_list() and Calibration.from_list(NOTHING) is None
    read = from_rows([{key: str(value) for key, value in row.items()} for row in bin_rows("a", "1", found)])
    assert read is not None
    assert (read.ece, read.brier) == pytest.approx((found.ece, found.brier))
    double = found + found
    assert (double.ece, double.brier) == pytest.approx((found.ece, found.brier))
    assert from_rows([]) is None and bin_rows("a", "1", None) == []
    with pytest.raises(ValueError):
        from_rows([{"low": "0"}])


# Files.

#: Directions of the file's axes: columns of its affine.
_FLIPPED = np.array([[0, -2.0, 0, 5], [3.0, 0, 0, -7], [0, 0, -1.0, 9], [0, 0, 0, 1]])


def _probabilities(labels: Any, channels: int = 3, noise: float = 0.3, seed: int = 8) -> Any:
    """Probabilities whose most probable class is the label."""
    p = _softmax(seed, channels, labels.shape) * noise
    np.put_along_axis(p, labels[None].astype(int), np.take_along_axis(p, labels[None].astype(int), 0) + 1 - noise, 0)
    return p / p.sum(0)


@pytest.mark.parametrize("shape", [(6, 7, 5), (6, 7)])
@pytest.mark.parametrize("affine", [np.diag([2.0, 3.0, 1.0, 1.0]), _FLIPPED])
def test_files_of_probabilities_are_read_along_the_axes_of_the_label_map(
    tmp_path: Path, shape: tuple[int, ...], affine: Any
) -> None:
    labels = np.random.default_rng(9).integers(0, 3, shape).astype(np.uint8)
    nib.save(nib.Nifti1Image(labels, affine), tmp_path / "a.nii.gz")
    volume = read_labels(tmp_path / "a.nii.gz")
    expected = _probabilities(volume.data).astype(np.float32)
    assert probability_file(tmp_path / "a.nii.gz") is None
    header = nib.load(tmp_path / "a.nii.gz").header
    write_npz(tmp_path / "a.npz", expected, header)
    found = read_probabilities(probability_file(tmp_path / "a.nii.gz") or Path(), volume)
    np.testing.assert_allclose(found, expected, atol=6e-4)
    # As nnU-Net writes it: channels, then the axes of the file in reverse order.
    stored = np.load(tmp_path / "a.npz")["probabilities"]
    assert stored.dtype == np.float16
    plain = stored.reshape(3, *shape[::-1]).transpose(0, *range(len(shape), 0, -1))
    np.testing.assert_array_equal(plain.argmax(0), labels)
    write_probabilities(tmp_path / "a_probabilities.nii.gz", expected, header)
    np.testing.assert_array_equal(
        read_probabilities(probability_file(tmp_path / "a.nii.gz") or Path(), volume), expected
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`labels/`, `near/` and `far/`, both with probabilities: near's as nnU-Net writes them, far's as NIfTI."""
    made_folders(tmp_path)
    for name in ("near", "far"):
        for path in sorted((tmp_path / name).iterdir()):
            volume = read_labels(path)
            header, p = nib.load(path).header, _probabilities(volume.data).astype(np.float32)
            if name == "near":
                write_npz(path.with_name(path.name.replace(".nii.gz", ".npz")), p, header)
            else:
                write_probabilities(path.with_name(path.name.replace(".nii", "_probabilities.nii")), p, header)
    return tmp_path


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_evaluates_kept_probabilities(folder: Path) -> None:
    call = ("--labels", folder / "labels", "--metrics", "dice,ece,brier")
    for name in ("near", "far"):
        code, shown, err = call_medloss("evaluate", folder / name, *call, "--out", folder / f"{name}.csv")
        assert code == 0 and "ECE" in shown and "note" not in err and "left out" not in err, err
        for row, seed in zip(_rows(folder / f"{name}.csv")[::2], range(4), strict=True):
            labels = moved(label_map(seed), 1 if name == "near" else 2)
            expected = region_metrics(labels, label_map(seed), [(1,)], SPACING, settings=_SETTINGS,
                                      probabilities=Probabilities(_probabilities(labels), [(1,)]))[0]  # fmt: skip
            assert float(row["brier"]) == pytest.approx(expected["brier"], abs=5e-4)
            assert float(row["ece"]) == pytest.approx(expected["ece"], abs=5e-3)

    (folder / "near" / "a.npz").unlink()
    code, _, err = call_medloss("evaluate", folder / "near", *call, "--out", folder / "some.csv")
    assert (code, err.count("note:")) == (0, 1) and "ECE and Brier score: without probabilities: a.nii.gz" in err
    assert [row["ece"] == "nan" for row in _rows(folder / "some.csv")] == [True] * 2 + [False] * 6
    for path in (folder / "near").glob("*.npz"):
        path.unlink()
    code, _, err = call_medloss("evaluate", folder / "near", *call, "--out", folder / "none.csv")
    assert code == 0 and "left out, ECE and Brier score" in err and "--save_probabilities" in err
    assert "ece" not in _rows(folder / "none.csv")[0]
    code, _, err = call_medloss("evaluate", folder / "near", *call[:3], "ece")
    assert (code, err.count("\n")) == (2, 1) and err.startswith("error: --metrics: ECE: ")


def _broken(folder: Path, case: str) -> None:
    file, p = folder / "near" / "b.npz", _probabilities(read_labels(folder / "near" / "b.nii.gz").data)
    header = nib.load(folder / "near" / "b.nii.gz").header
    if case == "no zip":
        file.write_bytes(b"\x93NUMPY")
    elif case == "other name":
        np.savez(file, softmaxed=p)
    elif case == "integers":
        np.savez(file, probabilities=np.zeros((3, 2, 2), int))
    elif case == "channels":
        write_npz(file, p[:2], header)
    elif case == "grid":
        write_npz(file, p[:, 1:], header)
    elif case == "logits":
        write_npz(file, 9 * p, header)
    elif case == "NaN":
        write_npz(file, np.where(p > 0.9, np.nan, p), header)
    else:
        write_npz(file, p[[1, 2, 0]], header)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no zip", "cannot be read: "),
        ("other name", "holds softmaxed; expected nnU-Net's array probabilities"),
        ("integers", "holds int64; expected real numbers"),
        ("channels", "2 channels; expected 3, one per label value (0, 1, 2)"),
        ("grid", "11 x 14 x 10 voxels, but its label map has 12 x 14 x 10"),
        ("logits", "expected probabilities, 0 to 1"),
        ("NaN", "expected probabilities, 0 to 1"),
        ("of another map", "not the probabilities of its label map: they agree on "),
    ],
)
def test_files_that_are_not_the_probabilities_are_refused(folder: Path, case: str, message: str) -> None:
    assert SHAPE == (12, 14, 10)
    _broken(folder, case)
    for call in (
        ("evaluate", folder / "near", "--labels", folder / "labels", "--metrics", "dice,ece"),
        ("report", "--predictions", f"near={folder / 'near'}", f"far={folder / 'far'}", "--labels", folder / "labels",
         "--metrics", "default,ece", "--out", folder / "r"),
    ):  # fmt: skip
        code, _, err = call_medloss(*call)
        assert code == 2 and err.startswith("error: ") and "b.npz: " in err and message in err, err


def test_a_report_of_predictions_with_probabilities(folder: Path) -> None:
    smaller = moved(label_map(0), 2)
    smaller[smaller.nonzero()[0].max()] = 0
    write_map(folder / "far" / "a.nii.gz", smaller)
    call = ("report", "--predictions", f"near={folder / 'near'}", f"far={folder / 'far'}", "--labels",
            folder / "labels", "--metrics", "default,ece,brier,volume_difference,volume_bias_ml",
            "--out", folder / "r")  # fmt: skip
    code, shown, err = call_medloss(*call)
    assert code == 0, err
    page = read_page(folder / "r" / "report.html").text
    assert "Reliability diagram" in page and "Bland-Altman" in page
    assert {path.name for path in (folder / "r" / "plots").glob("*.svg")} >= {"reliability.svg", "bland_altman.svg"}
    rows = _rows(folder / "r" / "tables" / "calibration.csv")
    assert {row["loss"] for row in rows} == {"near", "far"}
    # From the cache, the same.
    before = (folder / "r" / "tables" / "calibration.csv").read_bytes()
    code, shown, _ = call_medloss(*call)
    assert code == 0 and "0 pairs evaluated, 8 read from the cache" in shown
    assert (folder / "r" / "tables" / "calibration.csv").read_bytes() == before
    # Other probabilities are another result.
    header = nib.load(folder / "near" / "a.nii.gz").header
    other = _probabilities(read_labels(folder / "near" / "a.nii.gz").data, seed=10)
    write_npz(folder / "near" / "a.npz", other, header)
    assert "1 pair evaluated, 7 read from the cache" in call_medloss(*call)[1]
    # One that is missing leaves the metrics out for all: the cell would count as a failure.
    (folder / "far" / "d_probabilities.nii.gz").unlink()
    code, shown, err = call_medloss(*call)
    assert (
        code == 0 and "Left out, ECE and Brier score: 1 of 8 predictions have no probabilities, such as far's" in shown
    )
    assert "ece" not in _rows(folder / "r" / "cases.csv")[0]
    assert not (folder / "r" / "plots" / "reliability.svg").exists()


def test_probabilities_of_regions(tmp_path: Path) -> None:
    """A channel per region, which may overlap: the region's own, not a sum."""
    made_folders(tmp_path)
    for path in sorted((tmp_path / "near").iterdir()):
        volume = read_labels(path)
        inside = np.stack([volume.data > 0, volume.data == 2]).astype(np.float32)
        write_npz(path.with_name(path.name.replace(".nii.gz", ".npz")), 0.1 + 0.8 * inside, nib.load(path).header)
    volume = read_labels(tmp_path / "near" / "a.nii.gz")
    found = case_probabilities(tmp_path / "near" / "a.npz", volume, volume.data, (0, 1, 2), [(1, 2), (2,)])
    assert list(found.channels) == [(0,), (1,)]
    # Three regions of three values: only channels that sum to 1 are those of the values.
    regions = [(1, 2), (2,), (1,)]
    p = _probabilities(volume.data)
    header = nib.load(tmp_path / "near" / "a.nii.gz").header
    write_npz(tmp_path / "near" / "a.npz", p, header)
    assert case_probabilities(tmp_path / "near" / "a.npz", volume, volume.data, (0, 1, 2), regions).channels == regions
    inside = np.stack([volume.data > 0, volume.data == 2, volume.data == 1])
    write_npz(tmp_path / "near" / "a.npz", 0.1 + 0.8 * inside, header)
    found = case_probabilities(tmp_path / "near" / "a.npz", volume, volume.data, (0, 1, 2), regions)
    assert list(found.channels) == [(0,), (1,), (2,)]


def test_the_volume_bias_is_in_ml() -> None:
    reference, prediction = np.zeros((6, 6, 6), np.int64), np.zeros((6, 6, 6), np.int64)
    reference[:2, :2, :5], prediction[:3, :2, :5] = 1, 1
    settings = MetricSettings(("volume_bias_ml", "volume_difference"))
    (found,) = region_metrics(prediction, reference, [(1,)], (10.0, 5.0, 2.0), settings=settings)
    assert found["volume_bias_ml"] == pytest.approx(10 * 100 / 1000)
    assert found["volume_difference"] == pytest.approx(0.5)
    (flat,) = region_metrics(prediction[0], reference[0], [(1,)], (5.0, 2.0), settings=settings)
    assert math.isnan(flat["volume_bias_ml"])


def test_the_volumes_of_the_bland_altman_plot() -> None:
    """Reference volumes: 10 ml (which the exact loss has from the other), 0 ml, unknown (no loss has an error)."""
    nan = math.nan
    rows = [
        ("a", "exact", 0.0, 0.0), ("a", "more", 5.0, 0.5), ("b", "exact", 0.0, nan), ("b", "more", 3.0, nan),
        ("c", "exact", 0.0, 0.0), ("c", "more", 0.0, 0.0), ("d", "exact", nan, nan), ("d", "more", -4.0, -1.0),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["case", "loss", "volume_bias_ml", "volume_difference"]).assign(**{"class": "1"})
    found = {(row["loss"], row["case"]): (row["mean"], row["difference"]) for _, row in volumes(frame).iterrows()}
    assert found == {
        ("exact", "a"): (10.0, 0.0), ("more", "a"): (12.5, 5.0), ("exact", "b"): (0.0, 0.0), ("more", "b"): (1.5, 3.0),
        ("more", "d"): (2.0, -4.0),
    }  # fmt: skip
    twice = volumes(pd.concat([frame, frame.assign(volume_bias_ml=2 * frame["volume_bias_ml"],
                                                   volume_difference=2 * frame["volume_difference"])]))  # fmt: skip
    assert twice.set_index(["loss", "case"]).loc[("more", "a"), "difference"] == 7.5, "runs are averaged"
