"""Checks of a data set: every image and label is read, and every problem is reported with file and reason."""

import os
import re
from collections import Counter, defaultdict
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

from pipelines.data.data_root import refuse_other_data, resolve_data
from pipelines.data.grids import Volume, by, grid_problem, grid_shift, shift_note
from pipelines.data.label_scheme import LabelScheme
from pipelines.data.layouts import is_label_name, nifti_files, pair_by_name, stem
from pipelines.data.manifest import Case, Channel, Excluded, Manifest, load_manifest
from pipelines.data.nifti import NOTHING_THERE, WRONG_CHECKSUM, BadFileError, digits, read_file, read_labels
from pipelines.data.phantom import CHECKSUMS, recorded_checksums
from pipelines.utils import UserError
from pipelines.utils.text import counted

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
        shape: voxels per axis; None if a file cannot be used.
        spacing: mm per axis; None if a file cannot be used.
        stored_spacing: the same in the order of the file's axes.
        orientation: of the image's file, such as `LAS`; all files are brought to one orientation when they are read.
        channels: number of channels of the image; None if a file cannot be used.
        voxels: label value to number of voxels.
        shift: how far the label is off the image, mm, within the tolerance; 0 if rounding of headers explains it.
    """

    case: Case
    offences: list[Offence] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    stored_spacing: tuple[float, ...] | None = None
    orientation: str | None = None
    channels: int | None = None
    voxels: dict[int, int] = field(default_factory=dict)
    shift: float = 0.0


def read_cases(
    cases: Sequence[Case],
    root: Path,
    expected: "Expected | None" = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[CaseFacts]:
    """Read cases, several at a time.

    Args:
        cases: the cases.
        root: the folder to which their paths are relative.
        expected: what is accepted of a file; default: 2 or 3 axes, and any number of channels.
        progress: called with the number of cases done and their total.
    """
    allowed = expected or Expected()
    facts = []
    # nibabel logs every oddity of a header that it repairs; the relevant ones are checked here.
    with LoggingOutputSuppressor(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for done, fact in enumerate(pool.map(lambda case: read_case(case, root, allowed), cases), start=1):
            facts.append(fact)
            if progress is not None:
                progress(done, len(cases))
    return facts


@dataclass(frozen=True)
class Expected:
    """What is accepted of a case's files.

    Attributes:
        dimensions: numbers of axes of a volume.
        channels: number of channels of an image; None: any.
        resample: whether channels on other grids are accepted, since training resamples them.
    """

    dimensions: frozenset[int] = frozenset({2, 3})
    channels: int | None = None
    resample: bool = False


def read_case(case: Case, root: Path, expected: Expected) -> CaseFacts:
    """Read one case's files, and compare them with each other."""
    facts = CaseFacts(case)
    images: list[Volume] = []
    label: Volume | None = None
    per_file = expected.channels if len(case.images) == 1 else 1
    for file in case.files:
        is_label = file == case.label
        try:
            volume = (
                read_labels(root / file, expected.dimensions)
                if is_label
                else read_file(root / file, expected.dimensions, per_file)
            )
        except BadFileError as error:
            facts.offences.append(Offence(file, str(error)))
            continue
        facts.checksums[file] = volume.sha256
        problems = (_label_problems if is_label else _image_problems)(volume)
        facts.offences.extend(Offence(file, problem) for problem in problems)
        if is_label:
            label = volume
        else:
            images.append(volume)
    if label is not None and len(images) == len(case.images):
        _compare(facts, images, label, expected.resample)
    return facts


def _compare(facts: CaseFacts, images: Sequence[Volume], label: Volume, resample: bool) -> None:
    case, image = facts.case, images[0]
    for file, volume in zip(case.images[1:], images[1:], strict=True):
        if not resample and (problem := grid_problem(volume, image, f"first channel {case.images[0]}")):
            facts.offences.append(
                Offence(file, f"{problem}; --resample-channels brings all channels to the label's grid")
            )
    if resample and len(images) > 1:
        for file, volume in zip(case.images, images, strict=True):
            if not _holds_centre(volume, label):
                facts.offences.append(Offence(file, "lies elsewhere: the centre of its label's grid is outside of it"))
    elif problem := grid_problem(label, image, "image"):
        facts.offences.append(Offence(case.label, problem))
    else:
        facts.shift = grid_shift(label, image)
    grid = label if resample and len(images) > 1 else image
    facts.shape, facts.spacing, facts.stored_spacing = grid.shape, grid.spacing, grid.as_stored().spacing
    facts.orientation = image.orientation.name
    facts.channels = len(images) if len(images) > 1 or image.data.ndim == len(image.spacing) else len(image.data)
    facts.voxels = count_values(label.data)


def _holds_centre(volume: Volume, label: Volume) -> bool:
    """Whether the centre of a label's grid lies in a volume: it could not be resampled from anything otherwise."""
    axes = len(volume.spacing)
    centre = label.affine[:3, 3] + label.affine[:3, : len(label.shape)] @ ((np.array(label.shape) - 1) / 2)
    index = np.linalg.lstsq(volume.affine[:3, :axes], centre - volume.affine[:3, 3], rcond=None)[0]
    return bool(np.all((index > -0.5) & (index < np.array(volume.shape) - 0.5)))


