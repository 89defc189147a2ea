"""A manifest's cases as a raw data set of nnU-Net: links to its files, `dataset.json`, and the folds."""

import re
import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pipelines.dataset.label_file import whole_labels
from pipelines.dataset.manifest import Manifest
from pipelines.dataset.nifti import BadFileError, read_file
from pipelines.errors import UserError
from pipelines.evaluation.label_values import label_channels
from pipelines.files import write_json
from pipelines.nnunet.folders import nnunet_folder
from pipelines.nnunet.splits import SPLITS
from pipelines.prediction.files import write_labels

_NUMBERED = re.compile(r"Dataset(\d{3})_")
_HIGHEST = 999


def write_raw_dataset(manifest: Manifest, root: Path, raw: Path, number: int | None = None) -> Path:
    """Write `Dataset<number>_<name>` in nnU-Net's folder of raw data sets.

    Files are linked, not copied: by hard links, and where the file system has none of those, by symbolic ones. Labels
    that were not saved as whole numbers are written as such, as every command here reads them: nnU-Net cuts off what
    follows the point, and 1.9999 would be 1.

    Args:
        manifest: the data set.
        root: the folder of its files.
        raw: nnU-Net's folder; made where it is missing.
        number: the data set's; None: the next free one.

    Returns:
        The folder written.

    Raises:
        UserError: labels that are not 0, 1, 2 and so on, files of different endings, missing files, 2D images that
            nnU-Net cannot read, a number that is taken.
    """
    ending = _ending(manifest)
    content = _dataset_json(manifest, ending)
    links, labels = {}, set()
    for case in manifest.cases:
        links[f"imagesTr/{case.id}_0000{ending}"] = root / case.image
        links[f"labelsTr/{case.id}{ending}"] = root / case.label
        labels.add(root / case.label)
    if missing := [source for source in links.values() if not source.is_file()]:
        raise UserError(f"{missing[0]}: missing, and so are {len(missing) - 1} other files of '{manifest.name}'")
    if manifest.dimensions == 2:
        _refuse_unreadable(root / manifest.cases[0].image)
    folder = raw / f"Dataset{_free_number(raw, number):03d}_{manifest.name}"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=raw) as temporary:
            made = Path(temporary) / "made"
            for name, source in links.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                if source not in labels or not _written_whole(source, made / name, manifest.label_values):
                    _link(source.resolve(), made / name)
            write_json(made / "dataset.json", content)
            write_json(made / SPLITS, splits_of(manifest))
            made.rename(folder)
    except OSError as error:
        raise UserError(f"--raw: {folder} cannot be written: {error.strerror}") from None
    return folder


def refuse_unfit(manifest: Manifest) -> None:
    """Refuse what can be seen to be none of nnU-Net's, before any file is read.

    Raises:
        UserError: labels that are not 0, 1, 2 and so on, or files of different endings.
    """
    _dataset_json(manifest, _ending(manifest))


def splits_of(manifest: Manifest) -> list[dict[str, list[str]]]:
    """The manifest's folds as nnU-Net's `splits_final.json` has them."""
    splits = []
    for fold in manifest.folds():
        train, val = manifest.split(fold)
        splits.append({"train": [case.id for case in train], "val": [case.id for case in val]})
    return splits


def _dataset_json(manifest: Manifest, ending: str) -> dict[str, Any]:
    if manifest.label_values != list(range(manifest.num_classes)):
        raise UserError(
            f"'{manifest.name}' has the labels {manifest.label_values}; nnU-Net wants 0, 1, 2 and so on without gaps, "
            "and files that are linked keep their values"
        )
    labels = {"background": 0} | {manifest.classes[value]: value for value in manifest.label_values[1:]}
    if len(labels) < manifest.num_classes or "ignore" in labels:
        raise UserError(f"'{manifest.name}' has a class named 'background' or 'ignore', which mean more to nnU-Net")
    return {
        "name": manifest.name,
        "description": manifest.description,
        "reference": manifest.citation,
        "licence": manifest.license,
        "channel_names": {"0": manifest.modality},
        "labels": labels,
        "numTraining": len(manifest.cases),
        "file_ending": ending,
    }


def _ending(manifest: Manifest) -> str:
    files = [file for case in manifest.cases for file in (case.image, case.label)]
    endings = {".nii.gz" if file.endswith(".nii.gz") else ".nii" for file in files}
    if len(endings) > 1:
        raise UserError(
            f"'{manifest.name}' has files that end in .nii and in .nii.gz; nnU-Net wants one ending for all"
        )
    ending = endings.pop()
    if manifest.dimensions == 2 and ending == ".nii":
        raise UserError(f"'{manifest.name}' is 2D and not compressed; nnU-Net reads 2D NIfTI as .nii.gz alone")
    return ending


def _refuse_unreadable(image: Path) -> None:
    """2D images nnU-Net reads by SimpleITK alone, which wants their axes to be the patient's first two."""
    import SimpleITK as sitk

    try:
        sitk.ReadImage(str(image))
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rsplit("): ", 1)[-1]
        raise UserError(f"{image}: SimpleITK, by which nnU-Net reads 2D images, cannot read it: {reason}") from None


def _free_number(raw: Path, number: int | None) -> int:
    """A number that no data set has, in nnU-Net's other folders neither: it finds them all by their number."""
    others = (nnunet_folder("preprocessed"), nnunet_folder("results"))
    folders = [raw, *(folder for folder in others if folder is not None)]
    taken: dict[int, Path] = {}
    for folder in folders:
        for path in folder.glob("Dataset*") if folder.is_dir() else ():
            if found := _NUMBERED.match(path.name):
                taken.setdefault(int(found[1]), path)
    if number is None:
        number = next((free for free in range(1, _HIGHEST + 1) if free not in taken), None)
        if number is None:
            raise UserError(f"--id: {raw} has no free number up to {_HIGHEST}")
    if number in taken:
        raise UserError(f"--id: {number} is taken by {taken[number]}; pass another, or none for the next free one")
    return number


def _written_whole(source: Path, target: Path, values: list[int]) -> bool:
    """Write a label map whose values were not saved as whole numbers; whether it is such a one.

    Raises:
        UserError: it holds others than these values, which are 0, 1, 2 and so on.
    """
    try:
        image = nib.load(source)
        as_it_is = image.get_data_dtype().kind in "iu" and (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    except Exception:  # nibabel raises whatever a damaged header leads to; `medloss check` names such files
        return False
    if as_it_is:
        return False
    try:
        labels = read_file(source).data
        whole = whole_labels(labels)
        if np.array_equal(whole, labels):
            return False
        write_labels(target, label_channels(whole, values), image.header)
    except BadFileError as error:
        raise UserError(f"{source}: {error}") from None
    return True


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        target.symlink_to(source)
