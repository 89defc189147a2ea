"""NIfTI files: read to the last byte, compared by grid, and written where their image lies."""

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

# One NIfTI file, read to its last byte: what readers let pass in silence is found here.

_CHUNK = 1 << 20
#: So many bytes may follow the last voxel: some writers fill up their blocks. More of them speak of a damaged header.
_PADDING = 512
#: How far directions may be off a right angle (its cosine), and spacings off each other (a share): more than float32
#: headers round, less than anybody would see.
_ANGLE = 1e-3
SPACING_ROUNDING = 1e-3
#: NIfTI's codes of lengths that are not mm; files without a code are meant to be in mm.
_OTHER_UNITS = {1: "metres", 3: "micrometres"}


class BadFileError(Exception):
    """A file that cannot be used, and why."""


@dataclass(frozen=True)
class Volume:
    """A file's content: the array, the affine (4 x 4, mm), the spacing (mm an axis) and the bytes' SHA-256."""

    data: NDArray[Any]
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]
    sha256: str


def read_file(path: Path, dimensions: Iterable[int] = (2, 3)) -> Volume:
    """Read a NIfTI file to its last byte.

    A symbolic link is followed, wherever it leads: whoever names a folder means what is linked in it, too. What a
    manifest says is another thing: its paths may not leave the data root (`manifest_rules.path_problem`).

    Args:
        path: the file, named by the user or below a folder that the user named.
        dimensions: numbers of axes that it may have, once trailing ones of length 1 that are too many are dropped.

    Raises:
        BadFileError: it is missing, damaged, incomplete, or not of the wanted kind.
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
            raise BadFileError(f"{axes} axes ({by(shape)} voxels); expected {expected}, one volume a file")
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
    """A shape without trailing axes of length 1 beyond the number of axes: one volume in time is a volume."""
    kept = list(shape)
    while len(kept) > axes and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def by(numbers: Iterable[float]) -> str:
    """Numbers an axis, as `3 x 1 x 0.5`."""
    return " x ".join(f"{number:.6g}" for number in numbers)


def _bytes(path: Path) -> bytes:
    if not path.exists():
        raise BadFileError("a symbolic link to nothing" if path.is_symlink() else "missing")
    if not path.is_file():
        raise BadFileError("is no regular file")
    raw = path.read_bytes()
    if not raw:
        raise BadFileError("0 bytes")
    return raw


def _content(raw: bytes, file: str) -> tuple[Any, bytes]:
    """The image class and the unpacked bytes, which are as many as the header says."""
    packed = file.endswith(".gz")
    if packed and raw[:2] != b"\x1f\x8b":
        raise BadFileError("no gzip file, though its name ends in .gz")
    stream: Any = gzip.GzipFile(fileobj=BytesIO(raw)) if packed else BytesIO(raw)
    try:
        content = bytearray(stream.read(nib.Nifti2Header.sizeof_hdr))
        kind, size = _kind_and_size(bytes(content))
        # Read to the end, where gzip's checksum is; but no further than a chunk past what the header says.
        while len(content) <= size + _PADDING and (chunk := stream.read(_CHUNK)):
            content += chunk
    except EOFError:
        raise BadFileError("truncated: its gzip stream ends before its end mark") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise BadFileError(f"damaged: {error}") from None
    if len(content) < size:
        raise BadFileError(f"truncated: {len(content)} bytes; its header says {size}")
    if len(content) > size + _PADDING:
        raise BadFileError(f"more bytes than the {size} that its header says, and than the {_PADDING} that pad a file")
    return kind, bytes(content[:size])


def _kind_and_size(head: bytes) -> tuple[Any, int]:
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        if kind.header_class.may_contain_header(head):
            header = kind.header_class.from_fileobj(BytesIO(head), check=False)
            shape = [int(length) for length in header.get_data_shape()]
            if not shape or min(shape) < 1:
                raise BadFileError(f"damaged: its header says {by(shape) or 'no'} voxels")
            if header.get_data_dtype().kind not in "iuf":
                raise BadFileError(f"holds {header.get_data_dtype()}; expected one whole or real number a voxel")
            return kind, int(header.get_data_offset()) + math.prod(shape) * header.get_data_dtype().itemsize
    raise BadFileError("no NIfTI file: its header is not one")


def _spacing(image: Any, axes: int) -> tuple[float, ...]:
    """The spacing by the affine, as training has it, once that is one to measure distances with."""
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
        raise BadFileError(f"its header says {by(zooms)} mm a voxel, and its affine {by(spacing)} mm")
    return tuple(round(float(length), 6) for length in spacing)


# Label maps in files: what counts as a label value, whatever type the values were saved in.

#: Up to so far off a whole number, a value is that number. Labels saved again from floats get a scale, and read as
#: 3.00000006 where they were 3; nobody means anything by a thousandth of a label.
WHOLE = 1e-3


def read_labels(path: Path, dimensions: Iterable[int] = (2, 3)) -> Volume:
    """Read a label map as `read_file` does, its values as `whole_labels` has them.

    Args:
        path: the file.
        dimensions: numbers of axes that it may have.

    Raises:
        BadFileError: as `read_file`.
    """
    volume = read_file(path, dimensions)
    return replace(volume, data=whole_labels(volume.data))


def whole_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels of which those within `WHOLE` of a whole number are that number; all others as they are."""
    if labels.dtype.kind != "f":
        return labels
    nearest = np.rint(labels)
    with np.errstate(invalid="ignore"):  # of Inf, which stays
        return np.where(np.abs(labels - nearest) <= WHOLE, nearest, labels)


def digits(value: Any) -> str:
    """A label value with all the digits that its type has: `3`, `2.9989999`."""
    return str(value).removesuffix(".0")


# Whether two files lie on the same grid, voxel on voxel.

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


# NIfTI maps that lie where their image does, to the bit of its header.


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
