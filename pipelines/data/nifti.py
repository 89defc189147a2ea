"""NIfTI files: read completely, compared by grid, and written with the geometry of their image."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipelines.utils.files import write_atomically
from pipelines.utils.text import shown

# Reading: damage that other readers silently accept is found.

_CHUNK = 1 << 20
#: Bytes that may follow the last voxel, since some writers pad their blocks. More indicate a damaged header.
_PADDING = 512
#: Accepted deviation of directions from a right angle (as a cosine) and of spacings from each other (relative): more
#: than the rounding of float32 headers, less than is visible.
_ANGLE = 1e-3
SPACING_ROUNDING = 1e-3
#: NIfTI's codes of units other than mm; files without a code are assumed to be in mm.
_OTHER_UNITS = {1: "metres", 3: "micrometres"}


#: Why a file with another checksum than expected is bad.
WRONG_CHECKSUM = "its SHA-256 is not the recorded one: the file is damaged or was replaced"


class BadFileError(Exception):
    """A file cannot be used; the message says why."""


@dataclass(frozen=True)
class Volume:
    """A file's content: the array, the affine (4 x 4, mm), the spacing (mm per axis) and the bytes' SHA-256."""

    data: NDArray[Any]
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]
    sha256: str


def read_file(path: Path, dimensions: Iterable[int] = (2, 3)) -> Volume:
    """Read a NIfTI file to its last byte.

    Symbolic links are followed wherever they lead, since a user who names a folder includes its links. (The paths in
    a manifest, in contrast, must not leave the data root: see `layouts.path_problem`.)

    Args:
        path: the file.
        dimensions: accepted numbers of axes, not counting superfluous trailing axes of length 1.

    Raises:
        BadFileError: it is missing, damaged, incomplete, or of another kind.
    """
    try:
        raw = _bytes(path)
        kind, content = _content(raw, path.name)
        image = kind.from_bytes(content)
        allowed = sorted(dimensions)
        shape = squeezed(image.shape, allowed[-1])
        axes = len(shape)
        if axes not in allowed:
            expected = " or ".join(map(str, allowed))
            raise BadFileError(f"{axes} axes ({by(shape)} voxels); expected {expected}, one volume per file")
        spacing = _spacing(image, axes)
        data = np.asanyarray(image.dataobj).reshape(shape)
    except BadFileError:
        raise
    except OSError as error:
        raise BadFileError(f"cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise BadFileError("does not fit into memory") from None
    except Exception as error:  # nibabel raises whatever a damaged header leads to
        raise BadFileError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None
    return Volume(data, np.asarray(image.affine, np.float64), spacing, hashlib.sha256(raw).hexdigest())


def squeezed(shape: Sequence[int], axes: int) -> tuple[int, ...]:
    """Drop trailing axes of length 1 beyond a number of axes: a time series of one volume is a volume."""
    kept = list(shape)
    while len(kept) > axes and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def by(numbers: Iterable[float]) -> str:
    """Format one number per axis, such as `3 x 1 x 0.5`."""
    return " x ".join(f"{number:.6g}" for number in numbers)


def file_problem(path: Path) -> str | None:
    """Why a path is not a regular file; None if it is one."""
    if not path.exists():
        return "a symbolic link to nothing" if path.is_symlink() else "missing"
    return None if path.is_file() else "is not a regular file"


def _bytes(path: Path) -> bytes:
    if (problem := file_problem(path)) is not None:
        raise BadFileError(problem)
    raw = path.read_bytes()
    if not raw:
        raise BadFileError("0 bytes")
    return raw


def _content(raw: bytes, file: str) -> tuple[Any, bytes]:
    """The image class and the decompressed bytes, as many as the header specifies."""
    packed = file.endswith(".gz")
    if packed and raw[:2] != b"\x1f\x8b":
        raise BadFileError("not a gzip file, though its name ends in .gz")
    stream: Any = gzip.GzipFile(fileobj=BytesIO(raw)) if packed else BytesIO(raw)
    try:
        content = bytearray(stream.read(nib.Nifti2Header.sizeof_hdr))
        kind, size = _kind_and_size(bytes(content))
        # Read to the end, where gzip's checksum is, but at most a chunk past the size in the header.
        while len(content) <= size + _PADDING and (chunk := stream.read(_CHUNK)):
            content += chunk
    except EOFError:
        raise BadFileError("truncated: its gzip stream ends early") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise BadFileError(f"damaged: {error}") from None
    if len(content) < size:
        raise BadFileError(f"truncated: {len(content)} bytes; its header says {size}")
    if len(content) > size + _PADDING:
        raise BadFileError(f"more bytes than the {size} that its header says and {_PADDING} of padding")
    return kind, bytes(content[:size])


def _kind_and_size(head: bytes) -> tuple[Any, int]:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(head):
            header = kind.header_class.from_fileobj(BytesIO(head), check=False)
            shape = [int(length) for length in header.get_data_shape()]
            if not shape or min(shape) < 1:
                raise BadFileError(f"damaged: its header says {by(shape) or 'no'} voxels")
            if header.get_data_dtype().kind not in "iuf":
                raise BadFileError(f"holds {header.get_data_dtype()}; expected one integer or real number per voxel")
            return kind, int(header.get_data_offset()) + math.prod(shape) * header.get_data_dtype().itemsize
    raise BadFileError("not a NIfTI file: it has no NIfTI header")


def _spacing(image: Any, axes: int) -> tuple[float, ...]:
    """The spacing from the affine, as used in training, after checking that the affine is usable."""
    unit = _OTHER_UNITS.get(int(image.header["xyzt_units"]) & 7)
    if unit is not None:
        raise BadFileError(f"its header gives lengths in {unit}; expected mm")
    columns = np.asarray(image.affine, np.float64)[:3, :axes][:, :3]
    if not np.isfinite(image.affine).all():
        raise BadFileError("its affine holds NaN or Inf")
    spacing = np.linalg.norm(columns, axis=0)
    if not (spacing > 0).all():
        raise BadFileError("its direction matrix is singular: an axis has no direction")
    directions = columns / spacing
    cosines = directions.T @ directions
    if np.linalg.det(cosines) < 1e-6:
        raise BadFileError("its direction matrix is singular: its axes lie in one plane")
    for one in range(len(spacing)):
        for other in range(one):
            if abs(cosines[one, other]) > _ANGLE:
                angle = math.degrees(math.acos(cosines[one, other]))
                raise BadFileError(
                    f"its direction matrix is sheared: {angle:.4g} degrees between axes {other} and {one}; expected 90"
                )
    zooms = np.array(image.header.get_zooms()[: len(spacing)], np.float64)
    if not np.allclose(zooms, spacing, rtol=SPACING_ROUNDING, atol=0):
        raise BadFileError(f"its header says voxels of {by(zooms)} mm, and its affine {by(spacing)} mm")
    return tuple(round(float(length), 6) for length in spacing)


# Label maps.

#: A value within this distance of a whole number is that number. Labels saved again from floats get a scale factor and
#: read as 3.00000006 instead of 3.
WHOLE = 1e-3


def read_labels(path: Path, dimensions: Iterable[int] = (2, 3)) -> Volume:
    """Read a label map as `read_file` does, and round its values by `whole_labels`.

    Args:
        path: the file.
        dimensions: accepted numbers of axes.

    Raises:
        BadFileError: as `read_file`.
    """
    volume = read_file(path, dimensions)
    return replace(volume, data=whole_labels(volume.data))


def whole_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Round the labels within `WHOLE` of a whole number; all others stay as they are."""
    if labels.dtype.kind != "f":
        return labels
    nearest = np.rint(labels)
    with np.errstate(invalid="ignore"):  # of Inf, which stays
        return np.where(np.abs(labels - nearest) <= WHOLE, nearest, labels)


