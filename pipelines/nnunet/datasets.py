"""A manifest's cases in nnU-Net's format, planned and preprocessed once for all runs of a comparison."""

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
from pipelines.data.grids import Orientation, by
from pipelines.data.layouts import SPLITS
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.manifest_writer import with_checksums
from pipelines.data.nifti import BadFileError, read_file, squeezed, whole_labels, write_labels
from pipelines.evaluation.references import label_channels
from pipelines.training.run_config import NnunetSettings, RunConfig
from pipelines.utils import UserError
from pipelines.utils.files import read_json, write_json
from pipelines.utils.locks import held_lock, is_held

# The raw data set: links to the files, `dataset.json`, and the folds

_NUMBERED = re.compile(r"Dataset(\d{3})_")
_HIGHEST = 999


def write_raw_dataset(manifest: Manifest, root: Path, raw: Path, number: int | None = None) -> Path:
    """Write `Dataset<number>_<name>` in nnU-Net's folder of raw data sets, and return it; None: the next free number.

    Files are not copied but hard-linked, or symbolically where the file system has no hard links. Written are: each
    channel of a file with several, since nnU-Net reads a file per channel; and labels that were not saved as whole
    numbers, rounded as all commands here read them: nnU-Net truncates, so that 1.9999 would be 1; and labels along
    other axes than their image's, since nnU-Net compares arrays as they are stored.

    Raises:
        UserError: labels that are not 0, 1, 2 and so on, files of different endings, missing files, 2D images that
            nnU-Net cannot read, channels along different axes, a number that is taken.
    """
    content = _dataset_json(manifest)
    ending = content["file_ending"]
    links, joined, image_of = {}, {}, {}
    channels = len(manifest.image_channels)
    for case in manifest.cases:
        for channel in range(channels):
            name = f"imagesTr/{case.id}_{channel:04d}{ending}"
            if len(case.images) < channels:
                joined[name] = channel
            links[name] = root / case.images[0 if name in joined else channel]
        links[f"labelsTr/{case.id}{ending}"] = root / case.label
        image_of[root / case.label] = root / case.images[0]
    if missing := [source for source in links.values() if not source.is_file()]:
        raise UserError(f"{missing[0]}: missing, and so are {len(missing) - 1} other files of '{manifest.name}'")
    if manifest.dimensions == 2:
        _refuse_unreadable(root / manifest.cases[0].images[0])
    for case in manifest.cases:
        for file in case.images[1:]:
            if _axes_differ(root / file, root / case.images[0], manifest.dimensions):
                raise UserError(
                    f"{root / file}: stored along other axes than {case.images[0]}; nnU-Net reads arrays as they are "
                    "stored: save both along the same axes"
                )
    folder = raw / f"Dataset{_free_number(raw, number):03d}_{manifest.name}"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=raw) as temporary:
            unfinished = Path(temporary) / folder.name
            for name, source in links.items():
                target = unfinished / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if source in image_of and _written_whole(source, target, manifest, image_of[source]):
                    continue
                if name in joined:
                    _write_channel(source, target, joined[name], channels)
                    continue
                try:
                    target.hardlink_to(source.resolve())
                except OSError:
                    target.symlink_to(source.resolve())
            write_json(unfinished / "dataset.json", content)
            splits = [manifest.split(fold) for fold in manifest.folds()]
            write_json(
                unfinished / SPLITS,
                [{"train": [case.id for case in train], "val": [case.id for case in val]} for train, val in splits],
            )
            unfinished.rename(folder)
    except OSError as error:
        raise UserError(f"--raw: {folder} cannot be written: {error.strerror}") from None
    return folder


def refuse_unfit(manifest: Manifest) -> None:
    """Raise a `UserError` for labels or endings of files that nnU-Net cannot take, by the manifest alone."""
    _dataset_json(manifest)


def _dataset_json(manifest: Manifest) -> dict[str, Any]:
    files = [file for case in manifest.cases for file in case.files]
    endings = {".nii.gz" if file.endswith(".nii.gz") else ".nii" for file in files}
    if len(endings) > 1:
        raise UserError(
            f"'{manifest.name}' has files that end in .nii and in .nii.gz; nnU-Net requires the same ending for all"
        )
    if manifest.dimensions == 2 and endings == {".nii"}:
        raise UserError(f"'{manifest.name}' is 2D and not compressed; nnU-Net reads 2D NIfTI only as .nii.gz")
    if manifest.label_values != list(range(len(manifest.classes))):
        raise UserError(
            f"'{manifest.name}' has the labels {manifest.label_values}; nnU-Net requires 0, 1, 2 and so on without "
            "gaps, and files that are linked keep their values"
        )
    scheme = manifest.scheme
    if {"background", "ignore"} & set(scheme.names):
        raise UserError(
            f"'{manifest.name}' has a class named 'background' or 'ignore', which has a special meaning in nnU-Net"
        )
    if partial := [case.id for case in manifest.cases if case.labelled is not None]:
        raise UserError(
            f"'{manifest.name}' has cases that label some classes only, such as {partial[0]}, which nnU-Net cannot take"
        )
    labels: dict[str, Any] = {"background": 0}
    labels |= {name: list(of) if scheme.regions else of[0] for name, of in scheme.parts.items()}
    if scheme.ignore is not None:
        labels["ignore"] = len(scheme.values)  # nnU-Net expects the highest value
    regions = {"regions_class_order": list(scheme.region_order)} if scheme.regions else {}
    return {
        "name": manifest.name,
        "description": manifest.description,
        "reference": manifest.citation,
        "licence": manifest.license,
        # nnU-Net normalises by the name: `CT` is clipped by percentiles, all others are z-scored.
        "channel_names": {
            str(number): "CT" if channel.quantitative else _named_for_zscore(channel.name)
            for number, channel in enumerate(manifest.image_channels)
        },
        "labels": labels,
        **regions,
        "numTraining": len(manifest.cases),
        "file_ending": endings.pop(),
    }


