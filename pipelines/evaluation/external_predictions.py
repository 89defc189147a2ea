"""Predictions of other tools: their files are hashed and checked, and their classes and metrics determined."""

import hashlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.data import nifti
from pipelines.data.checks import Offence, count_values, label_problem
from pipelines.data.nifti import BadFileError, Volume, read_labels
from pipelines.evaluation import evaluate, references, surface_distances
from pipelines.evaluation.cached_tasks import ResultCache, work
from pipelines.evaluation.metrics import METRICS, base
from pipelines.evaluation.references import MAX_VALUES, NO_LABELS
from pipelines.evaluation.result_folders import Classes, summary_dice
from pipelines.evaluation.sources import Method, References
from pipelines.utils import UserError
from pipelines.utils.files import sha256
from pipelines.utils.text import shown

# Metrics of a pair, computed as by `medloss evaluate`.

#: Modules whose source affects the numbers, in addition to those of the metrics.
_METRIC_MODULES: tuple[ModuleType, ...] = (evaluate, base, surface_distances, references, nifti)


@dataclass(frozen=True)
class HashedFile:
    """A file and the SHA-256 of its bytes when it was hashed."""

    path: Path
    sha256: str

    @property
    def size(self) -> int:
        """Size in bytes; 0 if the file no longer exists."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


@dataclass(frozen=True)
class Pair:
    """A prediction and its reference, to be evaluated.

    The result has `measures`, for each class the metrics in the order of `METRICS`, NaN if undefined; and `shift`, how
    far the prediction is off its reference, mm.

    Attributes:
        prediction: a label map.
        reference: a label map.
        classes: the classes to evaluate.
        tolerance: tolerance of the NSD, mm.
    """

    prediction: HashedFile
    reference: HashedFile
    classes: Classes
    tolerance: float

    @property
    def key(self) -> list[Any]:
        """Everything that the numbers depend on: files, classes (but not their names), tolerance, and code."""
        regions = [list(values) for values in self.classes.regions.values()]
        files = [self.prediction.sha256, self.reference.sha256]
        return ["measures", code(), *files, regions, self.classes.ignore, self.tolerance]

    @property
    def size(self) -> int:
        """Size of the two files in bytes."""
        return self.prediction.size + self.reference.size

    def run(self, check_only: bool) -> tuple[dict[str, Any] | None, list[Offence]]:
        """The metrics and the shift, or why the files cannot be evaluated."""
        offences, read = [], []
        ignore = self.classes.ignore
        for file, unlabelled in ((self.reference, ignore), (self.prediction, None)):
            try:
                volume = read_hashed(file)
                values = [*self.classes.values, *([] if unlabelled is None else [unlabelled])]
                read.append((volume, references.label_channels(volume.data, values)))
            except BadFileError as error:
                offences.append(Offence(str(file.path), str(error)))
        if len(read) == 2:
            problem = nifti.grid_problem(read[1][0], read[0][0], "label")
            if problem is not None:
                offences.append(Offence(str(self.prediction.path), problem))
        if offences or check_only:
            return None, offences
        try:
            metrics = [list(of_class.values()) for of_class in self._metrics(*read)]
            return {"measures": metrics, "shift": nifti.grid_shift(read[1][0], read[0][0])}, []
        except MemoryError:
            return None, [Offence(str(self.prediction.path), "cannot be evaluated: out of memory")]

    def _metrics(
        self, reference: tuple[Volume, NDArray[np.integer]], prediction: tuple[Volume, NDArray[np.integer]]
    ) -> list[dict[str, float]]:
        """The metrics per class; the maps have indices of the classes' values, with the ignored label last."""
        index = {value: number for number, value in enumerate(self.classes.values)}
        ignored = None if self.classes.ignore is None else len(index)
        return evaluate.region_metrics(
            prediction[1],
            reference[1],
            [tuple(index[value] for value in values) for values in self.classes.regions.values()],
            reference[0].spacing,
            ignored=ignored,
            nsd_tolerance_mm=self.tolerance,
        )


