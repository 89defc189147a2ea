"""Label maps, and probabilities, of images in files, by a trained network."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from nibabel.imageglobals import LoggingOutputSuppressor
from torch import Tensor

from pipelines.cases.preprocessing import resampled
from pipelines.dataset.case_reader import Offence
from pipelines.dataset.nifti import BadFileError, Volume, by, read_file
from pipelines.errors import UserError
from pipelines.machine import lacks_memory
from pipelines.prediction.files import write_labels, write_probabilities
from pipelines.prediction.model import Model
from pipelines.prediction.sources import Source
from pipelines.prediction.windows import WINDOWS, label_map


@dataclass(frozen=True)
class Settings:
    """How images are predicted.

    Attributes:
        probabilities: whether they are written, too.
        flips: average over mirrored images, along the axes that training flipped.
        windows: that the network sees at once.
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
    """Predict images, one at a time; each file is written whole or not at all, and one that is there is replaced.

    Args:
        model: which predicts.
        sources: the images.
        folder: where predictions are written; it is made if need be.
        settings: how.
        report: is told how many images are done, the last one, and how that went, in a word or two.

    Returns:
        The images that could not be predicted, with the reasons; all others are.

    Raises:
        UserError: the folder cannot be written to.
    """
    offences = []
    with LoggingOutputSuppressor():
        for done, source in enumerate(sources, start=1):
            start = time.perf_counter()
            reason = _reason(model, source, folder, settings)
            if reason is not None:
                offences.append(Offence(str(source.path), reason))
            if report is not None:
                report(done, source, "left out" if reason else f"{time.perf_counter() - start:.1f} s")
    return offences


def _reason(model: Model, source: Source, folder: Path, settings: Settings) -> str | None:
    """Predict an image; why it could not be, or None."""
    grid = ""
    try:
        volume = read_file(source.path, {model.preprocessing.dimensions})
        if source.sha256 not in (None, volume.sha256):
            raise BadFileError("its SHA-256 is not the recorded one: the file is damaged or another")
        grid = by(model.preprocessing.shape(volume.data.shape, volume.spacing))
        _predict(model, volume, source, folder, settings)
    except BadFileError as error:
        return str(error)
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        return f"out of memory, with {grid or 'all its'} voxels; {_advice(model, settings)}"
    return None


@torch.inference_mode()
def _predict(model: Model, volume: Volume, source: Source, folder: Path, settings: Settings) -> None:
    shape = volume.data.shape
    logits = model.logits(
        model.preprocessing.image(_intensities(volume), volume.spacing),
        flips=settings.flips,
        windows=settings.windows,
    )
    if not logits.sum().isfinite():
        raise BadFileError("the network makes NaN or Inf of it; try --precision float32")
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
    """`[1, *spatial]`, float32, as training reads it.

    Raises:
        BadFileError: some are not finite.
    """
    with np.errstate(over="ignore"):
        intensities = np.ascontiguousarray(volume.data, np.float32)
    if bad := int(intensities.size - np.isfinite(intensities).sum()):
        raise BadFileError(f"NaN, Inf, or too large for float32, in {bad} voxel{'s' if bad > 1 else ''}")
    return torch.from_numpy(intensities)[None]


def _softmax(logits: Tensor) -> Tensor:
    """Probabilities, in the logits' own memory."""
    logits.sub_(logits.amax(0, keepdim=True)).exp_()
    return logits.div_(logits.sum(0, keepdim=True))


def _advice(model: Model, settings: Settings) -> str:
    """What to lower."""
    advice = [
        f"lower --batch-size ({settings.windows} windows at once)" if settings.windows > 1 else "",
        "leave out --probabilities" if settings.probabilities else "",
        "pass --device cpu" if model.device.type == "cuda" else "",
    ]
    return ", or ".join(filter(None, advice)) or "crop it, or use a machine with more memory"
