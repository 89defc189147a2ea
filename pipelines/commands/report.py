"""`medloss report`: which loss is best, and is the difference real."""

from pathlib import Path

import click

from pipelines.commands.many_values import ManyValues
from pipelines.errors import UserError
from pipelines.progress import terminal_note

_PATH = click.Path(path_type=Path)


@click.command(cls=ManyValues, many=("--predictions", "--cases"))
@click.argument("folder", type=_PATH, required=False)
@click.option(
    "--cases",
    multiple=True,
    metavar="FILE.csv ...",
    help="In place of FOLDER: a CSV with case, loss, a measure; optionally class, patient, fold, seed. Or two or more, "
    "of one method each, as NAME=FILE.csv: MIST's results.csv, or what `medloss evaluate` writes.",
)
@click.option(
    "--predictions",
    multiple=True,
    metavar="NAME=DIR ...",
    help="In place of FOLDER: finished predictions, two or more: folders of NIfTI label maps, or nnU-Net's results.",
)
@click.option("--labels", type=_PATH, help="The predictions' references; default: those that nnU-Net keeps.")
@click.option(
    "--classes", help="The labels' names, as 1=anterior,2=posterior; 1+2=whole; 3=ignore. Default: nnU-Net's."
)
@click.option("--folds", help="Only these of nnU-Net's folds, as 0,1,2.")
@click.option("--tolerance", type=float, help="Of the predictions' NSD, mm; default: 1.")
@click.option("--jobs", type=int, help="Processes that measure; default: one a core.")
@click.option("--cache-dir", type=_PATH, help="Folder of what was measured before; default: cache in that of --out.")
@click.option("--out", type=_PATH, help="The report's folder; default: FOLDER/report.")
@click.option("--reference", help="The loss to compare with; or none; default: the comparison's own.")
@click.option("--metric", help="The primary measure; default: the comparison's own, or dice.")
@click.option("--margin", type=float, help="Differences up to it do not matter; default: the comparison's, or 0.01.")
@click.option(
    "--empty",
    type=click.Choice(["one", "exclude", "worst"]),
    help="Where the reference has nothing of a class, an empty prediction counts 1 (a false alarm 0), is left out, or "
    "counts as the worst; default: the comparison's, or one.",
)
@click.option("--non-inferior", is_flag=True, help="Ask for non-inferior (one-sided), in place of equivalent.")
def report(
    folder: Path | None,
    cases: tuple[str, ...],
    predictions: tuple[str, ...],
    labels: Path | None,
    classes: str | None,
    folds: str | None,
    tolerance: float | None,
    jobs: int | None,
    cache_dir: Path | None,
    out: Path | None,
    reference: str | None,
    metric: str | None,
    margin: float | None,
    empty: str | None,
    non_inferior: bool,
) -> None:
    """Write the report of the comparison in FOLDER, of a table of results, or of finished predictions: one HTML page.

    Predictions are measured as by `medloss evaluate`, case by case, and kept: a second call reads what the first one
    measured. A case that one of the folders lacks counts as the worst there.

    Name reference, measure and margin before the results are seen: in `compare`, which keeps them. Where they are
    named otherwise here, the page says so.
    """
    from pipelines.commands.finished import contents
    from pipelines.commands.planning_options import refuse_measure
    from pipelines.comparison.plan import require_plan
    from pipelines.comparison.report.folder import claimed

    if (folder is not None) + bool(cases) + bool(predictions) != 1:
        raise UserError(
            "pass one of the three: the FOLDER of a comparison, --cases FILE.csv, or --predictions NAME=DIR NAME=DIR"
        )
    if not predictions and any(given is not None for given in (labels, classes, folds, tolerance, jobs, cache_dir)):
        raise UserError(
            "--labels, --classes, --folds, --tolerance, --jobs and --cache-dir belong to --predictions; pass that, too"
        )
    out = out or (folder / "report" if folder is not None else None)
    if out is None:
        needed = "--predictions" if predictions else "--cases"
        raise UserError(f"--out: got none; expected a folder for the report, which {needed} needs")
    refuse_measure(metric, margin)
    if folder is not None:
        require_plan(folder)
    options = {"labels": labels, "classes": classes, "folds": folds, "tolerance": tolerance, "jobs": jobs,
               "cache_dir": cache_dir}  # fmt: skip
    with claimed(out):
        if folder is not None:
            from pipelines.comparison.report.collect import from_folder  # not above, for the time that pandas takes

            collected = from_folder(folder)
            for line in collected.notes:
                click.echo(line)
        else:
            collected, reference = contents(cases, predictions, out, reference, options)
        with terminal_note("comparing and drawing"):
            from pipelines.comparison.report.write import write_report  # and matplotlib

            path, analysis = write_report(
                collected,
                out,
                metric=metric,
                reference=reference,
                margin=margin,
                empty=empty,
                non_inferior=non_inferior or None,
            )
    from pipelines.comparison.statistics.caveats import gap_notes

    for line in (analysis.verdict, *gap_notes(analysis)):
        click.echo(line)
    click.echo(f"report    {path}")