def digits(value: Any) -> str:
    """A label value with all digits of its type: `3`, `2.9989999`."""
    return str(value).removesuffix(".0")


# Comparison of grids.

#: Accepted distance between the same corners of two grids, in voxels (the shortest side of one): other software rounds
#: origins and spacings, and boundaries of labels are less exact than this. Anything beyond is another grid.
TOLERANCE = 0.1
#: No note is shown up to this distance, which the rounding of float32 headers explains.
_ROUNDING = 0.01


class Grid(Protocol):
    """An array with its affine (4 x 4, mm) and spacing (mm per axis)."""

    @property
    def data(self) -> NDArray[Any]:
        """The array."""

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
    shape = other.data.shape
    if volume.data.shape != shape:
        return f"{by(volume.data.shape)} voxels, but its {name} has {by(shape)}"
    shift = _largest_shift(volume, other)
    if shift <= TOLERANCE * min(other.spacing):
        return None
    if not np.allclose(volume.spacing, other.spacing, rtol=SPACING_ROUNDING, atol=0):
        return f"spacing {by(volume.spacing)} mm, but its {name} has {by(other.spacing)} mm"
    return f"its affine differs from its {name}'s: it lies up to {shift:.4g} mm off"


def grid_shift(volume: Grid, other: Grid) -> float:
    """How far a volume without a `grid_problem` is off the other's grid, mm; 0 if rounding explains it."""
    shift = _largest_shift(volume, other)
    return shift if shift > _ROUNDING * min(other.spacing) else 0.0


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
    shape = other.data.shape
    # Outer corners, so that the thickness of a single slice counts.
    corners = np.array(list(np.ndindex(*(2,) * len(shape)))) * np.array(shape) - 0.5
    points = np.zeros((len(corners), 4))
    points[:, : len(shape)], points[:, 3] = corners, 1
    return float(np.linalg.norm((points @ (volume.affine - other.affine).T)[:, :3], axis=1).max())


