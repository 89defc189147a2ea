"""`medloss report`: which loss is best, and is the difference real."""

from pathlib import Path

import click

from pipelines.errors import UserError

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("folder", type=_PATH, required=False)
@click.option(
    "--cases",
    type=_PATH,
    help="In place of FOLDER: a CSV with case, loss, a measure; optionally class, patient, fold, seed.",
)
@click.option("--out", type=_PATH, help="The report's folder; default: FOLDER/report.")
@click.option("--reference", help="The loss to compare with; default: dice+binary_cross_entropy, where it is there.")
@click.option("--metric", default="dice", show_default=True, help="The primary measure.")
@click.option("--margin", type=float, default=0.01, show_default=True, help="Differences up to it do not matter.")
def report(
    folder: Path | None, cases: Path | None, out: Path | None, reference: str | None, metric: str, margin: float
) -> None:
    """Write the report of the comparison in FOLDER, or of a table of results, as one HTML page.

    Name reference, measure and margin before the results are seen.
    """
    from pipelines.comparison.report import from_csv, from_folder, write_report

    if (folder is None) == (cases is None):
        raise UserError("pass one of the two: the FOLDER of a comparison, or --cases FILE.csv")
    out = out or (folder / "report" if folder is not None else None)
    if out is None:
        raise UserError("--out: got none; expected a folder for the report, which --cases needs")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is no folder; name another one")
    collected = from_csv(cases) if cases is not None else from_folder(folder or Path())
    path, analysis = write_report(collected, out, metric=metric, reference=reference, margin=margin)
    click.echo(analysis.verdict)
    click.echo(f"report    {path}")