def _named_for_zscore(name: str) -> str:
    """The name of a channel, unless nnU-Net would normalise a channel of this name in another way."""
    return "zscore" if name.lower() in ("ct", "nonorm", "rescale_to_0_1", "rgb_to_0_1") else name


def _refuse_unreadable(image: Path) -> None:
    """Refuse 2D images that SimpleITK cannot read, as nnU-Net does: their axes must be the patient's first two."""
    import SimpleITK as sitk

    try:
        sitk.ReadImage(str(image))
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rsplit("): ", 1)[-1]
        raise UserError(f"{image}: SimpleITK, with which nnU-Net reads 2D images, cannot read it: {reason}") from None


def _free_number(raw: Path, number: int | None) -> int:
    """A number that no data set has in any of nnU-Net's folders, where it finds them by number."""
    taken: dict[int, Path] = {}
    for folder in (raw, nnunet_folder("preprocessed"), nnunet_folder("results")):
        for path in folder.glob("Dataset*") if folder is not None and folder.is_dir() else ():
            if found := _NUMBERED.match(path.name):
                taken.setdefault(int(found[1]), path)
    if number is None:
        number = next((free for free in range(1, _HIGHEST + 1) if free not in taken), None)
        if number is None:
            raise UserError(f"--id: {raw} has no free number up to {_HIGHEST}")
    if number in taken:
        raise UserError(f"--id: {number} is taken by {taken[number]}; pass another, or none for the next free one")
    return number


def _write_channel(source: Path, target: Path, channel: int, channels: int) -> None:
    """Write one channel of a file that has all, along the last axis."""
    try:
        image = nib.load(source)
        if image.ndim < 3 or image.shape[-1] != channels:
            raise BadFileError(f"{by(image.shape)} voxels; expected {channels} channels along the last axis")
        volume = np.asanyarray(image.dataobj)[..., channel]
    except BadFileError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # nibabel raises whatever a damaged file leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{source}: {reason}; `medloss check` lists every bad file") from None
    nib.save(type(image)(volume.reshape(squeezed(volume.shape, 3)), image.affine, image.header), target)


def _axes_differ(file: Path, other: Path, dimensions: int) -> bool:
    """Whether two files are stored along different axes; damaged files, which `medloss check` reports, are not."""
    try:
        first, second = (Orientation.of(nib.load(path).affine, dimensions) for path in (file, other))
    except Exception:  # nibabel raises any kind of error for a damaged header
        return False
    return first != second


