"""Finished predictions, made for tests: folders of label maps, and nnU-Net's results laid out as nnU-Net does."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SHAPE, SPACING = (12, 14, 10), (3.0, 1.0, 2.0)
CASES = ("a", "b", "c", "d")
LABELS: dict[str, Any] = {"background": 0, "organ": 1, "core": 2}

Labels = NDArray[np.uint8]


def label_map(seed: int) -> Labels:
    """An organ, 1, with a core, 2; a place and sizes of its own for each seed."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    low = rng.integers(1, 4, 3)
    high = low + rng.integers(4, 7, 3)
    labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 1
    labels[tuple(slice(a + 1, b - 2) for a, b in zip(low, high, strict=True))] = 2
    return labels


def moved(labels: Labels, steps: int) -> Labels:
    """The same, so many voxels further along the first axis: worse with each."""
    return np.roll(labels, steps, 0)


def write_map(path: Path, labels: NDArray[Any], spacing: tuple[float, ...] = SPACING) -> Path:
    """Write a label map as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.diag([*spacing, 1.0])), path)
    return path


def made_folders(root: Path, cases: tuple[str, ...] = CASES) -> Path:
    """`labels/`, and predictions `near/` and `far/`, moved by one voxel and by two."""
    for seed, case in enumerate(cases):
        for name, steps in (("labels", 0), ("near", 1), ("far", 2)):
            write_map(root / name / f"{case}.nii.gz", moved(label_map(seed), steps))
    return root


def nnunet_dice(prediction: Labels, reference: Labels, values: tuple[int, ...], ignore: int | None) -> float:
    """Dice as nnU-Net's `compute_metrics` has it: of the union of labels, voxels of the ignore label not counted."""
    masks = [np.isin(labels, values) & (reference != (-1 if ignore is None else ignore)) for labels in
             (prediction, reference)]  # fmt: skip
    total = int(masks[0].sum() + masks[1].sum())
    return 2 * int((masks[0] & masks[1]).sum()) / total if total else float("nan")


def nnunet_trainer(
    root: Path,
    trainer: str,
    steps: int,
    *,
    folds: tuple[tuple[str, ...], ...] = (("a", "b"), ("c", "d")),
    labels: dict[str, Any] | None = None,
    references: dict[str, Labels] | None = None,
    predictions: dict[str, Labels] | None = None,
) -> Path:
    """Write a trainer's results and the data set's references below `root`, as nnU-Net 2 does.

    Args:
        root: gets `nnUNet_results` and `nnUNet_preprocessed`.
        trainer: the trainer's class.
        steps: by how much its predictions are moved.
        folds: each one's cases.
        labels: of `dataset.json`.
        references: case -> labels.
        predictions: case -> labels; others are moved references.

    Returns:
        The trainer's folder.
    """
    dataset = "Dataset007_Made"
    labels = LABELS if labels is None else labels
    regions = any(isinstance(values, list) and len(values) > 1 for values in labels.values())
    references = {case: label_map(seed) for seed, case in enumerate(CASES)} | (references or {})
    predictions = {case: moved(own, steps) for case, own in references.items()} | (predictions or {})
    truth = root / "nnUNet_preprocessed" / dataset / "gt_segmentations"
    for case in (case for own in folds for case in own):
        write_map(truth / f"{case}.nii.gz", references[case])
    folder = root / "nnUNet_results" / dataset / f"{trainer}__nnUNetPlans__3d_fullres"
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "channel_names": {"0": "MRI"},
        "labels": labels,
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    if regions:
        content["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "plans.json").write_text(json.dumps({"dataset_name": dataset, "plans_name": "nnUNetPlans"}))
    ignore = labels.get("ignore")
    measured = {name: tuple(np.atleast_1d(values).tolist()) for name, values in labels.items()
                if name not in ("background", "ignore")}  # fmt: skip
    for fold, cases in enumerate(folds):
        validation = folder / f"fold_{fold}" / "validation"
        rows = []
        for case in cases:
            path = write_map(validation / f"{case}.nii.gz", predictions[case])
            metrics = {
                str(values if len(values) > 1 else values[0]): {
                    "Dice": nnunet_dice(predictions[case], references[case], values, ignore)
                }
                for values in measured.values()
            }
            rows.append({"prediction_file": str(path), "reference_file": str(truth / path.name), "metrics": metrics})
        (validation / "summary.json").write_text(json.dumps({"metric_per_case": rows, "mean": {}}))
    return folder
