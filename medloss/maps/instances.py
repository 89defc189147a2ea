"""Connected components of masks, and the voxels nearest to each."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medloss.errors import InputError
from medloss.spacing import Spacing, resolve_spacing

_Mask = NDArray[np.bool_]


def instance_map(mask: Tensor, spacing: Spacing | None = None, connectivity: int = 26) -> Tensor:
    """For each voxel the number of the nearest connected component, from 1; 0 everywhere for an empty mask.

    Args:
        mask: `[B, C, *spatial]`, 2D or 3D; above 0.5 is inside.
        spacing: mm, in the order of the array's axes; one for all or one per item. None: the mask's when it is a
            `MetaTensor`, else 1.
        connectivity: of a component's voxels: 26 (in 2D 8), or 6 (4) for face neighbours only.

    Returns:
        int32, the mask's shape and device. Voxels at the same distance from two components belong to either.

    Raises:
        InputError: an unknown connectivity, a bad spacing.

    Example:
        >>> import torch
        >>> from medloss.maps import instance_map
        >>> instance_map(torch.tensor([[[[1, 0, 0, 0, 0, 1, 1]]]])).flatten().tolist()
        [1, 1, 1, 2, 2, 2, 2]
    """
    rows = resolve_spacing(spacing, mask, mask.shape[0], mask.ndim - 2)
    check_connectivity(connectivity)
    return _numbered(mask, rows, connectivity)


def component_map(mask: Tensor, connectivity: int = 26) -> Tensor:
    """As `instance_map`, and 0 outside the components: without a distance transform."""
    check_connectivity(connectivity)
    return _numbered(mask, None, connectivity)


def check_connectivity(connectivity: int) -> None:
    """Refuse a connectivity that is none of 26 (8) and 6 (4)."""
    if connectivity not in (26, 8, 6, 4):
        raise InputError(f"connectivity: got {connectivity}; expected 26 (in 2D 8) or 6 (in 2D 4)")


def labelled_components(mask: _Mask, connectivity: int = 26) -> tuple[NDArray[np.int32], int]:
    """The components' numbers, from 1, and how many there are."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(mask.ndim, mask.ndim if connectivity in (26, 8) else 1)
    labels, number = ndimage.label(mask, structure)
    return np.asarray(labels, np.int32), int(number)


def _numbered(mask: Tensor, spacings: list[tuple[float, ...]] | None, connectivity: int) -> Tensor:
    masks = (mask > 0.5).detach().cpu()
    maps = torch.zeros(masks.shape, dtype=torch.int32, device="cpu")
    for item in range(len(masks)):
        for channel in range(masks.shape[1]):
            array = masks[item, channel].numpy()
            labels, number = labelled_components(array, connectivity)
            if spacings is not None and number == 1:
                labels = np.ones_like(labels)
            elif spacings is not None and number:
                labels = labels[_nearest(array, spacings[item])]
            maps[item, channel] = torch.from_numpy(labels)
    return maps.to(mask.device)


def _nearest(mask: _Mask, spacing: tuple[float, ...]) -> tuple[NDArray[np.int32], ...]:
    """The place of each voxel's nearest voxel of the mask, as an index."""
    from scipy import ndimage

    indices = ndimage.distance_transform_edt(~mask, sampling=spacing, return_distances=False, return_indices=True)
    return tuple(indices)
