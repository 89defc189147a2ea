"""Voxel spacing in mm: what users pass, brought to one tuple per item."""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
from torch import Tensor

from medloss.errors import InputError

#: What callers may pass: a number (all axes), one number per axis, or one such sequence per item; mm. A sequence of one
#: tensor per axis, each with one number per item, is what torch's `default_collate` makes of tuples.
Spacing = float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Tensor


class UnknownSpacingError(InputError):
    """The target's spacing does not show which number belongs to which axis; losses without distances ignore it."""


def resolve_spacing(
    spacing: Spacing | None, target: Any, batch_size: int, spatial_dims: int
) -> list[tuple[float, ...]]:
    """One spacing (mm, in the order of the array's axes) per item.

    Args:
        spacing: as passed to a loss. None: `target`'s when it is a `MetaTensor`, else 1.
        target: the tensor from which a missing spacing is read (`pixdim`; a list in a collated batch).
        batch_size: number of items, B.
        spatial_dims: 2 or 3.

    Raises:
        InputError: a spacing that is not positive and finite, or of the wrong length or count; one that may be read
            by items and by axes.
        UnknownSpacingError: the target is a `MetaTensor` of another number of spatial axes, such as a slice.
    """
    if spacing is None:
        if not is_meta_tensor(target):
            return [(1.0,) * spatial_dims] * batch_size
        rows = _own_rows(target, spatial_dims)
    else:
        rows = _as_rows(spacing, batch_size, spatial_dims)
    if len(rows) == 1:
        rows = rows * batch_size
    if len(rows) != batch_size:
        raise InputError(
            f"spacing: got {len(rows)} spacings for a batch of {batch_size}; pass one for all, or one per item"
        )
    for row in rows:
        if len(row) != spatial_dims:
            raise InputError(
                f"spacing: got {len(row)} numbers {tuple(row)} for {spatial_dims}D images; "
                "pass one number (mm) per axis, in the order of the array's axes"
            )
        if not all(math.isfinite(s) and s > 0 for s in row):
            raise InputError(f"spacing: got {tuple(row)}; every spacing must be a positive number of mm")
    return [tuple(row) for row in rows]


def is_meta_tensor(value: Any) -> TypeGuard[Any]:
    """Whether it is MONAI's `MetaTensor`, known by a method that it alone has: importing MONAI takes seconds."""
    return type(value) is not Tensor and hasattr(value, "as_tensor")


def scaled_spacing(spacing: Sequence[float], size: Sequence[int], grid: Sequence[int]) -> tuple[float, ...]:
    """The spacing (mm) of another grid over the same volume: $s\\,n/m$ per axis.

    Args:
        spacing: $s$, mm, of the grid `size`.
        size: $n$, voxels per axis.
        grid: $m$, voxels per axis of the other grid.
    """
    return tuple(s * n / m for s, n, m in zip(spacing, size, grid, strict=True))


def step_intervals(spacing: Sequence[float]) -> list[int]:
    """Every how many steps of one smallest spacing an axis takes part: the ratio, half rounded up.

    Args:
        spacing: mm, per axis.
    """
    # What rounding left a hair below half is half.
    return [math.floor(s / min(spacing) + 0.5 + 1e-6) for s in spacing]


def _own_rows(target: Any, spatial_dims: int) -> list[list[float]]:
    """A `MetaTensor`'s spacing, one row for all items or one per item."""
    # `pixdim` has MONAI's `spatial_ndim` numbers, which distinguishes a 2D image with a 4 x 4 affine from a slice.
    rows: list[list[float]] = [row.tolist() for row in (target.pixdim if target.is_batch else [target.pixdim])]
    for row in rows:
        # Indexing keeps the volume's affine: which axis is gone matters only where spacings differ.
        if len(row) != spatial_dims and not (
            len(row) > spatial_dims and math.isclose(min(row), max(row), rel_tol=1e-5)
        ):
            shown = ", ".join(f"{s:g}" for s in row)
            raise UnknownSpacingError(
                f"spacing: the target is a MetaTensor of {len(row)} spatial axes with pixdim ({shown}) and is used as "
                f"{spatial_dims}D images, so the spacing of each axis is unknown; pass spacing=, or slice with "
                "MONAI's SqueezeDim, which updates the affine"
            )
    return [row[:spatial_dims] for row in rows]


def _as_rows(spacing: Spacing, batch_size: int, spatial_dims: int) -> list[list[float]]:
    parts: Any = spacing
    if isinstance(spacing, Sequence):
        parts = [_numbers(part) for part in spacing]
        if all(isinstance(part, Tensor) and part.ndim == 1 for part in spacing):
            parts = _collated(parts, batch_size, spatial_dims)
    else:
        parts = _numbers(spacing)
    try:
        if (rows := _rows_of_numbers(parts)) is not None:
            return rows
        values = np.asarray(parts, dtype=float)
    except (TypeError, ValueError):
        values = None
    if values is None or values.ndim > 2:
        shown = " ".join(repr(spacing).split())
        raise InputError(f"spacing: got {shown}; expected one number (mm) per axis, or one such row per item")
    if values.ndim == 0:
        return [[float(values)] * spatial_dims]
    rows = np.atleast_2d(values).tolist()
    return rows


def _collated(parts: list[list[float]], batch_size: int, spatial_dims: int) -> list[list[float]]:
    """Rows of items, from one tensor per item or from one per axis, as a DataLoader makes of tuples."""
    by_axis = [list(row) for row in zip(*parts, strict=False)]
    if len(parts) != spatial_dims or any(len(part) != batch_size for part in parts) or by_axis == parts:
        return parts
    if batch_size == spatial_dims:
        raise InputError(
            f"spacing: got {len(parts)} tensors of {batch_size} numbers for a batch of {batch_size}, which may be one "
            "tensor per item, or one per axis as a DataLoader makes of tuples; pass torch.stack(spacing) for the "
            "first, torch.stack(spacing, 1) for the second"
        )
    return by_axis


def _numbers(part: Any) -> Any:
    return part.tolist() if isinstance(part, Tensor | np.ndarray) else part


def _rows_of_numbers(parts: Any) -> list[list[float]] | None:
    """Rows of Python's numbers, None for anything else: torch's compiler cannot make numbers of NumPy's arrays."""
    nested = isinstance(parts, list | tuple) and parts and all(isinstance(row, list | tuple) for row in parts)
    rows = parts if nested else [parts]
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != len(rows[0]):
            return None
        if any(type(s) not in (int, float) for s in row):
            return None
    return [[float(s) for s in row] for row in rows]
