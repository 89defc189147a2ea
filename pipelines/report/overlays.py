"""All pictures of individual cases of a report, with their notes."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from pipelines.report.collect import Collected
from pipelines.report.overlay_drawing import loss_picture, same_picture, scores_text
from pipelines.report.overlay_selection import Choice, choose, most_different
from pipelines.report.overlay_slices import Panel, read_panels
from pipelines.runs.plan import file_name
from pipelines.statistics.results import Analysis

#: Up to this number of losses, all pictures are visible; with more, only those of the best, the reference, the worst.
_AT_ONCE = 4
SAME = "overlay_same_case"


@dataclass(frozen=True)
class Picture:
    """A picture of cases.

    Attributes:
        name: name of the file, without `.png`.
        title: what it shows.
        png: content of the file.
        description: the alternative text, for readers who cannot see the picture.
    """

    name: str
    title: str
    png: bytes
    description: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return int.from_bytes(self.png[16:20]), int.from_bytes(self.png[20:24])

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Overlays:
    """The section of the report on individual cases.

    Attributes:
        same: all losses on the case on which they differ most.
        shown: the pictures per loss that are visible at once.
        folded: the other pictures.
        notes: what is not drawn, and why, one line each.
        table: a row per panel.
    """

    same: Picture | None = None
    shown: tuple[Picture, ...] = ()
    folded: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    table: pd.DataFrame | None = None

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures."""
        return (*((self.same,) if self.same is not None else ()), *self.shown, *self.folded)


def every_overlay(analysis: Analysis, collected: Collected) -> Overlays:
    """Select cases, read their files, and draw; the notes explain what cannot be drawn."""
    if not collected.predictions:
        reason = collected.no_pictures
        return Overlays(notes=() if reason is None else (f"No pictures of individual cases: {reason}.",))
    metric = analysis.primary.metric
    order = [ranked.loss for ranked in analysis.primary.ranking]
    chosen = choose(collected.table, metric, collected.predictions, analysis.empty)
    different = most_different(collected.table, metric, collected.predictions, analysis.empty)
    different.sort(key=lambda choice: order.index(choice.predicted.loss))
    flat = [choice for loss in order for choice in chosen.get(loss, [])]
    panels, together = read_panels(flat, different)
    names = _names(order)
    pictures, rows, notes = {}, [], _missing(analysis, collected, chosen)
    for loss in order:
        of_loss = [panel for panel in panels if panel.choice.predicted.loss == loss]
        drawn = any(panel.shown is not None for panel in of_loss)
        if drawn:
            png = loss_picture(loss, of_loss, metric)
            pictures[loss] = Picture(names[loss], loss, png, _description(of_loss, metric))
        rows += [_row(panel, names[loss] if drawn else "") for panel in of_loss]
    same = None
    if any(panel.shown is not None for panel in together):
        title = f"All losses on one case: {together[0].choice.predicted.case}"
        same = Picture(SAME, title, same_picture(together, metric), _description(together, metric, by_loss=True))
    rows += [_row(panel, SAME if same is not None else "") for panel in together]
    notes += _problems([*panels, *together])
    first = [loss for loss in _first(analysis, order) if loss in pictures]
    return Overlays(
        same=same,
        shown=tuple(pictures[loss] for loss in first),
        folded=tuple(picture for loss, picture in pictures.items() if loss not in first),
        notes=tuple(notes),
        table=pd.DataFrame(rows),
    )


def _first(analysis: Analysis, order: Sequence[str]) -> list[str]:
    """The losses whose pictures are visible at once, the best first."""
    if len(order) <= _AT_ONCE:
        return list(order)
    return [loss for loss in order if loss in (order[0], analysis.reference, order[-1])]


def _names(losses: Sequence[str]) -> dict[str, str]:
    """Names of the files, distinct even if the file system ignores case."""
    names: dict[str, str] = {}
    for loss in losses:
        name = f"overlay_{file_name(loss)}"
        taken = {other.casefold() for other in (*names.values(), SAME)}
        number = 2
        while (free := name if number == 2 else f"{name}_{number - 1}").casefold() in taken:
            number += 1
        names[loss] = free
    return names


def _description(panels: Sequence[Panel], metric: str, by_loss: bool = False) -> str:
    return "; ".join(
        f"{panel.choice.predicted.loss if by_loss else f'{panel.choice.which}, {panel.choice.predicted.case}'}: "
        f"{scores_text(panel, metric) if panel.shown is not None else 'no picture'}"
        for panel in panels
    )


def _row(panel: Panel, picture: str) -> dict[str, object]:
    choice, shown = panel.choice, panel.shown
    return {
        "loss": choice.predicted.loss,
        "which": choice.which,
        "case": choice.predicted.case,
        "fold": choice.predicted.fold,
        "seed": choice.predicted.seed,
        "score": choice.score,
        **choice.metrics,
        "plane": shown.plane.name if shown is not None else None,
        "axis": shown.plane.across if shown is not None else None,
        "slice": shown.index if shown is not None else None,
        "picture": f"{picture}.png" if picture and shown is not None else None,
        "problem": panel.problem or (shown.no_image if shown is not None else None),
    }


def _missing(analysis: Analysis, collected: Collected, chosen: dict[str, list[Choice]]) -> list[str]:
    """Notes on losses without predictions for some or all cases; such cases are not shown."""
    notes = []
    has: dict[str, set[str]] = {}
    for one in collected.predictions:
        has.setdefault(one.loss, set()).add(one.case)
    cases = set(collected.table.frame["case"])
    for ranked in analysis.primary.ranking:
        missing = len(cases - has.get(ranked.loss, set()))
        if ranked.loss not in chosen:
            notes.append(f"{ranked.loss}: no pictures, since none of its runs finished.")
        elif missing:
            notes.append(
                f"{ranked.loss}: {missing} of {len(cases)} cases have no prediction (they count as the worst); the "
                "worst, median and best are selected from the others."
            )
    return notes


def _problems(panels: Sequence[Panel]) -> list[str]:
    """Notes on what could not be drawn, each reason once."""
    reasons: dict[str, list[str]] = {}
    for panel in panels:
        reason = panel.problem or (panel.shown.no_image if panel.shown is not None else None)
        if reason is not None:
            what = "not drawn" if panel.problem else "drawn without its image"
            reasons.setdefault(f"{what}: {reason}", []).append(panel.choice.predicted.case)
    return [f"{', '.join(dict.fromkeys(cases))}: {reason}." for reason, cases in reasons.items()]
