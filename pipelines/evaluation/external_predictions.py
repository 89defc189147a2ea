"""Predictions of other tools: their files are hashed and checked, and their classes and metrics determined."""

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pipelines.data import grids, nifti
from pipelines.data import probabilities as probability_files
from pipelines.data.checks import Offence
from pipelines.evaluation import calibration, evaluate, lesions, probabilities, references, surface_distances
from pipelines.evaluation.metrics import METRICS, base
from pipelines.evaluation.metrics.base import MetricSettings
from pipelines.evaluation.references import MAX_VALUES, label_values
from pipelines.evaluation.result_folders import Classes, summary_dice
from pipelines.evaluation.sources import Method, ReferenceFiles
from pipelines.utils import UserError
from pipelines.utils.files import NamedFile, sha256
from pipelines.utils.text import Bar, shown

#: Modules whose source affects the numbers, in addition to those of the metrics.
_METRIC_MODULES: tuple[ModuleType, ...] = (
    evaluate, base, lesions, surface_distances, references, nifti, grids, calibration, probabilities, probability_files
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A hashed prediction and its reference, evaluated as by `medloss evaluate`.

    The result has `measures`, for each class the metrics in the order of the settings, NaN if undefined; and `shift`,
    how far the prediction is off its reference, mm; with the prediction's `probabilities` also `calibration`, for each
    class `Calibration.to_list`.
    """

    prediction: NamedFile
    reference: NamedFile
    classes: Classes
    settings: MetricSettings
    probabilities: NamedFile | None = None

    @property
    def key(self) -> list[Any]:
        """Everything that the numbers depend on: files, classes (but not their names), settings, and code."""
        regions = [list(values) for values in self.classes.regions.values()]
        files = [self.prediction.sha256, self.reference.sha256]
        rule, names = self.settings.lesions, list(self.settings.metrics)
        settings = [self.settings.nsd_tolerance_mm, names, rule.connectivity, rule.overlap]
        if self.probabilities is not None:
            files.append(self.probabilities.sha256)
        return ["measures", metrics_code(), *files, regions, self.classes.ignore, *settings]

    @property
    def size(self) -> int:
        """Size of the files in bytes; 0 for one that no longer exists."""
        files = (self.prediction, self.reference, self.probabilities)
        return sum(file.path.stat().st_size for file in files if file is not None and file.path.exists())

    def run(self, check_only: bool) -> tuple[dict[str, Any] | None, list[Offence]]:
        """The metrics and the shift, or why the files cannot be evaluated."""
        values, ignore = self.classes.values, self.classes.ignore
        changed = "has changed during the run; run the command again"
        maps, offences = references.read_pair(self.reference, self.prediction, values, ignore=ignore, changed=changed)
        if offences or check_only:
            return None, offences
        (reference, truth), (prediction, predicted) = maps
        ignored = None if ignore is None else len(values)
        try:
            regions = [tuple(map(values.index, labels)) for labels in self.classes.regions.values()]
            given = None
            if self.probabilities is not None:
                path = self.probabilities.path
                given = probabilities.case_probabilities(path, prediction, predicted, values, regions)
            found = list(
                evaluate.region_masks(
                    predicted, truth, regions, reference.spacing, ignored=ignored, settings=self.settings,
                    probabilities=given,
                )
            )  # fmt: skip
            measures = [list(evaluate.computed(masks, self.settings).values()) for masks in found]
        except nifti.BadFileError as error:
            return None, [Offence(str(path), str(error))]
        except MemoryError:
            return None, [Offence(str(self.prediction.path), "cannot be evaluated: out of memory")]
        result: dict[str, Any] = {"measures": measures, "shift": grids.grid_shift(prediction, reference)}
        if given is not None:
            result["calibration"] = [
                calibration.NOTHING if masks.calibration is None else masks.calibration.to_list() for masks in found
            ]
        return result, []


def metrics_code() -> str:
    """Hash of the metrics' code: cached numbers of other code are not used."""
    return _metrics_code(tuple(METRICS))


@cache
def _metrics_code(names: tuple[str, ...]) -> str:
    modules = dict.fromkeys(sys.modules[metric.compute.__module__] for metric in METRICS.values())
    sources = [*map(inspect.getsource, (*_METRIC_MODULES, *modules)), inspect.getsource(Pair)]
    return hashlib.sha256("".join([*sources, *names]).encode()).hexdigest()


def hash_files(files: Sequence[Path], progress: Callable[[int], object]) -> tuple[dict[Path, str], list[Offence]]:
    """The files' SHA-256, several files at a time; and the files that cannot be read.

    `progress` is called with the number of files done since the last call.
    """
    hashed, offences = {}, []
    # Threads suffice, since reading and hashing release the GIL.
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for file, (digest, problem) in zip(files, pool.map(_hash, files), strict=True):
            if problem is None:
                hashed[file] = digest
            else:
                offences.append(Offence(str(file), problem))
            progress(1)
    return hashed, offences


def _hash(file: Path) -> tuple[str, str | None]:
    if (problem := nifti.file_problem(file)) is not None:
        return "", problem
    try:
        return sha256(file), None
    except OSError as error:
        return "", f"cannot be read: {error.strerror or error}"


def refuse(offences: Iterable[Offence], most: int = 30) -> None:
    """Raise an error with one line per bad file, if there are any.

    Raises:
        UserError: there are bad files.
    """
    lines = list(dict.fromkeys(f"{shown(file)}: {reason}" for file, reason in offences))
    if lines:
        raise UserError("\n".join(lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])))


