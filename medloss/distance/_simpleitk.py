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


def signed_distances(mask: Mask, spacing: tuple[float, ...], out: Distances) -> None:
    """Write each voxel's distance in mm to the other side's nearest voxel, negative inside; 0 if a side is empty."""
    if not mask.any() or mask.all():
        out.fill(0)
        return
    box = _bounding_box(mask)
    _copy(_maurer(mask, spacing), out)
    # Inside, the first call measured to the mask's own border: those voxels are written again.
    inside = _maurer(~mask[box], spacing)
    np.negative(sitk.GetArrayViewFromImage(inside), out=out[box], where=mask[box])


def inside_distances(mask: Mask, spacing: tuple[float, ...], out: Distances) -> None:
    """Write each voxel's distance in mm to the nearest voxel outside the mask; 0 outside, and if a side is empty."""
    out.fill(0)
    if mask.any() and not mask.all():
        box = _bounding_box(mask)
        inside = _maurer(~mask[box], spacing)
        np.copyto(out[box], sitk.GetArrayViewFromImage(inside), where=mask[box])


def outside_distances(mask: Mask, spacing: tuple[float, ...], out: Distances) -> None:
    """Write each voxel's distance in mm to the mask's nearest voxel; 0 inside, and if a side is empty."""
    if not mask.any() or mask.all():
        out.fill(0)
        return
    _copy(_maurer(mask, spacing), out)
    out[mask] = 0


def _maurer(mask: Mask, spacing: tuple[float, ...]) -> sitk.Image:
    image = sitk.GetImageFromArray(mask.view(np.uint8))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    transform = sitk.SignedMaurerDistanceMapImageFilter()
    transform.SetUseImageSpacing(True)
    transform.SetSquaredDistance(False)
    transform.SetInsideIsPositive(False)
    transform.SetNumberOfThreads(torch.get_num_threads())
    return transform.Execute(image)


def _copy(image: sitk.Image, out: Distances) -> None:
    # `image` is a name here, and so outlives the view: of a temporary image the view would read freed memory.
    np.copyto(out, sitk.GetArrayViewFromImage(image))


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The mask's bounding box and one voxel more: a nearest voxel outside the mask always lies in it."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(int(occupied[0]) - 1, 0), int(occupied[-1]) + 2))
    return tuple(box)
