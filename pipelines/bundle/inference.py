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

from pipelines.data.grids import Orientation
from pipelines.data.manifest import load_manifest
from pipelines.data.nifti import BadFileError, write_labels
from pipelines.inference.predict import read_source
from pipelines.inference.sources import Source, by_channel, image_sources, refuse_collisions
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.training.networks import create_network
from pipelines.training.run_config import RunConfig, recipe_settings
from pipelines.training.saved_model import Model, label_map, load_model
from pipelines.utils import UserError
from pipelines.utils.text import abbreviated

_FILE, _SHAPE = "file", "shape"


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
    network = create_network(config, manifest.dimensions, manifest.scheme.channels)
    processed = Preprocessing(dimensions=manifest.dimensions)
    return Model(network.to(device).eval(), config, processed, manifest.scheme, (), device)


def sources(dataset_dir: str | Sequence[str] | None, channels: Sequence[str] = ()) -> list[Source]:
    """The images in a folder, or in files and folders, without the labels next to them; none if none are named.

    The files of an image's `channels`, if there are several, are found by their names, as in `by_channel`.
    """
    named = [dataset_dir] if isinstance(dataset_dir, str) else dataset_dir or []
    found, labels = image_sources([Path(str(path)) for path in named])
    if labels:
        click.echo(f"left out, labels by their names: {abbreviated(labels)}", err=True)
    return by_channel(found, channels)


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
    """Reads a source as an input of the model's network: `{"image": [K, *grid], "file": path, "shape": ...}`."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Read `item["image"]`, a `Source`; a `UserError` if it cannot be read, or has values that are not finite."""
        source: Source = item[CommonKeys.IMAGE]
        try:
            volumes = read_source(self.model, source)
            intensities = self.model.preprocessing.intensities(volumes)
        except BadFileError as error:
            raise UserError(f"{source.path}: {error}") from None
        image = self.model.preprocessing.image(intensities, volumes[0].spacing)
        return {CommonKeys.IMAGE: image, _FILE: str(source.path), _SHAPE: torch.tensor(volumes[0].shape)}


class ToLabels:
    """Converts `pred`, logits `[C, *grid]`, to label values `[1, *spatial]` on the image's own grid and axes."""

    def __init__(self, model: Model) -> None:
        self.scheme, self.orientation = model.scheme, model.preprocessing.orientation
        self.values = torch.tensor(model.scheme.values)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Convert an item of the evaluator's batch."""
        logits = item[CommonKeys.PRED]
        if not logits.sum().isfinite():
            raise UserError(f"{item[_FILE]}: the network's output is NaN or Inf")
        labels = self.values[label_map(logits, item[_SHAPE].tolist(), self.scheme).cpu().long()]
        if self.orientation == "canonical":
            stored = Orientation.of(nib.load(item[_FILE]).affine, labels.ndim).stored(labels.numpy())
            labels = torch.from_numpy(np.ascontiguousarray(stored))
        return {**item, CommonKeys.PRED: labels[None]}


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
            write_labels(path, predicted[CommonKeys.PRED][0].numpy(), nib.load(image.path).header, canonical=False)
            click.echo(f"written to {path}")
