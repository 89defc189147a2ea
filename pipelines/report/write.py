"""Writes the folder of a report: the page, plots and tables, and all numbers as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipelines.report.collect import Collected
from pipelines.report.overlays import every_overlay
from pipelines.report.page import TABLES, every_table, page
from pipelines.report.paper import paper
from pipelines.report.plots import PLOTS
from pipelines.report.plots.base import Plot, drawn
from pipelines.report.subgroups import Groups, compare_groups
from pipelines.runs.plan import DEFAULT_REFERENCE, NO_REFERENCE
from pipelines.statistics.analysis import analyse
from pipelines.statistics.results import Analysis
from pipelines.utils import UserError
from pipelines.utils.files import write_atomically, write_json, write_text


def every_plot(analysis: Analysis, collected: Collected) -> dict[str, Plot]:
    """Draw all plots that apply, by name."""
    return {
        name: drawn(name, partial(entry.draw, analysis, collected))
        for name, entry in PLOTS.items()
        if entry.applies(analysis, collected)
    }


def write_report(
    collected: Collected,
    out: Path,
    *,
    metric: str | None = None,
    reference: str | None = None,
    margin: float | None = None,
    further_metrics: Mapping[str, float | None] | None = None,
    empty: str | None = None,
    non_inferior: bool | None = None,
    bootstraps: int = 10_000,
    groups: Groups | None = None,
) -> tuple[Path, Analysis]:
    """Analyse the results and write the report; the page comes last, after all files that it names.

    Args:
        collected: the results of a comparison, a table or external predictions.
        out: folder of the report; an older report there is replaced.
        metric: the primary metric; `None`: that of the plan.
        reference: the loss that the others are compared with, or `NO_REFERENCE`; `None`: that of the plan, or without
            one `DEFAULT_REFERENCE` if it is among the losses.
        margin: equivalence margin, in the metric's unit; `None`: that of the plan.
        further_metrics: further primary metrics with their margins; `None`: those of the plan.
        empty: the rule for cases whose reference is empty for a class: `one`, `exclude` or `worst`; `None`: that of the
            plan.
        non_inferior: whether to test non-inferiority in place of equivalence; `None`: as in the plan.
        bootstraps: number of bootstrap replicates.
        groups: groups of the cases, within which the losses are compared with the reference, too; `None`: those that
            were named before training, if any.

    Returns:
        The path of the page, and the analysis.

    Raises:
        UserError: there is no such metric or loss, or the folder cannot be written.
    """
    named = {
        "reference": reference, "metric": metric, "margin": margin, "further_metrics": further_metrics, "empty": empty,
        "non_inferior": non_inferior,
    }  # fmt: skip
    notes = collected.notes + _after_the_fact(collected, named)
    options: dict[str, Any] = {
        name: getattr(collected, name) if value is None else value for name, value in named.items()
    }
    losses = collected.table.losses
    if reference is None and collected.reference is None:
        options["reference"] = DEFAULT_REFERENCE if DEFAULT_REFERENCE in losses else None
        if options["reference"] is None:
            notes += (
                f"The default reference, {DEFAULT_REFERENCE}, is not among the losses, and no other was named "
                "(--reference, before the results are known): all pairs of losses are compared, and equivalence is not "
                "tested.",
            )
    elif options["reference"] == NO_REFERENCE or (reference is None and collected.reference not in losses):
        # If the runs of the plan's reference have not ended yet, no other loss replaces it.
        options["reference"] = None
    options["further"] = options.pop("further_metrics")
    analysis = analyse(collected.table, bootstraps=bootstraps, **options)
    if groups is not None or (collected.groups is not None and analysis.reference is not None):
        groups = groups or collected.groups
        assert groups is not None
        subgroups, on_groups = compare_groups(collected.table, analysis, groups)
        analysis = replace(analysis, subgroups=subgroups)
        notes += on_groups
    plots, overlays, for_paper = (
        every_plot(analysis, collected),
        every_overlay(analysis, collected),
        paper(analysis, collected),
    )
    tables = every_table(analysis, collected)
    if overlays.table is not None:
        tables["overlays"] = overlays.table
    html = page(analysis, collected, plots, overlays, for_paper, tables, notes)
    files: dict[str, bytes] = {}
    for name, plot in plots.items():
        files |= {f"plots/{name}.svg": plot.svg.encode(), f"plots/{name}.png": plot.png}
    files |= {f"plots/{picture.name}.png": picture.png for picture in overlays.pictures}
    files |= {f"paper/{name}": content.encode() for name, content in for_paper.files.items()}
    files |= {f"tables/{name}.csv": table.to_csv(index=False).encode() for name, table in tables.items()}
    try:
        for name, content in files.items():
            write_atomically(out / name, lambda file, content=content: file.write(content))  # type: ignore[misc]
        remove_stale(out, set(files))
        write_json(out / "analysis.json", analysis.to_dict() | _provenance(collected, notes))
        write_text(out / "report.html", html)
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}; name another folder") from None
    return out / "report.html", analysis


#: Attributes of `Collected` that a plan names before training, and their names in notes.
_NAMED_BEFORE = {
    "reference": "reference", "metric": "primary metric", "margin": "margin",
    "further_metrics": "further primary metrics", "empty": "empty",
    "non_inferior": "non-inferior",
}  # fmt: skip


def _after_the_fact(collected: Collected, named: Mapping[str, object]) -> tuple[str, ...]:
    """Notes on choices that differ from the plan, since the results may have been known when they were made."""
    if collected.reference is None:
        return ()  # nothing was named before training
    return tuple(
        f"Chosen after the fact: {what} {_shown(named[name])}; before training, {_shown(getattr(collected, name))} was "
        "named. A choice that is based on the results makes them look better than they are."
        for name, what in _NAMED_BEFORE.items()
        if named[name] is not None
        and named[name] != getattr(collected, name)
        # The margin of a further primary metric was named before, too.
        and not (name == "margin" and collected.further_metrics.get(str(named["metric"])) == named[name])
    )


def _shown(value: object) -> str:
    """A choice as text; of further metrics each with its margin."""
    if not isinstance(value, Mapping):
        return str(value)
    return ", ".join(f"{name} ({'no margin' if own is None else f'{own:g}'})" for name, own in value.items()) or "none"


def _provenance(collected: Collected, notes: tuple[str, ...]) -> dict[str, object]:
    """What `analysis.json` has in addition to the analysis."""
    return {
        "title": collected.title,
        "notes": list(notes),
        "facts": dict(collected.facts),
        "costs": {loss: asdict(cost) for loss, cost in collected.costs.items()},
        "failures": [asdict(failure) for failure in collected.failures],
        "trained_as": collected.names,
        "relative_steps": collected.steps,
        "stood_still": [
            {"loss": run.loss, "fold": run.fold, "seed": run.seed, "epochs": still.epochs}
            for still in collected.still
            for run in (still.run.config,)
        ],
    }


#: Plots of earlier versions.
_FORMER_PLOTS = ("first",)


def remove_stale(out: Path, written: set[str]) -> None:
    """Remove files of an older report that this one does not have."""
    possible = [f"plots/{name}.{kind}" for name in (*PLOTS, *_FORMER_PLOTS) for kind in ("svg", "png")]
    possible += [f"tables/{name}.csv" for name in TABLES]
    possible += [f"plots/{path.name}" for path in (out / "plots").glob("overlay_*.png")]
    for name in possible:
        if name not in written:
            (out / name).unlink(missing_ok=True)
