"""One NIfTI file, read to its last byte: what readers let pass in silence is found here."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

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
