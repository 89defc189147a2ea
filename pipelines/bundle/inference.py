"""The parts that the bundle's `configs/inference.yaml` names: reading images, models, and writing label maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils import CommonKeys

from pipelines.data.manifest import load_manifest
from pipelines.data.nifti import BadFileError, read_file, squeezed, write_labels
from pipelines.inference.sources import Source, image_sources, refuse_collisions
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.training.networks import create_network
from pipelines.training.run_config import RunConfig, recipe_settings
from pipelines.training.saved_model import Model, label_map, load_model
from pipelines.utils import UserError
from pipelines.utils.text import abbreviated

_FILE = "file"


def bundle_model(model_file: str | None, network_name: str, device: torch.device) -> Model:
    """The model of a file or of a finished run's folder.

    Without either it is an untrained one for the phantom, named `network_name`, for MONAI's commands that inspect a
    network.
    """
    if model_file is not None:
        return load_model(Path(model_file), device)
    manifest = load_manifest("phantom")
    given = recipe_settings("quick") | {"manifest": "phantom", "network": network_name}
    config = RunConfig.model_validate(given | {"patch_size": (16,) * manifest.dimensions})
    network = create_network(config, manifest.dimensions, manifest.num_classes)
    processed = Preprocessing(dimensions=manifest.dimensions)
    classes = {value: manifest.classes[value] for value in manifest.label_values}
    return Model(network.to(device).eval(), config, processed, classes, device)


def sources(dataset_dir: str | Sequence[str] | None) -> list[Source]:
    """The images in a folder, or in files and folders, without the labels next to them; none if none are named."""
    named = [dataset_dir] if isinstance(dataset_dir, str) else dataset_dir or []
    found, labels = image_sources([Path(str(path)) for path in named])
    if labels:
        click.echo(f"left out, labels by their names: {abbreviated(labels)}", err=True)
    return found


def before_prediction(model_file: str | None, images: list[Source], output_dir: str, overwrite: bool) -> None:
    """Raise a `UserError` before anything is written: no model, no image, or label maps that exist already."""
    if model_file is None:
        raise UserError("model_file: expected a finished run's folder, or its model.pt")
    if not images:
        raise UserError("dataset_dir: expected a folder of NIfTI files, or a list of files")
    refuse_collisions(images, Path(output_dir), probabilities=False)
    existing = [str(path) for image in images if (path := image.labels(Path(output_dir))).exists()]
    if existing and not overwrite:
        raise UserError(f"output_dir: there already: {', '.join(existing[:3])}; pass --overwrite True, or name another")


class ReadImage:
    """Reads a source as an input of the model's network: `{"image": [1, *grid], "file": path}`."""

    def __init__(self, model: Model) -> None:
        self.preprocessing = model.preprocessing

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Read `item["image"]`, a `Source`; a `UserError` if it cannot be read, or has values that are not finite."""
        source: Source = item[CommonKeys.IMAGE]
        try:
            volume = read_file(source.path, {self.preprocessing.dimensions})
        except BadFileError as error:
            raise UserError(f"{source.path}: {error}") from None
        with np.errstate(over="ignore"):
            intensities = torch.from_numpy(np.ascontiguousarray(volume.data, np.float32))[None]
        if not intensities.isfinite().all():
            raise UserError(f"{source.path}: NaN, Inf, or too large for float32")
        return {CommonKeys.IMAGE: self.preprocessing.image(intensities, volume.spacing), _FILE: str(source.path)}


class ToLabels:
    """Converts `pred`, logits `[C, *grid]`, to label values `[1, *spatial]` on the image's own grid."""

    def __init__(self, model: Model) -> None:
        self.values = torch.tensor(list(model.classes))

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Convert an item of the evaluator's batch."""
        logits = item[CommonKeys.PRED]
        if not logits.sum().isfinite():
            raise UserError(f"{item[_FILE]}: the network's output is NaN or Inf")
        shape = squeezed(nib.load(item[_FILE]).header.get_data_shape(), logits.ndim - 1)
        labels = label_map(logits, shape).cpu()
        return {**item, CommonKeys.PRED: self.values[labels.long()][None]}


class WriteLabels:
    """A handler that writes the label map of each of `sources`, with the image's geometry, and prints its path."""

    def __init__(self, images: list[Source], output_dir: str) -> None:
        self.images = {str(image.path): image for image in images}
        self.folder = Path(output_dir)

    def attach(self, engine: Engine) -> None:
        """Write after every iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write what the iteration predicted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for given, predicted in zip(engine.state.batch, engine.state.output, strict=True):
            image = self.images[given[_FILE]]
            path = image.labels(self.folder)
            write_labels(path, predicted[CommonKeys.PRED][0].numpy(), nib.load(image.path).header)
            click.echo(f"written to {path}")
