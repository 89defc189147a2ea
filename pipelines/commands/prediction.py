"""`medloss predict`: label maps of new images, by a trained network."""

import sys
from pathlib import Path

import click

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
    from pipelines.errors import UserError
    from pipelines.evaluation.reference_labels import listed, shown
    from pipelines.files import refuse_unwritable_folder
    from pipelines.prediction.sources import Source, image_sources, manifest_sources, refuse_collisions

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

    from pipelines.imports import without_mlflow

    with without_mlflow():
        from pipelines.prediction.model import load_model
        from pipelines.prediction.predict import Settings
        from pipelines.prediction.predict import predict as predicted
    from pipelines.training.optimization import chosen_device

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
    from pipelines.errors import UserError
    from pipelines.training.run_folder import RunFolder

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
