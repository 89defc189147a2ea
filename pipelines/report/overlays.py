"""All pictures of individual cases of a report, with their notes."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count

import pandas as pd

from pipelines.report.collect import Collected
from pipelines.report.overlay_drawing import class_text, loss_picture, same_picture, scores_text
from pipelines.report.overlay_selection import Choice, choose, most_different
from pipelines.report.overlay_slices import Panel, read_panels
from pipelines.runs.plan import file_name
from pipelines.statistics.results import Analysis

#: Up to this number of losses, all pictures are visible; with more, only those of the best, the reference, the worst.
_AT_ONCE = 4
SAME = "overlay_same_case"


@dataclass(frozen=True)
class Picture:
    """A picture of cases: name of its file without `.png`, title, content of the file, and alternative text."""

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
    panels, together = read_panels([choice for loss in order for choice in chosen.get(loss, [])], different)
    names = _names(order)
    pictures, rows = {}, []
    for loss in order:
        of_loss = [panel for panel in panels if panel.choice.predicted.loss == loss]
        if any(panel.shown is not None for panel in of_loss):
            png = loss_picture(loss, of_loss, metric)
            pictures[loss] = Picture(names[loss], loss, png, _description(of_loss, metric))
        rows += [_row(panel, names[loss]) for panel in of_loss]
    rows += [_row(panel, SAME) for panel in together]
    same = None
    if any(panel.shown is not None for panel in together):
        title = f"All losses on one case: {together[0].choice.predicted.case}"
        same = Picture(SAME, title, same_picture(together, metric), _description(together, metric, by_loss=True))
    first = order if len(order) <= _AT_ONCE else [order[0], analysis.reference, order[-1]]
    return Overlays(
        same=same,
        shown=tuple(picture for loss, picture in pictures.items() if loss in first),
        folded=tuple(picture for loss, picture in pictures.items() if loss not in first),
        notes=(*_missing(analysis, collected, chosen), *_problems([*panels, *together])),
        table=pd.DataFrame(rows),
    )


def _names(losses: Sequence[str]) -> dict[str, str]:
    """Names of the files, distinct even if the file system ignores case."""
    names: dict[str, str] = {}
    taken = {SAME}
    for loss in losses:
        base = f"overlay_{file_name(loss)}"
        candidates = chain((base,), (f"{base}_{number}" for number in count(2)))
        names[loss] = next(name for name in candidates if name.casefold() not in taken)
        taken.add(names[loss].casefold())
    return names


def _description(panels: Sequence[Panel], metric: str, by_loss: bool = False) -> str:
    def scored(panel: Panel) -> str:
        if panel.shown is None:
            return "no picture"
        return ", ".join(filter(None, (scores_text(panel, metric), class_text(panel, metric))))

    return "; ".join(
        f"{panel.choice.predicted.loss if by_loss else f'{panel.choice.which}, {panel.choice.predicted.case}'}: "
        f"{scored(panel)}"
        for panel in panels
    )


def _row(panel: Panel, picture: str) -> dict[str, object]:
    choice, one, shown = panel.choice, panel.choice.predicted, panel.shown
    row = {"loss": one.loss, "which": choice.which, "case": one.case, "fold": one.fold, "seed": one.seed}
    row |= {"score": choice.score, **choice.metrics}  # type: ignore[dict-item]
    if shown is None:
        drawn = dict.fromkeys(("plane", "axis", "slice", "picture"))
    else:
        drawn = {
            "plane": shown.plane.name,
            "axis": shown.axis,
            "slice": shown.index,
            "picture": f"{picture}.png",
        }
    return row | drawn | {"problem": panel.problem or (shown.no_image if shown is not None else None)}


def _missing(analysis: Analysis, collected: Collected, chosen: dict[str, list[Choice]]) -> list[str]:
    """Notes on losses without predictions for some or all cases; such cases are not shown."""
    notes = []
    cases = set(collected.table.frame["case"])
    for loss in (ranked.loss for ranked in analysis.primary.ranking):
        missing = len(cases - {one.case for one in collected.predictions if one.loss == loss})
        if loss not in chosen:
            notes.append(f"{loss}: no pictures, since none of its runs finished.")
        elif missing:
            notes.append(
                f"{loss}: {missing} of {len(cases)} cases have no prediction (they count as the worst); the worst, "
                "median and best are selected from the others."
            )
    return notes


def _problems(panels: Sequence[Panel]) -> list[str]:
    """Notes on what could not be drawn, each reason once."""
    reasons: dict[str, dict[str, None]] = {}
    for panel in panels:
        if panel.problem is not None:
            reasons.setdefault(f"not drawn: {panel.problem}", {})[panel.choice.predicted.case] = None
        elif panel.shown is not None and panel.shown.no_image is not None:
            reason = f"drawn without its image: {panel.shown.no_image}"
            reasons.setdefault(reason, {})[panel.choice.predicted.case] = None
    return [f"{', '.join(cases)}: {reason}." for reason, cases in reasons.items()]
