"""References: the labels that predictions are evaluated against, matched by name, read as channels per class."""

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
from pipelines.data.nifti import BadFileError, Volume, digits, read_labels
from pipelines.utils import UserError
from pipelines.utils.text import Bar, no_bar

# Label maps as numbers of classes; values that belong to no class are refused.


def label_channels(data: NDArray[Any], values: Sequence[int]) -> NDArray[np.integer]:
    """Labels 0..C-1, `[*spatial]`: where each voxel's value stands in `values`.

    Args:
        data: the labels, as `read_labels` gives them.
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
        told = [f"{digits(value)} ({count} voxels)" for value, count in zip(found, counts, strict=True)]
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        classes = ", ".join(map(str, values[:20])) + (f" and {len(values) - 20} more" if len(values) > 20 else "")
        raise BadFileError(f"label values without a class: {', '.join(told[:5])}{more}; the classes are {classes}")
    return channels


# The labels that predictions are measured against, and which prediction belongs to which.

#: More values than any atlas has: the files are images.
_MOST_VALUES = 1000
#: Why a file cannot be paired by its name.
DOUBLED = "its name, but for endings, is another file's, too; expected one"
#: Why a folder's files are no references.
NO_LABELS = "hold no whole numbers above 0 alone, or cannot be read; expected label maps"


@dataclass(frozen=True)
class Reference:
    """One label: its case, its file below the root, its SHA-256 where that is known, and what its image is called."""

    case: str
    file: str
    sha256: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class References:
    """The labels of a folder or of a manifest.

    Attributes:
        root: to which the files are relative.
        labels: one a case.
        classes: label value to name, foreground alone, values rising.
        dimensions: numbers of axes that the files may have.
    """

    root: Path
    labels: list[Reference]
    classes: dict[int, str]
    dimensions: frozenset[int] = frozenset({2, 3})

    def read(self, label: Reference) -> Volume:
        """Read one of the labels.

        Raises:
            BadFileError: it cannot be used, or is not the one whose SHA-256 was recorded.
        """
        volume = read_labels(self.root / label.file, self.dimensions)
        if label.sha256 not in (None, volume.sha256):
            raise BadFileError("its SHA-256 is not the recorded one: the file is damaged or another")
        return volume


@dataclass(frozen=True)
class Matched:
    """Labels with their predictions' names; predictions without a label; labels without a prediction."""

    pairs: list[tuple[Reference, str]]
    unlabelled: list[str]
    unpredicted: list[Reference]


def shown(path: str | Path) -> str:
    """A path as one line: a stranger's file name can hold line breaks, and what steers a terminal."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def listed(paths: list[Path]) -> str:
    """Some of many paths, in one line."""
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(map(shown, paths[:5])) + more


def folder_references(folder: Path, bar: Bar = no_bar) -> References:
    """The labels of a folder; its classes are all values above 0 that they hold.

    Where some of the folder's names end as labels' do (`a_seg.nii.gz`), the others are taken for images.

    Args:
        folder: theirs.
        bar: shows how far it is: each file is read.

    Raises:
        UserError: there is no such folder, it holds no labels, or nothing but background; or images.
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
            return set()  # told when it is measured, if it is
        return set() if label_problem(data) is not None else set(count_values(data))

    held: set[int] = set()
    with (
        LoggingOutputSuppressor(),
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        bar("looking for labels", len(files)) as step,
    ):
        for own in pool.map(values, files):
            held |= own
            step(1)
    found = sorted(value for value in held if value > 0)
    if not found:
        raise UserError(f"--labels: the files of {folder} {NO_LABELS}")
    if len(found) > _MOST_VALUES:
        raise UserError(f"--labels: the files of {folder} hold {len(found)} values above 0; expected labels, no images")
    return References(folder, [Reference(stem(file), file) for file in files], {value: str(value) for value in found})


def manifest_references(name: str, data_root: Path | None, fold: int | None = None) -> References:
    """The labels of a manifest, or of its fold `fold`; its classes are the manifest's.

    Raises:
        UserError: no such manifest, fold or data; or the root holds none of the labels.
    """
    manifest, cases, root = located_cases(name, data_root, fold, "label")
    return References(
        root,
        [Reference(case.id, case.label, case.label_sha256, case.image) for case in cases],
        {value: manifest.classes[value] for value in manifest.label_values if value != 0},
        frozenset({manifest.dimensions}),
    )


def match(references: References, predictions: Path) -> Matched:
    """Find each label's prediction by its name: the case's, the label's or the image's.

    Raises:
        UserError: there is no such folder, nothing in it belongs to a label, or a label has two predictions.
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
            f"{predictions}: no file is named as a label is: {shown(files[0])}, for example; expected {expected}"
        )
    return Matched(
        [(label, found[label.file]) for label in references.labels if label.file in found],
        sorted(set(files) - set(found.values())),
        [label for label in references.labels if label.file not in found],
    )


def _by_case(references: References, predictions: Path, files: list[str]) -> dict[str, str]:
    """Label to prediction, of a manifest's cases: called as the case is, or else as its label, or else as its image."""
    levels: list[dict[str, list[Reference]]] = [defaultdict(list), defaultdict(list), defaultdict(list)]
    for label in references.labels:
        for level, name in zip(levels, (label.case, stem(label.file), stem(label.image or label.file)), strict=True):
            level[name].append(label)
    found: dict[str, str] = {}
    for file in files:
        owners = next((level[stem(file)] for level in levels if stem(file) in level), [])
        if len(owners) > 1:
            cases = f"{owners[0].case} and {owners[1].case}"
            raise UserError(
                f"{shown(predictions / file)} may be of the cases {cases}; expected {owners[0].case}.nii.gz"
            )
        for owner in owners:
            if owner.file in found:
                both = f"{shown(found[owner.file])} and {shown(file)}"
                raise UserError(f"{predictions}: {both} are both named as predictions of {owner.case}; expected one")
            found[owner.file] = file
    return found


def _by_name(references: References, predictions: Path, files: list[str]) -> dict[str, str]:
    """Label to prediction, of a folder: a prediction is called as an image with that label would be."""
    found, doubled, doubled_labels = pair_predictions(files, [label.file for label in references.labels])
    for file in (*(predictions / name for name in doubled), *(references.root / name for name in doubled_labels)):
        raise UserError(f"{shown(file)}: {DOUBLED}")
    return found
