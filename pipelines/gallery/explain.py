"""`medloss explain`: the negative gradient of a loss on a user's case."""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray
from scipy import ndimage

from medloss import CombinedLoss
from medloss.expression import parse_expression
from pipelines.data.grids import Orientation, by, grid_problem, grid_shift, shift_note
from pipelines.data.nifti import BadFileError, digits, read_file, whole_labels
from pipelines.gallery.pictures import Slice, densest_slice, gradient_figure
from pipelines.gallery.scenes import logit, negative_gradient, one_channel_loss, soft_logits
from pipelines.utils import UserError
from pipelines.utils.figures import write_png

#: The probability that a voxel of a predicted label map is taken to have.
_LABEL_PROBABILITY = 0.9
_DIRECTIONS = {"L": "left", "R": "right", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}


@dataclass(frozen=True)
class UserFile:
    """An image of two or three axes, and the option that it was passed to; `affine` and `spacing` in mm.

    `orientation` is that of the file; its axes are those of `data`, so that an axis is the same as in other tools.
    """

    path: Path
    flag: str
    data: NDArray
    affine: NDArray[np.float64]
    spacing: tuple[float, ...]
    orientation: Orientation

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.data.shape


def read_user_file(path: Path, flag: str, channels: int | None = 1, along: Orientation | None = None) -> UserFile:
    """Read a NIfTI file; a single slice as third axis is dropped.

    Args:
        path: the file.
        flag: the option that it was passed to.
        channels: as in `read_file`; of several the array is `[channels, *spatial]`.
        along: of the file whose axes the array gets; None: its own.

    Raises:
        UserError: the file is missing, damaged, has another number of axes, or an invalid affine.
    """
    try:
        # nibabel logs everything in a header that it corrects by itself.
        with LoggingOutputSuppressor():
            volume = read_file(path, channels=channels)
    except BadFileError as error:
        raise UserError(f"{flag}: {path}: {error}; expected a NIfTI image, 2D or 3D") from None
    orientation = volume.orientation
    if along is not None and len(along.order) == len(volume.spacing):
        orientation = along
    volume = replace(volume, orientation=orientation).as_stored()
    data, spacing = volume.data, volume.spacing
    if data.ndim > len(spacing):
        return UserFile(path, flag, data, volume.affine, spacing, orientation)
    if data.ndim == 3 and data.shape[2] == 1:
        data, spacing = data[..., 0], spacing[:2]
    return UserFile(path, flag, data, volume.affine, spacing, orientation)


def check_same_grid(first: UserFile, second: UserFile) -> str | None:
    """Refuse two files whose voxels do not lie at the same places.

    Returns:
        A note if the second lies slightly off, within the tolerance of all commands; else None.

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


@dataclass(frozen=True)
class Explained:
    """The picture's path, and notes for the user, line by line."""

    path: Path
    notes: tuple[str, ...]


def explain_case(
    loss: str,
    image: Path,
    label: Path,
    *,
    prediction: Path | None = None,
    label_class: int = 1,
    axis: int | None = None,
    channel: int | None = None,
    out: Path | None = None,
) -> Explained:
    """Draw the negative gradient -dL/dz on one slice of a case; the loss is computed on the whole volume.

    Args:
        loss: a name (the loss alone, without its recipe), a sum, or a dotted path.
        image: NIfTI, 2D or 3D, or 4D with channels last.
        label: NIfTI on the same grid, whole numbers.
        prediction: NIfTI on the same grid: probabilities of the structure, or labels. None: a stand-in, the label
            shifted and blurred.
        label_class: the structure's value.
        axis: array axis of the image's file perpendicular to the slice. None: that of the largest spacing (the last of
            equals).
        channel: of a 4D image, the one that is drawn, from 0. None: the first.
        out: the picture, `.png`.

    Raises:
        UserError: a file that cannot be used, or an argument out of its range.
    """
    path = out or Path("explain-" + re.sub(r"[^\w.-]", "_", loss) + ".png")
    if path.suffix.lower() != ".png":
        raise UserError(f"--out: got {path}; expected a file name that ends in .png")
    terms = parse_expression(loss)
    alone = len(terms) == 1 and terms[0].weight == 1
    parts = [one_channel_loss(term.name) for term in terms]
    made = parts[0] if alone else CombinedLoss(parts, weights=[term.weight for term in terms])
    shown, drawn = _channel(read_user_file(image, "--image", channels=None), channel)
    target = read_user_file(label, "--label", along=shown.orientation)
    notes = [check_same_grid(shown, target)]
    reference = _structure(target, label_class)
    spacing = shown.spacing
    if prediction is None:
        logits, description = _stand_in(reference, spacing)
    else:
        predicted = read_user_file(prediction, "--prediction", along=shown.orientation)
        notes.append(check_same_grid(shown, predicted))
        logits, description = _predicted_logits(predicted, label_class)
    hard = logits > 0
    gradients = negative_gradient(made, logits, reference, spacing)
    across = _axis(axis, spacing)
    index = 0 if across is None else densest_slice(reference, hard, across)
    cut: tuple[int | slice, ...] = tuple(index if a == across else slice(None) for a in range(reference.ndim))
    description = drawn + description
    if across is not None:
        description = f"slice {index} of axis {across}; {description}"
    down, right = (a for a in range(reference.ndim) if a != across)
    labels = _axis_label(shown, down), _axis_label(shown, right)
    piece = Slice(reference[cut], hard[cut], (spacing[down], spacing[right]), shown.data[cut], labels)
    figure = gradient_figure(piece, gradients[cut], loss, note=description)
    try:
        write_png(figure, path)
    except OSError as error:
        raise UserError(f"--out: cannot write {path}: {error.strerror}; name another file") from None
    return Explained(path, (description, *(f"note: {note}" for note in notes if note is not None)))


