"""`medloss check`, `medloss manifest` and `medloss nnunet`: checks and formats of data sets."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli import PATH
from pipelines.utils import UserError
from pipelines.utils.files import refuse_existing, write_text
from pipelines.utils.text import Column, numbers, print_table, shown

if TYPE_CHECKING:  # the commands' help does not wait for pydantic
    from pipelines.data.checks import CheckReport
    from pipelines.data.known_layouts import FolderOptions
    from pipelines.data.manifest import Manifest


def _folder_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say what a folder's files are."""
    for option in (
        click.option("--classes", metavar="LIST", help="Names of the labels, such as 1=anterior,2=posterior; "
                     "1+2=whole; 3=ignore. Default: as in dataset.json, else class_1, class_2, ..."),
        click.option("--resample-channels", is_flag=True, help="Accept channels of a case on different grids."),
        click.option("--pairs", metavar="FILE.csv", type=PATH, help="Table of the cases: case, "
                     "patient, image, image2, ..., label; paths relative to FOLDER."),
        click.option("--labels", metavar="GLOB", help="The labels, such as 'masks/*_lesion.nii.gz'."),
        click.option("--images", metavar="GLOB", multiple=True, help="The images, such as 'scans/*/t1.nii.gz'; once "
                     "per channel; what * matches pairs them with --labels."),
        click.option("--channels", metavar="NAMES", help="Names of the channels in order, such as T1w,FLAIR; where "
                     "files are named by channel, those to use."),
    ):  # fmt: skip
        command = option(command)
    return command


def _as_options(
    channels: str | None,
    images: tuple[str, ...],
    labels: str | None,
    pairs: Path | None,
    resample_channels: bool,
    classes: str | None,
) -> "FolderOptions":
    from pipelines.data.known_layouts import FolderOptions
    from pipelines.evaluation.result_folders import Classes, read_classes

    names = tuple(name.strip() for name in (channels or "").split(",") if name.strip())
    named = Classes({}) if classes is None else read_classes(classes)
    return FolderOptions(names, images, labels, pairs, resample_channels, named.regions, named.ignore)


@click.command()
@click.argument("manifest")
@click.option("--data-root", type=PATH, help="Folder of the data [MEDLOSS_DATA].")
@_folder_options
def check(manifest: str, data_root: Path | None, resample_channels: bool, **given: Any) -> None:
    """Read all of MANIFEST's data (a path, a shipped name, or a folder without a manifest), and list every bad file.

    Exit code 1 where there are any, or where the manifest itself breaks rules. A label that lies within a tenth of a
    voxel of its image's grid passes, with a note. --channels, --classes, --images, --labels and --pairs are for
    folders.
    """
    from pipelines.data.checks import check_data
    from pipelines.data.data_root import resolve_data
    from pipelines.data.manifest_writer import check_folder
    from pipelines.utils.files import shipped_manifests

    # A shipped manifest's name is that of a folder only where it is written as a path: ./phantom.
    is_folder = Path(manifest).is_dir() and manifest not in shipped_manifests()
    if is_folder and data_root is not None:
        raise UserError(f"--data-root: '{manifest}' is the folder of the data already; pass one of the two")
    if not is_folder and (needless := [name for name, value in given.items() if value]):
        raise UserError(f"--{needless[0]}: for a folder without a manifest; the manifest '{manifest}' says it")
    with _progress() as progress:
        if is_folder:
            report = check_folder(Path(manifest), progress, _as_options(**given, resample_channels=resample_channels))
        else:
            loaded = _load_or_report(manifest)
            root = resolve_data(loaded, data_root)
            report = check_data(loaded, root, progress, resample_channels=resample_channels)
    for file, reason in report.offences:
        click.echo(f"{shown(file)}: {reason}")
    if report.layout:
        click.echo(f"layout: {report.layout}")
    for note in report.notes:
        click.echo(f"note: {note}")
    _print_tables(report)
    files = len({offence.file for offence in report.offences})
    bad = "no bad files" if report.ok else "1 bad file" if files == 1 else f"{files} bad files"
    click.echo(f"{'1 case' if report.cases == 1 else f'{report.cases} cases'}: {bad}")
    sys.exit(0 if report.ok else 1)


