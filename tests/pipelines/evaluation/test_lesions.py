"""Lesion-wise metrics, compared with worked examples, a slow reference and MONAI; volume and centreline metrics."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_panoptic_quality
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from pipelines.evaluation.evaluate import lesion_rows, region_masks, region_metrics, with_strata
from pipelines.evaluation.lesions import find_lesions
from pipelines.evaluation.metrics import METRICS
from pipelines.evaluation.metrics.base import LesionRule, MetricSettings
from pipelines.utils import UserError

LESIONS = tuple(name for name in METRICS if name.startswith("lesion_"))
SPACING = (3.0, 0.5, 2.0)
Mask = NDArray[np.bool_]


def _metrics(prediction: Mask, reference: Mask, spacing: tuple[float, ...], **rule: Any) -> dict[str, float]:
    chosen = MetricSettings(names=LESIONS, lesions=LesionRule(**rule))
    maps = prediction.astype(np.uint8), reference.astype(np.uint8)
    (found,) = region_metrics(*maps, [(1,)], spacing, settings=chosen)
    return found


# A slow reference: flood fill, pairs of sets of voxels, greedy matching.


def _components(mask: Mask, steps: int) -> list[set[tuple[int, ...]]]:
    left = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    moves = [m for m in itertools.product((-1, 0, 1), repeat=mask.ndim) if 0 < sum(map(abs, m)) <= steps]
    found = []
    while left:
        first = min(left)
        left.discard(first)
        component, border = {first}, [first]
        while border:
            voxel = border.pop()
            for move in moves:
                neighbour = tuple(x + d for x, d in zip(voxel, move, strict=True))
                if neighbour in left:
                    left.discard(neighbour)
                    component.add(neighbour)
                    border.append(neighbour)
        found.append(component)
    return found


def _surface(voxels: set[tuple[int, ...]], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    def has_face(voxel: tuple[int, ...]) -> bool:
        return any(
            tuple(x + d * (a == axis) for a, x in enumerate(voxel)) not in voxels
            for axis in range(len(voxel))
            for d in (-1, 1)
        )

    return np.array([voxel for voxel in sorted(voxels) if has_face(voxel)]) * spacing


def _slow_hd95(one: set[tuple[int, ...]], other: set[tuple[int, ...]], spacing: tuple[float, ...]) -> float:
    first, second = _surface(one, spacing), _surface(other, spacing)
    pairs = np.sqrt(((first[:, None] - second[None]) ** 2).sum(-1))
    return float(max(np.percentile(pairs.min(1), 95), np.percentile(pairs.min(0), 95)))


def _slow(
    prediction: Mask, reference: Mask, spacing: tuple[float, ...], steps: int, overlap: float
) -> dict[str, float]:
    predicted, present = _components(prediction, steps), _components(reference, steps)
    pairs = [
        (len(p & r) / len(p | r), -j, -i)  # the largest IoU first, then the first lesion of the reference
        for i, p in enumerate(predicted)
        for j, r in enumerate(present)
        if len(p & r) / len(p | r) > overlap
    ]
    matches: list[tuple[int, int]] = []
    for _, j, i in sorted(pairs, reverse=True):
        if all(-i != one and -j != other for one, other in matches):
            matches.append((-i, -j))
    tp, fp, fn = len(matches), len(predicted) - len(matches), len(present) - len(matches)
    both = [(predicted[i], present[j]) for i, j in matches]
    iou = sum(len(p & r) / len(p | r) for p, r in both)
    dice = sum(2 * len(p & r) / (len(p) + len(r)) for p, r in both)
    hd95 = sum(_slow_hd95(p, r, spacing) for p, r in both)
    diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(prediction.shape, spacing, strict=True)))
    lesions = tp + fp + fn
    precision = tp / (tp + fp) if tp + fp else (0.0 if fn else math.nan)
    return {
        "lesion_sensitivity": tp / (tp + fn) if tp + fn else math.nan,
        "lesion_precision": precision,
        "lesion_f1": 2 * tp / (2 * tp + fp + fn) if lesions else math.nan,
        "lesion_sq": iou / tp if tp else (0.0 if lesions else math.nan),
        "lesion_pq": iou / (tp + fp / 2 + fn / 2) if lesions else math.nan,
        "lesion_dice": dice / lesions if lesions else math.nan,
        "lesion_hd95_mm": (hd95 + (fp + fn) * diagonal) / lesions if lesions else math.nan,
        "lesion_false_positives": float(fp),
    }


def _spots(seed: int, shape: tuple[int, ...]) -> tuple[Mask, Mask]:
    """Two masks of many small lesions, some of which overlap, touch at corners, or touch the border."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
    other = smooth + 0.3 * ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
    return smooth > 0.25, other > 0.3


