"""Scans a folder of images and labels, and writes a manifest for it."""

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
    Offence,
    Progress,
    doubled_images,
    label_note,
    label_offences,
    read_cases,
    summarise,
)
from pipelines.data.layouts import DatasetCard, folds_of, pair_folder, path_problem, read_card
from pipelines.data.manifest import UNKNOWN, Case, Manifest
from pipelines.utils import UserError

# What a folder without a manifest holds: its pairs, read and measured, and what is wrong with them.

#: The tolerance of spacings, unless the files need a wider one.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Survey:
    """A folder's content.

    Attributes:
        card: its `dataset.json`.
        facts: of each pair.
        offences: case's name to what is wrong with its files.
        unpaired: files that are in no pair.
        dimensions: that most cases have.
        spacing: median over the cases, mm an axis; None where no case can be read.
        tolerance: a share of the spacing within which all cases are.
        classes: by the card, else by the labels' values.
    """

    card: DatasetCard
    facts: list[CaseFacts]
    offences: dict[str, list[Offence]]
    unpaired: list[Offence]
    dimensions: int
    spacing: tuple[float, ...] | None
    tolerance: float
    classes: dict[int, str]


def survey_folder(folder: Path, progress: Progress | None = None) -> Survey:
    """Pair and read everything in a folder.

    Raises:
        UserError: no such folder, no pairs in it, or a `dataset.json` that says nothing sensible.
    """
    pairing = pair_folder(folder)
    card = read_card(folder)
    names = _case_names([name for name, _, _ in pairing.pairs])
    cases = [
        Case(id=name, patient=name, fold=0, image=image, label=label)
        for name, (_, image, label) in zip(names, pairing.pairs, strict=True)
    ]
    facts = read_cases(cases, folder, progress=progress)
    dimensions = Counter(len(fact.shape) for fact in facts if fact.shape is not None).most_common(1)
    axes = dimensions[0][0] if dimensions else 3
    classes = card.classes or _classes_of(facts)
    offences = {
        fact.case.id: [*fact.offences, *_odd_axes(fact, axes), *label_offences(fact, classes)] for fact in facts
    }
    for fact, offence in doubled_images(facts):
        offences[fact.case.id].append(offence)
    spacings = [fact.spacing for fact in facts if fact.spacing and not offences[fact.case.id]]
    spacing = tuple(round(float(s), 6) for s in np.median(spacings, axis=0)) if spacings else None
    return Survey(
        card,
        facts,
        offences,
        [Offence(*entry) for entry in pairing.unpaired],
        axes,
        spacing,
        _tolerance(spacings, spacing),
        classes,
    )


def check_folder(folder: Path, progress: Progress | None = None) -> CheckReport:
    """Check a folder that has no manifest: everything that needs none.

    Raises:
        UserError: as `survey_folder`.
    """
    survey = survey_folder(folder, progress)
    offences = [offence for of_case in survey.offences.values() for offence in of_case]
    return summarise(survey.facts, [*offences, *survey.unpaired], survey.classes)


def _case_names(names: Sequence[str]) -> list[str]:
    """File names as names that tables and folders can have, each once."""
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
    # A negative value can be no class: it stays without one, and so an offence.
    values = sorted({value for fact in facts for value in fact.voxels if value > 0})
    return {0: "background"} | {value: f"class_{value}" for value in values}


def _odd_axes(facts: CaseFacts, axes: int) -> Iterator[Offence]:
    if facts.shape is not None and len(facts.shape) != axes:
        yield Offence(facts.case.image, f"{len(facts.shape)} axes; the other cases have {axes}")


def _tolerance(spacings: Sequence[tuple[float, ...]], median: tuple[float, ...] | None) -> float:
    if median is None:
        return _TOLERANCE
    widest = float(np.max(np.abs(np.array(spacings) / np.array(median) - 1)))
    return _TOLERANCE if widest <= _TOLERANCE else math.ceil(widest * 1000) / 1000


# Writes a manifest for a folder of images and labels: checksums, spacing, classes, and folds by patient.


