"""References: the labels that predictions are evaluated against, and their matching by name."""

import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.data.checks import Offence, count_values, label_problem
from pipelines.data.data_root import located_cases
from pipelines.data.grids import Volume, grid_problem
from pipelines.data.label_scheme import LabelScheme
from pipelines.data.layouts import is_label_name, nifti_files, pair_predictions, stem, without_probabilities
from pipelines.data.manifest import Case, Manifest
from pipelines.data.nifti import WRONG_CHECKSUM, BadFileError, digits, read_labels, read_spacing
from pipelines.evaluation.metrics.base import (
    DEFAULT_SETTINGS,
    NSD_TOLERANCE_MM,
    LesionRule,
    MetricSettings,
    refuse_unknown_metrics,
    with_default,
)
from pipelines.utils import UserError
from pipelines.utils.files import NamedFile
from pipelines.utils.text import Bar, abbreviated, no_bar, shown

#: More values than any atlas has; files with more are images.
MAX_VALUES = 1000
#: Why a file cannot be paired by its name.
AMBIGUOUS = "another file has the same name except for suffixes; expected one"


@dataclass(frozen=True)
class Reference(NamedFile):
    """One label, with the name of its case, and in a manifest its image's file and the classes that it annotates."""

    image: str | None = None
    labelled: tuple[str, ...] | None = None


@dataclass(frozen=True)
class References:
    """The labels of a folder or of a manifest, one per case.

    Attributes:
        scheme: the classes, or regions, and the ignored label.
        dimensions: accepted numbers of axes of the files.
        settings: what is computed unless options say otherwise.
    """

    labels: list[Reference]
    scheme: LabelScheme
    dimensions: frozenset[int] = frozenset({2, 3})
    settings: MetricSettings = DEFAULT_SETTINGS


def folder_references(folder: Path, bar: Bar = no_bar) -> References:
    """The labels in a folder (see `label_files`); the classes are all their values above 0.

    Raises:
        UserError: the folder does not exist, or has no labels, only background, or images.
    """
    files = label_files(folder)
    values = label_values(files, folder, bar)
    if len(values) > MAX_VALUES:
        raise UserError(
            f"--labels: the files of {shown(folder)} hold {len(values)} values above 0; expected labels, not images"
        )
    scheme = LabelScheme(classes={0: "background"} | {value: str(value) for value in values})
    settings = MetricSettings(nsd_tolerance_mm=files_tolerance(files))
    return References([Reference(file, stem(file.name)) for file in files], scheme, settings=settings)


def default_tolerance(*voxel_sides: float) -> float:
    """The tolerance of the NSD if none is named: 1 mm or the largest voxel side (mm), whichever is more.

    Distances are between voxel centres: with a tolerance below a voxel's side, a surface that is off by a single voxel
    along that axis counts as wrong. The difference between raters is a better choice.
    """
    return max(NSD_TOLERANCE_MM, *voxel_sides)


