"""What `mlflow.pyfunc.load_model` makes of a trained network: arrays in, label maps out."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.errors import UserError
from pipelines.prediction.model import Model, load_model
from pipelines.prediction.windows import label_map


def label_type(model: Model) -> np.dtype[Any]:
    """The smallest type that holds the labels' values."""
    return np.min_scalar_type(max(model.classes))


class Predictor:
    """A trained network, as MLflow calls it.

    Args:
        model: which predicts.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    @torch.inference_mode()
    def predict(self, image: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """The label map of an image, as `medloss predict` makes it: on the image's own grid, in the manifest's values.

        Args:
            image: intensities `[*spatial]`, float32, in the order of the file's axes.
            params: `spacing`, mm an axis, of the image (by default that of the network's grid, which is right for an
                image that lies on it); `flips`, to average over mirrored images (False).

        Raises:
            UserError: not such an array, intensities that are not finite, a spacing that is none, or a network that
                makes NaN or Inf of it.
        """
        image = np.asarray(image, np.float32)
        processed = self.model.preprocessing
        asked = params or {}
        spacing = np.ravel(asked.get("spacing", processed.spacing or (1.0,) * processed.dimensions))
        if image.ndim != processed.dimensions or not image.size:
            raise UserError(f"image: got shape {image.shape}; expected {processed.dimensions} axes")
        if not np.isfinite(image).all():
            raise UserError("image: NaN or Inf in it; expected finite intensities")
        if spacing.shape != (processed.dimensions,) or not (np.isfinite(spacing).all() and spacing.min() > 0):
            raise UserError(f"spacing: got {spacing.tolist()}; expected {processed.dimensions} numbers above 0, in mm")
        prepared = processed.image(torch.from_numpy(np.ascontiguousarray(image))[None], spacing.tolist())
        logits = self.model.logits(prepared, flips=bool(asked.get("flips", False)))
        if not logits.sum().isfinite():
            raise UserError("image: the network makes NaN or Inf of it")
        labels = np.array(list(self.model.classes), label_type(self.model))
        return labels[label_map(logits, image.shape).cpu().numpy()]


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's way in: the model of a file, on the GPU if there is one."""
    return Predictor(load_model(Path(path), torch.device("cuda" if torch.cuda.is_available() else "cpu")))
