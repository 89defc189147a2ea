"""`medloss train`, `medloss predict` and `medloss evaluate`: one network."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import RUN, GroupedCommand, option, take_options
from pipelines.cli.training_options import training_options
from pipelines.utils import TrainingError, UserError, let_first_rank_report
from pipelines.utils.text import abbreviated, terminal_bar

if TYPE_CHECKING:  # the commands' help does not wait for torch
    from pipelines.evaluation.evaluate import Evaluation
    from pipelines.inference.sources import Source
    from pipelines.training.run_config import RunConfig

_PATH = click.Path(path_type=Path)

# medloss train


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
        let_first_rank_report()
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    for name, value in result.items():
        click.echo(f"{name:12} {value:.4f}")
    if result:
        click.echo(f"written to {out}")


def _refuse_folder(out: Path, resume: bool) -> None:
    from pipelines.training.checkpoint import has_checkpoint, is_unfinished
    from pipelines.training.run_folder import RUN_FILES
    from pipelines.utils.files import refuse_unwritable_folder

    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is no folder; name another")
    refuse_unwritable_folder(out, "--out")
    if resume and not has_checkpoint(out):
        raise UserError(f"--resume: {out} holds no checkpoint; start the run without --resume")
    if resume or not out.is_dir():
        return
    if has_checkpoint(out):
        raise UserError(f"--out: {out} holds a run; pass --resume to resume it, or name another folder")
    # A run that was killed in its first epoch leaves files, and can be started again.
    if any(path.name not in RUN_FILES and not is_unfinished(path.name) for path in out.iterdir()):
        raise UserError(f"--out: {out} is not empty; name another folder")


def _train(config: "RunConfig", out: Path, resume: bool, first: bool) -> dict[str, float]:
    """Train, and return the metrics in the first process; nothing in the others."""
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
            result = train_run(config, out, resume=resume, report=print_epoch, attach=attach_bars)
            return dict(result["metrics"])
    except OSError as error:
        raise UserError(f"--out: cannot write in {out}: {error.strerror or error}") from None


# medloss predict


@click.command()
@click.argument("images", nargs=-1, type=_PATH)
@click.option("--run", "run_dir", type=_PATH, help="A finished run's folder, whose network predicts.")
@click.option("--model", "model_file", type=_PATH, help="In place of --run: the file model.pt of such a run.")
@click.option("--out", type=_PATH, required=True, help="Folder of the predictions.")
@click.option("--manifest", help="In place of IMAGES: a path, or the name of a shipped manifest.")
@click.option("--data-root", type=_PATH, help="Folder of the manifest's data [MEDLOSS_DATA].")
@click.option("--fold", type=int, help="Only the manifest's cases of this fold.")
@click.option("--probabilities", is_flag=True, help="Write <name>_probabilities.nii.gz, too: 4D, a volume per class.")
@click.option("--flips", is_flag=True, help="Average over images flipped along the axes that training flipped.")
@click.option("--force", is_flag=True, help="Overwrite existing predictions.")
@click.option("--resume", is_flag=True, help="Leave out images that have predictions already.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), help="Default: the run's.")
@click.option("--batch-size", type=click.IntRange(min=1), default=4, show_default=True, help="Windows per batch.")
@click.option("--threads", type=click.IntRange(min=1), help="Processor threads.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
def predict(
    images: tuple[Path, ...],
    out: Path,
    force: bool,
    resume: bool,
    probabilities: bool,
    flips: bool,
    **options: Any,
) -> None:
    """Predict IMAGES, NIfTI files and folders of them, by a trained network: a label map per image.

    A map lies on its image's own grid, has the label values of the network's classes, and is named as the image is, or,
    with a manifest, as the case is: <name>.nii.gz. Probabilities are float32, in the order of the classes' values, the
    background first.

    Of a folder with images and labels side by side, files named as labels (a_label, a_seg, a_mask, a_gt) are left out.

    An image that cannot be predicted does not stop the others: it is named at the end, and the exit code is 1. It is 2
    where the call itself is wrong, and nothing is predicted.
    """
    from pipelines.utils.text import shown

    network = take_options(NetworkOptions, options)
    of_manifest = take_options(ManifestOptions, options)
    path = network.path()
    if bool(images) == of_manifest.is_given:
        raise UserError("pass the images as one of the two: IMAGES, files and folders, or --manifest NAME_OR_FILE")
    of_manifest.refuse_unused()
    if force and resume:
        raise UserError("--force and --resume: the one predicts again what is there, the other does not; pass one")
    sources, remaining = _remaining_images(images, of_manifest, out, probabilities, force=force, resume=resume)
    # Not above, for the seconds that torch and MONAI take.
    import torch

    from pipelines.utils.machine import chosen_device, without_mlflow

    with without_mlflow():
        from pipelines.inference.predict import Settings
        from pipelines.inference.predict import predict as predict_images
        from pipelines.training.saved_model import load_model

    if network.threads is not None:
        torch.set_num_threads(network.threads)
    settings = Settings(probabilities=probabilities, flips=flips, windows=network.batch_size)
    model = load_model(path, chosen_device(network.device), network.precision)
    if flips and not model.config.flip_axes:
        raise UserError("--flips: this network's training flipped no axis; leave it out")

    def report(done: int, source: "Source", outcome: str) -> None:
        click.echo(f"[{done}/{len(remaining)}] {shown(source.name)}: {outcome}", err=True)

    failed = predict_images(model, remaining, out, settings, report)
    if len(remaining) > len(failed):
        values = ", ".join(f"{value} {name}" for value, name in model.classes.items())
        click.echo(f"{len(remaining) - len(failed)} predicted in {out}: {values}")
    if len(remaining) < len(sources):
        click.echo(f"{len(sources) - len(remaining)} were there already")
    if failed:
        for file, reason in failed:
            click.echo(f"error: {shown(file)}: {reason}", err=True)
        sys.exit(1)


@dataclass(frozen=True)
class NetworkOptions:
    """Which network predicts, and how it computes."""

    run_dir: Path | None
    model_file: Path | None
    precision: str | None
    batch_size: int
    threads: int | None
    device: str

    def path(self) -> Path:
        """The finished run's folder, or the model's file.

        Raises:
            UserError: none or both are named, or it is neither.
        """
        from pipelines.training.run_folder import RunFolder

        run_dir, model_file = self.run_dir, self.model_file
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


@dataclass(frozen=True)
class ManifestOptions:
    """Cases of a manifest, in place of files that are named."""

    manifest: str | None
    data_root: Path | None
    fold: int | None

    @property
    def is_given(self) -> bool:
        """Whether there is a manifest."""
        return self.manifest is not None

    def refuse_unused(self) -> None:
        """Refuse the options of a manifest where there is none.

        Raises:
            UserError: one was given.
        """
        if self.manifest is None and (self.data_root is not None or self.fold is not None):
            flag = "--data-root" if self.fold is None else "--fold"
            raise UserError(f"{flag}: belongs to a manifest; pass --manifest with it")


def _remaining_images(
    images: tuple[Path, ...], of_manifest: ManifestOptions, out: Path, probabilities: bool, *, force: bool, resume: bool
) -> "tuple[list[Source], list[Source]]":
    """All images that are named, and those that remain to be predicted.

    Raises:
        UserError: no images, outputs that collide, or predictions in the folder without `force` and `resume`.
    """
    from pipelines.inference.sources import image_sources, manifest_sources, refuse_collisions
    from pipelines.utils.files import refuse_unwritable_folder

    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is no folder; name another")
    labels: list[Path] = []
    if of_manifest.manifest is None:
        sources, labels = image_sources(images)
    else:
        sources = manifest_sources(of_manifest.manifest, of_manifest.data_root, of_manifest.fold)
    refuse_collisions(sources, out, probabilities=probabilities)
    outputs = {source: source.outputs(out, probabilities=probabilities) for source in sources}
    existing = [file for files in outputs.values() for file in files if file.exists()]
    if existing and not force and not resume:
        raise UserError(
            f"--out: there already: {abbreviated(existing)}; pass --force to overwrite, or --resume to leave out what "
            "is predicted"
        )
    remaining = [source for source, files in outputs.items() if force or not all(file.exists() for file in files)]
    refuse_unwritable_folder(out, "--out")
    if labels:
        click.echo(f"left out, labels by their names: {abbreviated(labels)}", err=True)
    return sources, remaining


# medloss evaluate


@click.command()
@click.argument("predictions", type=_PATH)
@click.option("--labels", type=_PATH, help="Folder of labels, named as the predictions are.")
@click.option("--manifest", help="In place of --labels: a path, or the name of a shipped manifest.")
@click.option("--data-root", type=_PATH, help="Folder of the manifest's data [MEDLOSS_DATA].")
@click.option("--fold", type=int, help="Only the manifest's cases of this fold.")
@click.option("--out", type=_PATH, help="CSV with a row per case and class.")
@click.option("--force", is_flag=True, help="Overwrite the CSV.")
@click.option("--tolerance", type=float, default=1.0, show_default=True, help="Tolerance of the NSD, mm.")
@click.option("--allow-missing", is_flag=True, help="Leave out labels without a prediction.")
def evaluate(
    predictions: Path,
    labels: Path | None,
    out: Path | None,
    force: bool,
    tolerance: float,
    allow_missing: bool,
    **options: Any,
) -> None:
    """Compare PREDICTIONS, a folder of NIfTI label maps, with labels: a mean per class, and each case in a CSV.

    A prediction is named as its label is, or, with a manifest, as its case, label or image is. It lies on its label's
    grid; up to a tenth of a voxel off it passes, with a note.
    """
    from pipelines.evaluation.references import folder_references, manifest_references, match
    from pipelines.utils.files import refuse_unwritable, write_text

    of_manifest = take_options(ManifestOptions, options)
    if (labels is not None) == of_manifest.is_given:
        raise UserError("pass the labels as one of the two: --labels FOLDER or --manifest NAME_OR_FILE")
    of_manifest.refuse_unused()
    if out is not None and out.is_dir():
        raise UserError(f"--out: {out} is a folder; expected a file to write")
    if out is not None and out.exists() and not force:
        raise UserError(f"--out: {out} is there already; pass --force to overwrite it, or name another file")
    if out is not None:
        refuse_unwritable(out, "--out")
    if labels is not None:
        references = folder_references(labels, terminal_bar)
    else:
        references = manifest_references(str(of_manifest.manifest), of_manifest.data_root, of_manifest.fold)
    matched = match(references, predictions)
    missing = abbreviated(label.path for label in matched.unpredicted)
    if missing and not allow_missing:
        raise UserError(f"labels without a prediction: {missing}; pass --allow-missing to leave them out")
    unlabelled = abbreviated(predictions / file for file in matched.unlabelled)
    unknown = "predictions without a label" + ("" if of_manifest.fold is None else f" in fold {of_manifest.fold}")
    for what, left_out in ((unknown, unlabelled), ("labels without a prediction", missing)):
        if left_out:
            click.echo(f"left out, {what}: {left_out}", err=True)
    # Not above, for the seconds that torch, pandas and scipy take.
    from pipelines.evaluation.evaluate import evaluate as compute_metrics

    with terminal_bar("computing metrics", len(matched.pairs), "case") as step:
        evaluation = compute_metrics(
            predictions, references, matched, nsd_tolerance_mm=tolerance, progress=lambda: step(1)
        )
    if evaluation.note is not None:
        click.echo(f"note: {evaluation.note}", err=True)
    _print_means(evaluation, tolerance)
    if out is not None:
        try:
            write_text(out, evaluation.csv())
        except OSError as error:
            raise UserError(f"--out: {out} cannot be written: {error.strerror}") from None
        click.echo(f"written to {out}")


def _print_means(evaluation: "Evaluation", tolerance: float) -> None:
    from pipelines.evaluation.metrics import METRICS
    from pipelines.utils.text import Column, numbers, print_table

    headings = [
        f"{entry.label} ({tolerance:g} mm)" if entry.by_tolerance else entry.heading for entry in METRICS.values()
    ]
    rows = []
    counted = [(name, str(evaluation.cases(name)), means) for name, means in evaluation.class_means().items()]
    for name, cases, means in [*counted, ("mean foreground", "", evaluation.foreground_means())]:
        values = [(means[key], entry.decimals) for key, entry in METRICS.items()]
        rows.append([name, cases, *("-" if value != value else f"{value:.{digits}f}" for value, digits in values)])
    print_table([Column("class"), *numbers("cases", *headings)], rows)
