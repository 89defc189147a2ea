"""Voxel spacing in mm: what users pass, brought to one tuple an item."""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from medloss.errors import InputError

#: What callers may pass: a number (all axes), one number an axis, or one such sequence an item; mm.
Spacing = float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | Tensor


def resolve_spacing(
    spacing: Spacing | None, target: Any, batch_size: int, spatial_dims: int
) -> list[tuple[float, ...]]:
    """One spacing (mm, in the order of the array's axes) an item.

    Args:
        spacing: as passed to a loss. None: `target`'s own when it is a `MetaTensor`, else 1.
        target: the tensor from which a missing spacing is read (`pixdim`; a list in a collated batch).
        batch_size: number of items, B.
        spatial_dims: 2 or 3.

    Raises:
        InputError: a spacing that is not positive and finite, or of the wrong length or count.
    """
    if spacing is None:
        if not is_meta_tensor(target):
            return [(1.0,) * spatial_dims] * batch_size
        # A 2D image's affine is 4 x 4, too: its spacing then has a third number that no axis carries.
        pixdim = target.pixdim if target.is_batch else [target.pixdim]
        rows = [torch.as_tensor(row).tolist()[:spatial_dims] for row in pixdim]
    else:
        rows = _as_rows(spacing, spatial_dims)
    if len(rows) == 1:
        rows = rows * batch_size
    if len(rows) != batch_size:
        raise InputError(
            f"spacing: got {len(rows)} spacings for a batch of {batch_size}; pass one for all, or one an item"
        )
    for row in rows:
        if len(row) != spatial_dims:
            raise InputError(
                f"spacing: got {len(row)} numbers {tuple(row)} for {spatial_dims}D images; "
                "pass one number (mm) an axis, in the order of the array's axes"
            )
        if not all(math.isfinite(s) and s > 0 for s in row):
            raise InputError(f"spacing: got {tuple(row)}; every spacing must be a positive number of mm")
    return [tuple(row) for row in rows]


def is_meta_tensor(value: Any) -> TypeGuard[Any]:
    """Whether it is MONAI's `MetaTensor`, known by a method that it alone has: importing MONAI takes seconds."""
    return type(value) is not Tensor and hasattr(value, "as_tensor")


def scaled_spacing(spacing: Sequence[float], size: Sequence[int], grid: Sequence[int]) -> tuple[float, ...]:
    """The spacing (mm) of another grid over the same volume: $s\\,n/m$ an axis.

    Args:
        spacing: $s$, mm, of the grid `size`.
        size: $n$, voxels an axis.
        grid: $m$, voxels an axis of the other grid.
    """
    return tuple(s * n / m for s, n, m in zip(spacing, size, grid, strict=True))


def _as_rows(spacing: Spacing, spatial_dims: int) -> list[list[float]]:
    # A collated batch may come as a list of tensors, one an item.
    parts: Any = [_numbers(part) for part in spacing] if isinstance(spacing, Sequence) else _numbers(spacing)
    try:
        if (rows := _rows_of_numbers(parts)) is not None:
            return rows
        values = np.asarray(parts, dtype=float)
    except (TypeError, ValueError):
        values = None
    if values is None or values.ndim > 2:
        shown = " ".join(repr(spacing).split())
        raise InputError(f"spacing: got {shown}; expected one number (mm) an axis, or one such row an item")
    if values.ndim == 0:
        return [[float(values)] * spatial_dims]
    rows = np.atleast_2d(values).tolist()
    return rows


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
