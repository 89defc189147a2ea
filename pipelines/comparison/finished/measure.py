"""A prediction and its reference, measured; the same numbers as of `medloss evaluate`."""

import hashlib
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.comparison.finished.classes import Classes
from pipelines.dataset import geometry, label_file, nifti
from pipelines.dataset.case_reader import Offence, count_values, label_problem
from pipelines.dataset.label_file import read_labels
from pipelines.dataset.nifti import BadFileError, Volume
from pipelines.evaluation import label_values, metric, metrics, surface
from pipelines.evaluation.registry import METRICS

#: More values than any atlas has: the files are images.
MOST_VALUES = 1000
#: Modules whose text makes the numbers, next to those of the metrics.
_MEASURE: tuple[ModuleType, ...] = (metrics, metric, surface, label_values, geometry, label_file, nifti)


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
                read.append((volume, label_values.label_channels(volume.data, values)))
            except BadFileError as error:
                offences.append(Offence(str(file.path), str(error)))
        if len(read) == 2:
            problem = geometry.grid_problem(read[1][0], read[0][0], "label")
            if problem is not None:
                offences.append(Offence(str(self.prediction.path), problem))
        if offences or only_look:
            return None, offences
        try:
            measures = [list(of_class.values()) for of_class in self._measured(*read)]
            return {"measures": measures, "shift": geometry.grid_shift(read[1][0], read[0][0])}, []
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
        return metrics.region_metrics(
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
