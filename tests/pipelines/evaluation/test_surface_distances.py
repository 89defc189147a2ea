"""Surfaces, compared with scipy's erosion; distances and metrics, with numbers computed by hand."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.evaluation.surface_distances import SurfaceDistances, surface, surface_distances

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
