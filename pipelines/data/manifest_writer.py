"""Scans a folder of images and labels and writes its manifest: checksums, spacing, classes, and folds by patient."""

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import ValidationError

from pipelines.data.checks import (
    CaseFacts,
    CheckReport,
    Expected,
    Offence,
    Progress,
    duplicate_images,
    label_offences,
    read_cases,
    region_offences,
    summarise,
)
from pipelines.data.dataset_json import DatasetCard, named_labels, read_card
from pipelines.data.known_layouts import FolderOptions, Found, find_cases
from pipelines.data.label_scheme import LabelScheme
from pipelines.data.layouts import folds_of, path_problem
from pipelines.data.manifest import UNKNOWN, Case, Manifest
from pipelines.data.nifti import WRONG_CHECKSUM, file_problem
from pipelines.utils import UserError
from pipelines.utils.files import sha256
from pipelines.utils.text import counted

#: Default tolerance of spacings, unless the files need a wider one.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class FolderScan:
    """A folder's content.

    Attributes:
        card: its `dataset.json`.
        found: its layout.
        facts: one entry per case.
        offences: case name to the problems of its files.
        dimensions: number of axes of most cases.
        spacing: median over the cases, mm per axis; None if no case can be read.
        tolerance: relative tolerance of the spacing that all cases meet.
        classes: from the card, else from the label values.
        channels: number of channels of most cases.
    """

    card: DatasetCard
    found: Found
    facts: list[CaseFacts]
    offences: dict[str, list[Offence]]
    dimensions: int
    spacing: tuple[float, ...] | None
    tolerance: float
    classes: dict[int, str]
    channels: int


_NO_OPTIONS = FolderOptions()


def scan_folder(folder: Path, progress: Progress | None = None, options: FolderOptions = _NO_OPTIONS) -> FolderScan:
    """Find and read all cases of a folder.

    Raises:
        UserError: the folder does not exist or has no complete case, or its `dataset.json` is invalid.
    """
    card = read_card(folder)
    if options.classes:
        card = card.model_copy(update=named_labels(options.classes, options.ignore))
    found = find_cases(folder, options, card.channels)
    names = _case_names([case.name for case in found.cases])
    cases = [
        Case(id=name, patient=case.patient or name, fold=0, image=case.images, label=case.label)
        for name, case in zip(names, found.cases, strict=True)
    ]
    # A single suffix does not say how many channels its files have; `dataset.json` and the user do.
    named = len(found.channels) if len(found.channels) != 1 or card.channels else None
    expected = Expected(channels=named or None, resample=options.resample_channels)
    facts = read_cases(cases, folder, expected, progress)
    channels = Counter(fact.channels for fact in facts if fact.channels).most_common(1)
    dimensions = Counter(len(fact.shape) for fact in facts if fact.shape is not None).most_common(1)
    axes = dimensions[0][0] if dimensions else 3
    classes = card.classes or _classes_of(facts)
    offences = {
        fact.case.id: [
            *fact.offences,
            *_odd_axes(fact, axes, channels[0][0] if channels else 1),
            *label_offences(fact, classes, card.ignore),
        ]
        for fact in facts
    }
    for fact, offence in duplicate_images(facts):
        offences[fact.case.id].append(offence)
    spacings = [fact.spacing for fact in facts if fact.spacing and not offences[fact.case.id]]
    spacing = tuple(round(float(s), 6) for s in np.median(spacings, axis=0)) if spacings else None
    return FolderScan(
        card,
        found,
        facts,
        offences,
        axes,
        spacing,
        _tolerance(spacings, spacing),
        classes,
        channels[0][0] if channels else 1,
    )


def check_folder(folder: Path, progress: Progress | None = None, options: FolderOptions = _NO_OPTIONS) -> CheckReport:
    """Check a folder without a manifest: everything that can be checked without one.

    Raises:
        UserError: as `scan_folder`.
    """
    scan = scan_folder(folder, progress, options)
    offences = [offence for of_case in scan.offences.values() for offence in of_case]
    offences += region_offences(scan.facts, LabelScheme(classes=scan.classes, regions=scan.card.regions))
    report = summarise(scan.facts, [*offences, *(Offence(*entry) for entry in scan.found.left_out)], scan.classes)
    report.layout = scan.found.layout
    return report


def _case_names(names: Sequence[str]) -> list[str]:
    """Turn file names into unique names that tables and folders accept."""
    taken: set[str] = set()
    clean = []
    for name in names:
        base = re.sub(r"[^\w.\-]", "_", name)
        base = base if re.match(r"\w", base) else f"case{base}"
        unique, number = base, 2
        while unique in taken:
            unique, number = f"{base}_{number}", number + 1
        taken.add(unique)
        clean.append(unique)
    return clean


