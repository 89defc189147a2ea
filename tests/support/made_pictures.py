"""A comparison's folder with predictions that can be drawn: made by hand of the labels, and measured; no training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import Case, Manifest, load_manifest
from pipelines.data.nifti import read_labels, write_labels
from pipelines.evaluation.evaluate import nanmean, region_metrics
from pipelines.evaluation.metrics.base import default_metrics
from pipelines.evaluation.references import label_channels
from pipelines.runs.comparison_folder import adopt_plan, run_folder
from pipelines.runs.plan import Plan, PlannedRun, make_plan
from pipelines.training.run_config import RunConfig


def pictured_comparison(
    folder: Path,
    losses: list[str],
    manifest: str | Path,
    data: Path | None,
    ended: Callable[[RunConfig], str | None] = lambda config: "done",
    *,
    folds: tuple[int, ...] = (0,),
    seeds: tuple[int, ...] = (0,),
    at_most: int = 1000,
) -> Plan:
    """Write a comparison; returns its plan.

    Args:
        folder: the comparison's.
        losses: each with predictions a little worse than the one before.
        manifest: name or path.
        data: the data root.
        ended: how a run ended: `done`, `failed`, or None for one that has not.
        folds: that validate.
        seeds: of the trainings.
        at_most: cases a fold.
    """
    loaded = load_manifest(manifest)
    configs = [
        RunConfig(manifest=str(manifest), loss=loss, epochs=3, data_root=None if data is None else str(data))
        for loss in losses
    ]
    folder.mkdir(parents=True, exist_ok=True)
    plan = adopt_plan(folder, make_plan(configs, list(folds), list(seeds), loaded.name, loaded.sha256))
    root = resolve_data(loaded, data)
    for run in plan.runs:
        state = ended(run.config)
        if state is not None:
            _end(folder, run, state, losses.index(run.config.loss), loaded, root, at_most)
    return plan


def perturbed(labels: NDArray[Any], place: int, random: np.random.Generator) -> NDArray[Any]:
    """Labels of which whole planes are shifted, the more the larger `place` is."""
    made = labels.copy()
    for _ in range(1 + place):
        axis = int(random.integers(labels.ndim))
        at = int(random.integers(labels.shape[axis]))
        index = (*(slice(None),) * axis, slice(at, at + labels.shape[axis] // 4))
        made[index] = np.roll(made[index], int(random.integers(1, 4)), (axis + 1) % labels.ndim)
    return made


def _end(folder: Path, run: PlannedRun, state: str, place: int, manifest: Manifest, root: Path, at_most: int) -> None:
    own, config = run_folder(folder, run), run.config
    own.begin(config)
    own.write_epochs(
        [
            {"epoch": epoch, "train_loss": 1 / epoch, "val_dice": 0.5 + 0.1 * epoch - 0.02 * place, "epoch_s": 2.0}
            for epoch in (1, 2, 3)
        ]
    )
    if state == "failed":
        own.write_result({"state": "failed", "error": "the loss is nan in epoch 3, case <c1>"})
        return
    random = np.random.default_rng([config.fold, config.seed, place])
    rows = []
    for case in manifest.split(config.fold)[1][:at_most]:
        rows += _predict(own.prediction(case.id), case, manifest, root, place, random)
    own.write_cases(rows)
    own.write_result(
        {
            "state": "done",
            "error": None,
            "metrics": {name: nanmean([row[name] for row in rows]) for name in default_metrics()},
            "seconds": 9.0,
            "epoch_s": 2.0 + place,
            "peak_mb": 300.0 + place,
            "precision": "float32",
            "versions": {"python": "3.11.2", "torch": "2.13.0", "medloss commit": "c0ffee"},
            "machine": {"processor": "Abacus", "cores": "2", "memory": "8 GiB", "system": "Linux"},
        }
    )


def _predict(
    path: Path, case: Case, manifest: Manifest, root: Path, place: int, random: np.random.Generator
) -> list[dict[str, Any]]:
    scheme = manifest.scheme
    reference = read_labels(root / case.label).as_stored()
    known = [*scheme.values, *([] if scheme.ignore is None else [scheme.ignore])]
    prediction = perturbed(np.where(np.isin(reference.data, scheme.values), reference.data, 0), place, random)
    write_labels(path, prediction, nib.load(root / case.label).header, canonical=False)
    maps = label_channels(prediction, scheme.values), label_channels(reference.data, known)
    ignored = None if scheme.ignore is None else len(scheme.values)
    measured = region_metrics(*maps, scheme.members, reference.spacing, ignored=ignored)
    return [
        {"case": case.id, "patient": case.patient, "class": name, **metrics}
        for name, metrics, counts in zip(scheme.names, measured, scheme.annotated(case.labelled), strict=True)
        if counts
    ]
