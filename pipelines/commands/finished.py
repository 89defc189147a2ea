"""What `medloss report` does with finished predictions: names and folders to a report's contents."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.errors import UserError
from pipelines.progress import terminal_bar

if TYPE_CHECKING:
    from pipelines.comparison.finished.result import Finished
    from pipelines.comparison.report import Collected

#: In the report's folder: every row, to make another report of.
CASES = "cases.csv"


def contents(
    cases: Sequence[str], predictions: Sequence[str], out: Path, reference: str | None, options: dict[str, Any]
) -> "tuple[Collected, str | None]":
    """What `--cases` or `--predictions` name, for the report, and the reference.

    Args:
        cases: a table, or names with tables.
        predictions: names with folders or tables; one of the two is empty.
        out: the report's folder.
        reference: that was named.
        options: of `read_finished`.

    Raises:
        UserError: tables, options, folders or files that do not fit.
    """
    from pipelines.comparison.finished.methods import read_names
    from pipelines.comparison.plan import DEFAULT_REFERENCE, NO_REFERENCE

    if len(cases) == 1 and ("=" not in cases[0] or Path(cases[0]).is_file()):
        from pipelines.comparison.finished.mist import is_mist
        from pipelines.comparison.report.collect import from_csv

        if is_mist(Path(cases[0])):
            raise UserError(
                f"--cases: {cases[0]} is MIST's table of one method; expected two or more, with names: --cases "
                f"NAME={cases[0]} OTHER=other/results.csv"
            )
        return from_csv(Path(cases[0])), reference
    if cases:
        return read_tables(read_names(cases, "--cases")).collected, reference
    names = read_names(predictions)
    if reference not in (None, NO_REFERENCE, *names):
        # Told before anything is measured.
        raise UserError(f"--reference: got {reference}; expected one of {', '.join(names)}, or {NO_REFERENCE}")
    found = read_finished(names, out, **options)
    collected = found.collected
    if reference is None and found.reference is not None and DEFAULT_REFERENCE not in collected.table.losses:
        reference = found.reference
        told = f"The reference is {reference}, nnU-Net's own trainer (Dice + cross entropy), since none was named."
        collected = replace(collected, notes=(*collected.notes, told))
    return collected, reference


def read_finished(
    named: dict[str, Path],
    out: Path,
    *,
    labels: Path | None,
    classes: str | None,
    folds: str | None,
    tolerance: float | None,
    jobs: int | None,
    cache_dir: Path | None,
) -> "Finished":
    """Measure what `--predictions` names, and tell what a person should know.

    Raises:
        UserError: options, folders or files that do not fit.
    """
    import math

    from pipelines.commands.options import whole_numbers
    from pipelines.comparison.finished.classes import read_classes
    from pipelines.evaluation.metrics import NSD_TOLERANCE_MM
    from pipelines.files import write_text
    from pipelines.threads import available_cores

    tables = [name for name, path in named.items() if path.is_file()]
    if tables and len(tables) < len(named):
        raise UserError(
            f"--predictions: {tables[0]} is a table, and others are folders, measured otherwise; expected all of a kind"
        )
    if tables:
        if any(given is not None for given in (labels, classes, folds, tolerance, jobs, cache_dir)):
            raise UserError(
                "--labels, --classes, --folds, --tolerance, --jobs and --cache-dir belong to folders of predictions, "
                "and tables were named"
            )
        return read_tables(named)
    tolerance = NSD_TOLERANCE_MM if tolerance is None else tolerance
    if not math.isfinite(tolerance) or tolerance < 0:
        raise UserError(f"--tolerance: got {tolerance}; expected a finite number of mm, 0 or more")
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: got {jobs}; expected at least 1")
    from pipelines.comparison.finished.collect import from_predictions  # not above, for the time that pandas takes

    found = from_predictions(
        named,
        cache_dir or out / "cache",
        labels=labels,
        classes=None if classes is None else read_classes(classes),
        folds=None if folds is None else whole_numbers(folds, "--folds"),
        nsd_tolerance_mm=tolerance,
        jobs=jobs or available_cores(),
        bar=terminal_bar,
        tell=lambda line: click.echo(line, err=True),
    )
    try:
        write_text(out / CASES, found.rows.to_csv(index=False))
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written: {error.strerror}; name another folder") from None
    for line in found.told:
        click.echo(line)
    return found


def read_tables(named: dict[str, Path]) -> "Finished":
    """Put tables of one method each together, and tell what a person should know."""
    from pipelines.comparison.finished.tables import from_tables

    found = from_tables(named)
    for line in found.told:
        click.echo(line)
    return found
