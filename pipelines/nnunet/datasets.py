"""A manifest's cases as a raw data set of nnU-Net, planned and preprocessed once for all runs of a comparison."""

import hashlib
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import nibabel as nib
import numpy as np

from pipelines.data import Configuration, nnunet_folder
from pipelines.data.data_root import resolve_data
from pipelines.data.layouts import SPLITS
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.nifti import BadFileError, read_file, whole_labels, write_labels
from pipelines.evaluation.references import label_channels
from pipelines.training.run_config import NnunetSettings, RunConfig
from pipelines.utils import UserError
from pipelines.utils.files import read_json, write_json
from pipelines.utils.locks import held_lock, is_held

# A manifest's cases as a raw data set of nnU-Net: links to its files, `dataset.json`, and the folds.

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


# A manifest's cases as nnU-Net plans and preprocesses them: once, for all runs of a comparison.

_MARK = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """What nnU-Net has made of a data set.

    Attributes:
        folder: with nnU-Net's `raw` and `preprocessed` in it.
        dataset: `Dataset<number>_<name>`.
        plans: what its plans are called.
    """

    folder: Path
    dataset: str
    plans: str

    def environment(self, results: Path) -> dict[str, str]:
        """The variables by which nnU-Net finds it, and where it then writes."""
        return {
            "nnUNet_raw": str(self.folder / "raw"),
            "nnUNet_preprocessed": str(self.folder / "preprocessed"),
            "nnUNet_results": str(results),
        }

    def content(self, name: str) -> dict[str, Any]:
        """One of its files: `dataset`, or the plans by their name."""
        found: dict[str, Any] = read_json(self.folder / "preprocessed" / self.dataset / f"{name}.json")
        return found


def require_nnunet() -> None:
    """Raise a `UserError` where nnU-Net is not installed; it is looked for, not imported."""
    if find_spec("nnunetv2") is None:
        raise UserError(
            "--trainer nnunet: nnU-Net is not installed here; in an environment of its own, `pip install torch "
            "torchvision`, then `pip install '.[nnunet]'` in a checkout of medloss: see docs/nnunet.md"
        )


def prepare(config: RunConfig, cache: Path, processes: int, log: Path, tell: Callable[[str], None]) -> Prepared:
    """Have nnU-Net plan and preprocess a data set, unless it is there.

    Args:
        config: of any of the runs.
        cache: the folder of prepared cases.
        processes: at a time.
        log: gets what nnU-Net says.
        tell: called with lines for people.

    Raises:
        UserError: nnU-Net cannot take the data, fails, or plans no such configuration.
    """
    manifest, settings = load_manifest(config.manifest), _settings(config)
    folder = _folder(manifest, settings, cache)
    lock = folder.with_name(f"{folder.name}.lock")
    if is_held(lock):  # by another comparison, whose cases these are, too
        tell(f"waiting: another process prepares these cases, in {folder}")
    with held_lock(lock, math.inf):
        if (found := _found(folder)) is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
            root = resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
            tell(f"preparing: nnU-Net plans and preprocesses {len(manifest.cases)} cases; it says how in {log}")
            found = _prepare(manifest, settings, root, folder, processes, log)
    configurations = found.content(found.plans)["configurations"]
    if settings.configuration not in configurations:
        raise UserError(
            f"--nnunet-configuration: got {settings.configuration}; for '{manifest.name}' nnU-Net plans "
            f"{', '.join(name for name in configurations if name in get_args(Configuration))}"
        )
    return found


def find_prepared(config: RunConfig, cache: Path) -> Prepared:
    """What `prepare` has left in a cache.

    Raises:
        UserError: it is not there, or nnU-Net is not.
    """
    require_nnunet()
    folder = _folder(load_manifest(config.manifest), _settings(config), cache)
    found = _found(folder)
    if found is None:
        raise UserError(f"{folder}: no cases that nnU-Net has prepared; call `medloss compare` as before, which does")
    return found


def _settings(config: RunConfig) -> NnunetSettings:
    assert config.nnunet is not None
    return config.nnunet


def _folder(manifest: Manifest, settings: NnunetSettings, cache: Path) -> Path:
    """Named by all that decides what is in it."""
    decisive = [manifest.sha256, settings.configuration, settings.planner or "", version("nnunetv2")]
    return cache / f"nnunet-{hashlib.sha256(' '.join(decisive).encode()).hexdigest()[:12]}"


def _found(folder: Path) -> Prepared | None:
    mark = read_json(folder / _MARK)
    return None if mark is None else Prepared(folder, mark["dataset"], mark["plans"])


def _prepare(
    manifest: Manifest, settings: NnunetSettings, root: Path, folder: Path, processes: int, log: Path
) -> Prepared:
    dataset = write_raw_dataset(manifest, root, folder / "raw").name
    named = Prepared(folder, dataset, "").environment(folder / "results")
    own = {"nnUNet_def_n_proc": str(processes), "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}
    number, at_once = dataset[len("Dataset") :].split("_")[0], str(processes)
    command = [sys.executable, "-m", "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints", "-d", number]
    command += ["-c", settings.configuration, "-np", at_once, "-npfp", at_once]
    command += [] if settings.planner is None else ["-pl", settings.planner]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as said:
        ended = subprocess.run(
            command, env=os.environ | named | own, stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    if ended.returncode != 0:
        lines = [line.strip() for line in log.read_text(errors="replace").split("\n") if line.strip()]
        told = lines[-1] if lines else f"exit code {ended.returncode}"
        raise UserError(f"nnU-Net could not prepare the cases: {told[:300]}; see {log}")
    places = (folder / "preprocessed" / dataset).glob("*.json")
    plans = next(path.stem for path in places if "plans_name" in read_json(path))
    write_json(folder / _MARK, {"dataset": dataset, "plans": plans})
    return Prepared(folder, dataset, plans)