def _classes_of(facts: Sequence[CaseFacts]) -> dict[int, str]:
    # A negative value cannot be a class: it is reported as a value without one.
    values = sorted({value for fact in facts for value in fact.voxels if value > 0})
    return {0: "background"} | {value: f"class_{value}" for value in values}


def _odd_axes(facts: CaseFacts, axes: int, channels: int) -> Iterator[Offence]:
    if facts.shape is not None and len(facts.shape) != axes:
        yield Offence(facts.case.images[0], f"{len(facts.shape)} axes; the other cases have {axes}")
    elif facts.channels not in (None, channels):
        yield Offence(facts.case.images[0], f"{facts.channels} volumes; the other cases have {channels}")


def _tolerance(spacings: Sequence[tuple[float, ...]], median: tuple[float, ...] | None) -> float:
    if median is None:
        return _TOLERANCE
    widest = float(np.max(np.abs(np.array(spacings) / np.array(median) - 1)))
    return _TOLERANCE if widest <= _TOLERANCE else math.ceil(widest * 1000) / 1000


# Manifests.


@dataclass(frozen=True)
class FoldSettings:
    """How cases are assigned to folds.

    Attributes:
        number: number of folds that patients are divided into.
        seed: seed of the random assignment of patients to folds.
        patient: regular expression that matches the patient at the start of a case's name; None: a patient per case.
        splits: nnU-Net's `splits_final.json`, whose folds are used instead of random ones.
    """

    number: int = 5
    seed: int = 0
    patient: str | None = None
    splits: Path | None = None


_DEFAULT_FOLDS = FoldSettings()


def make_manifest(
    folder: Path,
    *,
    name: str | None = None,
    modality: str | None = None,
    folds: FoldSettings = _DEFAULT_FOLDS,
    options: FolderOptions = _NO_OPTIONS,
    progress: Progress | None = None,
    notify: Callable[[str], object] = lambda line: None,
) -> Manifest:
    """Make a manifest for a folder; its `excluded` lists the files that cannot be used, with the reason.

    Args:
        folder: a folder in one of the `LAYOUTS`, with or without `dataset.json`.
        name: the manifest's name; default: from `dataset.json`, else the folder's.
        modality: `MR`, `CT`, ..., one for all channels or one per channel, separated by commas; default: guessed from
            the channels' names, else `MR`.
        folds: how cases are assigned to folds; by default at random to 5.
        options: what the user says about the folder's files.
        progress: called with the number of cases done and their total.
        notify: called with lines on the layout, the channels, and what is accepted, but worth knowing.

    Raises:
        UserError: the folder does not exist or has no usable case; there are fewer patients than folds; or the splits
            do not hold out each case once.
    """
    if name is not None and (not name or _clean(name) != name):
        raise UserError(f"name: got '{name}'; expected letters, digits, '_', '.' and '-'")
    scan = scan_folder(folder, progress, options)
    usable = [fact for fact in scan.facts if not scan.offences[fact.case.id]]
    if not usable or scan.spacing is None:
        first = next(offence for of_case in scan.offences.values() for offence in of_case)
        raise UserError(
            f"{folder}: none of {len(scan.facts)} pairs can be used; the first: {first.file}: {first.reason}"
        )
    notify(f"layout: {scan.found.layout}")
    channels = _channels(scan, options, modality, notify)
    empty = region_offences(usable, LabelScheme(classes=scan.classes, regions=scan.card.regions))
    for note in (*summarise(usable, [], scan.classes).notes, *(offence.reason for offence in empty)):
        notify(f"note: {note}")
    unusable = unusable_files(scan)
    patients = _patients({fact.case.id: fact.case.patient for fact in usable}, folds.patient)
    if folds.splits is not None:
        case_folds = folds_of(folds.splits, patients)
    else:
        fold_of_patient = _folds(patients, folds.number, folds.seed, unusable)
        case_folds = {case: fold_of_patient[patient] for case, patient in patients.items()}
    folder_name = folder.resolve().name
    # If the folder contains another of the same name, that one would be taken for the data set's.
    is_unambiguous = folder_name and path_problem(folder_name) is None and not (folder / folder_name).is_dir()
    try:
        return Manifest(
            name=name or _clean(scan.card.name or folder_name) or "dataset",
            description=scan.card.description or UNKNOWN,
            task=f"Segment {', '.join(scan.card.regions or (name for value, name in scan.classes.items() if value))}",
            license=scan.card.license or UNKNOWN,
            citation=scan.card.citation or UNKNOWN,
            source=UNKNOWN,
            **channels,
            dimensions=scan.dimensions,  # type: ignore[arg-type]  # the reader accepts 2 or 3 axes only
            spacing=scan.spacing,
            spacing_tolerance=scan.tolerance,
            classes=scan.classes,
            regions=scan.card.regions,
            region_order=scan.card.region_order,
            ignore=scan.card.ignore,
            folder=folder_name if is_unambiguous else None,
            cases=[
                _case(fact, patients[fact.case.id], case_folds[fact.case.id])  # type: ignore[misc]
                for fact in usable
            ],
            excluded=[{"file": file, "reason": reason} for file, reason in unusable],  # type: ignore[misc]
        )
    except ValidationError as error:
        message = "; ".join(offence["msg"].removeprefix("Value error, ") for offence in error.errors())
        raise UserError(f"{folder}: {' '.join(message.split())}") from None


