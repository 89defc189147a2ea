"""Tubes around the centre lines of masks."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medloss.distance.maps import outside_distance_map
from medloss.errors import InputError
from medloss.maps.instances import labelled_components
from medloss.spacing import Spacing, resolve_spacing

_Mask = NDArray[np.bool_]


def tube_map(mask: Tensor, spacing: Spacing | None = None, radius: float | None = None) -> Tensor:
    """The voxels of a mask near its centre lines: `T = y and edt(not skeleton) <= radius`.

    The skeleton is that of scikit-image's `skeletonize`: Zhang's in 2D, Lee's in 3D, which erases bars of an even
    width; a component that it leaves without a voxel is its own skeleton.

    Args:
        mask: `[B, C, *spatial]`, 2D or 3D; above 0.5 is inside.
        spacing: mm, in the order of the array's axes; one for all or one per item. None: the mask's when it is a
            `MetaTensor`, else 1.
        radius: mm; None: 2 smallest spacings (the authors of Skeleton Recall take 2 voxels).

    Returns:
        uint8, the mask's shape and device.

    Raises:
        InputError: scikit-image is not installed, a bad spacing or radius.
    """
    check_radius(radius)
    rows = resolve_spacing(spacing, mask, mask.shape[0], mask.ndim - 2)
    radii = [2 * min(row) if radius is None else float(radius) for row in rows]
    maps: Tensor = _operator((mask > 0.5).detach().contiguous(), [s for row in rows for s in row], radii)
    return maps


def check_radius(radius: float | None) -> None:
    """Refuse a radius that is negative or not finite."""
    if radius is not None and not 0 <= radius < math.inf:
        raise InputError(f"radius: got {radius}; expected mm, 0 or more, or None")


@torch.library.custom_op("medloss::tubes", mutates_args=())
def _operator(masks: Tensor, spacing: list[float], radii: list[float]) -> Tensor:
    on_cpu, dims = masks.cpu(), masks.ndim - 2
    lines = torch.stack([torch.stack([_skeleton(mask) for mask in item]) for item in on_cpu])
    rows = [spacing[i : i + dims] for i in range(0, len(spacing), dims)]
    apart = outside_distance_map(lines, rows)
    for item, radius in enumerate(radii):
        # A radius of whole voxels includes them; the distances are float32.
        lines[item] |= (
            on_cpu[item] & (apart[item] <= radius * (1 + 1e-6)) & lines[item].flatten(1).any(1).view(-1, *(1,) * dims)
        )
    return lines.to(masks.device, torch.uint8)


@_operator.register_fake
def _(masks: Tensor, spacing: list[float], radii: list[float]) -> Tensor:
    return torch.empty_like(masks, dtype=torch.uint8)


def _skeleton(mask: Tensor) -> Tensor:
    """A mask's centre lines, `[*spatial]` bool."""
    array, lines = mask.numpy(), torch.zeros_like(mask)
    if not array.any():
        return lines
    occupied = [
        np.flatnonzero(array.any(axis=tuple(a for a in range(array.ndim) if a != axis))) for axis in range(array.ndim)
    ]
    box = tuple(slice(int(found[0]), int(found[-1]) + 1) for found in occupied)
    thin = skeletonized(array[box])
    components, number = labelled_components(array[box])
    kept = np.zeros(number + 1, dtype=bool)
    kept[components[thin]] = True
    lines[box] = torch.from_numpy(thin | (~kept & (np.arange(number + 1) > 0))[components])
    return lines


def skeletonized(mask: _Mask) -> _Mask:
    """scikit-image's skeleton of a mask `[*spatial]`.

    Raises:
        InputError: scikit-image is not installed.
    """
    try:
        from skimage.morphology import skeletonize
    except ImportError:
        raise InputError(
            "skeletons: scikit-image is not installed; expected it, by pip install 'medloss[skeleton]', or for a loss "
            "a skeleton_map that was computed where it is"
        ) from None
    return np.asarray(skeletonize(mask) > 0)