def make_manifest(
    folder: Path,
    *,
    name: str | None = None,
    modality: str | None = None,
    folds: int = 5,
    seed: int = 0,
    patient: str | None = None,
    splits: Path | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Manifest:
    """A manifest for what lies in a folder. What cannot be used is in its `excluded`, with the reason.

    Args:
        folder: `imagesTr` and `labelsTr`, with or without `dataset.json`; `images` and `labels`; or pairs side by side.
        name: the manifest's; default: by `dataset.json`, else the folder's.
        modality: `MR`, `CT` and so on; default: by `dataset.json`, else `MR`.
        folds: into how many parts the patients are divided.
        seed: decides which patients come together.
        patient: regular expression that finds a case's patient at the start of its name; default: each case has its
            own.
        splits: nnU-Net's `splits_final.json`, whose folds are taken in the place of drawn ones.
        progress: is told how many cases are done, of how many.
        tell: gets a line on labels that lie a little off their images.

    Raises:
        UserError: no such folder, no pairs in it that can be used, fewer patients than folds, splits that do not
            hold out each case once.
    """
    if name is not None and (not name or _clean(name) != name):
        raise UserError(f"name: got '{name}'; expected letters, digits, '_', '.' and '-'")
    survey = survey_folder(folder, progress)
    usable = [fact for fact in survey.facts if not survey.offences[fact.case.id]]
    if not usable or survey.spacing is None:
        first = next(offence for of_case in survey.offences.values() for offence in of_case)
        raise UserError(
            f"{folder}: none of {len(survey.facts)} pairs can be used; the first: {first.file}: {first.reason}"
        )
    if (note := label_note(usable)) is not None:
        tell(note)
    patients = _patients([fact.case.id for fact in usable], patient)
    if splits is not None:
        case_folds = folds_of(splits, patients)
    else:
        drawn = _folds(patients, folds, seed, left_out(survey))
        case_folds = {case: drawn[of_case] for case, of_case in patients.items()}
    own = folder.resolve().name
    # Where a folder holds another of its own name, this one would be looked for in there.
    usual = own and path_problem(own) is None and not (folder / own).is_dir()
    try:
        return Manifest(
            name=name or _clean(survey.card.name or own) or "dataset",
            description=survey.card.description or UNKNOWN,
            task=f"Segment {', '.join(label for value, label in survey.classes.items() if value)}",
            license=survey.card.license or UNKNOWN,
            citation=survey.card.citation or UNKNOWN,
            source=UNKNOWN,
            modality=modality or survey.card.modality or "MR",
            dimensions=survey.dimensions,  # type: ignore[arg-type]  # 2 or 3, as the reader lets through
            spacing=survey.spacing,
            spacing_tolerance=survey.tolerance,
            classes=survey.classes,
            folder=own if usual else None,
            cases=[
                _case(fact, patients[fact.case.id], case_folds[fact.case.id])  # type: ignore[misc]
                for fact in usable
            ],
            excluded=[{"file": file, "reason": reason} for file, reason in left_out(survey)],  # type: ignore[misc]
        )
    except ValidationError as error:
        told = "; ".join(offence["msg"].removeprefix("Value error, ") for offence in error.errors())
        raise UserError(f"{folder}: {' '.join(told.split())}") from None


def left_out(survey: Survey) -> list[Offence]:
    """Every file that a manifest cannot have: the unpaired, and pairs in which something is wrong."""
    files: dict[str, str] = dict(survey.unpaired)
    for fact in survey.facts:
        reasons: dict[str, list[str]] = {}
        for offence in survey.offences[fact.case.id]:
            reasons.setdefault(offence.file, []).append(offence.reason)
        files |= {file: "; ".join(told) for file, told in reasons.items()}
        if reasons:
            files.setdefault(fact.case.image, "its label cannot be used")
            files.setdefault(fact.case.label, "its image cannot be used")
    # A manifest is printable text: a pattern stands for a name that is not.
    return [
        Offence("".join(c if c.isprintable() else "?" for c in file), reason) for file, reason in sorted(files.items())
    ]


def manifest_text(manifest: Manifest) -> str:
    """A manifest as YAML: a field a line, and then a case a line."""
    content = manifest.model_dump(mode="json", exclude_none=True)
    lines = [f"# {len(manifest.cases)} cases, in {len(manifest.folds())} folds by patient."]
    content["cases"] = content.pop("cases")  # the long list comes last
    for field, value in content.items():
        if field in ("excluded", "cases"):
            lines += [f"{field}:", *(f"  - {_flow(entry)}" for entry in value)] if value else []
        elif field == "classes":
            lines.append(f"classes: {_flow({int(key): name for key, name in value.items()})}")
        elif field == "spacing":
            lines.append(f"spacing: {_flow(value)}")
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
        "image_sha256": facts.checksums[case.image],
        "label_sha256": facts.checksums[case.label],
    }


def _patients(names: Sequence[str], pattern: str | None) -> dict[str, str]:
    """Case's name to its patient's."""
    if pattern is None:
        return {name: name for name in names}
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"patient: '{pattern}' is no regular expression: {error}") from None
    patients = {}
    for name in names:
        found = expression.match(name)
        if found is None or not found[0]:
            raise UserError(f"patient: '{pattern}' finds no patient in '{name}'; expected one in each case's name")
        patients[name] = found[0]
    return patients


def _folds(patients: dict[str, str], folds: int, seed: int, unusable: Sequence[Offence] = ()) -> dict[str, int]:
    """Patient to fold: at random, and so that the folds have as equal numbers of cases as can be.

    Args:
        patients: case to patient.
        folds: how many.
        seed: decides which patients come together.
        unusable: files without which there may be too few patients.
    """
    counts = Counter(patients.values())
    if folds < 2:
        raise UserError(f"folds: got {folds}; expected 2 or more, of which one validates")
    if folds > len(counts):
        least = "; a patient trains and another one validates, so 2 are the least"
        most = f"; expected at most one per patient: --folds {len(counts)}" if len(counts) > 1 else least
        without = (
            f"; files that cannot be used: {len(unusable)}, the first: {': '.join(unusable[0])}" if unusable else ""
        )
        patient = "1 patient" if len(counts) == 1 else f"{len(counts)} patients"
        raise UserError(f"folds: got {folds} for {patient}{most}{without}")
    order = sorted(counts)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda one: -counts[one])  # those with many cases first; the sort keeps the others' order
    sizes = [0] * folds
    fold_of = {}
    for one in order:
        fold_of[one] = sizes.index(min(sizes))
        sizes[fold_of[one]] += counts[one]
    return fold_of


def _clean(name: str) -> str:
    return re.sub(r"[^\w.\-]+", "_", name).lstrip(".-")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, width=100, allow_unicode=True).strip()


def _flow(value: Any) -> str:
    # No line break, whatever the length.
    dumped = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=2**31, allow_unicode=True)
    return dumped.strip()