@click.command()
@click.argument("folder", type=PATH)
@click.option("--out", type=PATH, help="File to write; default: the name with .yaml, here.")
@click.option("--name", help="The manifest's name; default: that of dataset.json, else the folder's.")
@click.option("--modality", help="MR, CT and so on, one per channel (CT,PET); default: as the channels' names say.")
@click.option("--folds", type=click.IntRange(min=2), help="Number of folds; default: nnU-Net's splits, else 5.")
@click.option("--seed", type=int, help="Seed of the folds; default: nnU-Net's splits, else 0.")
@click.option("--patient", help="Regular expression for the patient at the start of a case's name, such as 'p[0-9]+'.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@_folder_options
@click.option("--hash", "hashed", is_flag=True, help="FOLDER is a manifest: add the checksums that it leaves out.")
@click.option("--data-root", type=PATH, help="With --hash: folder of the data [MEDLOSS_DATA].")
def manifest(folder: Path, out: Path | None, force: bool, hashed: bool, data_root: Path | None, **given: Any) -> None:
    """Write a manifest for FOLDER, whose layout is recognised (docs/data.md lists those that are).

    The Decathlon's, nnU-Net's, BIDS, BraTS's, ACDC's and LiTS's are, images and labels in two folders, and pairs side
    by side. For other folders, pass --images and --labels, or --pairs. Symbolic links are followed, wherever they lead.

    A raw data set of nnU-Net keeps its folds, if it has a splits_final.json.
    """

    if out is not None:
        refuse_existing(out, force)
    if hashed and (needless := [option for option, value in given.items() if value]):
        raise UserError(f"--hash: adds checksums to a manifest; --{needless[0].replace('_', '-')} is for a folder")
    if data_root is not None and not hashed:
        raise UserError("--data-root: for --hash; a folder's own files are read")
    if hashed:
        _write_with_checksums(folder, out or folder, data_root, force)
    else:
        _write_manifest(folder, out, force, given)


def _write_with_checksums(source: Path, path: Path, data_root: Path | None, force: bool) -> None:
    from pipelines.data.data_root import resolve_data
    from pipelines.data.manifest import load_manifest
    from pipelines.data.manifest_writer import manifest_text, with_checksums

    refuse_existing(path, force)
    loaded = load_manifest(source)
    if loaded.generator is not None:
        raise UserError(f"--hash: '{loaded.name}' is generated, and its checksums are stored with its files")
    before = sum(len(case.checksums) for case in loaded.cases)
    made = with_checksums(loaded, resolve_data(loaded, data_root))
    _write(path, manifest_text(made))
    click.echo(f"{sum(len(case.checksums) for case in made.cases) - before} checksums added: written to {path}")


def _write(path: Path, text: str) -> None:

    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--out: {path} cannot be written: {error.strerror}") from None


def _write_manifest(folder: Path, out: Path | None, force: bool, given: dict[str, Any]) -> None:
    from pipelines.data.layouts import find_splits
    from pipelines.data.manifest_writer import FoldSettings, make_manifest, manifest_text

    lines: list[str] = []
    name, modality, patient, folds, seed = (given.pop(key) for key in ("name", "modality", "patient", "folds", "seed"))
    splits = find_splits(folder) if folds is None and seed is None else None
    with _progress() as progress:
        made = make_manifest(
            folder,
            name=name,
            modality=modality,
            folds=FoldSettings(folds or 5, seed or 0, patient, splits),
            options=_as_options(**given),
            progress=progress,
            notify=lines.append,
        )
    path = out or Path(f"{made.name}.yaml")
    refuse_existing(path, force)
    _write(path, manifest_text(made))
    for line in (*lines, *_summed((entry.file, entry.reason) for entry in made.excluded)):
        click.echo(line)
    if splits is not None:
        click.echo(f"folds: as in {splits}; pass --folds to have others drawn")
    if made.spacing_tolerance > 0.05:
        click.echo(f"spacings differ: spacing_tolerance is {made.spacing_tolerance:.4g}, so that all cases pass")
    click.echo(f"{len(made.cases)} cases in {len(made.folds())} folds: written to {path}")


@click.group()
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
@click.argument("checkpoint", type=PATH)
@click.option("--out", type=PATH, help="File to write; default: checkpoint_stock.pth next to it.")
def export(checkpoint: Path, out: Path | None) -> None:
    """Write CHECKPOINT as one of nnU-Net's stock trainer, which predicts without this package.

    In the folder of the checkpoint, `nnUNetv2_predict ... -chk checkpoint_stock.pth` finds it.
    """
    from pipelines.nnunet.run import export_checkpoint

    click.echo(f"written to {export_checkpoint(checkpoint, out)}")


@nnunet.command()
@click.argument("manifest")
@click.option("--raw", type=PATH, help="Folder of nnU-Net's raw data sets [nnUNet_raw].")
@click.option("--id", "number", type=click.IntRange(1, 999), help="The data set's number; default: the next free one.")
@click.option("--data-root", type=PATH, help="Folder of the data [MEDLOSS_DATA].")
def dataset(manifest: str, raw: Path | None, number: int | None, data_root: Path | None) -> None:
    """Write MANIFEST (a path or a shipped name) as a raw data set of nnU-Net, by links.

    The manifest's folds go into splits_final.json, which nnU-Net uses when it plans.
    """
    from pipelines.data import nnunet_folder
    from pipelines.data.data_root import resolve_data
    from pipelines.data.manifest import load_manifest
    from pipelines.nnunet.datasets import write_raw_dataset

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
            click.echo(f"{shown(error.path)}: {offence}")
        click.echo("the manifest breaks rules, so no file was read")
        sys.exit(1)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(unit="case", leave=False, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _summed(left_out: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One line per kind of reason, with an example: reasons that differ in names or numbers only are of one kind."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for file, reason in left_out:
        kinds.setdefault(re.sub(r"'[^']*'|\S+\.nii(\.gz)?|-?\d[\d.]*", "", reason), []).append((file, reason))
    for files in kinds.values():
        many = f"{len(files)} files, such as " if len(files) > 1 else ""
        yield f"left out: {many}{shown(files[0][0])}: {files[0][1]}"


def _print_tables(report: "CheckReport") -> None:
    import numpy as np

    if not report.shapes:
        return
    axes = len(report.shapes[0])
    unit = "ml" if axes == 3 else "mm2"

    def extremes(values: Any, form: str) -> list[str]:
        return [format(value, form) for value in np.quantile(values, (0.0, 0.5, 1.0))]

    volumes = []
    for value, name in report.classes.items():
        cells = [*extremes(report.voxels[name], ".0f"), *extremes(report.volumes[name], ".4g")]
        volumes.append([f"{value} {name}", str(np.count_nonzero(report.voxels[name])), *cells])
    found, geometry = report.orientations.most_common(1)[0][0], []
    directions = [
        name for letters, name in (("RL", "right"), ("AP", "anterior"), ("SI", "superior")) if {*letters} & {*found}
    ]
    for title, rows in (("spacing, mm", report.spacings), ("shape, voxels", report.shapes)):
        columns = np.array([row for row in rows if len(row) == axes]).T
        named = zip(directions, columns, strict=True)
        geometry += [[f"{title}, {axis}", *extremes(column, ".6g")] for axis, column in named]
    extremes_of_both = [f"{what}: {extreme}" for what in ("voxels", unit) for extreme in ("min", "median", "max")]
    print_table([Column("class"), *numbers("cases", *extremes_of_both)], volumes)
    print_table([Column(f"axes: {', '.join(directions)}"), *numbers("min", "median", "max")], geometry)
