"""Exact Euclidean distances on the CPU, by SimpleITK, one mask at a time.

`SignedMaurerDistanceMap` measures inside distances to the object's border voxels, so only the outside half of
a call is the distance wanted; the inside half comes from a call on the complement. An empty mask gives 1.8e19: such
masks are ruled out. `SetSpacing` takes x, y, z where arrays are z, y, x.

SimpleITK keeps the interpreter's lock, so masks cannot be worked on side by side: each gets all of torch's threads.
"""

from collections.abc import Callable, Sequence

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

_Mask = NDArray[np.bool_]
_Distances = NDArray[np.float32]
_Spacing = Sequence[float]


def signed_distances(masks: Tensor, spacings: Sequence[_Spacing]) -> Tensor:
    """Each voxel's distance in mm to the other side's nearest voxel, negative inside; 0 if a side is empty.

    Args:
        masks: `[B, C, *spatial]`, bool, 2D or 3D.
        spacings: mm, in the order of the axes, one per item.

    Returns:
        float32, the shape of `masks`.
    """
    return _each(masks, spacings, _signed)


def inside_distances(masks: Tensor, spacings: Sequence[_Spacing]) -> Tensor:
    """Each voxel's distance in mm to the nearest voxel outside its mask; 0 outside, and if a side is empty."""
    return _each(masks, spacings, _inside)


def outside_distances(masks: Tensor, spacings: Sequence[_Spacing]) -> Tensor:
    """Each voxel's distance in mm to its mask's nearest voxel; 0 inside, and if a side is empty."""
    return _each(masks, spacings, _outside)


def _each(masks: Tensor, spacings: Sequence[_Spacing], transform: Callable[..., None]) -> Tensor:
    maps = torch.empty(masks.shape, dtype=torch.float32, device="cpu")
    for item, spacing in enumerate(spacings):
        for channel in range(masks.shape[1]):
            mask, out = masks[item, channel].numpy(), maps[item, channel].numpy()
            if mask.any() and not mask.all():
                transform(mask, spacing, out)
            else:
                out.fill(0)
    return maps


def _signed(mask: _Mask, spacing: _Spacing, out: _Distances) -> None:
    complement = ~mask
    box, other = _bounding_box(mask), _bounding_box(complement)
    if out[box].size <= out[other].size:
        _write(mask, spacing, out)
        # Inside, the first call measured to the mask's border: those voxels are written again.
        _write(complement[box], spacing, out[box], where=mask[box], sign=-1)
    else:
        # A mask that reaches all around, such as background: it is its complement that has the smaller box.
        _write(complement, spacing, out, sign=-1)
        _write(mask[other], spacing, out[other], where=complement[other])


def _inside(mask: _Mask, spacing: _Spacing, out: _Distances) -> None:
    box = _bounding_box(mask)
    out.fill(0)
    _write(~mask[box], spacing, out[box], where=mask[box])


def _outside(mask: _Mask, spacing: _Spacing, out: _Distances) -> None:
    complement = ~mask
    box = _bounding_box(complement)
    out.fill(0)
    _write(mask[box], spacing, out[box], where=complement[box])


def _write(mask: _Mask, spacing: _Spacing, out: _Distances, where: _Mask | None = None, sign: int = 1) -> None:
    """Write each voxel's distance to the mask's nearest voxel, times `sign`; right outside the mask."""
    image = sitk.GetImageFromArray(mask.view(np.uint8))
    image.SetSpacing([float(s) for s in reversed(spacing)])
    transform = sitk.SignedMaurerDistanceMapImageFilter()
    transform.SetUseImageSpacing(True)
    transform.SetSquaredDistance(False)
    transform.SetInsideIsPositive(False)
    # `SetNumberOfThreads` leaves the number of threads as it is.
    transform.SetNumberOfWorkUnits(torch.get_num_threads())
    distances = transform.Execute(image)
    # The image has a name, and so outlives the view: of a temporary image the view would read freed memory.
    view = sitk.GetArrayViewFromImage(distances)
    np.multiply(view, np.float32(sign), out=out, where=True if where is None else where)


def _bounding_box(mask: _Mask) -> tuple[slice, ...]:
    """The mask's bounding box and one voxel more: a nearest voxel outside the mask always lies in it."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        box.append(slice(max(int(occupied[0]) - 1, 0), int(occupied[-1]) + 2))
    return tuple(box)
