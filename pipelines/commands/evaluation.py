"""`medloss evaluate`: predictions against labels."""

from pathlib import Path
from typing import Any

import click

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("predictions", type=_PATH)
@click.option("--labels", type=_PATH, help="Folder of labels, named as the predictions are.")
@click.option("--manifest", help="In place of --labels: a path, or the name of a shipped manifest.")
@click.option("--data-root", type=_PATH, help="Folder of the manifest's data [MEDLOSS_DATA].")
@click.option("--fold", type=int, help="Only the manifest's cases of this fold.")
@click.option("--out", type=_PATH, help="CSV with a row a case and class.")
@click.option("--force", is_flag=True, help="Overwrite the CSV.")
@click.option("--tolerance", type=float, default=1.0, show_default=True, help="Of the NSD, mm.")
@click.option("--allow-missing", is_flag=True, help="Leave out labels without a prediction.")
def evaluate(
    predictions: Path,
    labels: Path | None,
    manifest: str | None,
    data_root: Path | None,
    fold: int | None,
    out: Path | None,
    force: bool,
    tolerance: float,
    allow_missing: bool,
) -> None:
    """Measure PREDICTIONS, a folder of NIfTI label maps, against labels: a mean a class, and each case in a CSV.

    A prediction is named as its label is, or, with a manifest, as its case, label or image is. It lies on its label's
    grid; up to a tenth of a voxel off it passes, with a note.
    """
    from pipelines.errors import UserError
    from pipelines.evaluation.reference_labels import folder_references, listed, manifest_references, match
    from pipelines.files import refuse_unwritable, write_text
    from pipelines.progress import terminal_bar

    if (labels is None) == (manifest is None):
        raise UserError("pass the labels as one of the two: --labels FOLDER or --manifest NAME_OR_FILE")
    if labels is not None and (data_root is not None or fold is not None):
        raise UserError(f"--{'data-root' if fold is None else 'fold'}: belongs to a manifest; pass --manifest with it")
    if out is not None and out.is_dir():
        raise UserError(f"--out: {out} is a folder; expected a file to write")
    if out is not None and out.exists() and not force:
        raise UserError(f"--out: {out} is there already; pass --force to overwrite it, or name another file")
    if out is not None:
        refuse_unwritable(out, "--out")
    if labels is not None:
        references = folder_references(labels, terminal_bar)
    else:
        references = manifest_references(str(manifest), data_root, fold)
    matched = match(references, predictions)
    missing = listed([references.root / label.file for label in matched.unpredicted])
    if missing and not allow_missing:
        raise UserError(f"labels without a prediction: {missing}; pass --allow-missing to leave them out")
    unlabelled = listed([predictions / file for file in matched.unlabelled])
    unknown = "predictions without a label" + ("" if fold is None else f" in fold {fold}")
    for what, left_out in ((unknown, unlabelled), ("labels without a prediction", missing)):
        if left_out:
            click.echo(f"left out, {what}: {left_out}", err=True)
    # Not above, for the seconds that torch, pandas and scipy take.
    from pipelines.evaluation.evaluate import evaluate as measured

    with terminal_bar("measuring", len(matched.pairs), "case") as step:
        evaluation = measured(predictions, references, matched, nsd_tolerance_mm=tolerance, progress=lambda: step(1))
    if evaluation.note is not None:
        click.echo(f"note: {evaluation.note}", err=True)
    _print(evaluation, tolerance)
    if out is not None:
        try:
            write_text(out, evaluation.csv())
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
        click.echo(f"written to {out}")


def _print(evaluation: Any, tolerance: float) -> None:
    from pipelines.evaluation.registry import METRICS
    from pipelines.tables import Column, numbers, print_table

    headings = [f"{own.label} ({tolerance:g} mm)" if own.by_tolerance else own.heading for own in METRICS.values()]
    rows = []
    counted = [(name, str(evaluation.cases(name)), means) for name, means in evaluation.class_means().items()]
    for name, cases, means in [*counted, ("mean foreground", "", evaluation.foreground_means())]:
        values = [(means[key], own.decimals) for key, own in METRICS.items()]
        rows.append([name, cases, *("-" if value != value else f"{value:.{digits}f}" for value, digits in values)])
    print_table([Column("class"), *numbers("cases", *headings)], rows)