@pytest.mark.parametrize(("connectivity", "steps"), [(None, 3), (26, 3), (18, 2), (6, 1)])
@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5])
def test_matches_a_slow_reference(connectivity: int | None, steps: int, overlap: float) -> None:
    values = []
    for seed in range(3):
        prediction, reference = _spots(seed, (13, 11, 10))
        found = _metrics(prediction, reference, SPACING, connectivity=connectivity, overlap=overlap)
        expected = _slow(prediction, reference, SPACING, steps, overlap)
        assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)
        values.append(found["lesion_f1"])
    assert any(0 < value < 1 for value in values)


@pytest.mark.parametrize(("connectivity", "steps"), [(None, 2), (8, 2), (4, 1)])
def test_matches_a_slow_reference_in_2d(connectivity: int | None, steps: int) -> None:
    for seed in range(4):
        prediction, reference = _spots(seed, (21, 19))
        found = _metrics(prediction, reference, (0.7, 2.5), connectivity=connectivity, overlap=0.2)
        assert found == pytest.approx(_slow(prediction, reference, (0.7, 2.5), steps, 0.2), rel=1e-12, nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.95), st.sampled_from([0.1, 0.3, 0.6]))
def test_matches_a_slow_reference_on_noise(seed: int, overlap: float, density: float) -> None:
    prediction, reference = np.random.default_rng(seed).random((2, 5, 4, 6)) < density
    found = _metrics(prediction, reference, SPACING, overlap=overlap)
    assert found == pytest.approx(_slow(prediction, reference, SPACING, 3, overlap), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_agrees_with_monai(threshold: float) -> None:
    """MONAI takes numbered instances, and matches those with an IoU above the threshold."""
    for seed in range(4):
        prediction, reference = _spots(seed, (30, 34))
        eight = np.ones((3, 3))
        instances = [
            torch.from_numpy(ndimage.label(mask, eight)[0].astype(np.int64)) for mask in (prediction, reference)
        ]
        found = _metrics(prediction, reference, (1.0, 1.0), overlap=threshold)
        for name, monai in (("lesion_f1", "rq"), ("lesion_sq", "sq"), ("lesion_pq", "pq")):
            theirs = compute_panoptic_quality(*instances, metric_name=monai, match_iou_threshold=threshold)
            assert found[name] == pytest.approx(float(theirs), abs=1e-5)  # they add 1e-6 to the divisor


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_agrees_with_panoptica(threshold: float) -> None:
    """It is not a dependency: `pip install panoptica`. By default it also matches an IoU of exactly the threshold."""
    panoptica = pytest.importorskip("panoptica")
    from panoptica.utils.constants import CCABackend

    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(cca_backend=CCABackend.cc3d),
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=threshold, strict_threshold=True),
        instance_metrics=[panoptica.Metric.IOU, panoptica.Metric.DSC],
    )
    for seed in range(5):
        prediction, reference = _spots(seed, (14, 22, 20))
        theirs = evaluator.evaluate(prediction.astype(np.uint8), reference.astype(np.uint8))["ungrouped"]
        found = _metrics(prediction, reference, SPACING, overlap=threshold)
        lesions = theirs.tp + theirs.fp + theirs.fn
        assert theirs.tp > 0 and theirs.fp + theirs.fn > 0, "something to match, and something that does not"
        assert found["lesion_false_positives"] == theirs.fp
        assert found["lesion_sensitivity"] == pytest.approx(theirs.tp / (theirs.tp + theirs.fn))
        for name, value in (("lesion_f1", theirs.rq), ("lesion_sq", theirs.sq), ("lesion_pq", theirs.pq)):
            assert found[name] == pytest.approx(value)
        assert found["lesion_dice"] == pytest.approx(theirs.sq_dsc * theirs.tp / lesions)


