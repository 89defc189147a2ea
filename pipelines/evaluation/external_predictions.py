"""Predictions made elsewhere: their files hashed and checked, their classes found, their metrics computed."""

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
from pipelines.evaluation.references import NO_LABELS, shown
from pipelines.evaluation.result_folders import Classes, summary_dice
from pipelines.evaluation.sources import Method, References
from pipelines.utils import UserError
from pipelines.utils.files import sha256

# A prediction and its reference, measured; the same numbers as of `medloss evaluate`.

#: More values than any atlas has: the files are images.
MOST_VALUES = 1000
#: Modules whose text makes the numbers, next to those of the metrics.
_MEASURE: tuple[ModuleType, ...] = (evaluate, base, surface_distances, references, nifti)


@dataclass(frozen=True)
class HashedFile:
    """A file, and the SHA-256 that its bytes had."""

    path: Path
    sha256: str

    @property
    def size(self) -> int:
        """Its bytes; 0 of one that is gone."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0


@dataclass(frozen=True)
class Pair:
    """A prediction with its reference, to be measured.

    The result has `measures`, for each class in the order of `METRICS`, NaN where one has no meaning, and `shift`, how
    far the prediction lies off its reference, mm.

    Attributes:
        prediction: a label map.
        reference: a label map.
        classes: to be measured.
        tolerance: of the NSD, mm.
    """

    prediction: HashedFile
    reference: HashedFile
    classes: Classes
    tolerance: float

    @property
    def key(self) -> list[Any]:
        """All that the numbers depend on: files, classes (not what they are called), tolerance, and the code."""
        regions = [list(values) for values in self.classes.regions.values()]
        files = [self.prediction.sha256, self.reference.sha256]
        return ["measures", code(), *files, regions, self.classes.ignore, self.tolerance]

    @property
    def size(self) -> int:
        """Bytes of the two files."""
        return self.prediction.size + self.reference.size

    def run(self, only_look: bool) -> tuple[dict[str, Any] | None, list[Offence]]:
        """The measures; or what keeps the files from being measured."""
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
        if offences or only_look:
            return None, offences
        try:
            measures = [list(of_class.values()) for of_class in self._measured(*read)]
            return {"measures": measures, "shift": nifti.grid_shift(read[1][0], read[0][0])}, []
        except MemoryError:
            return None, [Offence(str(self.prediction.path), "cannot be measured: memory does not suffice")]

    def _measured(
        self, reference: tuple[Volume, NDArray[np.integer]], prediction: tuple[Volume, NDArray[np.integer]]
    ) -> list[dict[str, float]]:
        """Labels are their places among the classes' values now; what is not counted has the next one."""
        place = {value: number for number, value in enumerate(self.classes.values)}
        maps, not_counted = (prediction[1], reference[1]), None
        if self.classes.ignore is not None:
            not_counted = len(place)
            maps = np.where(reference[1] == not_counted, reference[1], prediction[1]), reference[1]
        return evaluate.region_metrics(
            *maps,
            [tuple(place[value] for value in values) for values in self.classes.regions.values()],
            reference[0].spacing,
            not_counted=not_counted,
            nsd_tolerance_mm=self.tolerance,
        )


@dataclass(frozen=True)
class Values:
    """A reference, to be asked which values above 0 it holds."""

    reference: HashedFile

    @property
    def key(self) -> list[Any]:
        """All that the values depend on."""
        return ["values", code(), self.reference.sha256]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.reference.size

    def run(self, only_look: bool) -> tuple[list[int] | None, list[Offence]]:
        """The values, rising; None of a file that cannot be used, or is no label map."""
        try:
            data = read_hashed(self.reference).data
        except BadFileError:
            return None, []  # told when it is measured
        if label_problem(data) is not None:
            return None, []  # as well
        return sorted(value for value in count_values(data) if value > 0)[: MOST_VALUES + 1], []


def read_hashed(file: HashedFile) -> Volume:
    """Read a label map.

    Raises:
        BadFileError: it cannot be used, or has changed since it was looked at.
    """
    volume = read_labels(file.path)
    if volume.sha256 != file.sha256:
        raise BadFileError("has changed while this ran; run the command again")
    return volume


def code() -> str:
    """What the metrics' code is: with another one, kept numbers do not count."""
    return _code(tuple(METRICS))


@cache
def _code(names: tuple[str, ...]) -> str:
    return hashlib.sha256("".join([*_texts(), *names]).encode()).hexdigest()


def _texts() -> Iterator[str]:
    own = dict.fromkeys(sys.modules[entry.compute.__module__] for entry in METRICS.values())
    for module in (*_MEASURE, *own):
        yield inspect.getsource(module)
    yield inspect.getsource(Pair)


