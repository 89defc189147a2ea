"""`medloss check`, `medloss manifest` and `medloss nnunet`: checks and formats of data sets."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import SuggestingGroup

if TYPE_CHECKING:  # the commands' help does not wait for pydantic
    from pipelines.data.checks import CheckReport
    from pipelines.data.manifest import Manifest


@click.command()
@click.argument("manifest")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data [MEDLOSS_DATA].")
def check(manifest: str, data_root: Path | None) -> None:
    """Read all of MANIFEST's data (a path, a shipped name, or a folder without a manifest), and list every bad file.

    Exit code 1 where there are any, or where the manifest itself breaks rules. A label that lies within a tenth of a
    voxel of its image's grid passes, with a note.
    """
    from pipelines.data.checks import check_data
    from pipelines.data.data_root import resolve_data
    from pipelines.data.manifest_writer import check_folder
    from pipelines.utils import UserError
    from pipelines.utils.files import shipped_manifests

    # A shipped manifest's name is that of a folder only where it is written as a path: ./phantom.
    is_folder = Path(manifest).is_dir() and manifest not in shipped_manifests()
    if is_folder and data_root is not None:
        raise UserError(f"--data-root: '{manifest}' is the folder of the data already; pass one of the two")
    with _progress() as progress:
        if is_folder:
            report = check_folder(Path(manifest), progress)
        else:
            loaded = _load_or_report(manifest)
            report = check_data(loaded, resolve_data(loaded, data_root), progress)
    for file, reason in report.offences:
        click.echo(_line(file, reason))
    for note in report.notes:
        click.echo(f"note: {note}")
    _print_tables(report)
    files = len({offence.file for offence in report.offences})
    bad = "no bad files" if report.ok else "1 bad file" if files == 1 else f"{files} bad files"
    click.echo(f"{'1 case' if report.cases == 1 else f'{report.cases} cases'}: {bad}")
    sys.exit(0 if report.ok else 1)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: the name with .yaml, here.")
@click.option("--name", help="The manifest's name; default: that of dataset.json, else the folder's.")
@click.option("--modality", help="MR, CT and so on; default: that of dataset.json, else MR.")
@click.option("--folds", type=click.IntRange(min=2), help="Number of folds; default: nnU-Net's splits, else 5.")
@click.option("--seed", type=int, help="Seed of the folds; default: nnU-Net's splits, else 0.")
@click.option("--patient", help="Regular expression for the patient at the start of a case's name, such as 'p[0-9]+'.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
def manifest(
    folder: Path,
    out: Path | None,
    name: str | None,
    modality: str | None,
    folds: int | None,
    seed: int | None,
    patient: str | None,
    force: bool,
) -> None:
    """Write a manifest for FOLDER: imagesTr with labelsTr, images with labels, or pairs side by side.

    Symbolic links in it are followed, wherever they lead.

    A raw data set of nnU-Net keeps its folds, if it has a splits_final.json.
    """
    from pipelines.data.layouts import find_splits, read_card
    from pipelines.data.manifest_writer import FoldSettings, make_manifest, manifest_text
    from pipelines.utils import UserError
    from pipelines.utils.files import write_text

    _refuse_existing(out, force)
    notes: list[str] = []
    splits = find_splits(folder) if folds is None and seed is None else None
    with _progress() as progress:
        made = make_manifest(
            folder,
            name=name,
            modality=modality,
            folds=FoldSettings(folds or 5, seed or 0, patient, splits),
            progress=progress,
            notify=notes.append,
        )
    path = out or Path(f"{made.name}.yaml")
    _refuse_existing(path, force)
    try:
        write_text(path, manifest_text(made))
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written: {error.strerror}") from None
    for entry in made.excluded:
        click.echo(f"left out: {_line(entry.file, entry.reason)}")
    for line in notes:
        click.echo(f"note: {line}")
    if modality is None and not read_card(folder).modality:
        click.echo(f"modality: {made.modality} is assumed; pass --modality if it is another")
    if splits is not None:
        click.echo(f"folds: as in {splits}; pass --folds to have others drawn")
    if made.spacing_tolerance > 0.05:
        click.echo(f"spacings differ: spacing_tolerance is {made.spacing_tolerance:.4g}, so that all cases pass")
    click.echo(f"{len(made.cases)} cases in {len(made.folds())} folds: written to {path}")


@click.group(cls=SuggestingGroup)
def nnunet() -> None:
    """Train nnU-Net with our losses."""


@nnunet.command()
def path() -> None:
    """Print the folder for nnUNet_extTrainer, in which nnU-Net finds nnUNetTrainerMedloss_<loss>.

    `_<N>epochs` at the end sets the epochs, and `_plus_` makes sums:
    nnUNetTrainerMedloss_dice_plus_focal_50epochs.
    """
    import importlib.util

    from pipelines.nnunet import trainer_folder

    click.echo(trainer_folder())
    if importlib.util.find_spec("nnunetv2") is None:
        click.echo("nnU-Net is not installed: pip install nnunetv2", err=True)


@nnunet.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: checkpoint_stock.pth next to it.")
def export(checkpoint: Path, out: Path | None) -> None:
    """Write CHECKPOINT as one of nnU-Net's stock trainer, which predicts without this package.

    In the folder of the checkpoint, `nnUNetv2_predict ... -chk checkpoint_stock.pth` finds it.
    """
    from pipelines.nnunet.run import export_checkpoint

    click.echo(f"written to {export_checkpoint(checkpoint, out)}")


@nnunet.command()
@click.argument("manifest")
@click.option("--raw", type=click.Path(path_type=Path), help="Folder of nnU-Net's raw data sets [nnUNet_raw].")
@click.option("--id", "number", type=click.IntRange(1, 999), help="The data set's number; default: the next free one.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data [MEDLOSS_DATA].")
def dataset(manifest: str, raw: Path | None, number: int | None, data_root: Path | None) -> None:
    """Write MANIFEST (a path or a shipped name) as a raw data set of nnU-Net, by links.

    The manifest's folds go into splits_final.json, which nnU-Net uses when it plans.
    """
    from pipelines.data import nnunet_folder
    from pipelines.data.data_root import resolve_data
    from pipelines.data.manifest import load_manifest
    from pipelines.nnunet.datasets import write_raw_dataset
    from pipelines.utils import UserError

    raw = raw or nnunet_folder("raw")
    if raw is None:
        raise UserError("--raw: pass the folder of nnU-Net's raw data sets, or set nnUNet_raw")
    loaded = load_manifest(manifest)
    written = write_raw_dataset(loaded, resolve_data(loaded, data_root), raw, number)
    click.echo(f"{len(loaded.cases)} cases in {len(loaded.folds())} folds: linked in {written}")
    click.echo(f"plan and preprocess them: nnUNetv2_plan_and_preprocess -d {int(written.name[7:10])}")


def _load_or_report(manifest: str) -> "Manifest":
    """The manifest; prints the rules that it breaks, in the form of bad files, and exits."""
    from pipelines.data.manifest import ManifestError, load_manifest

    try:
        return load_manifest(manifest)
    except ManifestError as error:
        for offence in error.offences:
            click.echo(_line(str(error.path), offence))
        click.echo("the manifest breaks rules, so no file was read")
        sys.exit(1)


def _refuse_existing(out: Path | None, force: bool) -> None:
    from pipelines.utils import UserError

    if out is None:
        return
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder; expected a file to write")
    if out.exists() and not force:
        raise UserError(f"--out: {out} is there already; pass --force to overwrite it, or name another file")


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from tqdm import tqdm

    with tqdm(unit="case", leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _line(file: str, reason: str) -> str:
    # An untrusted file name can hold line breaks and control sequences of terminals.
    return f"{file if file.isprintable() else ascii(file)}: {reason}"


def _print_tables(report: "CheckReport") -> None:
    import numpy as np

    from pipelines.utils.text import Column, numbers, print_table

    if not report.shapes:
        return
    axes = len(report.shapes[0])
    unit = "ml" if axes == 3 else "mm2"
    volumes = []
    for value, name in report.classes.items():
        voxels, size = np.array(report.voxels[name]), np.array(report.volumes[name])
        cells = [f"{x:.0f}" for x in (voxels.min(), np.median(voxels), voxels.max())]
        cells += [f"{x:.4g}" for x in (size.min(), np.median(size), size.max())]
        volumes.append([f"{value} {name}", str(int((voxels > 0).sum())), *cells])
    found, geometry = report.orientations.most_common(1)[0][0], []
    names = [
        name for letters, name in (("RL", "right"), ("AP", "anterior"), ("SI", "superior")) if {*letters} & {*found}
    ]
    for title, rows in (("spacing, mm", report.spacings), ("shape, voxels", report.shapes)):
        lengths = np.array([row for row in rows if len(row) == axes])
        for axis, column in zip(names, lengths.T, strict=True):
            extremes = (column.min(), np.median(column), column.max())
            geometry.append([f"{title}, {axis}", *(f"{x:.6g}" for x in extremes)])
    extremes_of_both = [f"{what}: {extreme}" for what in ("voxels", unit) for extreme in ("min", "median", "max")]
    print_table([Column("class"), *numbers("cases", *extremes_of_both)], volumes)
    print_table([Column(f"axes: {', '.join(names)}"), *numbers("min", "median", "max")], geometry)
