"""Whether two files lie on the same grid, voxel on voxel."""

import numpy as np

from pipelines.dataset.nifti import SPACING_ROUNDING, Volume, by

#: How far one may lie off the other, in voxels: more than float32 headers round, less than anybody would see.
_SHIFT = 1e-2


def grid_problem(volume: Volume, other: Volume, name: str) -> str | None:
    """What keeps a volume off another's grid: shape, spacing or place; None where it lies on it.

    Args:
        volume: the one that is told of.
        other: what it should lie on.
        name: what the other is to the volume, as in `its label`.
    """
    shape = other.data.shape
    if volume.data.shape != shape:
        return f"{by(volume.data.shape)} voxels, and its {name} {by(shape)}"
    if not np.allclose(volume.spacing, other.spacing, rtol=SPACING_ROUNDING, atol=0):
        return f"spacing {by(volume.spacing)} mm, and its {name} {by(other.spacing)} mm"
    corners = np.array(list(np.ndindex(*(2,) * len(shape)))) * (np.array(shape) - 1)
    points = np.zeros((len(corners), 4))
    points[:, : len(shape)], points[:, 3] = corners, 1
    shift = float(np.linalg.norm((points @ (volume.affine - other.affine).T)[:, :3], axis=1).max())
    if shift > _SHIFT * min(other.spacing):
        return f"its affine differs from its {name}'s: it lies up to {shift:.4g} mm off"
    return None