# Files looked at before any is measured: their SHA-256, and what is wrong with them.

#: So many bad files are named one by one.
_MOST_NAMED = 30


def hash_files(files: Sequence[Path], progress: Callable[[int], object]) -> tuple[dict[Path, str], list[Offence]]:
    """Every file's SHA-256, several at a time; and the files that cannot be read.

    Args:
        files: which.
        progress: is told how many more are done.
    """
    hashed, offences = {}, []
    # Reading and hashing leave Python to other threads.
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for file, (digest, problem) in zip(files, pool.map(_hash, files), strict=True):
            if problem is None:
                hashed[file] = digest
            else:
                offences.append(Offence(str(file), problem))
            progress(1)
    return hashed, offences


def refuse(offences: Iterable[Offence]) -> None:
    """End with a line for each bad file, if there are any.

    Raises:
        UserError: there are.
    """
    lines = list(dict.fromkeys(f"{shown(file)}: {reason}" for file, reason in offences))
    if lines:
        more = [f"and {len(lines) - _MOST_NAMED} more"] if len(lines) > _MOST_NAMED else []
        raise UserError("\n".join(lines[:_MOST_NAMED] + more))


def _hash(file: Path) -> tuple[str, str | None]:
    if not file.exists():
        return "", "a symbolic link to nothing" if file.is_symlink() else "missing"
    if not file.is_file():
        return "", "is no regular file"
    try:
        return sha256(file), None
    except OSError as error:
        return "", f"cannot be read: {error.strerror or error}"


# Which classes there are, where nobody named them: nnU-Net's, or each label that the references hold.


def agreed_classes(methods: Sequence[Method]) -> Classes | None:
    """The classes of nnU-Net's `dataset.json`; None where no folder has one.

    Raises:
        UserError: they differ.
    """
    found = {method.name: method.nnunet.classes for method in methods if method.nnunet is not None}
    if not found:
        return None
    name, first = next(iter(found.items()))
    for other, own in found.items():
        if (own.regions, own.ignore) != (first.regions, first.ignore):
            raise UserError(
                f"--classes: got none, and dataset.json differs: {name} has {first.told()}, and {other} has "
                f"{own.told()}; expected the same labels, or --classes"
            )
    return first


def found_classes(
    references: References,
    hashed: Mapping[Path, str],
    cache: ResultCache,
    jobs: int,
    progress: Callable[[int], object],
    tell: Callable[[str], None],
) -> Classes:
    """A class for each label above 0 that the references hold, called as its value.

    Raises:
        UserError: they hold none, or so many that they are images.
    """
    tasks = [Values(HashedFile(file, hashed[file])) for file in references.files.values() if file in hashed]
    done = work(tasks, cache, jobs=jobs, progress=progress, tell=tell)
    values = sorted(set().union(*(own for own in done.results if own is not None)))
    if not values:
        raise UserError(f"--labels: the files of {shown(references.folder)} {NO_LABELS}")
    if len(values) > MOST_VALUES:
        raise UserError(
            f"--labels: the files of {shown(references.folder)} hold more than {MOST_VALUES} values above 0; expected "
            "labels, no images"
        )
    return Classes({str(value): (value,) for value in values})


# Whether nnU-Net's own summaries say what was measured here: if not, files have changed since.

#: Both are ratios of the same whole numbers.
_ROUNDING = 1e-6


def summary_notes(
    methods: Sequence[Method], classes: Classes, dice: Mapping[tuple[str, str, str], float]
) -> tuple[list[str], list[str]]:
    """The methods whose summaries all say the same, and what differs, a sentence a summary.

    Args:
        methods: of which those of nnU-Net have summaries.
        classes: that were measured.
        dice: (method, prediction's path, class) -> Dice; NaN where it has no meaning.
    """
    agreed, differing = [], []
    for method in methods:
        same = []
        for validation in () if method.nnunet is None else method.nnunet.validations.values():
            told = summary_dice(validation, classes)
            compared = [(file, name, own, dice[key]) for (file, name), own in told.items()
                        if (key := (method.name, str(validation / file), name)) in dice]  # fmt: skip
            off = [row for row in compared if not _same(row[2], row[3])]
            if off:
                file, name, own, here = off[0]
                differing.append(
                    f"{method.name}: {validation.parent.name}/validation/summary.json has another Dice for {len(off)} "
                    f"of {len(compared)} cases and classes ({file}, {name}: {own:.4f} there, {here:.4f} here): "
                    "predictions, references or classes have changed since nnU-Net wrote it."
                )
            same.append(bool(compared) and not off)
        if same and all(same):
            agreed.append(method.name)
    return agreed, differing


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=0, abs_tol=_ROUNDING) or (math.isnan(one) and math.isnan(other))
