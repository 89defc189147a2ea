"""NIfTI files: read completely in one orientation, compared by grid, written with the geometry of their image."""

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


def stacked(volumes: Sequence[Volume], grid: "Grid | None" = None) -> NDArray[np.float32]:
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


def _on_grid(channel: NDArray[np.float32], volume: Volume, target: "Grid") -> NDArray[np.float32]:
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
        made[(place < -0.5 - _ROUNDING) | (place > length - 0.5 + _ROUNDING)] = low
    return made


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


# Comparison of grids.

#: Accepted distance between the same corners of two grids, in voxels (the shortest side of one): other software rounds
#: origins and spacings, and boundaries of labels are less exact than this. Anything beyond is another grid.
TOLERANCE = 0.1
#: No note is shown up to this distance, which the rounding of float32 headers explains.
_ROUNDING = 0.01


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
    shape = other.shape
    # Outer corners, so that the thickness of a single slice counts.
    corners = np.array(list(np.ndindex(*(2,) * len(shape)))) * np.array(shape) - 0.5
    points = np.zeros((len(corners), 4))
    points[:, : len(shape)], points[:, 3] = corners, 1
    return float(np.linalg.norm((points @ (volume.affine - other.affine).T)[:, :3], axis=1).max())


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