#: Modalities by a word in a channel's name.
_MODALITIES = {
    "MR": r"MRI?|T[12][a-z]{0,4}|FLAIR|ADC|DWI|SWI|PDw?|DCE",
    "CT": r"CTA?|CBCT|NCCT|CECT",
    "PET": r"PET|PT|SUV|FDG",
}


def guess_modality(channel: str) -> str | None:
    """The modality that a channel's name says, such as MR for `T1w`; None if it says none, or several."""
    words = re.split(r"[\W_]+", channel)
    found = [m for m, pattern in _MODALITIES.items() if any(re.fullmatch(pattern, w, re.IGNORECASE) for w in words)]
    return found[0] if len(found) == 1 else None


def _channels(
    scan: FolderScan, options: FolderOptions, modality: str | None, notify: Callable[[str], object]
) -> dict[str, Any]:
    """The manifest's `modality` and `channels`; notes what is assumed."""
    count, names = scan.channels, scan.found.channels
    if len(names) != count:
        if options.channels:
            raise UserError(f"--channels: {counted(len(names), 'name')} for {counted(count, 'channel')}")
        names = tuple(f"channel_{index}" for index in range(count))
    given = [part.strip() for part in (modality or "").split(",") if part.strip()]
    if given and len(given) not in (1, count):
        number = counted(count, "channel")
        raise UserError(f"--modality: got {len(given)} for {number}; expected one for all, or one per channel")
    modalities = given * (count // len(given)) if given else [guess_modality(name) for name in names]
    if count == 1:
        named = names[0] if scan.found.channels else None
        only = modalities[0] or (named if scan.card.channels else None)
        if only is None:
            notify("modality: MR is assumed (z-scored); pass --modality CT if Hounsfield units are to be clipped")
        only = only or "MR"
        is_plain = named is None or named.upper() in ("MRI", only.upper()) or guess_modality(named) is None
        is_plain = is_plain and not options.channels
        return {"modality": only, "channels": [] if is_plain else [{"name": named, "modality": only}]}
    both = list(zip(names, modalities, strict=True))
    listed = ", ".join(name if known in (None, name) else f"{name} ({known})" for name, known in both)
    notify(f"channels: {listed}{'' if scan.found.channels else '; pass --channels to name them'}")
    if unknown := [name for name, known in both if known is None]:
        example = ",".join(known or "MR" for known in modalities)
        notify(
            f"modality of {', '.join(unknown)} is not known: pass --modality, one per channel such as {example} (CT is "
            "normalised alike in all images, all others per image)"
        )
    return {
        "modality": " + ".join(dict.fromkeys(known or name for name, known in both)),
        "channels": [{"name": name, "modality": known} for name, known in both],
    }


def unusable_files(scan: FolderScan) -> list[Offence]:
    """Every file that a manifest has to exclude: unpaired files, and pairs in which a file is bad."""
    files: dict[str, str] = dict(scan.found.left_out)
    for fact in scan.facts:
        reasons: dict[str, list[str]] = {}
        for offence in scan.offences[fact.case.id]:
            reasons.setdefault(offence.file, []).append(offence.reason)
        files |= {file: "; ".join(of_file) for file, of_file in reasons.items()}
        if reasons:
            others = "its label cannot be used" if fact.case.label in reasons else "another channel cannot be used"
            files = dict.fromkeys(fact.case.images, others) | {fact.case.label: "its image cannot be used"} | files
    # A manifest is printable text, so a pattern represents an unprintable name.
    return [
        Offence("".join(c if c.isprintable() else "?" for c in file), reason) for file, reason in sorted(files.items())
    ]


def manifest_text(manifest: Manifest) -> str:
    """A manifest as YAML: one line per field, and then one line per case."""
    content = manifest.model_dump(mode="json", exclude_none=True)
    lines = [f"# {len(manifest.cases)} cases, in {len(manifest.folds())} folds by patient."]
    content["cases"] = content.pop("cases")  # the long list comes last
    for field, value in content.items():
        if field in ("channels", "regions", "region_order") and not value:
            continue
        if field in ("excluded", "cases", "channels"):
            lines += [f"{field}:", *(f"  - {_flow(entry)}" for entry in value)] if value else []
        elif field == "classes":
            lines.append(f"classes: {_flow({int(key): name for key, name in value.items()})}")
        elif field in ("spacing", "regions", "region_order"):
            lines.append(f"{field}: {_flow(value)}")
        else:
            lines.append(_yaml({field: value}))
    return "\n".join(lines) + "\n"


def _case(facts: CaseFacts, patient: str, fold: int) -> dict[str, Any]:
    case = facts.case
    return {
        "id": case.id,
        "patient": patient,
        "fold": fold,
        "image": case.image,
        "label": case.label,
        "image_sha256": _one_or_all([facts.checksums[file] for file in case.images]),
        "label_sha256": facts.checksums[case.label],
    }


def _one_or_all(checksums: list[str]) -> str | list[str]:
    return checksums[0] if len(checksums) == 1 else checksums


def with_checksums(manifest: Manifest, root: Path) -> Manifest:
    """Add the checksums that a manifest leaves out.

    Args:
        manifest: of listed files.
        root: the folder to which its paths are relative.

    Raises:
        UserError: a file is missing, or has another checksum than the one that the manifest has already.
    """
    made = []
    for case in manifest.cases:
        found = {}
        for file in case.files:
            problem = file_problem(root / file)
            if problem is None:
                found[file] = sha256(root / file)
                problem = WRONG_CHECKSUM if case.checksums.get(file, found[file]) != found[file] else None
            if problem is not None:
                raise UserError(f"'{case.id}': {file}: {problem}")
        images = tuple(found[file] for file in case.images)
        update = {"image_sha256": images[0] if len(images) == 1 else images, "label_sha256": found[case.label]}
        made.append(case.model_copy(update=update))
    return manifest.model_copy(update={"cases": made})


def _patients(names: dict[str, str], pattern: str | None) -> dict[str, str]:
    """Case name to patient name, given those that the layout says."""
    if pattern is None:
        return names
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"patient: '{pattern}' is not a valid regular expression: {error}") from None
    patients = {}
    for name in names:
        found = expression.match(name)
        if found is None or not found[0]:
            raise UserError(f"patient: '{pattern}' matches nothing in '{name}'; expected a match in each case's name")
        patients[name] = found[0]
    return patients