def _channel(image: UserFile, channel: int | None) -> tuple[UserFile, str]:
    """One channel of an image, and which of several it is."""
    channels = len(image.data) if image.data.ndim > len(image.spacing) else 1
    if channel is not None and not 0 <= channel < channels:
        expected = f"0 to {channels - 1}" if channels > 1 else "none, for an image with one channel"
        raise UserError(f"--channel: got {channel} for {image.path}; expected {expected}")
    if image.data.ndim == len(image.spacing):
        return image, ""
    return replace(image, data=image.data[channel or 0]), f"channel {channel or 0} of {channels}; "


def _structure(label: UserFile, label_class: int) -> NDArray[np.bool_]:
    labels = whole_labels(label.data)
    values = np.unique(labels)
    odd = values[values != np.rint(values)]
    if odd.size:
        raise UserError(
            f"--label: {label.path} holds values that are no whole numbers, such as {digits(odd[0])}; expected one "
            "label per voxel"
        )
    if label_class not in values:
        present = ", ".join(f"{value:g}" for value in values[:20])
        raise UserError(f"--label-class: {label.path} has no voxel of class {label_class}; it has {present}")
    return np.asarray(labels == label_class)


def _stand_in(reference: NDArray[np.bool_], spacing: tuple[float, ...]) -> tuple[NDArray[np.float64], str]:
    """The label, moved along the axis of the finest spacing by a third of its radius, its border softened."""
    axis = int(np.argmin(spacing))
    size = np.count_nonzero(reference) * math.prod(spacing)
    radius = math.sqrt(size / math.pi) if reference.ndim == 2 else math.cbrt(size * 3 / (4 * math.pi))
    voxels = max(round(radius / 3 / spacing[axis]), 1)
    moved = ndimage.shift(reference.astype(np.uint8), [voxels * (a == axis) for a in range(reference.ndim)], order=0)
    width = max(radius / 8, spacing[axis])
    description = (
        f"no prediction given: a stand-in, the label moved {voxels * spacing[axis]:.2g} mm along axis {axis}, "
        f"its border softened over {width:.2g} mm"
    )
    return soft_logits(moved > 0, spacing, width), description


def _predicted_logits(prediction: UserFile, label_class: int) -> tuple[NDArray[np.float64], str]:
    data = prediction.data
    if not np.isfinite(data).all():
        raise UserError(f"--prediction: {prediction.path} holds NaN or infinity; expected probabilities or labels")
    labels = whole_labels(data)
    if np.array_equal(labels, np.rint(labels)):
        inside = labels == label_class
        sure = logit(_LABEL_PROBABILITY)
        found = "" if inside.any() else f"; no voxel of class {label_class} in it"
        description = (
            f"prediction: labels, taken as p = {_LABEL_PROBABILITY:g} inside and {1 - _LABEL_PROBABILITY:.1g} outside"
        )
        return np.where(inside, sure, -sure), description + found
    if data.min() < 0 or data.max() > 1:
        raise UserError(
            f"--prediction: {prediction.path} has values from {data.min():.4g} to {data.max():.4g}; expected "
            "probabilities in [0, 1] or whole numbers"
        )
    return logit(np.clip(data.astype(np.float64), 1e-6, 1 - 1e-6)), "prediction: probabilities"


def _axis(axis: int | None, spacing: tuple[float, ...]) -> int | None:
    """The axis perpendicular to the slice; None for an image of two axes."""
    axes = len(spacing)
    if axes == 2:
        if axis is not None:
            raise UserError(f"--axis: got {axis} for a 2D image; leave it out")
        return None
    if axis is None:
        # Of equals the last: most files have their slices there.
        return max(range(axes), key=lambda a: (round(spacing[a], 3), a))
    if not 0 <= axis < axes:
        raise UserError(f"--axis: got {axis}; expected 0, 1 or 2")
    return axis


def _axis_label(volume: UserFile, axis: int) -> str:
    towards = _DIRECTIONS.get(nib.aff2axcodes(volume.affine)[axis] or "", "nowhere")
    return f"axis {axis} in mm, towards {towards}\n(voxels of {volume.spacing[axis]:.3g} mm)"
