"""NIfTI files: read completely in one orientation, compared by grid, written with the geometry of their image."""

import gzip
import hashlib
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipelines.data.grids import GRID_ROUNDING, SPACING_ROUNDING, Grid, Orientation, Volume, by, grid_problem
from pipelines.utils.files import write_atomically

# Reading: damage that other readers silently accept is found.

_CHUNK = 1 << 20
#: Bytes that may follow the last voxel, since some writers pad their blocks. More indicate a damaged header.
_PADDING = 512
#: Accepted deviation of directions from a right angle, as a cosine: more than the rounding of float32 headers, less
#: than is visible.
_ANGLE = 1e-3
#: NIfTI's codes of units other than mm; files without a code are assumed to be in mm.
_OTHER_UNITS = {1: "metres", 3: "micrometres"}


#: Why nothing can be read: no file, and a symbolic link to none.
NOTHING_THERE = ("missing", "a symbolic link to nothing")
#: Why a file with another checksum than expected is bad.
WRONG_CHECKSUM = "its SHA-256 is not the recorded one: the file is damaged or was replaced"


class BadFileError(Exception):
    """A file cannot be used; the message says why."""


def read_file(path: Path, dimensions: Iterable[int] = (2, 3), channels: int | None = 1) -> Volume:
    """Read a NIfTI file to its last byte, in the closest canonical orientation.

    Symbolic links are followed wherever they lead, since a user who names a folder includes its links. (The paths in
    a manifest, in contrast, must not leave the data root: see `layouts.path_problem`.)

    Args:
        path: the file.
        dimensions: accepted numbers of axes, not counting superfluous trailing axes of length 1.
        channels: expected number of channels; more than 1 are volumes along a last axis, and the array is then
            `[channels, *spatial]`. None: any number, read from a fourth axis.

    Raises:
        BadFileError: it is missing, damaged, incomplete, or of another kind.
    """
    try:
        raw = _bytes(path)
        kind, content = _content(raw, path.name)
        image = kind.from_bytes(content)
        shape, volumes = _split_shape(image.shape, sorted(dimensions), channels)
        spacing = _spacing(image, len(shape))
        data = np.asanyarray(image.dataobj).reshape(*shape, *([] if volumes is None else [volumes]))
    except BadFileError:
        raise
    except OSError as error:
        raise BadFileError(f"cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise BadFileError("does not fit into memory") from None
    except Exception as error:  # nibabel raises whatever a damaged header leads to
        raise BadFileError(f"damaged: {' '.join(str(error).split()) or type(error).__name__}") from None
    affine = np.asarray(image.affine, np.float64)
    orientation = Orientation.of(affine, len(shape))
    return Volume(
        orientation.canonical(data if volumes is None else np.moveaxis(data, -1, 0)),
        orientation.canonical_affine(affine, shape),
        tuple(spacing[axis] for axis in orientation.order),
        hashlib.sha256(raw).hexdigest(),
        orientation,
    )


#: Volumes in one file that are taken for channels where their number is not known; more are a time series.
MOST_CHANNELS = 8


def read_spacing(path: Path) -> tuple[float, ...]:
    """The voxel spacing of a file, mm, along its axes, from its header alone.

    Raises:
        BadFileError: the file cannot be read, or its header is not usable.
    """
    try:
        image: Any = nib.load(path)
        return _spacing(image, len(_split_shape(image.shape, [2, 3], None)[0]))
    except BadFileError:
        raise
    except Exception as error:  # nibabel raises whatever a damaged header leads to
        raise BadFileError(f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None


def _split_shape(full: Sequence[int], allowed: list[int], channels: int | None) -> tuple[tuple[int, ...], int | None]:
    """The spatial shape of a file, and its number of volumes; None for one volume."""
    shape = squeezed(full, allowed[-1])
    if len(shape) in allowed and channels in (1, None):
        return shape, None
    expected = " or ".join(map(str, allowed))
    if channels == 1:
        several = f"; or name its channels in the manifest, if its {shape[-1]} volumes are channels"
        raise BadFileError(
            f"{len(shape)} axes ({by(shape)} voxels); expected {expected}, one volume per file"
            f"{several if 1 < shape[-1] <= MOST_CHANNELS else ''}"
        )
    if len(shape) == allowed[-1]:
        raise BadFileError(f"one volume ({by(shape)} voxels); expected {channels}, one per channel")
    spatial = squeezed(full[:-1], allowed[-1])
    if len(full) < 3 or len(spatial) not in allowed:
        raise BadFileError(f"{len(shape)} axes ({by(shape)} voxels); expected {expected} and one for the channels")
    volumes = full[-1]
    if channels is None and volumes > MOST_CHANNELS:
        raise BadFileError(
            f"{volumes} volumes in one file, which may be a time series; expected at most {MOST_CHANNELS} channels "
            "(if they are channels, name them: --channels)"
        )
    if channels not in (None, volumes):
        raise BadFileError(f"{volumes} volumes in one file; expected {channels}, one per channel")
    return spatial, volumes


def read_image(files: Sequence[Path], channels: int, dimensions: Iterable[int] = (2, 3)) -> list[Volume]:
    """Read an image's files: all channels in one file, or one file per channel.

    Args:
        files: one file, or one per channel.
        channels: number of channels.
        dimensions: accepted numbers of axes.

    Returns:
        One volume per file; of one file with several channels, its array is `[channels, *spatial]`.

    Raises:
        BadFileError: a file cannot be used; the message names it if there are several.
    """
    if len(files) == 1:
        return [read_file(files[0], dimensions, channels)]
    volumes = []
    for file in files:
        try:
            volumes.append(read_file(file, dimensions))
        except BadFileError as error:
            raise BadFileError(f"{file.name}: {error}") from None
    return volumes


def stacked(volumes: Sequence[Volume], grid: Grid | None = None) -> NDArray[np.float32]:
    """The channels of an image, `[K, *spatial]`, contiguous.

    Args:
        volumes: from `read_image`, all of one grid unless `grid` is given.
        grid: resample channels on other grids to this one, linearly; voxels whose centre is in none of a channel's
            voxels get its minimum.

    Raises:
        BadFileError: the channels are on different grids, and there is no `grid`.
    """
    target = volumes[0] if grid is None else grid
    channels = [
        (channel, volume)
        for volume in volumes
        for channel in (volume.data[None] if volume.data.ndim == len(volume.spacing) else volume.data)
    ]
    # Each channel is copied once, from any type and any order of axes.
    image = np.empty((len(channels), *target.shape), np.float32)
    for index, (channel, volume) in enumerate(channels):
        problem = None if volume is target else grid_problem(volume, target, "first channel")
        if problem is not None and grid is None:
            raise BadFileError(
                f"channel {index}: {problem}; train with --resample-channels to bring all channels to one grid"
            )
        with np.errstate(over="ignore"):  # Inf is reported by the caller
            image[index] = channel if problem is None else _on_grid(channel.astype(np.float32), volume, target)
    return image


def _on_grid(channel: NDArray[np.float32], volume: Volume, target: Grid) -> NDArray[np.float32]:
    """A channel on another grid, by linear interpolation."""
    from scipy.ndimage import affine_transform  # late, since it takes time and is rarely used

    axes = len(volume.spacing)
    if axes == 2:  # the third column only has to be invertible
        source, goal = volume.affine[:, [0, 1, 3]], target.affine[:, [0, 1, 3]]
        index = np.linalg.lstsq(source, goal, rcond=None)[0]
    else:
        index = np.linalg.solve(volume.affine, target.affine)
    low = float(channel[np.isfinite(channel)].min(initial=0.0)) if not np.isfinite(channel).all() else channel.min()
    matrix, offset = index[:axes, :axes], index[:axes, axes]
    made: NDArray[np.float32] = affine_transform(channel, matrix, offset, target.shape, order=1, mode="nearest")
    # The mode "constant" also blanks the outer half of border voxels, and whole slices whose indices round to -1e-16.
    steps = np.ix_(*map(np.arange, target.shape))
    for row, first, length in zip(matrix, offset, channel.shape, strict=True):
        place = first + sum(per_step * step for per_step, step in zip(row, steps, strict=True))
        made[(place < -0.5 - GRID_ROUNDING) | (place > length - 0.5 + GRID_ROUNDING)] = low
    return made


def squeezed(shape: Sequence[int], axes: int) -> tuple[int, ...]:
    """Drop trailing axes of length 1 beyond a number of axes: a time series of one volume is a volume."""
    kept = list(shape)
    while len(kept) > axes and kept[-1] == 1:
        kept.pop()
    return tuple(kept)


def file_problem(path: Path) -> str | None:
    """Why a path is not a regular file; None if it is one."""
    if not path.exists():
        return NOTHING_THERE[path.is_symlink()]
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
        head = stream.read(nib.Nifti2Header.sizeof_hdr)
        kind, size = _kind_and_size(head)
        content = BytesIO()
        read = content.write(head)
        # Read to the end, where gzip's checksum is, but at most a chunk past the size in the header.
        while read <= size + _PADDING and (chunk := stream.read(_CHUNK)):
            read += content.write(chunk)
    except EOFError:
        raise BadFileError("truncated: its gzip stream ends early") from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise BadFileError(f"damaged: {error}") from None
    if read < size:
        raise BadFileError(f"truncated: {read} bytes; its header says {size}")
    if read > size + _PADDING:
        raise BadFileError(f"more bytes than the {size} that its header says and {_PADDING} of padding")
    content.truncate(size)
    return kind, content.getvalue()  # without a copy


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


# Writing: maps have exactly the geometry in their image's header.


def write_labels(path: Path, labels: NDArray[Any], header: nib.Nifti1Header, *, canonical: bool = True) -> None:
    """Write a label map in the smallest type that common viewers read.

    Args:
        path: the file, `.nii.gz` or `.nii`.
        labels: label values, `[*spatial]`.
        header: the image's header, whose geometry is kept. Labels of a 2D image that is stored as a slice are stored
            as a slice, too; axes beyond the third are dropped.
        canonical: whether the array's axes are the canonical ones, as `read_file` gives them, or those of the file.
    """
    labels = _in_file_order(labels, header, labels.ndim, canonical)
    shape = header.get_data_shape()[:3]
    if math.prod(shape) == labels.size:  # else the third axis of a 2D image has its channels
        labels = labels.reshape(shape)
    highest = int(labels.max())
    kind = next(t for t in (np.uint8, np.int16, np.int32, np.int64) if highest <= np.iinfo(t).max)
    made = _header(header, kind, "medloss: labels")
    made.set_intent("label")
    # Label maps compress to a few per cent at any level.
    _write(path, labels.astype(kind, copy=False), made, level=6)


def write_probabilities(
    path: Path, probabilities: NDArray[np.float32], header: nib.Nifti1Header, *, canonical: bool = True
) -> None:
    """Write probabilities as a 4D float32 image, `[*spatial, C]`; a 2D image has one slice.

    Args:
        path: the file, `.nii.gz`.
        probabilities: `[C, *spatial]`, channels in the order of the label values.
        header: the image's header, whose geometry is kept.
        canonical: as in `write_labels`.
    """
    probabilities = _in_file_order(probabilities, header, probabilities.ndim - 1, canonical)
    spatial = probabilities.shape[1:]
    volume = np.moveaxis(probabilities, 0, -1).reshape(*spatial, *(1,) * (3 - len(spatial)), len(probabilities))
    # Noise hardly compresses at any level.
    _write(path, volume, _header(header, np.float32, "medloss: probabilities, one volume per class"), level=1)


def _in_file_order(array: NDArray[Any], header: nib.Nifti1Header, axes: int, canonical: bool) -> NDArray[Any]:
    return Orientation.of(np.asarray(header.get_best_affine()), axes).stored(array) if canonical else array


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
