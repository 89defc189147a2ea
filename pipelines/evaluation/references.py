"""References: the labels that predictions are evaluated against, and their matching by name."""

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.data.checks import count_values, label_problem
from pipelines.data.data_root import located_cases
from pipelines.data.layouts import is_label_name, nifti_files, pair_predictions, stem
from pipelines.data.nifti import WRONG_CHECKSUM, BadFileError, Volume, digits, read_labels
from pipelines.utils import UserError
from pipelines.utils.text import Bar, no_bar, shown


def label_channels(data: NDArray[Any], values: Sequence[int]) -> NDArray[np.integer]:
    """Labels 0..C-1, `[*spatial]`: the index of each voxel's value in `values`.

    Args:
        data: the labels, from `read_labels`.
        values: the classes' values.

    Raises:
        BadFileError: there are other values.
    """
    channels: NDArray[np.integer] = np.zeros(data.shape, np.uint8 if len(values) <= 256 else np.int32)
    known = 0
    for channel, value in enumerate(values):
        mask = data == value
        known += int(np.count_nonzero(mask))
        np.putmask(channels, mask, channel)
    if known < data.size:
        found, counts = np.unique(data[~np.isin(data, values)], return_counts=True)
        unknown = [f"{digits(value)} ({count} voxels)" for value, count in zip(found, counts, strict=True)]
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        classes = ", ".join(map(str, values[:20])) + (f" and {len(values) - 20} more" if len(values) > 20 else "")
        raise BadFileError(f"label values without a class: {', '.join(unknown[:5])}{more}; the classes are {classes}")
    return channels


#: More values than any atlas has; files with more are images.
MAX_VALUES = 1000
#: Why a file cannot be paired by its name.
AMBIGUOUS = "another file has the same name except for suffixes; expected one"
#: Why the files in a folder are not references.
NO_LABELS = "have no values above 0, or not only whole numbers, or cannot be read; expected label maps"


@dataclass(frozen=True)
class Reference:
    """One label: its case, its file relative to the root, and, if known, its SHA-256 and its image's file."""

    case: str
    file: str
    sha256: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class References:
    """The labels of a folder or of a manifest.

    Attributes:
        root: the folder to which the files are relative.
        labels: one per case.
        classes: label value to name, foreground only, in ascending order.
        dimensions: accepted numbers of axes of the files.
    """

    root: Path
    labels: list[Reference]
    classes: dict[int, str]
    dimensions: frozenset[int] = frozenset({2, 3})

    def read(self, label: Reference) -> Volume:
        """Read one of the labels.

        Raises:
            BadFileError: it cannot be used, or its SHA-256 is not the recorded one.
        """
        volume = read_labels(self.root / label.file, self.dimensions)
        if label.sha256 not in (None, volume.sha256):
            raise BadFileError(WRONG_CHECKSUM)
        return volume


@dataclass(frozen=True)
class Matched:
    """Labels with the names of their predictions; predictions without a label; labels without a prediction."""

    pairs: list[tuple[Reference, str]]
    unlabelled: list[str]
    unpredicted: list[Reference]


def listed(paths: list[Path]) -> str:
    """The first of many paths, in one line."""
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(map(shown, paths[:5])) + more


