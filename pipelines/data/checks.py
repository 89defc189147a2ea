"""Checks of a data set: every image and label is read, and every problem is reported with file and reason."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import click
import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.data.data_root import CHECKSUMS, recorded_checksums, refuse_other_data, resolve_data
from pipelines.data.layouts import is_label_name, nifti_files, pair_by_name
from pipelines.data.manifest import Case, Excluded, Manifest, load_manifest
from pipelines.data.nifti import (
    WRONG_CHECKSUM,
    BadFileError,
    Volume,
    by,
    digits,
    grid_problem,
    grid_shift,
    read_file,
    read_labels,
    shift_note,
)
from pipelines.utils import UserError

# Checks of one case: problems are collected, not raised.


class Offence(NamedTuple):
    """A problem of a file, in one line."""

    file: str
    reason: str


@dataclass
class CaseFacts:
    """The content of a case's files.

    Attributes:
        case: the case.
        offences: the files' problems.
        checksums: file to SHA-256, for the files that can be read.
        shape: voxels per axis; None if either file cannot be used.
        spacing: mm per axis; None if either file cannot be used.
        voxels: label value to number of voxels.
        shift: how far the label is off the image, mm, within the tolerance; 0 if rounding of headers explains it.
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
    """Read cases, several at a time.

    Args:
        cases: the cases.
        root: the folder to which their paths are relative.
        dimensions: accepted numbers of axes of a file.
        progress: called with the number of cases done and their total.
    """
    allowed = frozenset(dimensions)
    facts = []
    # nibabel logs every oddity of a header that it repairs; the relevant ones are checked here.
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
    """Number of voxels of each integer value."""
    values, counts = np.unique(label, return_counts=True)
    whole = np.isfinite(values) & (values == np.rint(values))
    return {int(v): int(c) for v, c in zip(values[whole], counts[whole], strict=True)}


def duplicate_images(facts: Iterable[CaseFacts]) -> Iterator[tuple[CaseFacts, Offence]]:
    """Cases whose image is byte for byte that of an earlier case, so that validation data could leak into training."""
    first: dict[str, str] = {}
    for fact in facts:
        file = fact.case.image
        earlier = first.setdefault(fact.checksums[file], file) if file in fact.checksums else file
        if earlier != file:
            yield fact, Offence(file, f"duplicate: its bytes are those of {earlier}")


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
    """Why an array from `read_labels` is not a label map, whatever its classes are; None if it is one."""
    if label.dtype.kind != "f":
        return None
    off = label[~(np.isfinite(label) & (label == np.rint(label)))]
    if not off.size:
        return None
    return f"label values that are not whole numbers in {_voxels(off.size)}, such as {digits(off[0])}"


def _voxels(count: int) -> str:
    return "1 voxel" if count == 1 else f"{count} voxels"


# Checks of a data set.

Progress = Callable[[int, int], None]


@dataclass
class CheckReport:
    """Result of a check.

    Attributes:
        offences: problems of files; paths are relative to the data root.
        cases: number of cases.
        classes: label value to name.
        voxels: class name to numbers of voxels, one per readable case.
        volumes: class name to volumes (ml, in 2D mm2), one per readable case.
        spacings: mm per axis, one entry per readable case.
        shapes: voxels per axis, one entry per readable case.
        note: on labels that are slightly off their images; None if there are none.
    """

    offences: list[Offence]
    cases: int
    classes: dict[int, str]
    voxels: dict[str, list[int]] = field(default_factory=dict)
    volumes: dict[str, list[float]] = field(default_factory=dict)
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    note: str | None = None

    @property
    def ok(self) -> bool:
        """Whether no file has a problem."""
        return not self.offences


def check_data(manifest: Manifest, root: Path, progress: Progress | None = None) -> CheckReport:
    """Read all files of a manifest and compare them with it.

    Args:
        manifest: the expected data set.
        root: the folder to which its paths are relative, from `resolve_data`.
        progress: called with the number of cases done and their total.

    Raises:
        UserError: the root has none of the files, so it is that of another data set.
    """
    files = (file for case in manifest.cases for file in (case.image, case.label))
    refuse_other_data(manifest, root, files, "file")
    facts = read_cases(manifest.cases, root, {manifest.dimensions}, progress)
    checksums, offences = _expected_checksums(manifest, root)
    for fact in facts:
        offences.extend(fact.offences)
        offences.extend(checksum_offences(fact, checksums))
        offences.extend(label_offences(fact, manifest.classes))
        offences.extend(spacing_offences(fact, manifest.spacing, manifest.spacing_tolerance))
    offences.extend(offence for _, offence in duplicate_images(facts))
    offences.extend(unlisted(manifest.cases, manifest.excluded, root))
    return summarise(facts, offences, manifest.classes)


def summarise(facts: Sequence[CaseFacts], offences: list[Offence], classes: dict[int, str]) -> CheckReport:
    """Summarise cases and their problems."""
    report = CheckReport(offences, len(facts), dict(classes), note=label_note(facts))
    for fact in facts:
        if fact.shape is None or fact.spacing is None:
            continue
        report.shapes.append(fact.shape)
        report.spacings.append(fact.spacing)
        voxel = float(np.prod(fact.spacing)) / (1000 if len(fact.shape) == 3 else 1)
        for value, name in classes.items():
            count = fact.voxels.get(value, 0)
            report.voxels.setdefault(name, []).append(count)
            report.volumes.setdefault(name, []).append(count * voxel)
    return report


