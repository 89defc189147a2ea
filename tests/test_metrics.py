"""The measures of a run, against loops written apart from them."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.metrics import METRICS, argmax_labels, case_metrics, mean_metrics, nanmean

SHAPES = [((11, 14, 9), (3.0, 1.0, 0.6)), ((9, 12, 13), (0.5, 2.0, 1.1)), ((17, 23), (2.5, 0.4))]


def _blobs(seed: int, shape: tuple[int, ...], classes: int = 3) -> NDArray[np.int64]:
    """Labels in blobs that touch the volume's borders, too."""
    rng = np.random.default_rng(seed)
    smooth = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(classes)])
    return smooth.argmax(0)


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return mask & ~ndimage.binary_erosion(mask)


def _slow_hd95(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    directed = []
    for one, other in ((prediction, reference), (reference, prediction)):
        distance = ndimage.distance_transform_edt(~_surface(other), sampling=spacing)
        directed.append(np.percentile(distance[_surface(one)], 95))
    return float(max(directed))


def _slow_counts(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[float, float, float]:
    tp = fp = fn = tn = 0
    for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        tp, fp, fn, tn = tp + (p and r), fp + (p and not r), fn + (r and not p), tn + (not p and not r)
    return 2 * tp / (2 * tp + fp + fn), tp / (tp + fn), tn / (tn + fp)


@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_loops(seed: int, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    prediction, reference = _blobs(seed, shape), _blobs(seed + 100, shape)
    measures = case_metrics(torch.from_numpy(prediction), torch.from_numpy(reference), 3, spacing)
    assert len(measures) == 2
    for c, measured in enumerate(measures, start=1):
        expected = _slow_counts(prediction == c, reference == c)
        assert (measured.dice, measured.sensitivity, measured.specificity) == pytest.approx(expected, rel=1e-12)
        assert measured.hd95_mm == pytest.approx(_slow_hd95(prediction == c, reference == c, spacing), rel=1e-5)


@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
def test_each_axis_has_its_own_spacing(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    # Two single voxels n steps apart on one axis: n times that axis's spacing, and with no other order of spacings.
    for axis, size in enumerate(shape):
        first, second = np.zeros(shape, int), np.zeros(shape, int)
        start = [n // 2 for n in shape]
        start[axis] = 1
        first[tuple(start)] = 1
        start[axis] = size - 2
        second[tuple(start)] = 1
        pair = torch.from_numpy(first), torch.from_numpy(second)
        for order in itertools.permutations(spacing):
            assert case_metrics(*pair, 2, order)[0].hd95_mm == pytest.approx((size - 3) * order[axis], rel=1e-6)


def test_hd95_looks_both_ways_and_forgives_a_twentieth() -> None:
    reference = torch.zeros(40, 60, dtype=torch.long)
    reference[10:30, 10:30] = 1
    prediction = reference.clone()
    prediction[20, 55] = 1  # one far voxel of 77 on the surface: less than a twentieth
    assert case_metrics(prediction, reference, 2, (1.0, 1.0))[0].hd95_mm == 0
    prediction[10:30, 50:56] = 1  # now a sixth and more, of the prediction alone
    one_way = case_metrics(prediction, reference, 2, (1.0, 1.0))[0].hd95_mm
    other_way = case_metrics(reference, prediction, 2, (1.0, 1.0))[0].hd95_mm
    assert one_way == other_way == pytest.approx(26, abs=1)


SHAPE, SPACING = (6, 5, 4), (2.0, 1.0, 3.0)
DIAGONAL = math.sqrt(12**2 + 5**2 + 12**2)


@pytest.mark.parametrize(
    ("predicted", "present", "expected"),
    [
        ([], [], (math.nan, math.nan, 1.0, math.nan)),
        ([], [1], (0.0, 0.0, 1.0, DIAGONAL)),
        ([1], [], (0.0, math.nan, 119 / 120, DIAGONAL)),
        ([1], [1], (1.0, 1.0, 1.0, 0.0)),
        (range(120), range(120), (1.0, 1.0, math.nan, 0.0)),
        ([], range(120), (0.0, 0.0, math.nan, DIAGONAL)),
    ],
)
def test_empty_and_full(predicted: list[int], present: list[int], expected: tuple[float, ...]) -> None:
    masks = []
    for voxels in (predicted, present):
        mask = torch.zeros(120, dtype=torch.long)
        mask[list(voxels)] = 1
        masks.append(mask.view(SHAPE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (measured,) = case_metrics(masks[0], masks[1], 2, SPACING)
    assert [getattr(measured, name) for name in METRICS] == pytest.approx(expected, nan_ok=True)


def test_a_class_is_measured_against_itself() -> None:
    reference = torch.tensor([[1, 1, 2, 2], [0, 0, 0, 0]])
    prediction = torch.tensor([[2, 2, 2, 2], [0, 0, 0, 0]])
    one, two = case_metrics(prediction, reference, 3, (1.0, 1.0))
    assert (one.dice, one.sensitivity, one.specificity) == (0, 0, 1)
    assert (two.dice, two.sensitivity, two.specificity) == pytest.approx((2 / 3, 1, 4 / 6))


def test_means_are_of_cases_and_leave_out_what_has_no_meaning() -> None:
    nan = math.nan
    rows = [
        {"case": "a", "dice": 1.0, "sensitivity": 1.0, "specificity": 1.0, "hd95_mm": 2.0},
        {"case": "b", "dice": 0.2, "sensitivity": nan, "specificity": 1.0, "hd95_mm": 9.0},
        {"case": "a", "dice": nan, "sensitivity": 0.5, "specificity": 0.0, "hd95_mm": nan},
        {"case": "b", "dice": 0.4, "sensitivity": nan, "specificity": 0.5, "hd95_mm": 3.0},
        {"case": "c", "dice": nan, "sensitivity": nan, "specificity": 1.0, "hd95_mm": nan},
    ]
    means = mean_metrics(rows)
    assert means["dice"] == pytest.approx((1.0 + 0.3) / 2)
    assert means["sensitivity"] == pytest.approx(0.75)
    assert means["specificity"] == pytest.approx((0.5 + 0.75 + 1.0) / 3)
    assert means["hd95_mm"] == pytest.approx((2.0 + 6.0) / 2)
    assert all(math.isnan(value) for value in mean_metrics([]).values())
    assert math.isnan(nanmean([nan, nan]))


def test_argmax_keeps_the_axes() -> None:
    logits = torch.zeros(2, 3, 4, 5)
    logits[1, 2, 3, 1] = 1
    labels = argmax_labels(logits)
    assert labels.shape == (2, 4, 5)
    assert labels.nonzero().tolist() == [[1, 3, 1]]
    assert labels[1, 3, 1] == 2