def test_a_worked_example() -> None:
    """Three lesions of which one is found exactly, one in half, and one missed; and a false one."""
    reference, prediction = np.zeros((2, 1, 12, 20), bool)
    reference[0, 1:3, 1:3] = prediction[0, 1:3, 1:3] = True  # 4 voxels, IoU 1
    reference[0, 5:7, 1:5] = True  # 8 voxels
    prediction[0, 5:7, 1:4] = True  # 6 of them: IoU 3/4, Dice 6/7
    reference[0, 10, 10] = True  # missed
    prediction[0, 2, 15:18] = True  # false
    found = _metrics(prediction, reference, (1.0, 2.0, 3.0))
    diagonal = math.hypot(1.0, 24.0, 60.0)
    assert found == pytest.approx(
        {
            "lesion_sensitivity": 2 / 3,
            "lesion_precision": 2 / 3,
            "lesion_f1": 2 / 3,
            "lesion_sq": (1 + 3 / 4) / 2,
            "lesion_pq": (1 + 3 / 4) / 3,
            "lesion_dice": (1 + 6 / 7 + 0 + 0) / 4,
            # The second lesion: 3 mm for two of its eight voxels, and the 95th percentile is one of them.
            "lesion_hd95_mm": (0 + 3 + 2 * diagonal) / 4,
            "lesion_false_positives": 1,
        }
    )
    masks = next(region_masks(prediction.astype(int), reference.astype(int), [(1,)], (1.0, 2.0, 3.0)))
    rows = lesion_rows(masks)
    assert [(row["lesion"], row["state"], row["volume_mm3"]) for row in rows] == [
        (1, "matched", 24.0), (2, "matched", 48.0), (3, "missed", 6.0), (4, "false", 18.0)
    ]  # fmt: skip
    assert [row["predicted_volume_mm3"] for row in rows] == pytest.approx([24, 36, math.nan, math.nan], nan_ok=True)
    assert [row["dice"] for row in rows] == pytest.approx([1, 6 / 7, 0, 0])
    assert sum(row["dice"] for row in rows) / 4 == pytest.approx(found["lesion_dice"])
    assert sum(row["hd95_mm"] for row in rows) / 4 == pytest.approx(found["lesion_hd95_mm"])
    frame = with_strata([{"case": "a", "class": "tumour", **row} for row in rows], (6, 24))
    assert frame["stratum"].tolist() == ["6 to 24 mm^3", "> 24 mm^3", "<= 6 mm^3", "6 to 24 mm^3"]


def test_one_large_prediction_finds_one_lesion_only() -> None:
    reference, prediction = np.zeros((2, 5, 9), bool)
    reference[2, 1:4] = reference[2, 5:7] = True
    prediction[2, 1:7] = True
    found = _metrics(prediction, reference, (1.0, 1.0), overlap=0.1)
    assert (found["lesion_sensitivity"], found["lesion_precision"]) == (0.5, 1.0)
    assert found["lesion_sq"] == pytest.approx(3 / 6)  # the larger of the two
    # Nor do two halves find one lesion twice.
    found = _metrics(reference, prediction, (1.0, 1.0), overlap=0.1)
    assert (found["lesion_sensitivity"], found["lesion_precision"]) == (1.0, 0.5)


