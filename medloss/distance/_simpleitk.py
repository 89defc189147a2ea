"""Exact Euclidean distances on the CPU, by SimpleITK, one mask at a time.

`SignedMaurerDistanceMap` measures inside distances to the object's own border voxels, so only the outside half of
a call is the distance wanted; the inside half comes from a call on the complement. An empty mask gives 1.8e19: the
callers rule it out. `SetSpacing` takes x, y, z where arrays are z, y, x.
"""

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Distances = NDArray[np.float32]


def signed_distances(mask: Mask, spacing: tuple[float, ...]) -> Distances:
    """Distance in mm from each voxel to the other side's nearest voxel, negative inside; 0 if a side is empty."""
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, np.float32)
    signed = _outside(mask, spacing)
    box = _bounding_box(mask)
    inside = _outside(~mask[box], spacing)
    # Both are 0 on the other's side.
    signed[box] -= inside
    return signed


def inside_distances(mask: Mask, spacing: tuple[float, ...]) -> Distances:
    """Distance in mm from each voxel of the mask to the nearest voxel outside; 0 outside, and if a side is empty."""
    distances = np.zeros(mask.shape, np.float32)
    if mask.any() and not mask.all():
        box = _bounding_box(mask)
        distances[box] = _outside(~mask[box], spacing)
    return distances


def outside_distances(mask: Mask, spacing: tuple[float, ...]) -> Distances:
    """Distance in mm from each voxel outside the mask to its nearest voxel; 0 inside, and if a side is empty."""
    if not mask.any() or mask.all():
        return np.zeros(mask.shape, np.float32)
    return _outside(mask, spacing)


def _outside(mask: Mask, spacing: tuple[float, ...]) -> Distances:
    image = sitk.GetImageFromArray(mask.view(np.uint8))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    transform = sitk.SignedMaurerDistanceMapImageFilter()
    transform.SetUseImageSpacing(True)
    transform.SetSquaredDistance(False)
    transform.SetInsideIsPositive(False)
    transform.SetNumberOfThreads(torch.get_num_threads())
    distances: Distances = sitk.GetArrayFromImage(transform.Execute(image))
    distances[mask] = 0
    return distances


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The mask's bounding box and one voxel more: a nearest voxel outside the mask always lies in it."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(int(occupied[0]) - 1, 0), int(occupied[-1]) + 2))
    return tuple(box)
