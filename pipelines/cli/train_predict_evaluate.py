"""`medloss train`, `medloss predict` and `medloss evaluate`: one network."""

import sys
from pathlib import Path
from typing import Any

import click

from pipelines.cli import RUN, GroupedCommand, option
from pipelines.cli.training_options import training_options

# `medloss train`: one network, one loss.


@click.command(cls=GroupedCommand)
@click.argument("manifest")
@option(
    "--loss",
    group=RUN,
    default="dice",
    show_default=True,
    metavar="LOSS",
    help="A name, a sum (0.2*focal+0.8*dice) or a dotted path.",
)
@option("--fold", group=RUN, default=0, show_default=True, metavar="N", help="Validation fold.")
@option("--seed", group=RUN, default=0, show_default=True, metavar="N", help="Seed of weights, order and augmentation.")
@option("--out", group=RUN, type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder of the run.")
@option("--resume", group=RUN, is_flag=True, help="Resume from the last checkpoint in the folder.")
@training_options
def train(manifest: str, loss: str, fold: int, seed: int, out: Path, resume: bool, check: bool, **options: Any) -> None:
    """Train one network with one loss on MANIFEST (a path, or the name of a shipped one).

    Processes that torchrun starts share each batch.
    """
    from pipelines.cli.training_options import refuse_untrainable, refuse_unused_rates, run_config
    from pipelines.data.manifest import load_manifest
    from pipelines.training.auto_config import refuse_settings
    from pipelines.utils import TrainingError, let_the_first_rank_tell

    if options["settings"]:
        from pipelines.cli.settings import with_settings  # not above, for the time that pydantic takes

        options = with_settings(options)
    refuse_unused_rates(options.get("learning_rates"), [loss])
    config = run_config(manifest=manifest, loss=loss, fold=fold, seed=seed, **options)
    loaded = load_manifest(config.manifest)
    refuse_settings(config, loaded)
    _refuse_folder(out, resume)
    refuse_untrainable([config], loaded)
    # Not above, for the seconds that MONAI takes.
    from pipelines.data.checks import refuse_bad_data
    from pipelines.training.distributed import joined_ranks, rank, wait_for_all

    if config.cache_dir is None:
        config = config.model_copy(update={"cache_dir": str(out / "cache")})
    try:
        with joined_ranks(config.device):
            if rank() == 0 and check:
                refuse_bad_data(config.manifest, config.data_root)
            wait_for_all()
            result = _train(config, out, resume, rank() == 0)
    except TrainingError as error:
        let_the_first_rank_tell()
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    for name, value in result.items():
        click.echo(f"{name:12} {value:.4f}")
    if result:
        click.echo(f"written to {out}")


def _refuse_folder(out: Path, resume: bool) -> None:
    from pipelines.training.checkpoint import has_checkpoint, is_unfinished
    from pipelines.training.run_folder import RUN_FILES
    from pipelines.utils import UserError
    from pipelines.utils.files import refuse_unwritable_folder

    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is no folder; name another")
    refuse_unwritable_folder(out, "--out")
    if resume and not has_checkpoint(out):
        raise UserError(f"--resume: {out} holds no checkpoint; start the run without --resume")
    if resume or not out.is_dir():
        return
    if has_checkpoint(out):
        raise UserError(f"--out: {out} holds a run; pass --resume to go on with it, or name another folder")
    # What a run leaves that was killed in its first epoch is no reason to refuse.
    if any(path.name not in RUN_FILES and not is_unfinished(path.name) for path in out.iterdir()):
        raise UserError(f"--out: {out} is not empty; name another folder")


def _train(config: Any, out: Path, resume: bool, first: bool) -> dict[str, float]:
    """Train; the metrics, for the first process alone."""
    from pipelines.utils import UserError
    from pipelines.utils.locks import held_lock
    from pipelines.utils.machine import without_mlflow

    with without_mlflow():
        from pipelines.training.run import attach_bars, print_epoch, train_run

    try:
        if not first:
            train_run(config, out, resume=resume)
            return {}
        with held_lock(out / "lock", wait=lambda line: click.echo(line, err=True)) as mine:
            if not mine:
                raise UserError(f"--out: another process trains in {out}; name another folder")
            metrics: dict[str, float] = train_run(config, out, resume=resume, report=print_epoch, attach=attach_bars)[
                "metrics"
            ]
            return metrics
    except OSError as error:
        raise UserError(f"--out: cannot write in {out}: {error.strerror or error}") from None


# `medloss predict`: label maps of new images, by a trained network.

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("images", nargs=-1, type=_PATH)
@click.option("--run", "run_dir", type=_PATH, help="A finished run's folder, whose network predicts.")
@click.option("--model", "model_file", type=_PATH, help="In place of --run: the file model.pt of such a run.")
@click.option("--out", type=_PATH, required=True, help="Folder of the predictions.")
@click.option("--manifest", help="In place of IMAGES: a path, or the name of a shipped manifest.")
@click.option("--data-root", type=_PATH, help="Folder of the manifest's data [MEDLOSS_DATA].")
@click.option("--fold", type=int, help="Only the manifest's cases of this fold.")
@click.option("--probabilities", is_flag=True, help="Write <name>_probabilities.nii.gz, too: 4D, a volume a class.")
@click.option("--flips", is_flag=True, help="Average over images flipped along the axes that training flipped.")
@click.option("--force", is_flag=True, help="Overwrite predictions that are there.")
@click.option("--resume", is_flag=True, help="Leave out images whose predictions are there.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Default: the run's.")
@click.option("--batch-size", type=click.IntRange(min=1), default=4, show_default=True, help="Windows at once.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
def predict(
    images: tuple[Path, ...],
    run_dir: Path | None,
    model_file: Path | None,
    out: Path,
    manifest: str | None,
    data_root: Path | None,
    fold: int | None,
    probabilities: bool,
    flips: bool,
    force: bool,
    resume: bool,
    precision: str | None,
    batch_size: int,
    threads: int | None,
    device: str,
) -> None:
    """Predict IMAGES, NIfTI files and folders of them, by a trained network: a label map each.

    A map lies on its image's own grid, has the label values of the network's classes, and is named as the image is, or,
    with a manifest, as the case is: <name>.nii.gz. Probabilities are float32, in the order of the classes' values, the
    background first.

    Of a folder with images and labels side by side, what is named as a label (a_label, a_seg, a_mask, a_gt) is left
    out.

    An image that cannot be predicted does not stop the others: it is named at the end, and the exit code is 1. It is 2
    where the call itself is wrong, and nothing is predicted.
    """
    from pipelines.evaluation.references import listed, shown
    from pipelines.inference.predict import Source, image_sources, manifest_sources, refuse_collisions
    from pipelines.utils import UserError
    from pipelines.utils.files import refuse_unwritable_folder

    path = _model_path(run_dir, model_file)
    if bool(images) == (manifest is not None):
        raise UserError("pass the images as one of the two: IMAGES, files and folders, or --manifest NAME_OR_FILE")
    if manifest is None and (data_root is not None or fold is not None):
        raise UserError(f"--{'data-root' if fold is None else 'fold'}: belongs to a manifest; pass --manifest with it")
    if force and resume:
        raise UserError("--force and --resume: the one predicts again what is there, the other does not; pass one")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is no folder; name another")
    if manifest is None:
        sources, labels = image_sources(images)
    else:
        sources, labels = manifest_sources(manifest, data_root, fold), []
    refuse_collisions(sources, out, probabilities=probabilities)
    outputs = {source: source.outputs(out, probabilities=probabilities) for source in sources}
    there = [file for files in outputs.values() for file in files if file.exists()]
    if there and not force and not resume:
        told = "pass --force to overwrite, or --resume to leave out what is predicted"
        raise UserError(f"--out: there already: {listed(there)}; {told}")
    left = [source for source, files in outputs.items() if force or not all(file.exists() for file in files)]
    refuse_unwritable_folder(out, "--out")
    if labels:
        click.echo(f"left out, labels by their names: {listed(labels)}", err=True)
    # Not above, for the seconds that torch and MONAI take.
    import torch

    from pipelines.utils.machine import without_mlflow

    with without_mlflow():
        from pipelines.inference.predict import Settings
        from pipelines.inference.predict import predict as predicted
        from pipelines.training.saved_model import load_model
    from pipelines.utils.machine import chosen_device

    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(probabilities=probabilities, flips=flips, windows=batch_size)
    model = load_model(path, chosen_device(device), precision)
    if flips and not model.config.flip_axes:
        raise UserError("--flips: this network's training flipped no axis; leave it out")

    def report(done: int, source: Source, outcome: str) -> None:
        click.echo(f"[{done}/{len(left)}] {shown(source.name)}: {outcome}", err=True)

    failed = predicted(model, left, out, settings, report)
    if len(left) > len(failed):
        values = ", ".join(f"{value} {name}" for value, name in model.classes.items())
        click.echo(f"{len(left) - len(failed)} predicted in {out}: {values}")
    if len(left) < len(sources):
        click.echo(f"{len(sources) - len(left)} were there already")
    if failed:
        for file, reason in failed:
            click.echo(f"error: {shown(file)}: {reason}", err=True)
        sys.exit(1)


def _model_path(run_dir: Path | None, model_file: Path | None) -> Path:
    from pipelines.training.run_folder import RunFolder
    from pipelines.utils import UserError

    if (run_dir is None) == (model_file is None):
        raise UserError("pass the network as one of the two: --run FOLDER or --model FILE")
    if run_dir is None:
        assert model_file is not None
        if model_file.is_dir():
            raise UserError(
                f"--model: {model_file} is a folder; expected a file model.pt, or --run with a run's folder"
            )
        return model_file
    if not run_dir.is_dir():
        raise UserError(f"--run: {run_dir}: no such folder")
    result = RunFolder(run_dir).result
    if result is None or result.get("state") != "done":
        raise UserError(f"--run: {run_dir} holds no finished run; finish it by `medloss train --resume`")
    return run_dir


# `medloss evaluate`: predictions against labels.


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
    from pipelines.evaluation.references import folder_references, listed, manifest_references, match
    from pipelines.utils import UserError
    from pipelines.utils.files import refuse_unwritable, write_text
    from pipelines.utils.text import terminal_bar

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
    from pipelines.evaluation.metrics import METRICS
    from pipelines.utils.tables import Column, numbers, print_table

    headings = [f"{own.label} ({tolerance:g} mm)" if own.by_tolerance else own.heading for own in METRICS.values()]
    rows = []
    counted = [(name, str(evaluation.cases(name)), means) for name, means in evaluation.class_means().items()]
    for name, cases, means in [*counted, ("mean foreground", "", evaluation.foreground_means())]:
        values = [(means[key], own.decimals) for key, own in METRICS.items()]
        rows.append([name, cases, *("-" if value != value else f"{value:.{digits}f}" for value, digits in values)])
    print_table([Column("class"), *numbers("cases", *headings)], rows)