def test_connectivity_decides_what_is_one_lesion() -> None:
    mask = np.zeros((3, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[1, 2, 2] = True  # by a corner, then by an edge
    numbers = {}
    for connectivity in (6, 18, 26, None):
        steps = LesionRule(connectivity).steps(3)
        numbers[connectivity] = len(find_lesions(mask, mask, SPACING, steps=steps, overlap=0.5).present)
    assert numbers == {6: 3, 18: 2, 26: 1, None: 1}


def test_greedy_matching_where_it_differs_from_the_largest_sum() -> None:
    """Below 0.5 a lesion may have several candidates: the best pair is matched first, even if others then have none."""
    reference, prediction = np.zeros((2, 1, 40), bool)
    reference[0, 0:10] = reference[0, 11:21] = True
    prediction[0, 4:15] = True  # IoU 6 / 15 with the first, 4 / 17 with the second
    prediction[0, 0:2] = True  # IoU 2 / 10 with the first
    found = _metrics(prediction, reference, (1.0, 1.0), overlap=0.1)
    assert found["lesion_sensitivity"] == 0.5 and found["lesion_sq"] == pytest.approx(6 / 15)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_above_half_any_matching_is_the_same(seed: int) -> None:
    prediction, reference = np.random.default_rng(seed).random((2, 9, 12)) < 0.35
    found = find_lesions(prediction, reference, (1.0, 1.0), steps=2, overlap=0.5)
    one, other = _components(prediction, 2), _components(reference, 2)
    iou = np.array([[len(p & r) / len(p | r) for r in other] for p in one]).reshape(len(one), len(other))
    allowed = np.where(iou > 0.5, iou, 0)
    rows, columns = linear_sum_assignment(-allowed)
    assert found.iou.sum() == pytest.approx(allowed[rows, columns].sum())
    assert found.tp == np.count_nonzero(allowed[rows, columns])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.2, 0.5]))
def test_properties(seed: int, overlap: float) -> None:
    prediction, reference = np.random.default_rng(seed).random((2, 6, 7, 5)) < 0.25
    ours = _metrics(prediction, reference, SPACING, overlap=overlap)
    swapped = _metrics(reference, prediction, SPACING, overlap=overlap)
    flipped = _metrics(prediction[::-1, :, ::-1], reference[::-1, :, ::-1], SPACING, overlap=0.5)
    for name in LESIONS:
        metric = METRICS[name]
        assert math.isnan(ours[name]) or metric.lower <= ours[name] <= metric.upper
    assert ours["lesion_sensitivity"] == pytest.approx(swapped["lesion_precision"], nan_ok=True)
    if overlap == 0.5:  # below, equal IoU are matched in the order of the array
        assert flipped == pytest.approx(ours, nan_ok=True)
        assert ours["lesion_pq"] == pytest.approx(ours["lesion_f1"] * ours["lesion_sq"], nan_ok=True)
        assert ours["lesion_dice"] == pytest.approx(swapped["lesion_dice"], nan_ok=True)
    perfect = _metrics(reference, reference, SPACING, overlap=overlap)
    assert all(math.isnan(value) or value == METRICS[name].best for name, value in perfect.items())


def _empty_cases() -> list[Any]:
    nothing, full = np.zeros((4, 5, 6), bool), np.zeros((4, 5, 6), bool)
    full[1, 1:3, 1:3] = full[3, 4, 5] = True
    diagonal = math.hypot(12.0, 2.5, 12.0)
    nan = math.nan
    return [
        pytest.param(nothing, nothing, [nan, nan, nan, nan, nan, nan, nan, 0], id="both empty"),
        pytest.param(nothing, full, [0, 0, 0, 0, 0, 0, diagonal, 0], id="missed"),
        pytest.param(full, nothing, [nan, 0, 0, 0, 0, 0, diagonal, 2], id="false alarm"),
    ]


@pytest.mark.parametrize(("prediction", "reference", "expected"), _empty_cases())
def test_empty_masks(prediction: Mask, reference: Mask, expected: list[float]) -> None:
    found = _metrics(prediction, reference, SPACING)
    assert list(found.values()) == pytest.approx(expected, nan_ok=True)


