"""Surfaces, compared with scipy's erosion; distances and metrics, with numbers computed by hand and by other tools."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from monai.metrics.utils import get_code_to_measure_table
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.evaluation.evaluate import region_metrics
from pipelines.evaluation.metrics.base import MetricSettings
from pipelines.evaluation.surface_distances import SurfaceDistances, surface, surface_distances

Mask = NDArray[np.bool_]

MASKS = [
    np.random.default_rng(0).random((6, 7, 8)) < 0.8,
    np.random.default_rng(1).random((1, 7, 8)) < 0.9,
    np.random.default_rng(2).random((9, 11)) < 0.9,
    np.ones((5, 4, 3), bool),
    np.ones((2, 5), bool),
    np.ones((1, 1, 1), bool),
    np.zeros((4, 5, 6), bool),
]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: str(mask.shape))
def test_a_surface_is_what_erosion_removes(mask: NDArray[np.bool_]) -> None:
    before = mask.copy()
    assert np.array_equal(surface(mask), mask & ~ndimage.binary_erosion(mask))
    assert np.array_equal(mask, before)


def test_a_view_with_other_strides_has_the_same_surface() -> None:
    mask = MASKS[0]
    assert np.array_equal(surface(mask.T), surface(mask).T)
    assert np.array_equal(surface(mask[::-1, :, ::2]), surface(mask[::-1, :, ::2].copy()))


@pytest.mark.parametrize("spacing", [(3.0, 1.0, 0.6), (0.7, 2.5, 1.2)])
def test_distances_match_those_of_all_pairs(spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(3)
    one, other = (ndimage.gaussian_filter(rng.normal(size=(9, 10, 11)), 1.5) > 0 for _ in range(2))
    points = [
        [tuple(x * s for x, s in zip(v, spacing, strict=True)) for v in np.argwhere(surface(m))] for m in (one, other)
    ]
    pairs = np.array(
        [[sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) ** 0.5 for q in points[1]] for p in points[0]]
    )
    distances = surface_distances(one, other, spacing)
    assert (distances.of_prediction == 0).any()  # the surfaces cross, so both ways of computing a distance are used
    assert np.sort(distances.of_prediction) == pytest.approx(np.sort(pairs.min(1)), rel=1e-12)
    assert np.sort(distances.of_reference) == pytest.approx(np.sort(pairs.min(0)), rel=1e-12)
    swapped = surface_distances(other, one, spacing)
    assert np.array_equal(np.sort(swapped.of_prediction), np.sort(distances.of_reference))


def test_the_same_mask_twice() -> None:
    distances = surface_distances(MASKS[0], MASKS[0], (3.0, 1.0, 2.0))
    assert distances.of_prediction.size == distances.of_reference.size == surface(MASKS[0]).sum()
    assert (distances.hausdorff(100), distances.average(), distances.within(0.0)) == (0, 0, 1)


def test_one_voxel_and_a_row_of_four() -> None:
    one, row = np.zeros((5, 9), bool), np.zeros((5, 9), bool)
    one[2, 1] = True
    row[2, 4:8] = True  # 3 to 6 steps away, of 0.5 mm each
    distances = surface_distances(one, row, (2.0, 0.5))
    assert distances.of_prediction.tolist() == [1.5]
    assert sorted(distances.of_reference) == [1.5, 2.0, 2.5, 3.0]
    # All five together: 10.5 / 5; the mean of the two means would be (1.5 + 2.25) / 2 = 1.875.
    assert distances.average() == pytest.approx(2.1)
    assert distances.within(2.0) == pytest.approx(3 / 5)
    assert distances.within(1.4) == 0
    assert distances.hausdorff(100) == 3.0
    assert distances.hausdorff(50) == pytest.approx(2.25)  # of the row, between 2 and 2.5


def test_rounding_does_not_put_a_distance_beyond_the_tolerance() -> None:
    # In floating point, 3 x 0.1 exceeds 0.3.
    distances = SurfaceDistances(np.array([3 * 0.1]), np.array([0.30001]))
    assert distances.within(0.3) == 0.5


def test_cropping_the_background_changes_nothing() -> None:
    one, other = np.zeros((2, 12, 13, 14), bool)
    one[4:9, 3:8, 5:9], other[5:9, 3:9, 4:9] = True, True
    whole = surface_distances(one, other, (3.0, 1.0, 0.6))
    cropped = surface_distances(one[4:9, 3:9, 4:9], other[4:9, 3:9, 4:9], (3.0, 1.0, 0.6))
    assert np.sort(cropped.of_prediction) == pytest.approx(np.sort(whole.of_prediction), rel=1e-12)
    assert np.sort(cropped.of_reference) == pytest.approx(np.sort(whole.of_reference), rel=1e-12)


@pytest.mark.parametrize("empty", [0, 1])
def test_an_empty_mask_is_refused(empty: int) -> None:
    masks = [np.ones((3, 4), bool), np.ones((3, 4), bool)]
    masks[empty][:] = False
    with pytest.raises(ValueError, match="one of the two masks is empty"):
        surface_distances(*masks, (1.0, 2.0))


def test_mismatched_shapes_and_spacing_are_refused() -> None:
    mask = np.ones((3, 4), bool)
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(4, 3\) with 2 numbers"):
        surface_distances(mask, mask.T, (1.0, 2.0))
    with pytest.raises(ValueError, match=r"shapes \(3, 4\) and \(3, 4\) with 1 numbers"):
        surface_distances(mask, mask, (1.0,))


# The table in `docs/metrics.md`: the same masks by the definitions of several tools.

_MASKS_SPACING = (3.0, 1.0, 0.5)
_MASKS_TOLERANCE = 1.0


def _boxes(*boxes: tuple[slice, ...]) -> Mask:
    mask = np.zeros((16, 24, 30), bool)
    for box in boxes:
        mask[box] = True
    return mask


def _masks() -> dict[str, tuple[Mask, Mask]]:
    """Prediction and reference by name."""
    box = np.s_[4:10, 6:16, 8:20]
    return {
        "a box, one voxel (3 mm) too long": (_boxes(np.s_[4:11, 6:16, 8:20]), _boxes(box)),
        "a box, moved by a voxel of 1 mm": (_boxes(np.s_[4:10, 7:17, 8:20]), _boxes(box)),
        "a box, with a small false part": (_boxes(box, np.s_[4:6, 21:24, 8:20]), _boxes(box)),
        "a plate of one voxel, moved by 3 mm": (_boxes(np.s_[6:7, 4:20, 4:26]), _boxes(np.s_[5:6, 4:20, 4:26])),
        "one voxel for 3 x 3 x 3": (_boxes(np.s_[6:7, 6:7, 6:7]), _boxes(np.s_[5:8, 5:8, 5:8])),
        "touching the border, one voxel short": (_boxes(np.s_[0:5, 0:9, 0:11]), _boxes(np.s_[0:5, 0:10, 0:11])),
        "empty prediction": (_boxes(), _boxes(box)),
        "empty reference": (_boxes(box), _boxes()),
        "both empty": (_boxes(), _boxes()),
    }


def _ours(prediction: Mask, reference: Mask) -> tuple[float, float, float]:
    chosen = MetricSettings(("hd95_mm", "assd_mm", "nsd"), _MASKS_TOLERANCE)
    maps = prediction.astype(np.uint8), reference.astype(np.uint8)
    (found,) = region_metrics(*maps, [(1,)], _MASKS_SPACING, settings=chosen)
    return found["hd95_mm"], found["assd_mm"], found["nsd"]


def _monai(prediction: Mask, reference: Mask, use_subvoxels: bool = False) -> tuple[float, float, float]:
    pair = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty masks
        hd95 = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=_MASKS_SPACING)
        assd = compute_average_surface_distance(*pair, include_background=True, symmetric=True, spacing=_MASKS_SPACING)
        nsd = compute_surface_dice(
            *pair, [_MASKS_TOLERANCE], include_background=True, spacing=_MASKS_SPACING, use_subvoxels=use_subvoxels
        )
    return float(hd95), float(assd), float(nsd)


def _elements(mask: Mask) -> tuple[Mask, NDArray[np.float64]]:
    """Which corners of voxels are on the surface, as in `surface-distance`, and the area of the surface there, mm^2."""
    table, kernel = get_code_to_measure_table(_MASKS_SPACING)
    padded = torch.from_numpy(np.pad(mask, 1))[None, None].float()
    codes = torch.nn.functional.conv3d(padded, kernel.to(padded))[0, 0].numpy().astype(int)
    return (codes > 0) & (codes < 255), np.asarray(table, np.float64)[codes]


def _by_elements(prediction: Mask, reference: Mask, pooled: bool) -> tuple[float, float, float]:
    """HD95, ASSD and NSD by DeepMind's formulas; `pooled`: the average over both surfaces together, as in MIST."""
    (one, areas), (other, other_areas) = _elements(prediction), _elements(reference)
    if not one.any() and not other.any():
        return math.inf, math.nan, math.nan
    directed = []
    for own, own_areas, target in ((one, areas, other), (other, other_areas, one)):
        distances = np.full(own.shape, math.inf)
        if target.any():
            distances = ndimage.distance_transform_edt(~target, sampling=_MASKS_SPACING)
        order = np.lexsort((own_areas[own], distances[own]))
        directed.append((distances[own][order], own_areas[own][order]))
    percentiles, sums, totals, near = [], [], [], []
    for distances, weights in directed:
        share = np.cumsum(weights) / max(weights.sum(), 1e-300)
        place = min(int(np.searchsorted(share, 0.95)), len(distances) - 1)
        percentiles.append(distances[place] if len(distances) else math.inf)
        sums.append((distances * weights).sum())
        totals.append(weights.sum())
        near.append(weights[distances <= _MASKS_TOLERANCE].sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.array(sums) / np.array(totals)
    average = sum(sums) / sum(totals) if pooled else float(means.mean())
    return float(max(percentiles)), float(average), float(sum(near) / sum(totals))


def _by_either_surface(prediction: Mask, reference: Mask) -> float:
    """The ASSD of MetricsReloaded, where border maps are boolean: a voxel of both surfaces is counted once."""
    if not prediction.any() or not reference.any():
        return math.nan
    found = surface_distances(prediction, reference, _MASKS_SPACING)
    either = (surface(prediction) | surface(reference)).sum()
    return float((found.of_prediction.sum() + found.of_reference.sum()) / either)


def _row(name: str, prediction: Mask, reference: Mask) -> str:
    def shown(value: float) -> str:
        return f"{value:.3f}" if math.isfinite(value) else str(value)

    ours, monai = _ours(prediction, reference), _monai(prediction, reference)
    deepmind, mist = (_by_elements(prediction, reference, pooled) for pooled in (False, True))
    assert mist[0] == deepmind[0] and mist[2] == pytest.approx(deepmind[2], nan_ok=True)
    hd95, assd, nsd = ([values[place] for values in (ours, monai, deepmind)] for place in range(3))
    cells = [*hd95, *assd, mist[1], _by_either_surface(prediction, reference), *nsd]
    return " | ".join([f"| {name}", *map(shown, cells)]) + " |"


def test_the_table_of_definitions() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for name, masks in _masks().items():
        row = _row(name, *masks)
        assert row in page, f"docs/metrics.md: expected the row\n{row}"


def test_by_definition_ours_is_monais_except_for_empty_masks() -> None:
    for name, (prediction, reference) in _masks().items():
        ours, monai = _ours(prediction, reference), _monai(prediction, reference)
        if prediction.any() and reference.any():
            assert ours == pytest.approx(monai, rel=1e-5), name  # theirs are float32
    diagonal = math.hypot(48.0, 24.0, 15.0)
    missed, alarm, nothing = list(_masks().values())[-3:]
    assert _ours(*missed) == _ours(*alarm) == pytest.approx((diagonal, diagonal, 0))
    for theirs in (_monai(*missed), _monai(*alarm)):  # a quantile of infinite distances is NaN
        assert math.isnan(theirs[0]) and theirs[1:] == (math.inf, 0)
    assert all(math.isnan(value) for value in (*_ours(*nothing), *_monai(*nothing)))


def test_monais_subvoxels_are_the_elements_of_the_formulas() -> None:
    for prediction, reference in list(_masks().values())[:6]:
        expected = _by_elements(prediction, reference, False)[2]
        assert _monai(prediction, reference, use_subvoxels=True)[2] == pytest.approx(expected, rel=1e-5)
