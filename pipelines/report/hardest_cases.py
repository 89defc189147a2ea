"""The table of cases, the hardest first, and where their pictures are on the page."""

from dataclasses import dataclass

import numpy as np

from pipelines.report.collect import Collected
from pipelines.report.overlays import Overlays
from pipelines.report.plots.base import Key
from pipelines.statistics.results import Analysis

#: Up to this number of losses, every loss has a column.
_ALL_LOSSES = 8


@dataclass(frozen=True)
class CaseRow:
    """One case.

    Attributes:
        case: the case, or the patient.
        mean: mean score over the losses.
        worst: the worst score, and the loss that has it; `best` likewise.
        reference: the score of the reference, or without one `None`.
        scores: the score of every loss, if there are only a few.
        link: id of a picture of this case, on the page.
    """

    case: str
    mean: float
    worst: tuple[float, str]
    best: tuple[float, str]
    reference: float | None
    scores: tuple[float, ...]
    link: str | None


def case_rows(analysis: Analysis, pictures: dict[Key, str]) -> tuple[CaseRow, ...]:
    """All cases, the one with the worst mean over the losses first.

    Args:
        analysis: with the scores.
        pictures: of `pictured`.
    """
    losses = shown_losses(analysis)
    every = [ranked.loss for ranked in analysis.primary.ranking]
    scores = np.array([analysis.scores[loss] for loss in every])
    sign = analysis.metric.sign
    means, worst, best = scores.mean(0), (sign * scores).argmin(0), (sign * scores).argmax(0)
    links = {case: link for (_, case), link in pictures.items()}
    return tuple(
        CaseRow(
            case=analysis.patients[case],
            mean=float(means[case]),
            worst=(float(scores[worst[case], case]), every[worst[case]]),
            best=(float(scores[best[case], case]), every[best[case]]),
            reference=None if analysis.reference is None else analysis.scores[analysis.reference][case],
            scores=tuple(analysis.scores[loss][case] for loss in losses),
            link=links.get(int(case)),
        )
        for case in np.argsort(sign * means, kind="stable")
    )


def shown_losses(analysis: Analysis) -> tuple[str, ...]:
    """The losses that have a column each: all in the order of the ranking, or of many none."""
    losses = tuple(ranked.loss for ranked in analysis.primary.ranking)
    return losses if len(losses) <= _ALL_LOSSES else ()


def pictured(analysis: Analysis, collected: Collected, overlays: Overlays) -> dict[Key, str]:
    """The ids of pictures on the page, by the places of loss and case; that of one loss before that of all losses."""
    if overlays.table is None:
        return {}
    place = {ranked.loss: number for number, ranked in enumerate(analysis.primary.ranking)}
    of_patient = {patient: number for number, patient in enumerate(analysis.patients)}
    frame = collected.table.frame
    named = frame.drop_duplicates("case").set_index("case")["patient"]
    drawn = {f"{picture.name}.png": picture.name for picture in overlays.pictures}
    found: dict[Key, str] = {}
    for loss, case, picture in overlays.table[["loss", "case", "picture"]].to_numpy().tolist():
        patient = str(named.get(case, ""))
        number = of_patient.get(patient, of_patient.get(patient.partition(" ")[2]))
        if number is not None and loss in place and picture in drawn:
            found.setdefault((place[loss], number), drawn[picture])
    return found
