"""A case that a person names: files read whole, compared with each other, refused in one line."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.dataset.geometry import grid_problem, grid_shift, shift_note
from pipelines.dataset.nifti import BadFileError, by, read_file
from pipelines.errors import UserError

_WORDS = {"L": "left", "R": "right", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}


@dataclass(frozen=True)
class UserFile:
    """An image of two or three axes.

    Attributes:
        path: as it was named.
        flag: the option that named it.
        data: the array.
        affine: `[4, 4]`, array indices to mm.
        spacing: mm, an axis.
        directions: where each axis points, in words.
    """

    path: Path
    flag: str
    data: NDArray
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]
    directions: tuple[str, ...]


def read_user_file(path: Path, flag: str) -> UserFile:
    """Read a NIfTI file; a single slice as third axis is dropped.

    Args:
        path: `.nii` or `.nii.gz`; may be a symbolic link to one.
        flag: the option that named it, for the message.

    Raises:
        UserError: the file is missing, damaged, has another number of axes, or an affine without sense.
    """
    try:
        # nibabel logs each oddity of a header that it mends by itself.
        with LoggingOutputSuppressor():
            volume = read_file(path)
    except BadFileError as error:
        raise UserError(f"{flag}: {path}: {error}; expected a NIfTI image, 2D or 3D") from None
    data, spacing = volume.data, volume.spacing
    if data.ndim == 3 and data.shape[2] == 1:
        data, spacing = data[..., 0], spacing[:2]
    codes = nib.aff2axcodes(volume.affine)[: data.ndim]
    directions = tuple(_WORDS.get(code or "", "nowhere") for code in codes)
    return UserFile(path, flag, data, volume.affine, spacing, directions)


def check_same_grid(first: UserFile, second: UserFile) -> str | None:
    """Refuse two files whose voxels do not lie at the same places.

    Returns:
        A line where the second lies a little off, within the tolerance that all commands have.

    Raises:
        UserError: shapes or affines differ.
    """
    if first.data.shape != second.data.shape:
        raise UserError(
            f"{second.flag}: {second.path} has {by(second.data.shape)} voxels, {first.flag} {first.path} has "
            f"{by(first.data.shape)}; expected the same grid"
        )
    if (problem := grid_problem(second, first, first.flag.removeprefix("--"))) is not None:
        raise UserError(
            f"{second.flag}: {second.path} and {first.flag} {first.path} have different affines (origin, spacing or "
            f"direction): {problem}; resample one onto the other's grid"
        )
    shifts = {str(second.path): grid_shift(second, first)}
    return shift_note(shifts, second.flag.removeprefix("--"), first.flag.removeprefix("--"))
