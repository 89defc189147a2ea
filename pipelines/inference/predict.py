"""Predicts label maps and probabilities of new images with a trained network, from files or from arrays (MLflow)."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.imageglobals import LoggingOutputSuppressor

from pipelines.data.checks import Offence
from pipelines.data.grids import Orientation, Volume, by
from pipelines.data.nifti import WRONG_CHECKSUM, BadFileError, read_image, write_labels, write_probabilities
from pipelines.inference.sources import Source
from pipelines.preprocessing.resampling import resampled
from pipelines.training.saved_model import WINDOWS, Model, label_map, load_model, probabilities
from pipelines.utils import UserError
from pipelines.utils.machine import is_out_of_memory

# MLflow.


def label_type(model: Model) -> np.dtype[Any]:
    """The smallest type for the label values."""
    return np.min_scalar_type(max(model.scheme.classes))


class Predictor:
    """A trained network as `mlflow.pyfunc.load_model` returns it: arrays in, label maps out."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @torch.inference_mode()
    def predict(self, image: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """The label map of an image as `medloss predict` writes it: on the image's grid, with the manifest's values.

        Args:
            image: intensities, float32: `[*spatial]`, or `[K, *spatial]` of K channels.
            params: `spacing`, mm per axis, of the image (default: that of the network's grid, right for images on that
                grid); `axes`, the directions of the array's axes, such as `LPS` (default: those of the network, `RAS`,
                to the right, anterior and superior; ignored by models of older versions, which take the axes of the
                file); `flips`, whether to average over flipped images (default: False).

        Raises:
            UserError: the array has another number of axes or channels, or non-finite intensities; the spacing or the
                axes are invalid; or the network returns NaN or Inf.
        """
        image = np.asarray(image, np.float32)
        preprocessing, channels = self.model.preprocessing, self.model.in_channels
        dimensions, params = preprocessing.dimensions, params or {}
        if channels == 1 and image.ndim == dimensions:
            image = image[None]
        if image.ndim != dimensions + 1 or len(image) != channels or not image.size:
            several = f" after one of {channels} channels" if channels > 1 else ""
            raise UserError(f"image: got shape {image.shape}; expected {dimensions} axes{several}")
        if not np.isfinite(image).all():
            raise UserError("image: got NaN or Inf; expected finite intensities")
        orientation = _orientation(params.get("axes"), dimensions)
        if preprocessing.orientation == "file":
            orientation = _orientation(None, dimensions)
        default = preprocessing.spacing or (1.0,) * dimensions
        given = np.ravel(params.get("spacing", ()))  # MLflow fills in an empty list
        spacing = given if given.size else np.ravel(orientation.stored_order(default))
        if spacing.shape != (dimensions,) or not (np.isfinite(spacing).all() and spacing.min() > 0):
            raise UserError(f"spacing: got {spacing.tolist()}; expected {dimensions} numbers above 0, in mm")
        array = torch.from_numpy(np.ascontiguousarray(orientation.canonical(image)))
        prepared = preprocessing.image(array, [spacing[axis] for axis in orientation.order])
        logits = self.model.logits(prepared, flips=bool(params.get("flips", False)))
        if not logits.sum().isfinite():
            raise UserError("image: the network returned NaN or Inf")
        labels = np.array(self.model.scheme.values, label_type(self.model))
        predicted = labels[label_map(logits, array.shape[1:], self.model.scheme).cpu().numpy()]
        return np.ascontiguousarray(orientation.stored(predicted))


def _orientation(axes: str | None, dimensions: int) -> Orientation:
    """The orientation of an array by the directions of its axes.

    Raises:
        UserError: they are not the directions of so many different axes.
    """
    pairs = ("LR", "PA", "IS")
    letters = "RAS"[:dimensions] if axes is None else str(axes).upper()
    found = [[number for number, pair in enumerate(pairs) if letter in pair] for letter in letters]
    world = [numbers[0] for numbers in found if numbers]
    if len(letters) != dimensions or len(set(world)) != dimensions:
        raise UserError(f"axes: got {axes!r}; expected {dimensions} directions, such as {'RAS'[:dimensions]}")
    order = np.argsort(world)
    flipped = tuple(letters[axis] == pairs[world[axis]][0] for axis in order)
    return Orientation(tuple(int(axis) for axis in order), flipped, letters)


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point: the model in a file, on the GPU if there is one."""
    return Predictor(load_model(Path(path), torch.device("cuda" if torch.cuda.is_available() else "cpu")))


# Images in files.


@dataclass(frozen=True)
class Settings:
    """How images are predicted.

    Attributes:
        probabilities: whether to write probabilities as well.
        regions: whether to write a map of 0 and 1 per region as well.
        flips: whether to average over images flipped along the axes that training flipped.
        windows: number of windows that the network gets at once.
    """

    probabilities: bool = False
    regions: bool = False
    flips: bool = False
    windows: int = WINDOWS


def predict(
    model: Model,
    sources: Sequence[Source],
    folder: Path,
    settings: Settings,
    report: Callable[[int, Source, str], None] | None = None,
) -> list[Offence]:
    """Predict images, one at a time; files in `folder` are written atomically, and existing ones are replaced.

    `report` is called after each image with the number of images done, the image, and its outcome in a word or two.
    Returned are the images that could not be predicted, with the reasons; all others were predicted.

    Raises:
        UserError: the folder cannot be written to.
    """
    offences = []
    with LoggingOutputSuppressor():
        for done, source in enumerate(sources, start=1):
            start = time.perf_counter()
            reason = _predict_or_reason(model, source, folder, settings)
            if reason is not None:
                offences.append(Offence(str(source.path), reason))
            if report is not None:
                report(done, source, "left out" if reason else f"{time.perf_counter() - start:.1f} s")
    return offences


def _predict_or_reason(model: Model, source: Source, folder: Path, settings: Settings) -> str | None:
    """Predict an image; return why it could not be predicted, or None."""
    grid, on_gpu = "all its", model.device.type == "cuda"
    try:
        volumes = read_source(model, source)
        grid = by(model.preprocessing.shape(volumes[0].shape, volumes[0].spacing))
        _predict(model, volumes, source, folder, settings)
    except BadFileError as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if on_gpu:
            torch.cuda.empty_cache()
        advice = [f"lower --batch-size ({settings.windows} windows at once)"] if settings.windows > 1 else []
        advice += ["leave out --probabilities"] * settings.probabilities + ["pass --device cpu"] * on_gpu
        what_to_do = ", or ".join(advice) or "crop it, or use a machine with more memory"
        return f"out of memory, with {grid} voxels; {what_to_do}"
    return None


def read_source(model: Model, source: Source) -> list[Volume]:
    """Read an image's files, along the axes that the model was trained on.

    Raises:
        BadFileError: one of them cannot be used.
    """
    volumes = read_image(source.paths, model.in_channels, {model.preprocessing.dimensions})
    for path, volume in zip(source.paths, volumes, strict=True):
        if source.sha256.get(path, volume.sha256) != volume.sha256:
            raise BadFileError(WRONG_CHECKSUM if len(volumes) == 1 else f"{path.name}: {WRONG_CHECKSUM}")
    return [model.preprocessing.oriented(volume) for volume in volumes]


@torch.inference_mode()
def _predict(model: Model, volumes: list[Volume], source: Source, folder: Path, settings: Settings) -> None:
    shape, scheme = volumes[0].shape, model.scheme
    image = model.preprocessing.image(model.preprocessing.intensities(volumes), volumes[0].spacing)
    logits = model.logits(image, flips=settings.flips, windows=settings.windows)
    if not logits.sum().isfinite():
        raise BadFileError("the network returned NaN or Inf; try --precision float32")
    if settings.probabilities or settings.regions:
        logits = resampled(logits, shape)
    labels = np.array(scheme.values)[label_map(logits, shape, scheme).cpu().numpy()]
    header = nib.load(source.path).header
    canonical = model.preprocessing.orientation == "canonical"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if settings.regions:
            for name, logit in zip(scheme.regions, logits, strict=True):
                inside = (logit > 0).cpu().numpy().astype(np.uint8)
                write_labels(source.region(folder, name), inside, header, canonical=canonical)
        if settings.probabilities:
            found = probabilities(logits, scheme).cpu().numpy()
            write_probabilities(source.probabilities(folder), found, header, canonical=canonical)
        write_labels(source.labels(folder), labels, header, canonical=canonical)
    except OSError as error:
        raise UserError(f"--out: cannot write in {folder}: {error.strerror or error}") from None