def _written_whole(source: Path, target: Path, manifest: Manifest, image_file: Path) -> bool:
    """Write a label map for nnU-Net, if it cannot be linked; whether it was written.

    Values that were not saved as whole numbers are rounded, an ignored label gets the value that nnU-Net expects, and
    axes become those of the image.
    """
    scheme = manifest.scheme
    turned = _axes_differ(source, image_file, manifest.dimensions)
    try:
        image = nib.load(source)
        is_whole = image.get_data_dtype().kind in "iu" and (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    except Exception:  # nibabel raises any kind of error for a damaged header; `medloss check` reports such files
        return False
    ignored = [] if scheme.ignore is None else [scheme.ignore]
    moved = bool(ignored) and ignored[0] != len(scheme.values)
    if is_whole and not (moved or turned):
        return False
    try:
        labels = read_file(source, {manifest.dimensions}).data
        whole = whole_labels(labels)
        if np.array_equal(whole, labels) and not (moved or turned):
            return False
        header = nib.load(image_file).header if turned else image.header
        write_labels(target, label_channels(whole, [*scheme.values, *ignored]), header)
    except BadFileError as error:
        raise UserError(f"{source}: {error}") from None
    return True


# Planned and preprocessed

_MARK = "prepared.json"


@dataclass(frozen=True)
class Prepared:
    """A data set that nnU-Net has planned and preprocessed: its `Dataset<number>_<name>`, and its plans' name."""

    #: Contains nnU-Net's `raw` and `preprocessed`.
    folder: Path
    dataset: str
    plans: str

    def environment(self, results: Path) -> dict[str, str]:
        """The variables with nnU-Net's folders, `results` among them."""
        folders = {name: self.folder / name for name in ("raw", "preprocessed")} | {"results": results}
        return {f"nnUNet_{name}": str(folder) for name, folder in folders.items()}

    def content(self, name: str) -> dict[str, Any]:
        """The content of one of its JSON files: `dataset`, or the plans by name."""
        found: dict[str, Any] = read_json(self.folder / "preprocessed" / self.dataset / f"{name}.json")
        return found


def require_nnunet() -> None:
    """Raise a `UserError` if nnU-Net is not installed, without importing it."""
    if find_spec("nnunetv2") is None:
        raise UserError(
            "--trainer nnunet: nnU-Net is not installed here; in a separate environment, `pip install torch "
            "torchvision`, then `pip install '.[nnunet]'` in a checkout of medloss: see docs/nnunet.md"
        )


def prepare(config: RunConfig, cache: Path, processes: int, log: Path, notify: Callable[[str], None]) -> Prepared:
    """Plan and preprocess a data set with nnU-Net, whose output goes to `log`, unless the cache has it.

    Raises:
        UserError: nnU-Net cannot take the data, fails, or does not plan the configuration.
    """
    manifest = load_manifest(config.manifest)
    settings, folder = _place(config, manifest, cache)
    lock = folder.with_name(f"{folder.name}.lock")
    if is_held(lock):  # by another comparison on the same cases
        notify(f"waiting: another process prepares these cases, in {folder}")
    with held_lock(lock, math.inf):
        if (found := _found(folder)) is None:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
            root = resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
            notify(f"preparing: nnU-Net plans and preprocesses {len(manifest.cases)} cases; its output is in {log}")
            found = _prepare(manifest, settings, root, folder, processes, log)
    configurations = found.content(found.plans)["configurations"]
    if settings.configuration not in configurations:
        raise UserError(
            f"--nnunet-configuration: got {settings.configuration}; for '{manifest.name}' nnU-Net plans "
            f"{', '.join(name for name in configurations if name in get_args(Configuration))}"
        )
    return found


def find_prepared(config: RunConfig, cache: Path) -> Prepared:
    """The data set that `prepare` has left in a cache; a `UserError` if there is none, or nnU-Net is not installed."""
    require_nnunet()
    folder = _place(config, load_manifest(config.manifest), cache)[1]
    found = _found(folder)
    if found is None:
        raise UserError(
            f"{folder}: no cases prepared by nnU-Net; run the same `medloss compare` again, which prepares them"
        )
    return found


def _place(config: RunConfig, manifest: Manifest, cache: Path) -> tuple[NnunetSettings, Path]:
    """The settings, and the folder, named by a hash of everything that determines its content."""
    settings = config.nnunet
    assert settings is not None
    if manifest.generator is None and any(case.checksums.keys() != set(case.files) for case in manifest.cases):
        # Without checksums, the manifest does not say whether the files are still those that were prepared.
        manifest = with_checksums(
            manifest, resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
        )
    decisive = [manifest.sha256, settings.configuration, settings.planner or "", version("nnunetv2")]
    return settings, cache / f"nnunet-{hashlib.sha256(' '.join(decisive).encode()).hexdigest()[:12]}"


def _found(folder: Path) -> Prepared | None:
    mark = read_json(folder / _MARK)
    return None if mark is None else Prepared(folder, mark["dataset"], mark["plans"])


def _prepare(
    manifest: Manifest, settings: NnunetSettings, root: Path, folder: Path, processes: int, log: Path
) -> Prepared:
    dataset = write_raw_dataset(manifest, root, folder / "raw").name
    named = Prepared(folder, dataset, "").environment(folder / "results")
    at_once = str(processes)
    limits = {"nnUNet_def_n_proc": at_once, "nnUNet_n_proc_DA": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "nnunetv2.experiment_planning.plan_and_preprocess_entrypoints"]
    command += ["-d", dataset[7:10], "-c", settings.configuration, "-np", at_once, "-npfp", at_once]
    command += [] if settings.planner is None else ["-pl", settings.planner]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        ended = subprocess.run(
            command, env=os.environ | named | limits, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    if ended.returncode != 0:
        reason = log.read_text(errors="replace").strip().split("\n")[-1].strip() or f"exit code {ended.returncode}"
        raise UserError(f"nnU-Net could not prepare the cases: {reason[:300]}; see {log}")
    files = (folder / "preprocessed" / dataset).glob("*.json")
    plans = next(path.stem for path in files if "plans_name" in read_json(path))
    write_json(folder / _MARK, {"dataset": dataset, "plans": plans})
    return Prepared(folder, dataset, plans)
