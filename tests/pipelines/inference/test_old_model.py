"""A model from before images were brought to one orientation predicts along the files' axes, as it was trained."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from old_model import FOLDER

from pipelines.inference.predict import Predictor, Settings, predict
from pipelines.inference.sources import Source
from pipelines.training.saved_model import Model, label_map, load_model


def _predicted(model: Model, image: Path, folder: Path) -> np.ndarray:
    assert predict(model, [Source(image, "a")], folder, Settings()) == []
    written = nib.load(folder / "a.nii.gz")
    assert np.array_equal(written.affine, nib.load(image).affine)
    return np.asanyarray(written.dataobj)


def test_an_old_model_predicts_what_it_did(tmp_path: Path) -> None:
    model = load_model(FOLDER / "model.pt", torch.device("cpu"))
    assert (model.config.orientation, model.preprocessing.orientation) == ("file", "file")
    assert (model.channels, model.in_channels, model.scheme.sigmoid) == ((), 1, False)
    labels = _predicted(model, FOLDER / "image.nii.gz", tmp_path / "old")
    before = np.asanyarray(nib.load(FOLDER / "prediction.nii.gz").dataobj)
    assert len(np.unique(before)) > 1
    assert (labels == before).mean() > 0.999  # ties of logits may fall otherwise on another processor
    turned = replace(model, preprocessing=model.preprocessing.model_copy(update={"orientation": "canonical"}))
    assert (_predicted(turned, FOLDER / "image.nii.gz", tmp_path / "new") == before).mean() < 0.99


def test_an_old_model_takes_each_files_axes_as_they_are(tmp_path: Path) -> None:
    model = load_model(FOLDER / "model.pt", torch.device("cpu"))
    image = nib.load(FOLDER / "image.nii.gz").as_reoriented(np.array([[2, -1], [0, 1], [1, -1]], float))
    nib.save(image, tmp_path / "image.nii.gz")
    labels = _predicted(model, tmp_path / "image.nii.gz", tmp_path)
    array = torch.from_numpy(np.ascontiguousarray(image.dataobj, np.float32))[None]
    logits = model.logits(model.preprocessing.image(array, image.header.get_zooms()))
    expected = np.array(model.scheme.values)[label_map(logits, array.shape[1:]).numpy()]
    assert np.array_equal(labels, expected)
    for axes in ("RAS", "LPS"):
        given = {"spacing": image.header.get_zooms(), "axes": axes}
        assert np.array_equal(Predictor(model).predict(array[0].numpy(), given), expected)