# Writing: maps have exactly the geometry in their image's header.


def write_labels(path: Path, labels: NDArray[Any], header: nib.Nifti1Header) -> None:
    """Write a label map in the smallest type that common viewers read.

    Args:
        path: the file, `.nii.gz` or `.nii`.
        labels: label values, `[*spatial]`.
        header: the image's header, whose geometry is kept. Labels of a 2D image that is stored as a slice are stored
            as a slice, too; axes beyond the third are dropped.
    """
    shape = header.get_data_shape()[:3]
    labels = labels.reshape(shape) if len(shape) > labels.ndim else labels
    highest = int(labels.max())
    kind = next(t for t in (np.uint8, np.int16, np.int32, np.int64) if highest <= np.iinfo(t).max)
    made = _header(header, kind, "medloss: labels")
    made.set_intent("label")
    # Label maps compress to a few per cent at any level.
    _write(path, labels.astype(kind, copy=False), made, level=6)


def write_probabilities(path: Path, probabilities: NDArray[np.float32], header: nib.Nifti1Header) -> None:
    """Write probabilities as a 4D float32 image, `[*spatial, C]`; a 2D image has one slice.

    Args:
        path: the file, `.nii.gz`.
        probabilities: `[C, *spatial]`, channels in the order of the label values.
        header: the image's header, whose geometry is kept.
    """
    spatial = probabilities.shape[1:]
    volume = np.moveaxis(probabilities, 0, -1).reshape(*spatial, *(1,) * (3 - len(spatial)), len(probabilities))
    # Noise hardly compresses at any level.
    _write(path, volume, _header(header, np.float32, "medloss: probabilities, one volume per class"), level=1)


def _header(header: nib.Nifti1Header, kind: type, description: str) -> Any:
    """A copy of the image's header with its geometry, but without what describes its intensities."""
    made = header.copy()
    made.extensions.clear()  # a scanner's, with names of patients at times
    made.set_data_dtype(kind)
    made.set_data_offset(0)
    made["scl_slope"], made["scl_inter"] = 1, 0
    made["cal_min"] = made["cal_max"] = 0  # the window in which viewers show it
    made.set_intent("none")
    made["aux_file"] = b""
    made["descrip"] = description.encode()
    # Some files give 0 mm for axes that the image does not have; readers reject that once the axes exist.
    axes = len(header.get_data_shape())
    made["pixdim"][1 + axes :] = [zoom if zoom > 0 else 1 for zoom in made["pixdim"][1 + axes :]]
    return made


def _write(path: Path, data: NDArray[Any], header: Any, level: int) -> None:
    made = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # Without an explicit affine, the header's affines are kept exactly.
    image = made(data, None, header)

    def write(file: Any) -> None:
        if not path.name.endswith(".gz"):
            image.to_stream(file)
            return
        # Without name and time, the same prediction gives the same bytes.
        with gzip.GzipFile("", "wb", level, file, mtime=0) as packed:
            image.to_stream(packed)

    write_atomically(path, write)
