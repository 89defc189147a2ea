"""`medloss report`: which loss is best, and is the difference real."""

from pathlib import Path

import click

from pipelines.commands.many_values import ManyValues
from pipelines.commands.option_groups import INPUT, OUTPUT, PLACE, VERDICT, option
from pipelines.commands.planning_options import EMPTY_HELP, NON_INFERIOR_HELP
from pipelines.errors import UserError
from pipelines.progress import terminal_note

_PATH = click.Path(path_type=Path)


@click.command(cls=ManyValues, many=("--predictions", "--cases"))
@click.argument("folder", type=_PATH, required=False)
@option(
    "--cases",
    group=INPUT,
    multiple=True,
    metavar="FILE.csv ...",
    help="Instead of FOLDER: a CSV file with case, loss and a metric; optionally class, patient, fold, seed. Or two or "
    "more of one method each, as NAME=FILE.csv: MIST's results.csv, or the output of `medloss evaluate`.",
)
@option(
    "--predictions",
    group=INPUT,
    multiple=True,
    metavar="NAME=DIR ...",
    help="Instead of FOLDER: two or more folders of finished predictions: NIfTI label maps, or nnU-Net's results.",
)
@option("--labels", group=INPUT, type=_PATH, metavar="DIR", help="References; default: those that nnU-Net keeps.")
@option(
    "--classes",
    group=INPUT,
    metavar="LIST",
    help="Names of the labels, such as 1=anterior,2=posterior; 1+2=whole; 3=ignore. Default: nnU-Net's.",
)
@option("--folds", group=INPUT, metavar="LIST", help="Only these of nnU-Net's folds, such as 0,1,2.")
@option("--tolerance", group=INPUT, type=float, metavar="MM", help="Tolerance of the NSD of predictions; default: 1.")
@option(
    "--cache-dir",
    group=INPUT,
    type=_PATH,
    metavar="DIR",
    help="Folder of the metrics computed before; default: cache in the folder of --out.",
)
@option("--jobs", group=PLACE, type=int, metavar="N", help="Processes that compute metrics; default: one per core.")
@option("--out", group=OUTPUT, type=_PATH, metavar="DIR", help="Folder of the report; default: FOLDER/report.")
@option(
    "--reference",
    group=VERDICT,
    metavar="LOSS",
    help="Loss that all others are compared with, or none; default: that of the comparison.",
)
@option("--metric", group=VERDICT, metavar="NAME", help="Primary metric; default: that of the comparison, or dice.")
@option(
    "--margin",
    group=VERDICT,
    type=float,
    metavar="VALUE",
    help="Largest difference in the metric that does not matter; default: that of the comparison, or 0.01.",
)
@option(
    "--empty",
    group=VERDICT,
    type=click.Choice(["one", "exclude", "worst"]),
    metavar="RULE",
    help=f"{EMPTY_HELP} Default: that of the comparison, or one.",
)
@option("--non-inferior", group=VERDICT, is_flag=True, help=NON_INFERIOR_HELP)
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

    The metrics of predictions are computed per case, as by `medloss evaluate`, and kept for the next call. A case that
    is missing in one of the folders has the worst score there.

    Choose reference, metric and margin before you see results, in `compare`, which keeps them. The page says so if
    they are changed here.
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
    from pipelines.comparison.statistics.caveats import empty_notes

    for line in (analysis.verdict, *empty_notes(analysis)):
        click.echo(line)
    click.echo(f"report    {path}")