def count_values(label: NDArray[Any]) -> dict[int, int]:
    """Number of voxels of each integer value."""
    values, counts = np.unique(label, return_counts=True)
    whole = np.isfinite(values) & (values == np.rint(values))
    return {int(v): int(c) for v, c in zip(values[whole], counts[whole], strict=True)}


def duplicate_images(facts: Iterable[CaseFacts]) -> Iterator[tuple[CaseFacts, Offence]]:
    """Cases whose image is byte for byte that of an earlier case, so that validation data could leak into training."""
    first: dict[str, str] = {}
    for fact in facts:
        for file in fact.case.images:
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
        orientations: axis directions of the images' files, such as `LAS`, to their number.
        layout: of a folder without a manifest.
        notes: on what is accepted, but worth knowing, such as labels that are slightly off their images.
    """

    offences: list[Offence]
    cases: int
    classes: dict[int, str]
    voxels: dict[str, list[int]] = field(default_factory=dict)
    volumes: dict[str, list[float]] = field(default_factory=dict)
    spacings: list[tuple[float, ...]] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    orientations: Counter[str] = field(default_factory=Counter)
    layout: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no file has a problem."""
        return not self.offences


def check_data(
    manifest: Manifest, root: Path, progress: Progress | None = None, *, resample_channels: bool = False
) -> CheckReport:
    """Read all files of a manifest and compare them with it.

    Args:
        manifest: the expected data set.
        root: the folder to which its paths are relative, from `resolve_data`.
        progress: called with the number of cases done and their total.
        resample_channels: whether channels on other grids are accepted, since training resamples them.

    Raises:
        UserError: the root has none of the files, so it is that of another data set.
    """
    refuse_other_data(manifest, root, (file for case in manifest.cases for file in case.files), "file")
    expected = Expected(frozenset({manifest.dimensions}), len(manifest.image_channels), resample_channels)
    facts = read_cases(manifest.cases, root, expected, progress)
    checksums, offences = _expected_checksums(manifest, root)
    for fact in facts:
        offences.extend(fact.offences)
        offences.extend(checksum_offences(fact, checksums))
        offences.extend(label_offences(fact, manifest.classes, manifest.ignore))
        offences.extend(spacing_offences(fact, manifest.spacing, manifest.spacing_tolerance))
    offences.extend(offence for _, offence in duplicate_images(facts))
    offences.extend(region_offences(facts, manifest.scheme))
    offences.extend(channel_order_offences(manifest.cases, manifest.channels))
    offences.extend(unlisted(manifest.cases, manifest.excluded, root))
    return summarise(facts, offences, manifest.classes)


def summarise(facts: Sequence[CaseFacts], offences: list[Offence], classes: dict[int, str]) -> CheckReport:
    """Summarise cases and their problems."""
    report = CheckReport(offences, len(facts), dict(classes))
    if (note := label_note(facts)) is not None:
        report.notes.append(note)
    for fact in facts:
        if fact.shape is None or fact.spacing is None:
            continue
        report.shapes.append(fact.shape)
        report.spacings.append(fact.spacing)
        report.orientations[fact.orientation or ""] += 1
        voxel = float(np.prod(fact.spacing)) / (1000 if len(fact.shape) == 3 else 1)
        for value, name in classes.items():
            count = fact.voxels.get(value, 0)
            report.voxels.setdefault(name, []).append(count)
            report.volumes.setdefault(name, []).append(count * voxel)
    if len(report.orientations) > 1:
        counts = ", ".join(f"{count} x {name}" for name, count in report.orientations.most_common())
        report.notes.append(f"orientations differ ({counts}); all are brought to the closest canonical one when read")
    return report


def label_note(facts: Iterable[CaseFacts]) -> str | None:
    """A note on labels that are off their images, but within the tolerance; None if there are none."""
    return shift_note({fact.case.label: fact.shift for fact in facts}, "label", "image")


def checksum_offences(facts: CaseFacts, expected: dict[str, str]) -> Iterator[Offence]:
    """Readable files whose checksum is not the recorded one."""
    for file, digest in facts.checksums.items():
        if file in expected and digest != expected[file]:
            yield Offence(file, WRONG_CHECKSUM)


