"""Ignored voxels leave every count and every surface."""

import numpy as np
import pytest

from pipelines.evaluation.evaluate import region_metrics

SPACING = (1.0, 2.0, 3.0)


def _maps(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(12) for _ in range(3)), indexing="ij"), -1)
    balls = [
        (np.linalg.norm(grid - centre, axis=-1) < 4).astype(np.uint8)
        for centre in (rng.uniform(4, 8, 3), rng.uniform(4, 8, 3))
    ]
    return balls[0], balls[1]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_predicted_there_changes_nothing(seed: int) -> None:
    prediction, reference = _maps(seed)
    reference[:, :, 8:] = 255
    expected = region_metrics(prediction, reference, [(1,)], SPACING, ignored=255)
    for value in (0, 1):
        other = prediction.copy()
        other[:, :, 8:] = value
        assert region_metrics(other, reference, [(1,)], SPACING, ignored=255) == expected


def _surface(mask: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Positions (mm) of voxels with a face neighbour that is outside the array, or in neither mask nor ignored."""
    found = []
    for voxel in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                near = voxel.copy()
                near[axis] += step
                if not 0 <= near[axis] < mask.shape[axis] or not (mask[tuple(near)] or ignored[tuple(near)]):
                    found.append(tuple(voxel))
    return np.array(sorted(set(found))) * SPACING


@pytest.mark.parametrize("seed", range(3))
def test_the_border_along_ignored_voxels_is_no_surface(seed: int) -> None:
    prediction, reference = _maps(seed)
    ignored = np.random.default_rng(seed).random(reference.shape) < 0.1
    ignored[:, 7:] = True
    reference[ignored] = 255
    (metrics,) = region_metrics(prediction, reference, [(1,)], SPACING, ignored=255)
    one, other = (_surface((labels == 1) & ~ignored, ignored) for labels in (prediction, reference))
    distances = np.linalg.norm(one[:, None] - other[None], axis=-1)
    directed = np.r_[distances.min(1), distances.min(0)]
    assert metrics["assd_mm"] == pytest.approx(directed.mean())
    assert metrics["nsd"] == pytest.approx((directed <= 1).mean())


def test_counts_leave_ignored_voxels_out() -> None:
    prediction, reference = np.zeros((2, 4, 4), np.uint8)
    prediction[0], reference[0, :2], reference[0, 2:] = 1, 1, 255
    reference[3] = 255
    (metrics,) = region_metrics(prediction, reference, [(1,)], (1.0, 1.0), ignored=255)
    assert metrics["dice"] == metrics["specificity"] == metrics["sensitivity"] == 1
    prediction[1, 0] = 1
    (metrics,) = region_metrics(prediction, reference, [(1,)], (1.0, 1.0), ignored=255)
    assert metrics["specificity"] == 7 / 8  # of 16 voxels 6 are ignored and 2 in the reference
    assert metrics["dice"] == 2 * 2 / 5


def test_an_island_among_ignored_voxels_keeps_its_surface() -> None:
    prediction, reference = np.zeros((2, 5, 5), np.uint8)
    reference[...] = 255
    reference[2, 2] = prediction[2, 2] = 1
    reference[0] = 0
    (metrics,) = region_metrics(prediction, reference, [(1,)], (1.0, 1.0), ignored=255)
    assert (metrics["dice"], metrics["hd95_mm"], metrics["nsd"]) == (1, 0, 1)
