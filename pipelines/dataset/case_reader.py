"""One image and its label, read to the last byte and measured; what is wrong with them is told, not raised."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.dataset.geometry import grid_problem, grid_shift
from pipelines.dataset.label_file import digits, read_labels
from pipelines.dataset.manifest import Case
from pipelines.dataset.nifti import BadFileError, Volume, read_file


class Offence(NamedTuple):
    """What is wrong with a file, in one line."""

    file: str
    reason: str


@dataclass
class CaseFacts:
    """What a case's files hold.

    Attributes:
        case: whose.
        offences: what is wrong with them.
        checksums: file to SHA-256, of the files that can be read.
        shape: voxels an axis; None where either file cannot be used.
        spacing: mm an axis; as `shape`.
        voxels: label value to its number of voxels.
        shift: how far the label lies off the image, mm; more than headers' rounding, and within the tolerance.
    """

    case: Case
    offences: list[Offence] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    voxels: dict[int, int] = field(default_factory=dict)
    shift: float = 0.0


def read_cases(
    cases: Sequence[Case],
    root: Path,
    dimensions: Iterable[int] = (2, 3),
    progress: Callable[[int, int], None] | None = None,
) -> list[CaseFacts]:
    """Read all cases, several at a time.

    Args:
        cases: which.
        root: to which their paths are relative.
        dimensions: numbers of axes that a file may have.
        progress: is told how many cases are done, of how many.
    """
    allowed = frozenset(dimensions)
    facts = []
    # nibabel logs each oddity of a header that it mends by itself; what matters is checked here.
    with LoggingOutputSuppressor(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, fact in enumerate(pool.map(lambda case: read_case(case, root, allowed), cases), start=1):
            facts.append(fact)
            if progress is not None:
                progress(done, len(cases))
    return facts


def read_case(case: Case, root: Path, dimensions: frozenset[int] = frozenset({2, 3})) -> CaseFacts:
    """Read one case's files, and compare them with each other."""
    facts = CaseFacts(case)
    volumes = []
    for file, read, problems in (
        (case.image, read_file, _image_problems),
        (case.label, read_labels, _label_problems),
    ):
        try:
            volume = read(root / file, dimensions)
        except BadFileError as error:
            facts.offences.append(Offence(file, str(error)))
            continue
        facts.checksums[file] = volume.sha256
        facts.offences.extend(Offence(file, problem) for problem in problems(volume))
        volumes.append(volume)
    if len(volumes) == 2:
        image, label = volumes
        if problem := grid_problem(label, image, "image"):
            facts.offences.append(Offence(case.label, problem))
        else:
            facts.shift = grid_shift(label, image)
        facts.shape, facts.spacing = image.data.shape, image.spacing
        facts.voxels = count_values(label.data)
    return facts


def count_values(label: NDArray[Any]) -> dict[int, int]:
    """Number of voxels of each whole value."""
    values, counts = np.unique(label, return_counts=True)
    whole = np.isfinite(values) & (values == np.rint(values))
    return {int(v): int(c) for v, c in zip(values[whole], counts[whole], strict=True)}


def doubled_images(facts: Iterable[CaseFacts]) -> Iterator[tuple[CaseFacts, Offence]]:
    """Cases whose image another case has, too, to the byte: training would know what validation asks."""
    first: dict[str, str] = {}
    for fact in facts:
        file = fact.case.image
        earlier = first.setdefault(fact.checksums[file], file) if file in fact.checksums else file
        if earlier != file:
            yield fact, Offence(file, f"doubled: its bytes are those of {earlier}")


def _image_problems(image: Volume) -> Iterator[str]:
    if image.data.dtype.kind != "f":
        return
    nans = int(np.isnan(image.data).sum())
    usable = int((np.abs(image.data) <= np.finfo(np.float32).max).sum())
    if nans:
        yield f"NaN in {_voxels(nans)}"
    if infinite := image.data.size - usable - nans:
        yield f"Inf, or too large for float32, in {_voxels(infinite)}"


def _label_problems(label: Volume) -> Iterator[str]:
    if (problem := label_problem(label.data)) is not None:
        yield problem


def label_problem(label: NDArray[Any]) -> str | None:
    """Why an array, from `read_labels`, is no label map, whatever its classes are; None of one."""
    if label.dtype.kind != "f":
        return None
    off = label[~(np.isfinite(label) & (label == np.rint(label)))]
    if not off.size:
        return None
    return f"label values that are no whole numbers in {_voxels(off.size)}, such as {digits(off[0])}"


def _voxels(count: int) -> str:
    return "1 voxel" if count == 1 else f"{count} voxels"