def _folds(patients: dict[str, str], folds: int, seed: int, unusable: Sequence[Offence] = ()) -> dict[str, int]:
    """Assign patients to folds at random, with numbers of cases as equal as possible.

    Args:
        patients: case to patient.
        folds: number of folds.
        seed: seed of the assignment.
        unusable: excluded files, which may be why there are too few patients.
    """
    counts = Counter(patients.values())
    if folds < 2:
        raise UserError(f"folds: got {folds}; expected 2 or more, of which one is held out for validation")
    if folds > len(counts):
        minimum = "; training and validation need different patients, so 2 are the minimum"
        expected = f"; expected at most one per patient: --folds {len(counts)}" if len(counts) > 1 else minimum
        excluded = (
            f"; files that cannot be used: {len(unusable)}, the first: {': '.join(unusable[0])}" if unusable else ""
        )
        number = "1 patient" if len(counts) == 1 else f"{len(counts)} patients"
        raise UserError(f"folds: got {folds} for {number}{expected}{excluded}")
    order = sorted(counts)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda patient: -counts[patient])  # patients with most cases first; the sort is stable
    sizes = [0] * folds
    fold_of = {}
    for patient in order:
        fold_of[patient] = sizes.index(min(sizes))
        sizes[fold_of[patient]] += counts[patient]
    return fold_of


def _clean(name: str) -> str:
    return re.sub(r"[^\w.\-]+", "_", name).lstrip(".-")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=100, allow_unicode=True).strip()


def _flow(value: Any) -> str:
    # No line break, whatever the length.
    dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=2**31, allow_unicode=True)
    return dumped.strip()