def found_probabilities(
    settings: MetricSettings, asked: Sequence[tuple[Method, str, Path]], bar: Bar
) -> tuple[MetricSettings, dict[Path, NamedFile], list[str]]:
    """The metrics that can be computed for every method, the hashed probabilities of each prediction, and notes.

    A metric that some predictions have no probabilities for is left out: their cells would count as failures.

    Args:
        settings: the metrics that are asked for.
        asked: method, case and prediction.
        bar: makes the progress bar.

    Raises:
        UserError: a file cannot be read.
    """
    needing = settings.by_probabilities
    if not needing:
        return settings, {}, []
    files = {file: probability_files.probability_file(file) for _, _, file in asked}
    missing = [(method.name, file) for method, _, file in asked if files[file] is None]
    if missing:
        name, file = missing[0]
        labels = " and ".join(METRICS[metric].label for metric in needing)
        note = f"Left out, {labels}: {len(missing)} of {len(asked)} predictions have no probabilities, such as {name}'s"
        note += f" {shown(file.name)} (expected <name>_probabilities.nii.gz or nnU-Net's <name>.npz)."
        return settings.without_probabilities(), {}, [note]
    found = {file: path for file, path in files.items() if path is not None}
    with bar("reading", len(found)) as step:
        hashed, offences = hash_files(list(dict.fromkeys(found.values())), step)
    refuse(offences)
    return settings, {file: NamedFile(path, path.name, hashed[path]) for file, path in found.items()}, []


# Default classes: nnU-Net's, or each label value in the references.


def agreed_classes(methods: Sequence[Method]) -> Classes | None:
    """The classes of nnU-Net's `dataset.json`; None if no folder has one.

    Raises:
        UserError: the classes of several folders differ.
    """
    found = {method.name: method.nnunet.classes for method in methods if method.nnunet is not None}
    if not found:
        return None
    name, first = next(iter(found.items()))
    for other, classes in found.items():
        if (classes.regions, classes.ignore) != (first.regions, first.ignore):
            raise UserError(
                f"--classes: got none, and dataset.json differs: {name} has {first.as_option()}, and {other} has "
                f"{classes.as_option()}; expected the same labels, or --classes"
            )
    return first


def found_classes(references: ReferenceFiles, hashed: Mapping[Path, str], bar: Bar) -> Classes:
    """One class for each label value above 0 in the hashed references, named by its value.

    Raises:
        UserError: the references have no such value, or so many that they are images.
    """
    values = label_values([file for file in references.files.values() if file in hashed], references.folder, bar)
    if len(values) > MAX_VALUES:
        raise UserError(
            f"--labels: the files of {shown(references.folder)} hold more than {MAX_VALUES} values above 0; "
            "expected labels, not images"
        )
    return Classes({str(value): (value,) for value in values})


# Comparison with nnU-Net's summaries: if they differ, files have changed since.


def summary_notes(
    methods: Sequence[Method], classes: Classes, dice: Mapping[tuple[str, str, str], float]
) -> tuple[list[str], list[str]]:
    """The methods whose nnU-Net summaries all agree with the results here; and one sentence per summary that differs.

    `dice` maps (method, path of the prediction, class) to Dice, NaN if undefined.
    """
    agreeing, differing = [], []
    for method in methods:
        same = []
        for validation in () if method.nnunet is None else method.nnunet.validations.values():
            compared = [(file, name, nnunet_dice, dice[key])
                        for (file, name), nnunet_dice in summary_dice(validation, classes).items()
                        if (key := (method.name, str(validation / file), name)) in dice]  # fmt: skip
            # Rounding only: both are ratios of the same whole numbers.
            off = [row for row in compared if not np.isclose(*row[2:], rtol=0, atol=1e-6, equal_nan=True)]
            if off:
                file, name, there, here = off[0]
                differing.append(
                    f"{method.name}: {validation.parent.name}/validation/summary.json has another Dice for {len(off)} "
                    f"of {len(compared)} cases and classes ({file}, {name}: {there:.4f} there, {here:.4f} here): "
                    "predictions, references or classes have changed since nnU-Net wrote it."
                )
            same.append(bool(compared) and not off)
        if same and all(same):
            agreeing.append(method.name)
    return agreeing, differing
