"""Volumes on their grids: orientation, and whether two grids are the same."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipelines.utils.text import shown


@dataclass(frozen=True)
class Orientation:
    """How a file's axes become those of the closest canonical orientation: to the right, anterior and superior.

    Attributes:
        order: the file's axis that becomes each canonical axis.
        flipped: whether each canonical axis runs against the file's.
        name: the file's axis directions, such as `LAS`.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]
    name: str

    @classmethod
    def of(cls, affine: NDArray[np.float64], axes: int) -> "Orientation":
        """The orientation of a file by its affine (4 x 4).

        Args:
            affine: the affine.
            axes: 2 or 3; the canonical axes of a 2D image are the two that come first.
        """
        found = nib.io_orientation(affine[:, [*range(axes), 3]])
        order = np.argsort(found[:, 0])
        name = "".join("LPI"[int(world)] if sign < 0 else "RAS"[int(world)] for world, sign in found)
        return cls(tuple(int(axis) for axis in order), tuple(bool(sign < 0) for sign in found[order, 1]), name)

    def canonical(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array `[..., *spatial]` along the file's axes, along the canonical ones; a view."""
        return np.flip(np.moveaxis(array, self._last(self.order), self._last()), tuple(self._reversed()))

    def stored(self, array: NDArray[Any]) -> NDArray[Any]:
        """An array `[..., *spatial]` along the canonical axes, along the file's; a view."""
        return np.moveaxis(np.flip(array, tuple(self._reversed())), self._last(), self._last(self.order))

    def stored_order(self, values: Sequence[float]) -> tuple[float, ...]:
        """Values per canonical axis, such as spacings, in the order of the file's axes."""
        return tuple(values[self.order.index(axis)] for axis in range(len(self.order)))

    def canonical_affine(self, affine: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
        """The affine of the canonical array.

        Args:
            affine: of the file's array.
            shape: of the file's array.
        """
        made = affine.copy()
        for axis, (of_file, flipped) in enumerate(zip(self.order, self.flipped, strict=True)):
            made[:, axis] = -affine[:, of_file] if flipped else affine[:, of_file]
            if flipped:
                made[:, 3] += affine[:, of_file] * (shape[of_file] - 1)
        return made

    def _last(self, axes: Sequence[int] | None = None) -> list[int]:
        return [axis - len(self.order) for axis in (range(len(self.order)) if axes is None else axes)]

    def _reversed(self) -> list[int]:
        return [axis - len(self.order) for axis, flipped in enumerate(self.flipped) if flipped]


@dataclass(frozen=True)
class Volume:
    """A file's content.

    Attributes:
        data: the array, `[*spatial]`, or `[K, *spatial]` of an image with K channels.
        affine: 4 x 4, from indices of the array's axes to mm.
        spacing: mm per axis.
        sha256: of the file's bytes.
        orientation: how the file's axes were brought to those of `data`.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]
    sha256: str
    orientation: Orientation

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.data.shape[-len(self.spacing) :]

    def as_stored(self) -> "Volume":
        """The volume along the file's axes."""
        spacing = self.orientation.stored_order(self.spacing)
        back = Orientation(tuple(range(len(spacing))), (False,) * len(spacing), self.orientation.name)
        data = self.orientation.stored(self.data)
        affine = self.affine.copy()
        for axis, (of_file, flipped) in enumerate(zip(self.orientation.order, self.orientation.flipped, strict=True)):
            affine[:, of_file] = -self.affine[:, axis] if flipped else self.affine[:, axis]
            if flipped:
                affine[:, 3] += self.affine[:, axis] * (self.shape[axis] - 1)
        return Volume(data, affine, spacing, self.sha256, back)


def by(numbers: Iterable[float]) -> str:
    """Format one number per axis, such as `3 x 1 x 0.5`."""
    return " x ".join(f"{number:.6g}" for number in numbers)


# Comparison of grids.

#: Accepted relative deviation of spacings from each other: more than the rounding of float32 headers.
SPACING_ROUNDING = 1e-3
#: Accepted distance between the same corners of two grids, in voxels (the shortest side of one): other software rounds
#: origins and spacings, and boundaries of labels are less exact than this. Anything beyond is another grid.
TOLERANCE = 0.1
#: No note is shown up to this distance, which the rounding of float32 headers explains.
GRID_ROUNDING = 0.01


class Grid(Protocol):
    """A grid of voxels: its shape, affine (4 x 4, mm) and spacing (mm per axis)."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""

    @property
    def affine(self) -> NDArray[np.float64]:
        """Array indices to mm."""

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel spacing, mm per axis."""


def grid_problem(volume: Grid, other: Grid, name: str) -> str | None:
    """Why a volume is not on another's grid: shape, spacing or position; None if it is, within `TOLERANCE`.

    Args:
        volume: the volume to check.
        other: the volume with the expected grid.
        name: what the other is to the volume, as in `its label`.
    """
    if volume.shape != other.shape:
        return f"{by(volume.shape)} voxels, but its {name} has {by(other.shape)}"
    shift = _largest_shift(volume, other)
    if shift <= TOLERANCE * min(other.spacing):
        return None
    if not np.allclose(volume.spacing, other.spacing, rtol=SPACING_ROUNDING, atol=0):
        return f"spacing {by(volume.spacing)} mm, but its {name} has {by(other.spacing)} mm"
    return f"its affine differs from its {name}'s: it lies up to {shift:.4g} mm off"


def grid_shift(volume: Grid, other: Grid) -> float:
    """How far a volume without a `grid_problem` is off the other's grid, mm; 0 if rounding explains it."""
    shift = _largest_shift(volume, other)
    return shift if shift > GRID_ROUNDING * min(other.spacing) else 0.0


def shift_note(shifts: Mapping[str, float], kind: str, other: str) -> str | None:
    """A note on files that are slightly off their expected grid; None if there are none.

    Args:
        shifts: file to `grid_shift`, mm.
        kind: what the files are, such as `label`.
        other: what has the expected grid, such as `image`.
    """
    off = {file: shift for file, shift in shifts.items() if shift > 0}
    if not off:
        return None
    file, largest = max(off.items(), key=lambda entry: entry[1])
    file = shown(file)
    accepted = f"up to {TOLERANCE:g} voxels count as the same grid"
    if len(off) == 1:
        return f"{file} lies {largest:.3g} mm off its {other}; {accepted}"
    return f"{len(off)} {kind}s lie up to {largest:.3g} mm off their {other}s, most of all {file}; {accepted}"


def _largest_shift(volume: Grid, other: Grid) -> float:
    """The largest distance between the same corners of two volumes, mm."""
    shape = other.shape
    # Outer corners, so that the thickness of a single slice counts.
    corners = np.array(list(np.ndindex(*(2,) * len(shape)))) * np.array(shape) - 0.5
    points = np.zeros((len(corners), 4))
    points[:, : len(shape)], points[:, 3] = corners, 1
    return float(np.linalg.norm((points @ (volume.affine - other.affine).T)[:, :3], axis=1).max())
