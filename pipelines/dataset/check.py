"""Reads a whole data set before any training, and tells every offender by file and reason."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import numpy as np

from pipelines.dataset.case_reader import CaseFacts, Offence, doubled_images, read_cases
from pipelines.dataset.geometry import shift_note
from pipelines.dataset.manifest import Case, Excluded, Manifest
from pipelines.dataset.nifti import by
from pipelines.dataset.pairing import is_label_name, nifti_files, pair_by_name
from pipelines.dataset.phantom import CHECKSUMS, recorded_checksums
from pipelines.errors import UserError

Progress = Callable[[int, int], None]


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        offences: files, relative to the data root, with what is wrong with each.
        cases: number of cases.
        classes: label value to name.
        voxels: class name to its voxels, a number a case that could be read.
        volumes: class name to its volume: ml, in 2D mm2.
        spacings: mm an axis, of the cases that could be read.
        shapes: voxels an axis, of the same.
        note: on labels that lie a little off their images; None without any.
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
        """Whether there are no offenders."""
        return not self.offences


def check_data(manifest: Manifest, root: Path, progress: Progress | None = None) -> CheckReport:
    """Read everything that a manifest names, and compare it with what the manifest says.

    Args:
        manifest: what should be there.
        root: to which its paths are relative, as `resolve_data` gives it.
        progress: is told how many cases are done, of how many.

    Raises:
        UserError: the root holds none of the files: it is another data set's.
    """
    if not any(os.path.lexists(root / file) for case in manifest.cases for file in (case.image, case.label)):
        raise UserError(f"{root} holds no file of '{manifest.name}', which can be had at {manifest.source}")
    facts = read_cases(manifest.cases, root, {manifest.dimensions}, progress)
    checksums, offences = _expected_checksums(manifest, root)
    for fact in facts:
        offences.extend(fact.offences)
        offences.extend(checksum_offences(fact, checksums))
        offences.extend(label_offences(fact, manifest.classes))
        offences.extend(spacing_offences(fact, manifest.spacing, manifest.spacing_tolerance))
    offences.extend(offence for _, offence in doubled_images(facts))
    offences.extend(unlisted(manifest.cases, manifest.excluded, root))
    return summarise(facts, offences, manifest.classes)


def summarise(facts: Sequence[CaseFacts], offences: list[Offence], classes: dict[int, str]) -> CheckReport:
    """The report on cases and their offences."""
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
    """A line on labels that lie a little off their images, but not so far that they are offenders."""
    return shift_note({fact.case.label: fact.shift for fact in facts}, "label", "image")


def checksum_offences(facts: CaseFacts, expected: dict[str, str]) -> Iterator[Offence]:
    """Files that can be read, but are not those that the manifest was made for."""
    for file, digest in facts.checksums.items():
        if file in expected and digest != expected[file]:
            yield Offence(file, "its SHA-256 is not the recorded one: the file is damaged or another")


def label_offences(facts: CaseFacts, classes: dict[int, str]) -> Iterator[Offence]:
    """Labels with values that the manifest does not name."""
    unknown = {value: count for value, count in facts.voxels.items() if value not in classes}
    if unknown:
        found = ", ".join(f"{value} ({count} voxels)" for value, count in list(unknown.items())[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        known = ", ".join(str(value) for value in sorted(classes))
        yield Offence(facts.case.label, f"label values without a class: {found}{more}; the classes are {known}")


def spacing_offences(facts: CaseFacts, expected: tuple[float, ...], tolerance: float) -> Iterator[Offence]:
    """Images whose voxels are of another size than the manifest says."""
    if facts.spacing is None:
        return
    off = max(abs(got - want) / want for got, want in zip(facts.spacing, expected, strict=True))
    if off > tolerance + 1e-6:  # float32 headers round
        yield Offence(
            facts.case.image,
            f"spacing {by(facts.spacing)} mm; expected {by(expected)} mm within {100 * tolerance:.4g} %",
        )


def unlisted(cases: Iterable[Case], excluded: Iterable[Excluded], root: Path) -> Iterator[Offence]:
    """NIfTI files in the cases' folders that are no case's, and not left out on purpose either."""
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
    listed = {role: [file for file, its in roles.items() if its == role] for role in found}
    pairing = pair_by_name(listed["image"] + found["image"], listed["label"] + found["label"])
    reasons = dict(pairing.unpaired)
    for file in sorted(found["image"] + found["label"]):
        if not any(file == pattern or fnmatchcase(file, pattern) for pattern in patterns):
            reason = reasons.get(file, f"{'image' if file in found['image'] else 'label'} that is no case's")
            yield Offence(file, f"{reason}; the manifest neither lists nor excludes it")


def _expected_checksums(manifest: Manifest, root: Path) -> tuple[dict[str, str], list[Offence]]:
    """File to SHA-256, by the manifest or, of made data, by the record beside it; and what the record lacks."""
    recorded = [(case.image, case.image_sha256) for case in manifest.cases]
    recorded += [(case.label, case.label_sha256) for case in manifest.cases]
    expected = {file: digest for file, digest in recorded if digest is not None}
    if manifest.generator is None:
        return expected, []
    try:
        expected |= recorded_checksums(root)
    except (ValueError, OSError):
        return expected, [Offence(CHECKSUMS, "cannot be read; remove the data set's folder to have it made anew")]
    lacking = [file for file, _ in recorded if file not in expected]
    if lacking:
        return expected, [Offence(CHECKSUMS, f"has no checksum of {len(lacking)} files, such as {lacking[0]}")]
    return expected, []
