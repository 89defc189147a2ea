"""What a folder without a manifest holds: its pairs, read and measured, and what is wrong with them."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.dataset.case_reader import CaseFacts, Offence, doubled_images, read_cases
from pipelines.dataset.check import CheckReport, Progress, label_offences, summarise
from pipelines.dataset.dataset_card import DatasetCard, read_card
from pipelines.dataset.manifest import Case
from pipelines.dataset.pairing import pair_folder

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