def files_tolerance(files: Iterable[Path]) -> float:
    """The default tolerance of the NSD for label maps, mm: of the median of their largest voxel sides.

    Bad files are left to the evaluation.
    """

    def side(file: Path) -> float | None:
        try:
            return max(read_spacing(file))
        except BadFileError:
            return None

    with LoggingOutputSuppressor(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        sides = [found for found in pool.map(side, files) if found is not None]
    return default_tolerance(statistics.median(sides)) if sides else NSD_TOLERANCE_MM


def manifest_settings(manifest: Manifest) -> MetricSettings:
    """The metrics of a manifest: the default ones and those that it names, with its tolerance and its lesions.

    Raises:
        UserError: it names a metric that does not exist or that needs a package that is not installed.
    """
    primary = () if manifest.primary_metric is None else (manifest.primary_metric,)
    refuse_unknown_metrics(manifest.metrics, f"manifest '{manifest.name}': metrics")
    refuse_unknown_metrics(primary, f"manifest '{manifest.name}': primary_metric")
    tolerance = manifest.nsd_tolerance
    return MetricSettings(
        names=with_default((*manifest.metrics, *primary)),
        nsd_tolerance_mm=default_tolerance(*manifest.spacing) if tolerance is None else tolerance,
        lesions=LesionRule(manifest.lesions.connectivity, manifest.lesions.overlap),
    )


def label_files(folder: Path, *, among_images: bool = True) -> list[Path]:
    """The label maps in a folder; `among_images`, if some are named as labels (`a_seg.nii.gz`), the others are images.

    Raises:
        UserError: the folder does not exist or is empty.
    """
    if not folder.is_dir():
        raise UserError(f"--labels: {shown(folder)}: no such folder")
    names = nifti_files(folder)
    if not names:
        raise UserError(f"--labels: {shown(folder)} holds no NIfTI file (.nii or .nii.gz)")
    labels = [name for name in names if is_label_name(name)] if among_images else []
    return [folder / name for name in labels or names]


def label_values(files: Sequence[Path], folder: Path, bar: Bar = no_bar) -> list[int]:
    """The values above 0 in the label maps of a folder, in ascending order; bad files are left to the evaluation.

    Raises:
        UserError: there are none.
    """

    def of_file(file: Path) -> Iterable[int]:
        try:
            data = read_labels(file).data
        except BadFileError:
            return ()
        return () if label_problem(data) is not None else count_values(data)

    found: set[int] = set()
    with (
        LoggingOutputSuppressor(),
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        bar("looking for labels", len(files)) as step,
    ):
        for values in pool.map(of_file, files):
            found.update(value for value in values if value > 0)
            step(1)
    if not found:
        raise UserError(
            f"--labels: the files of {shown(folder)} have no values above 0, or not only whole numbers, or cannot be "
            "read; expected label maps"
        )
    return sorted(found)


def manifest_references(name: str, data_root: Path | None, fold: int | None = None) -> References:
    """The labels of a manifest, or of one of its folds, with the manifest's classes.

    Raises:
        UserError: no such manifest, fold or data; or the root has none of the labels.
    """
    return case_references(*located_cases(name, data_root, fold, "label"))


def case_references(manifest: Manifest, cases: Iterable[Case], root: Path) -> References:
    """The labels of a manifest's cases, with the manifest's classes."""
    return References(
        [Reference(root / case.label, case.id, case.label_sha256, case.images[0], case.labelled) for case in cases],
        manifest.scheme,
        frozenset({manifest.dimensions}),
        manifest_settings(manifest),
    )


@dataclass(frozen=True)
class Matched:
    """Labels with the names of their predictions; predictions without a label; labels without a prediction."""

    pairs: list[tuple[Reference, str]]
    unlabelled: list[str]
    unpredicted: list[Reference]


def match(references: References, predictions: Path) -> Matched:
    """Find each label's prediction by the name of the case, the label or the image.

    Raises:
        UserError: the folder does not exist, no file in it belongs to a label, or a label has two predictions.
    """
    if not predictions.is_dir():
        raise UserError(f"{predictions}: no such folder; expected one of predictions")
    files = without_probabilities(nifti_files(predictions))
    if not files:
        raise UserError(f"{predictions} holds no NIfTI file (.nii or .nii.gz)")
    by_case = any(label.image is not None for label in references.labels)
    found = (_by_case if by_case else _by_name)(references.labels, predictions, files)
    if not found:
        raise UserError(
            f"{predictions}: no file is named like a label: {shown(files[0])}, for example; expected "
            f"{references.labels[0].name}.nii.gz"
        )
    return Matched(
        [(label, found[label.path]) for label in references.labels if label.path in found],
        sorted(set(files) - set(found.values())),
        [label for label in references.labels if label.path not in found],
    )


def _by_case(labels: list[Reference], predictions: Path, files: list[str]) -> dict[Path, str]:
    """Label to prediction for a manifest: predictions are named like the case, else like its label or its image."""
    levels: list[dict[str, list[Reference]]] = [defaultdict(list), defaultdict(list), defaultdict(list)]
    for label in labels:
        for level, name in zip(levels, (label.name, stem(label.path.name), stem(label.image or "")), strict=True):
            level[name].append(label)
    found: dict[Path, str] = {}
    for file in files:
        named = next((level[stem(file)] for level in levels if stem(file) in level), [])
        if len(named) > 1:
            cases = f"{named[0].name} and {named[1].name}"
            raise UserError(f"{shown(predictions / file)} may be of the cases {cases}; expected {named[0].name}.nii.gz")
        for label in named:
            if label.path in found:
                both = f"{shown(found[label.path])} and {shown(file)}"
                raise UserError(f"{predictions}: {both} are both named as predictions of {label.name}; expected one")
            found[label.path] = file
    return found


def _by_name(labels: list[Reference], predictions: Path, files: list[str]) -> dict[Path, str]:
    """Label to prediction for a folder: a prediction is named as an image with that label would be."""
    paths = {label.path.name: label.path for label in labels}
    found, duplicates, duplicate_labels = pair_predictions(files, list(paths))
    for file in (*(predictions / name for name in duplicates), *(paths[name] for name in duplicate_labels)):
        raise UserError(f"{shown(file)}: {AMBIGUOUS}")
    return {paths[label]: prediction for label, prediction in found.items()}


def read_pair(
    reference: NamedFile,
    prediction: NamedFile,
    values: Sequence[int],
    *,
    ignore: int | None = None,
    dimensions: Iterable[int] = (2, 3),
    changed: str = WRONG_CHECKSUM,
) -> tuple[list[tuple[Volume, NDArray[np.integer]]], list[Offence]]:
    """A reference and its prediction, with their labels as indices of values; and why they cannot be compared.

    Args:
        reference: a label map.
        prediction: a label map.
        values: the values that both may have.
        ignore: a further value that the reference may have; its index is the last.
        dimensions: accepted numbers of axes.
        changed: the problem of a file whose SHA-256 is not the expected one.
    """
    maps, offences = [], []
    for file, known in ((reference, [*values, *([] if ignore is None else [ignore])]), (prediction, values)):
        try:
            volume = read_labels(file.path, dimensions)
            if file.sha256 not in (None, volume.sha256):
                raise BadFileError(changed)
            maps.append((volume, label_channels(volume.data, known)))
        except BadFileError as error:
            offences.append(Offence(str(file.path), str(error)))
    if len(maps) == 2 and (problem := grid_problem(maps[1][0], maps[0][0], "label")) is not None:
        offences.append(Offence(str(prediction.path), problem))
    return maps, offences


def label_channels(data: NDArray[Any], values: Sequence[int]) -> NDArray[np.integer]:
    """Labels 0..C-1, `[*spatial]`: the index of each voxel's value in `values`, of labels from `read_labels`.

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
        unknown = (f"{digits(value)} ({count} voxels)" for value, count in zip(found, counts, strict=True))
        raise BadFileError(
            f"label values without a class: {abbreviated(unknown)}; the classes are {abbreviated(values, 20)}"
        )
    return channels
