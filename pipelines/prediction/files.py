"""NIfTI maps that lie where their image does, to the bit of its header."""

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipelines.files import write_atomically


def write_labels(path: Path, labels: NDArray[Any], header: nib.Nifti1Header) -> None:
    """Write a label map, in the smallest type that common viewers read.

    Args:
        path: the file, `.nii.gz` or `.nii`.
        labels: label values, `[*spatial]`.
        header: of the image, whose geometry is kept. A 2D image that is saved as a slice gets its labels as one; axes
            beyond the third are dropped.
    """
    shape = header.get_data_shape()[:3]
    labels = labels.reshape(shape) if len(shape) > labels.ndim else labels
    highest = int(labels.max())
    kind = next(t for t in (np.uint8, np.int16, np.int32, np.int64) if highest <= np.iinfo(t).max)
    made = _header(header, kind, "medloss: labels")
    made.set_intent("label")
    # They pack to a few per cent at any level.
    _write(path, labels.astype(kind, copy=False), made, level=6)


def write_probabilities(path: Path, probabilities: NDArray[np.float32], header: nib.Nifti1Header) -> None:
    """Write probabilities as a 4D float32 image, `[*spatial, C]`, a 2D image having one slice.

    Args:
        path: the file, a `.nii.gz`.
        probabilities: `[C, *spatial]`, channels in the order of the classes' values.
        header: of the image, whose geometry is kept.
    """
    spatial = probabilities.shape[1:]
    volume = np.moveaxis(probabilities, 0, -1).reshape(*spatial, *(1,) * (3 - len(spatial)), len(probabilities))
    # Noise hardly packs, at any level.
    _write(path, volume, _header(header, np.float32, "medloss: probabilities, a volume a class"), level=1)


def _header(header: nib.Nifti1Header, kind: type, description: str) -> Any:
    """The image's header, affines, zooms and units as they are, without what holds for its intensities."""
    made = header.copy()
    made.extensions.clear()  # a scanner's, with names of patients at times
    made.set_data_dtype(kind)
    made.set_data_offset(0)
    made["scl_slope"], made["scl_inter"] = 1, 0
    made["cal_min"] = made["cal_max"] = 0  # the window in which viewers show it
    made.set_intent("none")
    made["aux_file"] = b""
    made["descrip"] = description.encode()
    # Of axes that the image has not, some files say 0 mm, which readers refuse where there are such axes.
    axes = len(header.get_data_shape())
    made["pixdim"][1 + axes :] = [zoom if zoom > 0 else 1 for zoom in made["pixdim"][1 + axes :]]
    return made


def _write(path: Path, data: NDArray[Any], header: Any, level: int) -> None:
    made = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # Without an affine of ours, the header's stay as they are, to the bit.
    image = made(data, None, header)

    def write(file: Any) -> None:
        if not path.name.endswith(".gz"):
            image.to_stream(file)
            return
        # Neither name nor time: the same prediction is the same file.
        with gzip.GzipFile("", "wb", level, file, mtime=0) as packed:
            image.to_stream(packed)

    write_atomically(path, write)