def test_ignored_voxels_are_in_no_lesion() -> None:
    reference, prediction = np.zeros((2, 8, 9), np.int64)
    reference[1:3, 1:4] = prediction[1:3, 1:4] = 1
    reference[5:7] = 9
    prediction[5, 2:7] = 1  # would be a false lesion
    chosen = MetricSettings(names=LESIONS)
    (found,) = region_metrics(prediction, reference, [(1,)], (1.0, 1.0), ignored=9, settings=chosen)
    assert found["lesion_f1"] == 1 and found["lesion_false_positives"] == found["lesion_hd95_mm"] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LesionRule(connectivity=7), "--connectivity: got 7; expected 6, 18 or 26 (3D), or 4 or 8 (2D)"),
        (lambda: LesionRule(overlap=1.0), "--overlap: got 1; expected an IoU from 0 to below 1"),
        (lambda: LesionRule(overlap=math.nan), "--overlap: got nan; expected an IoU"),
        (lambda: LesionRule(26).steps(2), "--connectivity: got 26; expected one of 4, 8 in 2D"),
        (lambda: MetricSettings(("lesion_F1",)), "--metrics: no metric 'lesion_F1'; did you mean lesion_f1?"),
    ],
)
def test_wrong_settings(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        make()
    assert str(refusal.value).startswith(message)


# Volume.


def test_volumes_relative_to_the_reference() -> None:
    names = ("volume_difference", "absolute_volume_difference", "volume_ratio")
    reference, prediction = np.zeros((2, 4, 10, 3), np.int64)
    reference[0, :8] = 1  # 24 voxels
    prediction[3, :6] = 1  # 18, elsewhere
    (small,) = region_metrics(prediction, reference, [(1,)], SPACING, settings=MetricSettings(names))
    (large,) = region_metrics(reference, prediction, [(1,)], SPACING, settings=MetricSettings(names))
    assert list(small.values()) == pytest.approx([-1 / 4, 1 / 4, 3 / 4])
    assert list(large.values()) == pytest.approx([1 / 3, 1 / 3, 4 / 3])
    nothing = np.zeros_like(reference)
    (missed,) = region_metrics(nothing, reference, [(1,)], SPACING, settings=MetricSettings(names))
    (alarm,) = region_metrics(reference, nothing, [(1,)], SPACING, settings=MetricSettings(names))
    assert list(missed.values()) == [-1, 1, 0]
    assert all(math.isnan(value) for value in alarm.values())


# Centrelines.


def test_cldice_of_tubes() -> None:
    pytest.importorskip("skimage")
    chosen = MetricSettings(("cldice",))

    def value(prediction: NDArray[np.int64], reference: NDArray[np.int64]) -> float:
        (found,) = region_metrics(prediction, reference, [(1,)], SPACING, settings=chosen)
        return found["cldice"]

    thick, thin, half, nothing = np.zeros((4, 7, 7, 30), np.int64)
    thick[2:5, 2:5] = 1
    thin[3, 3] = 1
    half[3, 3, :15] = 1
    # The centreline counts, not the thickness: each tube's is within the other.
    assert value(thin, thick) == value(thick, thin) == value(thick, thick) == 1
    # All of the half is within the whole, and half of the whole is within the half.
    assert value(half, thin) == value(thin, half) == pytest.approx(2 * 0.5 / 1.5)
    assert value(thin, nothing) == value(nothing, thin) == 0
    assert math.isnan(value(nothing, nothing))
    assert value(np.roll(thin, 3, 0), thin) == 0


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 1, 2), (2, 2, 3), (3, 2, 2)])
def test_cldice_of_a_mask_whose_skeleton_vanishes(shape: tuple[int, ...]) -> None:
    pytest.importorskip("skimage")  # whose skeleton of such a block is empty
    block = np.zeros((7, 7, 7), np.uint8)
    block[tuple(slice(2, 2 + n) for n in shape)] = 1
    far = np.roll(block, 3, 0)
    for other, expected in ((block, 1.0), (far, 0.0)):
        (found,) = region_metrics(block, other, [(1,)], (1.0, 1.0, 1.0), settings=MetricSettings(("cldice",)))
        assert found["cldice"] == expected
