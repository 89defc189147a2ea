"""`medloss predict` and `medloss evaluate`: predictions by one network, and their metrics."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import PATH, combined, take
from pipelines.utils import UserError
from pipelines.utils.text import abbreviated, terminal_bar

if TYPE_CHECKING:  # the commands' help does not wait for torch
    import pandas as pd

    from pipelines.evaluation.evaluate import Evaluation
    from pipelines.evaluation.metrics.base import MetricSettings
    from pipelines.inference.sources import Source


def _manifest_options(replaced: str) -> Any:
    return combined(
        click.option("--manifest", help=f"In place of {replaced}: a path, or the name of a shipped manifest."),
        click.option("--data-root", type=PATH, help="Folder of the manifest's data [MEDLOSS_DATA]."),
        click.option("--fold", type=int, help="Only the manifest's cases of this fold."),
    )


def _cases_of_manifest(options: dict[str, Any], is_replaced: bool, refusal: str) -> tuple[Any, ...] | None:
    """Take the manifest, its data's folder and the fold; None if there is no manifest but what it replaces."""
    manifest, data_root, fold = take(options, "manifest", "data_root", "fold").values()
    if is_replaced == (manifest is not None):
        raise UserError(refusal)
    if manifest is None and (data_root is not None or fold is not None):
        flag = "--data-root" if fold is None else "--fold"
        raise UserError(f"{flag}: belongs to a manifest; pass --manifest with it")
    return None if manifest is None else (manifest, data_root, fold)