def folder_references(folder: Path, bar: Bar = no_bar) -> References:
    """The labels in a folder; the classes are all their values above 0.

    If some of the files are named as labels (`a_seg.nii.gz`), the others are taken to be images.

    Args:
        folder: the folder.
        bar: progress bar, since each file is read.

    Raises:
        UserError: the folder does not exist, or has no labels, only background, or images.
    """
    if not folder.is_dir():
        raise UserError(f"--labels: {folder}: no such folder")
    files = nifti_files(folder)
    files = [file for file in files if is_label_name(file)] or files
    if not files:
        raise UserError(f"--labels: {folder} holds no NIfTI file (.nii or .nii.gz)")

    def values(file: str) -> set[int]:
        try:
            data = read_labels(folder / file).data
        except BadFileError:
            return set()  # reported when the file is evaluated
        return set() if label_problem(data) is not None else set(count_values(data))

    all_values: set[int] = set()
    with (
        LoggingOutputSuppressor(),
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        bar("looking for labels", len(files)) as step,
    ):
        for of_file in pool.map(values, files):
            all_values |= of_file
            step(1)
    found = sorted(value for value in all_values if value > 0)
    if not found:
        raise UserError(f"--labels: the files of {folder} {NO_LABELS}")
    if len(found) > MAX_VALUES:
        raise UserError(
            f"--labels: the files of {folder} hold {len(found)} values above 0; expected labels, not images"
        )
    return References(folder, [Reference(stem(file), file) for file in files], {value: str(value) for value in found})


def manifest_references(name: str, data_root: Path | None, fold: int | None = None) -> References:
    """The labels of a manifest, or of one of its folds, with the manifest's classes.

    Raises:
        UserError: no such manifest, fold or data; or the root has none of the labels.
    """
    manifest, cases, root = located_cases(name, data_root, fold, "label")
    return References(
        root,
        [Reference(case.id, case.label, case.label_sha256, case.image) for case in cases],
        {value: manifest.classes[value] for value in manifest.label_values if value != 0},
        frozenset({manifest.dimensions}),
    )


def match(references: References, predictions: Path) -> Matched:
    """Find each label's prediction by the name of the case, the label or the image.

    Raises:
        UserError: the folder does not exist, no file in it belongs to a label, or a label has two predictions.
    """
    if not predictions.is_dir():
        raise UserError(f"{predictions}: no such folder; expected one of predictions")
    files = nifti_files(predictions)
    if not files:
        raise UserError(f"{predictions} holds no NIfTI file (.nii or .nii.gz)")
    by_case = any(label.image is not None for label in references.labels)
    found = _by_case(references, predictions, files) if by_case else _by_name(references, predictions, files)
    if not found:
        expected = f"{references.labels[0].case}.nii.gz"
        raise UserError(
            f"{predictions}: no file is named like a label: {shown(files[0])}, for example; expected {expected}"
        )
    return Matched(
        [(label, found[label.file]) for label in references.labels if label.file in found],
        sorted(set(files) - set(found.values())),
        [label for label in references.labels if label.file not in found],
    )


def _by_case(references: References, predictions: Path, files: list[str]) -> dict[str, str]:
    """Label to prediction for a manifest: predictions are named like the case, else like its label or its image."""
    levels: list[dict[str, list[Reference]]] = [defaultdict(list), defaultdict(list), defaultdict(list)]
    for label in references.labels:
        for level, name in zip(levels, (label.case, stem(label.file), stem(label.image or label.file)), strict=True):
            level[name].append(label)
    found: dict[str, str] = {}
    for file in files:
        labels = next((level[stem(file)] for level in levels if stem(file) in level), [])
        if len(labels) > 1:
            cases = f"{labels[0].case} and {labels[1].case}"
            raise UserError(
                f"{shown(predictions / file)} may be of the cases {cases}; expected {labels[0].case}.nii.gz"
            )
        for label in labels:
            if label.file in found:
                both = f"{shown(found[label.file])} and {shown(file)}"
                raise UserError(f"{predictions}: {both} are both named as predictions of {label.case}; expected one")
            found[label.file] = file
    return found


def _by_name(references: References, predictions: Path, files: list[str]) -> dict[str, str]:
    """Label to prediction for a folder: a prediction is named as an image with that label would be."""
    found, duplicates, duplicate_labels = pair_predictions(files, [label.file for label in references.labels])
    for file in (*(predictions / name for name in duplicates), *(references.root / name for name in duplicate_labels)):
        raise UserError(f"{shown(file)}: {AMBIGUOUS}")
    return found