@dataclass(frozen=True)
class LabelValues:
    """A reference whose label values above 0 are to be read."""

    reference: HashedFile

    @property
    def key(self) -> list[Any]:
        """Everything that the values depend on."""
        return ["values", code(), self.reference.sha256]

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self.reference.size

    def run(self, check_only: bool) -> tuple[list[int] | None, list[Offence]]:
        """The values in ascending order; None if the file cannot be used or is not a label map."""
        try:
            data = read_hashed(self.reference).data
        except BadFileError:
            return None, []  # reported when the file is evaluated
        if label_problem(data) is not None:
            return None, []  # reported when the file is evaluated
        return sorted(value for value in count_values(data) if value > 0)[: MAX_VALUES + 1], []


def read_hashed(file: HashedFile) -> Volume:
    """Read a label map.

    Raises:
        BadFileError: it cannot be used, or has changed since it was hashed.
    """
    volume = read_labels(file.path)
    if volume.sha256 != file.sha256:
        raise BadFileError("has changed during the run; run the command again")
    return volume


def code() -> str:
    """Hash of the metrics' code: cached numbers of other code are not used."""
    return _code(tuple(METRICS))


@cache
def _code(names: tuple[str, ...]) -> str:
    return hashlib.sha256("".join([*_sources(), *names]).encode()).hexdigest()


def _sources() -> Iterator[str]:
    modules = dict.fromkeys(sys.modules[metric.compute.__module__] for metric in METRICS.values())
    for module in (*_METRIC_MODULES, *modules):
        yield inspect.getsource(module)
    yield inspect.getsource(Pair)


# Hashes of files, before any is evaluated.

#: Number of bad files that are listed one by one.
_MAX_LISTED = 30


def hash_files(files: Sequence[Path], progress: Callable[[int], object]) -> tuple[dict[Path, str], list[Offence]]:
    """The files' SHA-256, several files at a time; and the files that cannot be read.

    Args:
        files: the files.
        progress: called with the number of files done since the last call.
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


def refuse(offences: Iterable[Offence]) -> None:
    """Raise an error with one line per bad file, if there are any.

    Raises:
        UserError: there are bad files.
    """
    lines = list(dict.fromkeys(f"{shown(file)}: {reason}" for file, reason in offences))
    if lines:
        more = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
        raise UserError("\n".join(lines[:_MAX_LISTED] + more))


def _hash(file: Path) -> tuple[str, str | None]:
    if (problem := nifti.file_problem(file)) is not None:
        return "", problem
    try:
        return sha256(file), None
    except OSError as error:
        return "", f"cannot be read: {error.strerror or error}"


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


def found_classes(
    references: References,
    hashed: Mapping[Path, str],
    cache: ResultCache,
    jobs: int,
    progress: Callable[[int], object],
    notify: Callable[[str], None],
) -> Classes:
    """One class for each label value above 0 in the references, named by its value.

    Raises:
        UserError: the references have no such value, or so many that they are images.
    """
    tasks = [LabelValues(HashedFile(file, hashed[file])) for file in references.files.values() if file in hashed]
    done = work(tasks, cache, jobs=jobs, progress=progress, notify=notify)
    values = sorted(set().union(*(result for result in done.results if result is not None)))
    if not values:
        raise UserError(f"--labels: the files of {shown(references.folder)} {NO_LABELS}")
    if len(values) > MAX_VALUES:
        raise UserError(
            f"--labels: the files of {shown(references.folder)} hold more than {MAX_VALUES} values above 0; "
            "expected labels, not images"
        )
    return Classes({str(value): (value,) for value in values})


# Comparison with nnU-Net's summaries: if they differ, files have changed since.

#: Tolerance: both are ratios of the same whole numbers.
_ROUNDING = 1e-6


def summary_notes(
    methods: Sequence[Method], classes: Classes, dice: Mapping[tuple[str, str, str], float]
) -> tuple[list[str], list[str]]:
    """The methods whose summaries all agree with the results here; and one sentence per summary that differs.

    Args:
        methods: the methods; those of nnU-Net have summaries.
        classes: the evaluated classes.
        dice: (method, path of the prediction, class) to Dice; NaN if undefined.
    """
    agreeing, differing = [], []
    for method in methods:
        same = []
        for validation in () if method.nnunet is None else method.nnunet.validations.values():
            compared = [(file, name, nnunet_dice, dice[key])
                        for (file, name), nnunet_dice in summary_dice(validation, classes).items()
                        if (key := (method.name, str(validation / file), name)) in dice]  # fmt: skip
            off = [row for row in compared if not _same(row[2], row[3])]
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


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0, abs_tol=_ROUNDING) or (math.isnan(one) and math.isnan(other))
