"""`medloss nnunet`: nnU-Net's trainers with our losses, its data sets and its checkpoints."""

from pathlib import Path

import click

from pipelines.commands.suggestions import SuggestingGroup


@click.group(cls=SuggestingGroup)
def nnunet() -> None:
    """Train nnU-Net with our losses."""


@nnunet.command()
def path() -> None:
    """Print the folder for nnUNet_extTrainer, in which nnU-Net finds nnUNetTrainerMedloss_<loss>.

    `_<N>epochs` at the end says how many epochs, and `_plus_` makes sums:
    nnUNetTrainerMedloss_dice_plus_focal_50epochs.
    """
    import importlib.util

    from pipelines.nnunet.folders import trainer_folder

    click.echo(trainer_folder())
    if importlib.util.find_spec("nnunetv2") is None:
        click.echo("nnU-Net is not installed beside it: pip install nnunetv2", err=True)


@nnunet.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write; default: checkpoint_stock.pth beside it.")
def export(checkpoint: Path, out: Path | None) -> None:
    """Write CHECKPOINT as one of nnU-Net's stock trainer, with which others predict without this package.

    Beside the checkpoint, `nnUNetv2_predict ... -chk checkpoint_stock.pth` takes it.
    """
    from pipelines.nnunet.checkpoint import export_checkpoint

    click.echo(f"written to {export_checkpoint(checkpoint, out)}")


@nnunet.command()
@click.argument("manifest")
@click.option("--raw", type=click.Path(path_type=Path), help="Folder of nnU-Net's raw data sets [nnUNet_raw].")
@click.option("--id", "number", type=click.IntRange(1, 999), help="The data set's number; default: the next free one.")
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder of the data [MEDLOSS_DATA].")
def dataset(manifest: str, raw: Path | None, number: int | None, data_root: Path | None) -> None:
    """Write MANIFEST (a path or a shipped name) as a raw data set of nnU-Net, by links.

    The manifest's folds go into splits_final.json, which nnU-Net takes over when it plans.
    """
    from pipelines.dataset.data_root import resolve_data
    from pipelines.dataset.manifest import load_manifest
    from pipelines.errors import UserError
    from pipelines.nnunet.folders import nnunet_folder
    from pipelines.nnunet.raw_dataset import write_raw_dataset

    raw = raw or nnunet_folder("raw")
    if raw is None:
        raise UserError("--raw: pass the folder of nnU-Net's raw data sets, or set nnUNet_raw")
    loaded = load_manifest(manifest)
    written = write_raw_dataset(loaded, resolve_data(loaded, data_root), raw, number)
    click.echo(f"{len(loaded.cases)} cases in {len(loaded.folds())} folds: linked in {written}")
    click.echo(f"plan and preprocess them: nnUNetv2_plan_and_preprocess -d {int(written.name[7:10])}")