@click.command()
@click.argument("images", nargs=-1, type=PATH)
@click.option("--run", "run_dir", type=PATH, help="A finished run's folder, whose network predicts.")
@click.option("--model", "model_file", type=PATH, help="In place of --run: the file model.pt of such a run.")
@click.option("--out", type=PATH, required=True, help="Folder of the predictions.")
@_manifest_options("IMAGES")
@click.option("--probabilities", is_flag=True, help="Write <name>_probabilities.nii.gz, too: 4D, a volume per class.")
@click.option("--regions", is_flag=True, help="Write <name>_<region>.nii.gz, too: a map of 0 and 1 per region.")
@click.option("--flips", is_flag=True, help="Average over images flipped along the axes that training flipped.")
@click.option("--force", is_flag=True, help="Overwrite existing predictions.")
@click.option("--resume", is_flag=True, help="Leave out images that have predictions already.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Default: the run's.")
@click.option("--batch-size", type=click.IntRange(min=1), default=4, show_default=True, help="Windows per batch.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
def predict(
    images: tuple[Path, ...], out: Path, probabilities: bool, regions: bool, flips: bool, **options: Any
) -> None:
    """Predict IMAGES, NIfTI files and folders of them, by a trained network: a label map per image.

    A map lies on its image's own grid, has the label values of the network's classes, and is named as the image is, or,
    with a manifest, as the case is: <name>.nii.gz. Probabilities are float32, in the order of the classes' values, the
    background first, or of the regions.

    Images with several channels are 4D files, channels last, or a file per channel: those of <name> are named
    <name>_0000, <name>_0001 and so on, or by their channels, such as <name>_T1 and <name>_T2.

    Of a folder with images and labels side by side, files named as labels (a_label, a_seg, a_mask, a_gt) are left out.

    An image that cannot be predicted does not stop the others: it is named at the end, and the exit code is 1. It is 2
    where the call itself is wrong, and nothing is predicted.
    """
    from pipelines.utils.text import shown

    path = _network(**take(options, "run_dir", "model_file"))
    either = "pass the images as one of the two: IMAGES, files and folders, or --manifest NAME_OR_FILE"
    of_manifest = _cases_of_manifest(options, bool(images), either)
    force, resume = take(options, "force", "resume").values()
    sources = _images(images, of_manifest, out, force=force, resume=resume)
    # Not above, for the seconds that torch and MONAI take.
    import torch

    from pipelines.inference.sources import by_channel
    from pipelines.utils.machine import chosen_device, without_mlflow

    with without_mlflow():
        from pipelines.inference.predict import Settings
        from pipelines.inference.predict import predict as predict_images
        from pipelines.training.saved_model import load_model

    if options["threads"] is not None:
        torch.set_num_threads(options["threads"])
    settings = Settings(probabilities, regions, flips, options["batch_size"])
    model = load_model(path, chosen_device(options["device"]), options["precision"])
    if flips and not model.config.flip_axes:
        raise UserError("--flips: this network's training flipped no axis; leave it out")
    if regions and not model.scheme.regions:
        raise UserError("--regions: this network predicts classes and no regions; leave it out")
    if of_manifest is None:
        sources = by_channel(sources, model.channels)
    else:
        _refuse_other_channels(of_manifest[0], model.channels)
    named = model.scheme.regions if regions else ()
    remaining = _remaining(sources, out, probabilities, list(named), force=force, resume=resume)

    def report(done: int, source: "Source", outcome: str) -> None:
        click.echo(f"[{done}/{len(remaining)}] {shown(source.name)}: {outcome}", err=True)

    failed = predict_images(model, remaining, out, settings, report)
    if len(remaining) > len(failed):
        values = ", ".join(f"{value} {name}" for value, name in model.scheme.classes.items())
        click.echo(f"{len(remaining) - len(failed)} predicted in {out}: {values}")
    if len(remaining) < len(sources):
        click.echo(f"{len(sources) - len(remaining)} were there already")
    if failed:
        for file, reason in failed:
            click.echo(f"error: {shown(file)}: {reason}", err=True)
        sys.exit(1)


def _network(run_dir: Path | None, model_file: Path | None) -> Path:
    """The finished run's folder, or the model's file."""
    from pipelines.training.run_folder import RunFolder

    if run_dir is not None and model_file is None:
        if not run_dir.is_dir():
            raise UserError(f"--run: {run_dir}: no such folder")
        result = RunFolder(run_dir).result
        if result is None or result.get("state") != "done":
            raise UserError(f"--run: {run_dir} holds no finished run; finish it by `medloss train --resume`")
        return run_dir
    if model_file is None or run_dir is not None:
        raise UserError("pass the network as one of the two: --run FOLDER or --model FILE")
    if model_file.is_dir():
        raise UserError(f"--model: {model_file} is a folder; expected a file model.pt, or --run with a run's folder")
    return model_file


def _images(
    images: tuple[Path, ...], of_manifest: tuple[Any, ...] | None, out: Path, *, force: bool, resume: bool
) -> "list[Source]":
    """The images that are named, each file for itself."""
    from pipelines.inference.sources import image_sources, manifest_sources
    from pipelines.utils.files import refuse_unwritable_folder

    if force and resume:
        raise UserError("--force and --resume: the one predicts again what is there, the other does not; pass one")
    refuse_unwritable_folder(out, "--out")
    sources, labels = image_sources(images) if of_manifest is None else (manifest_sources(*of_manifest), [])
    if labels:
        click.echo(f"left out, labels by their names: {abbreviated(labels)}", err=True)
    return sources


def _refuse_other_channels(manifest: str, channels: Sequence[str]) -> None:
    """Raise a `UserError` if a manifest's channels are not those of the network, by number and, of several, name."""
    from pipelines.data.manifest import load_manifest

    names = [channel.name for channel in load_manifest(manifest).image_channels]
    if len(names) != max(1, len(channels)) or (len(names) > 1 and names != list(channels)):
        expected = ", ".join(channels) or "one"
        raise UserError(f"--manifest: '{manifest}' has the channels {', '.join(names)}; the network's are {expected}")


def _remaining(
    sources: "Sequence[Source]", out: Path, probabilities: bool, regions: Sequence[str], *, force: bool, resume: bool
) -> "list[Source]":
    """The images that remain to be predicted."""
    from pipelines.inference.sources import refuse_collisions

    refuse_collisions(sources, out, probabilities=probabilities, regions=regions)
    outputs = [source.outputs(out, probabilities=probabilities, regions=regions) for source in sources]
    existing = [file for files in outputs for file in files if file.exists()]
    if existing and not force and not resume:
        raise UserError(
            f"--out: there already: {abbreviated(existing)}; pass --force to overwrite, or --resume to leave out what "
            "is predicted"
        )
    return [
        source
        for source, files in zip(sources, outputs, strict=True)
        if force or not all(file.exists() for file in files)
    ]


@click.command()
@click.argument("predictions", type=PATH)
@click.option("--labels", type=PATH, help="Folder of labels, named as the predictions are.")
@_manifest_options("--labels")
@click.option("--out", type=PATH, help="CSV with a row per case and class.")
@click.option("--force", is_flag=True, help="Overwrite the CSV files.")
@click.option(
    "--metrics", help="Names by commas, such as dice,hd95_mm,lesion_f1; default; all. Default: those of the manifest."
)
@click.option(
    "--tolerance",
    type=float,
    help="Tolerance of the NSD, mm; default: the manifest's, or 1 or the largest voxel side, whichever is more.",
)
@click.option("--connectivity", type=int, help="Neighbours of a voxel in a lesion: 6, 18 or 26, in 2D 4 or 8.")
@click.option("--overlap", type=float, help="IoU above which two lesions match; default: the manifest's, or 0.5.")
@click.option("--lesions", type=PATH, help="CSV with a row per lesion.")
@click.option("--sizes", default="27", show_default=True, help="Limits of the lesions' sizes, mm^3, in 2D mm^2.")
@click.option("--allow-missing", is_flag=True, help="Leave out labels without a prediction.")
def evaluate(
    predictions: Path, labels: Path | None, out: Path | None, lesions: Path | None, allow_missing: bool, **options: Any
) -> None:
    """Compare PREDICTIONS, a folder of NIfTI label maps, with labels: a mean per class, and each case in a CSV.

    A prediction is named as its label is, or, with a manifest, as its case, label or image is. It lies on its label's
    grid; up to a tenth of a voxel off it passes, with a note.
    """
    from pipelines.evaluation.metrics.base import DEFAULT_SETTINGS
    from pipelines.evaluation.references import folder_references, manifest_references, match
    from pipelines.utils.files import refuse_existing, refuse_unwritable, write_text

    either = "pass the labels as one of the two: --labels FOLDER or --manifest NAME_OR_FILE"
    of_manifest = _cases_of_manifest(options, labels is not None, either)
    named = take(options, "metrics", "tolerance", "connectivity", "overlap")
    sizes = _sizes(options["sizes"])
    for flag, file in (("--out", out), ("--lesions", lesions)):
        if file is not None:
            refuse_existing(file, options["force"], flag)
            refuse_unwritable(file, flag)
    if out is not None and out == lesions:
        raise UserError(f"--lesions: got {lesions}, as for --out; expected another file")
    _metric_settings(DEFAULT_SETTINGS, **named)  # refused before any file is read
    references = folder_references(labels, terminal_bar) if labels else manifest_references(*of_manifest or ())
    settings = _metric_settings(references.settings, **named)
    matched = match(references, predictions)
    missing = abbreviated(label.path for label in matched.unpredicted)
    if missing and not allow_missing:
        raise UserError(f"labels without a prediction: {missing}; pass --allow-missing to leave them out")
    fold = None if of_manifest is None else of_manifest[2]
    unknown = "predictions without a label" + ("" if fold is None else f" in fold {fold}")
    unlabelled = abbreviated(predictions / file for file in matched.unlabelled)
    for what, left_out in ((unknown, unlabelled), ("labels without a prediction", missing)):
        if left_out:
            click.echo(f"left out, {what}: {left_out}", err=True)
    # Not above, for the seconds that torch, pandas and scipy take.
    from pipelines.evaluation.evaluate import evaluate as compute_metrics

    with terminal_bar("computing metrics", len(matched.pairs), "case") as step:
        evaluation = compute_metrics(
            predictions, references, matched, settings, lesions=lesions is not None, progress=lambda: step(1)
        )
    for line in (evaluation.note, *evaluation.notes):
        if line is not None:
            click.echo(f"note: {line}", err=True)
    _print_means(evaluation)
    tables = {} if out is None else {("--out", out): evaluation.csv()}
    if lesions is not None:
        from pipelines.evaluation.evaluate import with_strata

        frame = with_strata(evaluation.lesions, sizes)
        _print_strata(frame, evaluation.classes)
        tables["--lesions", lesions] = frame.to_csv(index=False)
    for (flag, file), table in tables.items():
        try:
            write_text(file, table)
        except OSError as error:
            raise UserError(f"{flag}: {file} cannot be written: {error.strerror}") from None
        click.echo(f"written to {file}")


def _sizes(text: str) -> tuple[float, ...]:
    """The limits between strata of lesions, ascending."""
    try:
        limits = tuple(float(part) for part in text.split(","))
    except ValueError:
        limits = ()
    if not limits or not all(0 < low < high < inf for low, high in pairwise((*limits, sys.float_info.max))):
        raise UserError(f"--sizes: got '{text}'; expected ascending numbers above 0 and commas, such as 27,1000")
    return limits


def _metric_settings(
    default: "MetricSettings",
    metrics: str | None,
    tolerance: float | None,
    connectivity: int | None,
    overlap: float | None,
) -> "MetricSettings":
    """The settings of the references, updated by the options that are given."""
    from pipelines.cli.settings import metric_names

    rule: dict[str, Any] = {"connectivity": connectivity, "overlap": overlap}
    given: dict[str, Any] = {
        "names": None if metrics is None else metric_names(metrics),
        "nsd_tolerance_mm": tolerance,
        "lesions": replace(default.lesions, **{name: value for name, value in rule.items() if value is not None}),
    }
    return replace(default, **{name: value for name, value in given.items() if value is not None})


def _print_strata(frame: "pd.DataFrame", classes: list[str]) -> None:
    """Print, for each class and size, how many lesions of all cases together were found, and how well."""
    from pipelines.utils.text import Column, numbers, print_table

    rows = []
    by_size = frame.sort_values([name for name in ("volume_mm3", "area_mm2") if name in frame.columns])
    # Classes as in the table above, and strata by size.
    groups = [(name, stratum, of_class[of_class["stratum"] == stratum])
              for name in classes for of_class in [by_size[by_size["class"] == name]]
              for stratum in of_class["stratum"].unique()]  # fmt: skip
    for name, stratum, group in groups:
        counts = [int((group["state"] == state).sum()) for state in ("matched", "missed", "false")]
        present = counts[0] + counts[1]
        found = f"{counts[0] / present:.4f}" if present else "-"
        rows.append([name, str(stratum), *map(str, counts), found, f"{group['dice'].mean():.4f}"])
    click.echo()
    headings = ("matched", "missed", "false", "sensitivity", "lesion-wise Dice")
    print_table([Column("class"), Column("lesions of"), *numbers(*headings)], rows)


def _print_means(evaluation: "Evaluation") -> None:
    from pipelines.utils.text import Column, numbers, print_table

    headings = [entry.heading for entry in evaluation.metrics.values()]
    rows = []
    counted = [(name, str(evaluation.counts[name]), means) for name, means in evaluation.class_means().items()]
    for name, cases, means in [*counted, ("mean foreground", "", evaluation.foreground_means())]:
        values = [(means[key], entry.decimals) for key, entry in evaluation.metrics.items()]
        rows.append([name, cases, *("-" if value != value else f"{value:.{digits}f}" for value, digits in values)])
    print_table([Column("class"), *numbers("cases", *headings)], rows)