def label_note(facts: Iterable[CaseFacts]) -> str | None:
    """A note on labels that are off their images, but within the tolerance; None if there are none."""
    return shift_note({fact.case.label: fact.shift for fact in facts}, "label", "image")


def checksum_offences(facts: CaseFacts, expected: dict[str, str]) -> Iterator[Offence]:
    """Readable files whose checksum is not the recorded one."""
    for file, digest in facts.checksums.items():
        if file in expected and digest != expected[file]:
            yield Offence(file, WRONG_CHECKSUM)


def label_offences(facts: CaseFacts, classes: dict[int, str]) -> Iterator[Offence]:
    """Labels with values that are not classes."""
    unknown = {value: count for value, count in facts.voxels.items() if value not in classes}
    if unknown:
        found = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        known = ", ".join(str(value) for value in sorted(classes))
        yield Offence(facts.case.label, f"label values without a class: {found}{more}; the classes are {known}")


def spacing_offences(facts: CaseFacts, expected: tuple[float, ...], tolerance: float) -> Iterator[Offence]:
    """Images whose spacing is not the expected one."""
    if facts.spacing is None:
        return
    off = max(abs(got - want) / want for got, want in zip(facts.spacing, expected, strict=True))
    if off > tolerance + 1e-6:  # float32 headers round
        yield Offence(
            facts.case.image,
            f"spacing {by(facts.spacing)} mm; expected {by(expected)} mm within {100 * tolerance:.4g} %",
        )


def unlisted(cases: Iterable[Case], excluded: Iterable[Excluded], root: Path) -> Iterator[Offence]:
    """NIfTI files in the cases' folders that belong to no case and are not excluded."""
    roles: dict[str, str] = {}
    folders: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        for role, file in (("image", case.image), ("label", case.label)):
            path = PurePosixPath(file)
            roles[str(path)] = role
            folders[str(path.parent)].add(role)
    patterns = [entry.file for entry in excluded]
    found: dict[str, list[str]] = {"image": [], "label": []}
    for folder in sorted(folders):
        for name in nifti_files(root / folder):
            file = str(PurePosixPath(folder) / name)
            if file in roles:
                continue
            if len(folders[folder]) == 1:
                (role,) = folders[folder]
            else:
                role = "label" if is_label_name(file) else "image"
            found[role].append(file)
    listed = {role: [file for file, of_file in roles.items() if of_file == role] for role in found}
    pairing = pair_by_name(listed["image"] + found["image"], listed["label"] + found["label"])
    reasons = dict(pairing.unpaired)
    for file in sorted(found["image"] + found["label"]):
        if not any(file == pattern or fnmatchcase(file, pattern) for pattern in patterns):
            reason = reasons.get(file, f"{'image' if file in found['image'] else 'label'} that belongs to no case")
            yield Offence(file, f"{reason}; the manifest neither lists nor excludes it")


def _expected_checksums(manifest: Manifest, root: Path) -> tuple[dict[str, str], list[Offence]]:
    """File to SHA-256, from the manifest or a generated data set's record; and the problems of that record."""
    recorded = [(case.image, case.image_sha256) for case in manifest.cases]
    recorded += [(case.label, case.label_sha256) for case in manifest.cases]
    expected = {file: digest for file, digest in recorded if digest is not None}
    if manifest.generator is None:
        return expected, []
    try:
        expected |= recorded_checksums(root)
    except (ValueError, OSError):
        return expected, [Offence(CHECKSUMS, "cannot be read; remove the data set's folder to generate it again")]
    missing = [file for file, _ in recorded if file not in expected]
    if missing:
        return expected, [Offence(CHECKSUMS, f"has no checksum of {len(missing)} files, such as {missing[0]}")]
    return expected, []


# The check before a run.

_MAX_SHOWN = 10


def refuse_bad_data(manifest: str, data_root: str | None) -> None:
    """Read the whole data set and refuse to train on it if any file is bad.

    Problems and notes are printed to stderr.

    Args:
        manifest: name or path.
        data_root: the folder of its files; None as in `resolve_data`.

    Raises:
        UserError: there are bad files.
    """
    loaded = load_manifest(manifest)
    report = check_data(loaded, resolve_data(loaded, None if data_root is None else Path(data_root)))
    if report.note is not None:
        click.echo(f"note: {report.note}", err=True)
    if report.ok:
        return
    for offence in report.offences[:_MAX_SHOWN]:
        click.echo(f"{offence.file}: {offence.reason}", err=True)
    more = len(report.offences) - _MAX_SHOWN
    if more > 0:
        click.echo(f"... and {more} more: `medloss check` lists them all", err=True)
    files = len({offence.file for offence in report.offences})
    raise UserError(
        f"'{loaded.name}' has {'1 bad file' if files == 1 else f'{files} bad files'}: repair or exclude them, or pass "
        "--no-check to train anyway"
    )
