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
from torch import Tensor

from pipelines.data.checks import Offence
from pipelines.data.nifti import WRONG_CHECKSUM, BadFileError, Volume, by, read_file, write_labels, write_probabilities
from pipelines.inference.sources import Source
from pipelines.preprocessing.resampling import resampled
from pipelines.training.saved_model import WINDOWS, Model, label_map, load_model
from pipelines.utils import UserError
from pipelines.utils.machine import is_out_of_memory

# MLflow.


def label_type(model: Model) -> np.dtype[Any]:
    """The smallest type for the label values."""
    return np.min_scalar_type(max(model.classes))


class Predictor:
    """A trained network as `mlflow.pyfunc.load_model` returns it: arrays in, label maps out."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @torch.inference_mode()
    def predict(self, image: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """The label map of an image as `medloss predict` writes it: on the image's grid, with the manifest's values.

        Args:
            image: intensities `[*spatial]`, float32, in the order of the file's axes.
            params: `spacing`, mm per axis, of the image (default: that of the network's grid, right for images on that
                grid); `flips`, whether to average over flipped images (default: False).

        Raises:
            UserError: the array has another number of axes or non-finite intensities, the spacing is invalid, or the
                network returns NaN or Inf.
        """
        image = np.asarray(image, np.float32)
        preprocessing = self.model.preprocessing
        params = params or {}
        spacing = np.ravel(params.get("spacing", preprocessing.spacing or (1.0,) * preprocessing.dimensions))
        if image.ndim != preprocessing.dimensions or not image.size:
            raise UserError(f"image: got shape {image.shape}; expected {preprocessing.dimensions} axes")
        if not np.isfinite(image).all():
            raise UserError("image: got NaN or Inf; expected finite intensities")
        if spacing.shape != (preprocessing.dimensions,) or not (np.isfinite(spacing).all() and spacing.min() > 0):
            expected = f"{preprocessing.dimensions} numbers above 0, in mm"
            raise UserError(f"spacing: got {spacing.tolist()}; expected {expected}")
        prepared = preprocessing.image(torch.from_numpy(np.ascontiguousarray(image))[None], spacing.tolist())
        logits = self.model.logits(prepared, flips=bool(params.get("flips", False)))
        if not logits.sum().isfinite():
            raise UserError("image: the network returned NaN or Inf")
        labels = np.array(list(self.model.classes), label_type(self.model))
        return labels[label_map(logits, image.shape).cpu().numpy()]


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point: the model in a file, on the GPU if there is one."""
    return Predictor(load_model(Path(path), torch.device("cuda" if torch.cuda.is_available() else "cpu")))


# Images in files.


@dataclass(frozen=True)
class Settings:
    """How images are predicted.

    Attributes:
        probabilities: whether to write probabilities as well.
        flips: whether to average over images flipped along the axes that training flipped.
        windows: number of windows that the network gets at once.
    """

    probabilities: bool = False
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
        volume = read_file(source.path, {model.preprocessing.dimensions})
        if source.sha256 not in (None, volume.sha256):
            raise BadFileError(WRONG_CHECKSUM)
        grid = by(model.preprocessing.shape(volume.data.shape, volume.spacing))
        _predict(model, volume, source, folder, settings)
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


@torch.inference_mode()
def _predict(model: Model, volume: Volume, source: Source, folder: Path, settings: Settings) -> None:
    shape = volume.data.shape
    logits = model.logits(
        model.preprocessing.image(_intensities(volume), volume.spacing), flips=settings.flips, windows=settings.windows
    )
    if not logits.sum().isfinite():
        raise BadFileError("the network returned NaN or Inf; try --precision float32")
    if settings.probabilities:
        logits = resampled(logits, shape)
    labels = np.array(list(model.classes))[label_map(logits, shape).cpu().numpy()]
    header = nib.load(source.path).header
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if settings.probabilities:
            write_probabilities(source.probabilities(folder), _softmax(logits).cpu().numpy(), header)
        write_labels(source.labels(folder), labels, header)
    except OSError as error:
        raise UserError(f"--out: cannot write in {folder}: {error.strerror or error}") from None


def _intensities(volume: Volume) -> Tensor:
    """Intensities `[1, *spatial]`, float32, as in training; BadFileError if some are not finite."""
    with np.errstate(over="ignore"):
        intensities = np.ascontiguousarray(volume.data, np.float32)
    if bad := int(intensities.size - np.isfinite(intensities).sum()):
        raise BadFileError(f"NaN, Inf, or too large for float32, in {bad} voxel{'s' if bad > 1 else ''}")
    return torch.from_numpy(intensities)[None]


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities, computed in place."""
    logits.sub_(logits.amax(0, keepdim=True)).exp_()
    return logits.div_(logits.sum(0, keepdim=True))
