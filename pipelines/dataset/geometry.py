"""Whether two files lie on the same grid, voxel on voxel."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.nifti import SPACING_ROUNDING, by

#: How far one may lie off the other at any corner, in voxels (the shortest side of one): other software rounds origins
#: and spacings, and no boundary of a label is drawn so exactly. Anything beyond is another grid.
TOLERANCE = 0.1
#: Up to so far nothing is said: float32 headers round.
_ROUNDING = 0.01


class Grid(Protocol):
    """What lies somewhere: an array with its affine (4 x 4, mm) and spacing (mm an axis)."""

    @property
    def data(self) -> NDArray[Any]:
        """The array."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """Array indices to mm."""

    @property
    def spacing(self) -> tuple[float, ...]:
        """Mm an axis."""


def grid_problem(volume: Grid, other: Grid, name: str) -> str | None:
    """What keeps a volume off another's grid: shape, spacing or place; None where it lies within `TOLERANCE` of it.

    Args:
        volume: the one that is judged.
        other: what it should lie on.
        name: what the other is to the volume, as in `its label`.
    """
    shape = other.data.shape
    if volume.data.shape != shape:
        return f"{by(volume.data.shape)} voxels, and its {name} {by(shape)}"
    shift = _largest_shift(volume, other)
    if shift <= TOLERANCE * min(other.spacing):
        return None
    if not np.allclose(volume.spacing, other.spacing, rtol=SPACING_ROUNDING, atol=0):
        return f"spacing {by(volume.spacing)} mm, and its {name} {by(other.spacing)} mm"
    return f"its affine differs from its {name}'s: it lies up to {shift:.4g} mm off"


def grid_shift(volume: Grid, other: Grid) -> float:
    """How far a volume without a `grid_problem` lies off the other's grid, mm; 0 where rounding explains it."""
    shift = _largest_shift(volume, other)
    return shift if shift > _ROUNDING * min(other.spacing) else 0.0


def shift_note(shifts: Mapping[str, float], kind: str, other: str) -> str | None:
    """A line on files that lie a little off the grid that they belong on; None where there are none.

    Args:
        shifts: file to `grid_shift`, mm.
        kind: what the files are, as `label`.
        other: what they should lie on, as `image`.
    """
    off = {file: shift for file, shift in shifts.items() if shift > 0}
    if not off:
        return None
    file, most = max(off.items(), key=lambda entry: entry[1])
    file = file if file.isprintable() else ascii(file)
    accepted = f"up to {TOLERANCE:g} voxels count as the same grid"
    if len(off) == 1:
        return f"{file} lies {most:.3g} mm off its {other}; {accepted}"
    return f"{len(off)} {kind}s lie up to {most:.3g} mm off their {other}s, most of all {file}; {accepted}"


def _largest_shift(volume: Grid, other: Grid) -> float:
    """The distance between the same corners of two volumes, mm, at the corner where it is largest."""
    shape = other.data.shape
    # Outer corners: of a single slice the thickness counts, too.
    corners = np.array(list(np.ndindex(*(2,) * len(shape)))) * np.array(shape) - 0.5
    points = np.zeros((len(corners), 4))
    points[:, : len(shape)], points[:, 3] = corners, 1
    return float(np.linalg.norm((points @ (volume.affine - other.affine).T)[:, :3], axis=1).max())
