"""Writes a manifest for a folder of images and labels: checksums, spacing, classes, and folds by patient."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipelines.dataset.case_reader import CaseFacts, Offence
from pipelines.dataset.check import Progress, label_note
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.manifest_rules import path_problem
from pipelines.dataset.survey import Survey, survey_folder
from pipelines.errors import UserError
from pipelines.nnunet.splits import folds_of

_UNKNOWN = "unknown; to be filled in"


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
        drawn = _folds(patients, folds, seed)
        case_folds = {case: drawn[of_case] for case, of_case in patients.items()}
    own = folder.resolve().name
    # Where a folder holds another of its own name, this one would be looked for in there.
    usual = own and path_problem(own) is None and not (folder / own).is_dir()
    try:
        return Manifest(
            name=name or _clean(survey.card.name or own) or "dataset",
            description=survey.card.description or _UNKNOWN,
            task=f"Segment {', '.join(label for value, label in survey.classes.items() if value)}",
            license=survey.card.license or _UNKNOWN,
            citation=survey.card.citation or _UNKNOWN,
            source=_UNKNOWN,
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


def _folds(patients: dict[str, str], folds: int, seed: int) -> dict[str, int]:
    """Patient to fold: at random, and so that the folds have as equal numbers of cases as can be."""
    counts = Counter(patients.values())
    if folds < 2:
        raise UserError(f"folds: got {folds}; expected 2 or more, of which one validates")
    if folds > len(counts):
        raise UserError(f"folds: got {folds} for {len(counts)} patients; expected at most one a patient")
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