def label_offences(facts: CaseFacts, classes: dict[int, str], ignore: int | None = None) -> Iterator[Offence]:
    """Labels with values that are not classes, that annotate nothing, or with classes that the case does not label."""
    label = facts.case.label
    known = {*classes, *([] if ignore is None else [ignore])}
    if unknown := [(value, count) for value, count in facts.voxels.items() if value not in known]:
        found = ", ".join(f"{value} ({count} voxels)" for value, count in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        named = ", ".join(str(value) for value in sorted(known))
        yield Offence(label, f"label values without a class: {found}{more}; the classes are {named}")
    if ignore is not None and set(facts.voxels) == {ignore}:
        yield Offence(label, f"all voxels have the ignored label {ignore}; exclude the case")
    if facts.case.labelled is not None:
        for value, name in classes.items():
            if value and name not in facts.case.labelled and facts.voxels.get(value):
                yield Offence(
                    label, f"has {facts.voxels[value]} voxels of '{name}', which is not among the case's 'labelled'"
                )


def region_offences(facts: Sequence[CaseFacts], scheme: LabelScheme) -> Iterator[Offence]:
    """Regions that no case has."""
    if not any(fact.voxels for fact in facts):
        return
    for name, values in scheme.regions.items():
        if not any(fact.voxels.get(value) for fact in facts for value in values):
            yield Offence("the manifest", f"regions: '{name}' is empty in all cases; remove it, or correct its labels")


def channel_order_offences(cases: Sequence[Case], channels: Sequence[Channel]) -> Iterator[Offence]:
    """Cases that list their channels in another order, where the files' last words say it: `_0000`, `_T1w`."""
    words = [tuple(re.split(r"[-_.]", stem(file))[-1].casefold() for file in case.images) for case in cases]
    known = Counter(of_case for of_case in words if len(set(of_case)) == len(of_case) > 1)
    if not known:
        return
    usual = known.most_common(1)[0][0]
    names = tuple(channel.name.casefold() for channel in channels)
    usual = names if set(names) == set(usual) else usual
    for case, of_case in zip(cases, words, strict=True):
        if of_case != usual and sorted(of_case) == sorted(usual):
            index = next(i for i, word in enumerate(of_case) if word != usual[i])
            yield Offence(
                case.images[index],
                f"channels in another order: by its name it is channel {usual.index(of_case[index])}, but '{case.id}' "
                f"lists it as channel {index}",
            )


def spacing_offences(facts: CaseFacts, expected: tuple[float, ...], tolerance: float) -> Iterator[Offence]:
    """Images whose spacing is not the expected one, along neither the canonical axes nor those of the file."""
    if facts.spacing is None or facts.stored_spacing is None:
        return

    def off(spacing: tuple[float, ...]) -> float:
        return max(abs(got - want) / want for got, want in zip(spacing, expected, strict=True))

    if min(off(facts.spacing), off(facts.stored_spacing)) > tolerance + 1e-6:  # float32 headers round
        yield Offence(
            facts.case.images[0],
            f"spacing {by(facts.spacing)} mm; expected {by(expected)} mm within {100 * tolerance:.4g} %",
        )


def unlisted(cases: Iterable[Case], excluded: Iterable[Excluded], root: Path) -> Iterator[Offence]:
    """NIfTI files in the cases' folders that belong to no case and are not excluded."""
    roles: dict[str, str] = {}
    folders: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        for file in case.files:
            path, role = PurePosixPath(file), "label" if file == case.label else "image"
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
    expected = {file: digest for case in manifest.cases for file, digest in case.checksums.items()}
    if manifest.generator is None:
        return expected, []
    try:
        expected |= recorded_checksums(root)
    except (ValueError, OSError):
        return expected, [Offence(CHECKSUMS, "cannot be read; remove the data set's folder to generate it again")]
    missing = [file for case in manifest.cases for file in case.files if file not in expected]
    if missing:
        return expected, [Offence(CHECKSUMS, f"has no checksum of {len(missing)} files, such as {missing[0]}")]
    return expected, []


# The check before a run.

_MAX_SHOWN = 10


def refuse_bad_data(manifest: str, data_root: str | None, *, resample_channels: bool = False) -> None:
    """Read the whole data set and refuse to train on it if any file is bad.

    Problems and notes are printed to stderr.

    Args:
        manifest: name or path.
        data_root: the folder of its files; None as in `resolve_data`.
        resample_channels: as in `check_data`.

    Raises:
        UserError: there are bad files.
    """
    loaded = load_manifest(manifest)
    root = resolve_data(loaded, None if data_root is None else Path(data_root))
    report = check_data(loaded, root, resample_channels=resample_channels)
    for note in report.notes:
        click.echo(f"note: {note}", err=True)
    if report.ok:
        return
    for offence in report.offences[:_MAX_SHOWN]:
        click.echo(f"{offence.file}: {offence.reason}", err=True)
    more = len(report.offences) - _MAX_SHOWN
    if more > 0:
        click.echo(f"... and {more} more: `medloss check` lists them all", err=True)
    files = {offence.file for offence in report.offences}
    expected = {file for case in loaded.cases for file in case.files}
    missing = {offence.file for offence in report.offences if offence.reason in NOTHING_THERE} & expected
    what = f"'{loaded.name}' has {counted(len(files), 'bad file')}"
    if missing:  # no run could read them
        many = "" if len(files) == 1 else f", of which {len(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        them = "it" if len(files) == 1 else "them"
        cases = "its case" if len(files) == 1 else "their cases"
        instead = f"delete {cases} from {manifest}, or write the manifest again"
        if loaded.generator is not None:
            instead = f"remove {root}, to generate the data again"
        raise UserError(f"{what}{many}: restore or repair {them}, or {instead}")
    raise UserError(f"{what}: repair or exclude them, or pass --no-check to train anyway")
