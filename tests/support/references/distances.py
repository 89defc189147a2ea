"""Distance maps in mm, voxel centre to voxel centre, by looking at all pairs of voxels."""

from functools import lru_cache

import numpy as np

from .complexstep import Array

Spacing = tuple[float, ...]


def nearest_distance(from_voxels: Array, to_voxels: Array, spacing: Spacing) -> Array:
    """For each voxel index of [n, axes] the distance to the nearest of [m, axes]; m > 0."""
    scale = np.asarray(spacing, dtype=float)
    result = np.empty(len(from_voxels))
    for start in range(0, len(from_voxels), 256):  # in blocks, so that large volumes fit in memory
        block = from_voxels[start : start + 256]
        apart = (block[:, None, :] - to_voxels[None, :, :]) * scale
        result[start : start + 256] = np.sqrt((apart**2).sum(axis=2).min(axis=1))
    return result


@lru_cache(maxsize=256)
def _edt(content: bytes, shape: tuple[int, ...], spacing: Spacing) -> Array:
    mask = np.frombuffer(content, dtype=bool).reshape(shape)
    distance = np.zeros(shape)
    if mask.any() and not mask.all():
        distance[mask] = nearest_distance(np.argwhere(mask), np.argwhere(~mask), spacing)
    distance.setflags(write=False)
    return distance


def edt(mask: Array, spacing: Spacing) -> Array:
    """At each voxel of the mask the distance to the nearest voxel outside; 0 outside, and for a full mask."""
    mask = np.asarray(mask, dtype=bool)
    return _edt(mask.tobytes(), mask.shape, tuple(float(s) for s in spacing))


def boundary_distance_map(mask: Array, spacing: Spacing) -> Array:
    mask = np.asarray(mask, dtype=bool)
    return edt(mask, spacing) + edt(~mask, spacing)


def signed_distance_map(mask: Array, spacing: Spacing) -> Array:
    """Positive outside."""
    mask = np.asarray(mask, dtype=bool)
    return edt(~mask, spacing) - edt(mask, spacing)


def contour(mask: Array) -> Array:
    """Voxels of the mask with a face neighbour that is inside the image and outside the mask."""
    mask = np.asarray(mask, dtype=bool)
    result = np.zeros_like(mask)
    for voxel in np.argwhere(mask):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                neighbour = voxel.copy()
                neighbour[axis] += step
                if 0 <= neighbour[axis] < mask.shape[axis] and not mask[tuple(neighbour)]:
                    result[tuple(voxel)] = True
    return result
