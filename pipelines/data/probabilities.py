"""Files of class probabilities next to a label map: our 4D NIfTI, and nnU-Net's `.npz`."""

import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipelines.data.grids import Orientation, Volume, by, grid_problem
from pipelines.data.layouts import NNUNET_PROBABILITIES, PROBABILITIES, stem
from pipelines.data.nifti import BadFileError, file_problem, read_file
from pipelines.utils.files import write_atomically

#: nnU-Net's name of the array; a version before had another.
_KEYS = ("probabilities", "softmax")
#: Accepted rounding of probabilities.
_ROUNDING = 2e-3


def probability_file(label_map: Path) -> Path | None:
    """The file of the probabilities of a label map: `<name>_probabilities.nii.gz` or `<name>.npz`; None without one."""
    files = (label_map.with_name(stem(label_map.name) + suffix) for suffix in (PROBABILITIES, NNUNET_PROBABILITIES))
    return next((file for file in files if file.exists()), None)


def read_probabilities(path: Path, volume: Volume) -> NDArray[np.floating]:
    """Read the probabilities of a label map.

    nnU-Net's array is `[C, *axes]`, the axes those of the label map's file in reverse order, with an axis of one slice
    if that is 2D.

    Args:
        path: from `probability_file`.
        volume: the label map.

    Returns:
        `[C, *spatial]`, along the axes of `volume`, 0 to 1.

    Raises:
        BadFileError: the file cannot be read, is on another grid, or holds no probabilities.
    """
    if (problem := file_problem(path)) is not None:
        raise BadFileError(problem)
    found = _read_npz(path, volume) if path.suffix == ".npz" else _read_nifti(path, volume)
    low, high = (float(found.min()), float(found.max())) if found.size else (np.nan, np.nan)
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN, too
        raise BadFileError(f"values from {low:.4g} to {high:.4g}; expected probabilities, 0 to 1")
    return np.clip(found, 0, 1) if low < 0 or high > 1 else found


def _read_nifti(path: Path, volume: Volume) -> NDArray[np.floating]:
    try:
        shape: tuple[int, ...] = nib.load(path).shape
    except Exception as error:  # nibabel raises whatever a damaged header leads to
        raise BadFileError(f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None
    axes = len(volume.spacing)
    channels = shape[3] if len(shape) == 4 else 1
    found = read_file(path, (axes,), channels)
    if (problem := grid_problem(found, volume, "label map")) is not None:
        raise BadFileError(problem)
    return np.asarray(found.data.reshape(channels, *volume.shape), np.float32)


def _read_npz(path: Path, volume: Volume) -> NDArray[np.floating]:
    try:
        with np.load(path, allow_pickle=False) as content:
            key = next((key for key in _KEYS if key in content), None)
            if key is None:
                raise BadFileError(f"holds {', '.join(content) or 'nothing'}; expected nnU-Net's array probabilities")
            array: NDArray[Any] = content[key]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise BadFileError(f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None
    if array.dtype.kind != "f":
        raise BadFileError(f"holds {array.dtype}; expected real numbers")
    stored = tuple(volume.orientation.stored_order(volume.shape))
    shape = array.shape[:0:-1]
    if len(stored) == 2 and len(shape) == 3 and shape[-1] == 1:
        array, shape = array[:, 0], shape[:-1]
    if shape != stored:
        raise BadFileError(f"{by(shape) or 'no'} voxels, but its label map has {by(stored)}")
    return volume.orientation.canonical(array.transpose(0, *range(array.ndim - 1, 0, -1)))


def write_npz(
    path: Path, probabilities: NDArray[np.floating], header: nib.Nifti1Header, *, canonical: bool = True
) -> None:
    """Write probabilities as nnU-Net's `--save_probabilities` does, in float16.

    Args:
        path: the file, `.npz`.
        probabilities: `[C, *spatial]`.
        header: that of the label map.
        canonical: whether the array's axes are the canonical ones, or those of the file.
    """
    axes = probabilities.ndim - 1
    if canonical:
        probabilities = Orientation.of(np.asarray(header.get_best_affine()), axes).stored(probabilities)
    if axes == 2:
        probabilities = probabilities[..., None]
    made = np.ascontiguousarray(probabilities.transpose(0, *range(probabilities.ndim - 1, 0, -1)), np.float16)
    write_atomically(path, lambda file: np.savez_compressed(file, probabilities=made))
