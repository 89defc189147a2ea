"""Metrics, compared with independent loops and with MONAI."""

import itertools
import math
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from class_metrics import case_metrics
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)
from monai.networks import one_hot as one_hot_of
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.evaluation.evaluate import mean_metrics, nanmean, region_metrics
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import MetricSettings, default_metrics

SHAPES = [((11, 14, 9), (3.0, 1.0, 0.6)), ((9, 12, 13), (0.5, 2.0, 1.1)), ((17, 23), (2.5, 0.4))]


def _blobs(seed: int, shape: tuple[int, ...], classes: int = 3) -> NDArray[np.int64]:
    """Random blobs of labels, some of which touch the volume's border."""
    rng = np.random.default_rng(seed)
    smooth = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(classes)])
    return smooth.argmax(0)


def _surface(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Positions of the voxels with a face towards the outside, mm, by a loop over voxels and neighbours."""
    found = []
    for voxel in np.argwhere(mask).tolist():
        neighbours = [
            [x + step * (axis == moved) for axis, x in enumerate(voxel)]
            for moved in range(mask.ndim)
            for step in (-1, 1)
        ]
        if any(not all(0 <= x < n for x, n in zip(v, mask.shape, strict=True)) or not mask[*v] for v in neighbours):
            found.append([x * s for x, s in zip(voxel, spacing, strict=True)])
    return np.array(found)


def _slow_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, ...], tolerances: Sequence[float]
) -> list[tuple[float, float, float]]:
    """HD95, ASSD and NSD for each tolerance, from every pair of voxels."""
    one, other = _surface(prediction, spacing), _surface(reference, spacing)
    pairs = np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))
    directed = pairs.min(1), pairs.min(0)
    both = [*directed[0], *directed[1]]
    hd95 = max(float(np.percentile(distances, 95)) for distances in directed)
    assd = sum(both) / len(both)
    return [(hd95, assd, sum(distance <= limit + 1e-9 for distance in both) / len(both)) for limit in tolerances]


def _slow_counts(prediction: NDArray[np.bool_], reference: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    tp = fp = fn = tn = 0
    for p, r in zip(prediction.ravel().tolist(), reference.ravel().tolist(), strict=True):
        tp, fp, fn, tn = tp + (p and r), fp + (p and not r), fn + (r and not p), tn + (not p and not r)
    return 2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn), tp / (tp + fn), tn / (tn + fp)


def test_the_metrics_and_their_order() -> None:
    first = ("dice", "iou", "sensitivity", "specificity", "hd95_mm", "assd_mm", "nsd")
    assert default_metrics() == first == tuple(METRICS)[:7]


@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_matches_loops(seed: int, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    prediction, reference = _blobs(seed, shape), _blobs(seed + 100, shape)
    tolerances = (0.0, 1.0, 2.5)
    pair = torch.from_numpy(prediction), torch.from_numpy(reference)
    results = [case_metrics(*pair, 3, spacing, MetricSettings(nsd_tolerance_mm=tolerance)) for tolerance in tolerances]
    assert [len(metrics) for metrics in results] == [2, 2, 2]
    for c in (1, 2):
        masks = prediction == c, reference == c
        counts = _slow_counts(*masks)
        for metrics, distances in zip(results, _slow_distances(*masks, spacing, tolerances), strict=True):
            assert list(metrics[c - 1].values()) == pytest.approx([*counts, *distances], rel=1e-12)


@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
def test_matches_monai(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    prediction, reference = (torch.from_numpy(_blobs(seed, shape)) for seed in (7, 8))
    one_hot = [one_hot_of(labels[None, None], 3) for labels in (prediction, reference)]
    with warnings.catch_warnings():
        # MONAI 1.6 warns of an argument that it passes to itself.
        warnings.filterwarnings("ignore", ".*always_return_as_numpy", FutureWarning)
        common = {"spacing": list(spacing), "include_background": False}
        hd95 = compute_hausdorff_distance(*one_hot, percentile=95, **common)
        assd = compute_average_surface_distance(*one_hot, symmetric=True, **common)
        nsd = compute_surface_dice(*one_hot, [1.3, 1.3], **common)
        iou, dice = compute_iou(*one_hot, include_background=False), compute_dice(*one_hot, include_background=False)
    expected = torch.stack([dice[0], iou[0], hd95[0], assd[0], nsd[0]], 1).tolist()
    results = case_metrics(prediction, reference, 3, spacing, MetricSettings(nsd_tolerance_mm=1.3))
    for metrics, wanted in zip(results, expected, strict=True):
        values = [metrics[name] for name in ("dice", "iou", "hd95_mm", "assd_mm", "nsd")]
        assert values == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("shape", "spacing"), SHAPES)
def test_spacing_is_per_axis(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
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
            far = (size - 3) * order[axis]
            (metrics,) = case_metrics(*pair, 2, order, MetricSettings(nsd_tolerance_mm=far))
            assert (metrics["hd95_mm"], metrics["assd_mm"]) == pytest.approx((far, far), rel=1e-12)
            assert metrics["nsd"] == 1
            assert case_metrics(*pair, 2, order, MetricSettings(nsd_tolerance_mm=0.999 * far))[0]["nsd"] == 0


def test_hd95_is_symmetric_and_ignores_five_per_cent() -> None:
    reference = torch.zeros(40, 60, dtype=torch.long)
    reference[10:30, 10:30] = 1
    prediction = reference.clone()
    prediction[20, 55] = 1  # one far voxel of 77 on the surface: less than a twentieth
    assert case_metrics(prediction, reference, 2, (1.0, 1.0))[0]["hd95_mm"] == 0
    prediction[10:30, 50:56] = 1  # now more than a sixth, in the prediction only
    one_way = case_metrics(prediction, reference, 2, (1.0, 1.0))[0]["hd95_mm"]
    other_way = case_metrics(reference, prediction, 2, (1.0, 1.0))[0]["hd95_mm"]
    assert one_way == other_way == pytest.approx(26, abs=1)


SHAPE, SPACING = (6, 5, 4), (2.0, 1.0, 3.0)
_NAN = math.nan
DIAGONAL = math.sqrt(12**2 + 5**2 + 12**2)


@pytest.mark.parametrize(
    ("predicted", "present", "expected"),
    [
        ([], [], (_NAN, _NAN, _NAN, 1.0, _NAN, _NAN, _NAN)),
        ([], [1], (0.0, 0.0, 0.0, 1.0, DIAGONAL, DIAGONAL, 0.0)),
        ([1], [], (0.0, 0.0, _NAN, 119 / 120, DIAGONAL, DIAGONAL, 0.0)),
        ([1], [1], (1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0)),
        ([1], [2], (0.0, 0.0, 0.0, 118 / 119, 3.0, 3.0, 0.0)),  # the last axis has 3 mm per voxel
        (range(120), range(120), (1.0, 1.0, 1.0, _NAN, 0.0, 0.0, 1.0)),
        ([], range(120), (0.0, 0.0, 0.0, _NAN, DIAGONAL, DIAGONAL, 0.0)),
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
        (metrics,) = case_metrics(masks[0], masks[1], 2, SPACING)
    assert list(metrics.values()) == pytest.approx(expected, nan_ok=True)


def test_each_class_is_compared_with_the_same_class() -> None:
    reference = torch.tensor([[1, 1, 2, 2], [0, 0, 0, 0]])
    prediction = torch.tensor([[2, 2, 2, 2], [0, 0, 0, 0]])
    one, two = case_metrics(prediction, reference, 3, (1.0, 1.0))
    assert (one["dice"], one["sensitivity"], one["specificity"]) == (0, 0, 1)
    assert (two["dice"], two["sensitivity"], two["specificity"]) == pytest.approx((2 / 3, 1, 4 / 6))


def test_a_margin_only_changes_specificity() -> None:
    prediction, reference = (torch.from_numpy(_blobs(seed, (9, 8, 7))) for seed in (1, 2))
    # The array's border counts as outside, so a margin changes no surface.
    pairs = [
        (prediction, reference),
        tuple(torch.nn.functional.pad(m, (3, 1, 0, 4, 5, 2)) for m in (prediction, reference)),
    ]
    for plain, padded in zip(*(case_metrics(*pair, 3, (3.0, 1.0, 0.6)) for pair in pairs), strict=True):
        assert padded["specificity"] > plain["specificity"]
        assert padded | {"specificity": plain["specificity"]} == plain


def test_ignored_voxels_are_not_true_negatives() -> None:
    reference, prediction = np.array([[1, 1, 0, 0, 2]]), np.array([[1, 1, 1, 0, 2]])
    (metrics,) = region_metrics(prediction, reference, [(1,)], (1.0, 1.0), ignored=2)
    assert metrics["specificity"] == 0.5
    assert metrics["sensitivity"] == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16, torch.float32])
def test_labels_of_any_type_and_values_beyond_the_classes(dtype: torch.dtype) -> None:
    prediction, reference = (torch.from_numpy(_blobs(seed, (9, 8, 7))) for seed in (1, 2))
    reference[0, 0, 0] = prediction[0, 0, 0] = 0
    expected = case_metrics(prediction, reference, 3, (3.0, 1.0, 0.6))
    reference[0, 0, 0] = prediction[0, 0, 0] = 200  # not a class, so background
    assert case_metrics(prediction.to(dtype), reference.to(dtype), 3, (3.0, 1.0, 0.6)) == expected
    assert len(case_metrics(prediction, reference, 6, (3.0, 1.0, 0.6))) == 5


@pytest.mark.parametrize("arguments", [((4, 5), (4, 6), (1.0, 2.0)), ((4, 5), (4, 5), (1.0, 2.0, 3.0))])
def test_mismatched_shapes_are_refused(arguments: tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]) -> None:
    one, other, spacing = arguments
    with pytest.raises(ValueError, match=r"got shapes \(4, 5\) and .*; expected the same axes"):
        case_metrics(torch.ones(one, dtype=torch.long), torch.ones(other, dtype=torch.long), 2, spacing)


def test_means_are_over_cases_and_skip_nan() -> None:
    nan = math.nan
    rows = [
        {"case": "a", "dice": 1.0, "sensitivity": 1.0, "specificity": 1.0, "hd95_mm": 2.0},
        {"case": "b", "dice": 0.2, "sensitivity": nan, "specificity": 1.0, "hd95_mm": 9.0},
        {"case": "a", "dice": nan, "sensitivity": 0.5, "specificity": 0.0, "hd95_mm": nan},
        {"case": "b", "dice": 0.4, "sensitivity": nan, "specificity": 0.5, "hd95_mm": 3.0},
        {"case": "c", "dice": nan, "sensitivity": nan, "specificity": 1.0, "hd95_mm": nan},
    ]
    rows = [row | {"iou": row["dice"] / 2, "assd_mm": row["hd95_mm"] / 3, "nsd": 1.0} for row in rows]
    means = mean_metrics(rows)
    assert means["dice"] == pytest.approx((1.0 + 0.3) / 2)
    assert means["sensitivity"] == pytest.approx(0.75)
    assert means["specificity"] == pytest.approx((0.5 + 0.75 + 1.0) / 3)
    assert means["hd95_mm"] == pytest.approx((2.0 + 6.0) / 2)
    assert (means["iou"], means["assd_mm"], means["nsd"]) == pytest.approx((0.325, 4 / 3, 1.0))
    assert all(math.isnan(value) for value in mean_metrics([]).values())
    assert math.isnan(nanmean([nan, nan]))
