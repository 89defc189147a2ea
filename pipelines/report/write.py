"""Writes a report's folder: the page, its plots and tables, and all numbers as JSON."""

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from functools import partial
from pathlib import Path

from pipelines.report.collect import Collected
from pipelines.report.overlays import Overlays, every_overlay
from pipelines.report.page import NAMES as TABLES
from pipelines.report.page import every_table, page
from pipelines.report.plots import PLOTS
from pipelines.report.plots.base import Plot, drawn
from pipelines.runs.plan import DEFAULT_REFERENCE as DEFAULT_REFERENCE
from pipelines.runs.plan import NO_REFERENCE
from pipelines.statistics.analysis import analyse
from pipelines.statistics.results import Analysis
from pipelines.utils import UserError
from pipelines.utils.files import write_atomically, write_json, write_text
from pipelines.utils.machine import available_cores, end_with_parent, kill_pool

# All that a report draws; where that is much, its plots and its pictures of cases at the same time.

#: Losses from which on a second process pays: it takes a second to start, and each picture a fifth of one.
_MANY = 9


def draw_all(analysis: Analysis, collected: Collected) -> tuple[dict[str, Plot], Overlays]:
    """The plots by name, and the pictures of cases."""
    if not collected.predictions or len(collected.table.losses) < _MANY or available_cores() < 2:
        return every_plot(analysis, collected), every_overlay(analysis, collected)
    # Not by fork: a copy of a process with threads may wait for a lock for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        pictures = pool.submit(every_overlay, analysis, collected)
        try:
            plots = every_plot(analysis, collected)
            return plots, pictures.result()
        except KeyboardInterrupt:
            kill_pool(pool)
            raise
        except BrokenProcessPool:  # for lack of memory, most likely
            return plots, every_overlay(analysis, collected)


# All plots of a report.


def every_plot(analysis: Analysis, collected: Collected) -> dict[str, Plot]:
    """Draw what there is something to draw of: name -> plot."""
    return {
        name: drawn(name, partial(entry.draw, analysis, collected))
        for name, entry in PLOTS.items()
        if entry.applies(analysis, collected)
    }


# A report's folder: the page, its plots and tables, and all numbers as JSON.


def write_report(
    collected: Collected,
    out: Path,
    *,
    metric: str | None = None,
    reference: str | None = None,
    margin: float | None = None,
    empty: str | None = None,
    non_inferior: bool | None = None,
    bootstraps: int = 10_000,
) -> tuple[Path, Analysis]:
    """Analyse, and write everything; the page comes last, so that what it names is there.

    Args:
        collected: of a folder or a table.
        out: the report's folder; an older report there is replaced.
        metric: the primary measure; None: the one that the plan named before training.
        reference: the loss to compare with, or `NO_REFERENCE`; None: the plan's, or, where it named none,
            `DEFAULT_REFERENCE`, where it is among the losses.
        margin: of equivalence, in the measure's unit; None: the plan's.
        empty: what counts where the reference has nothing of a class: `one`, `exclude` or `worst`; None: the plan's.
        non_inferior: whether *non-inferior* takes the place of *equivalent*; None: the plan's.
        bootstraps: replicates.

    Returns:
        The page's path, and the analysis.

    Raises:
        UserError: no such measure or loss; the folder cannot be written.
    """
    named = {"reference": reference, "metric": metric, "margin": margin, "empty": empty, "non_inferior": non_inferior}
    notes = collected.notes + _after_the_fact(collected, named)
    metric = collected.metric if metric is None else metric
    margin = collected.margin if margin is None else margin
    empty = collected.empty if empty is None else empty
    non_inferior = collected.non_inferior if non_inferior is None else non_inferior
    if reference is None and collected.reference is not None:
        # Where it has not ended yet, no other takes its place.
        reference = collected.reference if collected.reference in collected.table.losses else NO_REFERENCE
    if reference == NO_REFERENCE:
        reference = None
    elif reference is None and DEFAULT_REFERENCE in collected.table.losses:
        reference = DEFAULT_REFERENCE
    elif reference is None:
        notes += (
            f"The usual reference, {DEFAULT_REFERENCE}, is not among the losses, and no other was named "
            "(--reference, before the results are seen): all losses are compared with all, and there is no verdict "
            "of equivalence.",
        )
    analysis = analyse(
        collected.table,
        metric=metric,
        reference=reference,
        margin=margin,
        empty=empty,
        non_inferior=non_inferior,
        bootstraps=bootstraps,
    )
    plots, overlays = draw_all(analysis, collected)
    tables = every_table(analysis, collected)
    if overlays.table is not None:
        tables["overlays"] = overlays.table
    html = page(analysis, collected, plots, overlays, notes)
    files: dict[str, bytes] = {}
    for name, plot in plots.items():
        files |= {f"plots/{name}.svg": plot.svg.encode(), f"plots/{name}.png": plot.png}
    files |= {f"plots/{picture.name}.png": picture.png for picture in overlays.pictures}
    files |= {f"tables/{name}.csv": table.to_csv(index=False).encode() for name, table in tables.items()}
    try:
        for name, content in files.items():
            write_atomically(out / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        _remove_stale(out, set(files))
        write_json(out / "analysis.json", analysis.to_dict() | _about(collected, notes))
        write_text(out / "report.html", html)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}; name another folder") from None
    return out / "report.html", analysis


#: Attributes of what a report is made of that are named before training, and what they are called.
_NAMED_BEFORE = {
    "reference": "reference", "metric": "primary measure", "margin": "margin", "empty": "empty",
    "non_inferior": "non-inferior",
}  # fmt: skip


def _after_the_fact(collected: Collected, named: Mapping[str, object]) -> tuple[str, ...]:
    """What was chosen when the results could be seen: a choice made by them finds more than there is."""
    if collected.reference is None:
        return ()  # nothing was named before
    return tuple(
        f"Chosen after the fact: {what} {named[name]}; before training {getattr(collected, name)} was named. What is "
        "chosen by the results looks better than it is."
        for name, what in _NAMED_BEFORE.items()
        if named[name] is not None and named[name] != getattr(collected, name)
    )


def _about(collected: Collected, notes: tuple[str, ...]) -> dict[str, object]:
    return {
        "title": collected.title,
        "notes": list(notes),
        "facts": dict(collected.facts),
        "costs": {loss: asdict(cost) for loss, cost in (collected.costs or {}).items()},
        "failures": [asdict(failure) for failure in collected.failures],
        "trained_as": collected.names,
        "relative_steps": collected.steps,
        "stood_still": [
            {
                "loss": one.run.config.loss,
                "fold": one.run.config.fold,
                "seed": one.run.config.seed,
                "epochs": one.epochs,
            }
            for one in collected.still
        ],
    }


def _remove_stale(out: Path, written: set[str]) -> None:
    """What an older report had, and this one has nothing to tell of: it would be taken for this one's."""
    own = [f"plots/{name}.{kind}" for name in PLOTS for kind in ("svg", "png")]
    own += [f"tables/{name}.csv" for name in TABLES]
    own += [f"plots/{path.name}" for path in (out / "plots").glob("overlay_*.png")]
    for name in own:
        if name not in written:
            (out / name).unlink(missing_ok=True)
