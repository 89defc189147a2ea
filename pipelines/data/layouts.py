"""Names of images and labels: which belong together, and in which of nnU-Net's folds they are."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pipelines.data import nnunet_folder
from pipelines.utils import UserError


def path_problem(path: str) -> str | None:
    """Why a path is not a valid path inside the data root; None if it is one."""
    parts = PurePosixPath(path).parts
    if not parts or not path.isprintable() or "\\" in path:
        return f"{path!r} is not a path with forward slashes"
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive:
        return f"'{path}' is absolute; expected a path relative to the data root"
    if ".." in parts:
        return f"'{path}' leaves the data root"
    return None


#: Suffix of an image's file of probabilities, after the image's name.
PROBABILITIES = "_probabilities.nii.gz"
#: nnU-Net's.
NNUNET_PROBABILITIES = ".npz"


def without_probabilities(files: list[str]) -> list[str]:
    """File names without those of the probabilities of another one."""
    stems = {stem(file) for file in files if not file.endswith(PROBABILITIES)}
    return [file for file in files if not (file.endswith(PROBABILITIES) and file.removesuffix(PROBABILITIES) in stems)]


# nnU-Net's folds: `splits_final.json`.

SPLITS = "splits_final.json"
_DATASET = re.compile(r"Dataset\d{3}_.+")


def find_splits(folder: Path) -> Path | None:
    """The splits file of a data set: in its folder, else where nnU-Net has preprocessed it; None if there is none.

    nnU-Net identifies a data set by its folder's name, such as `Dataset042_Thing`. It preprocesses into the folder
    that `nnUNet_preprocessed` names, by default a folder of that name next to the one of the raw data sets.
    """
    folder = folder.resolve()
    places = [folder / SPLITS]
    if _DATASET.fullmatch(folder.name):
        preprocessed = nnunet_folder("preprocessed") or folder.parent.parent / "nnUNet_preprocessed"
        places.append(preprocessed / folder.name / SPLITS)
    return next((place for place in places if place.is_file()), None)


def folds_of(path: Path, cases: Iterable[str]) -> dict[str, int]:
    """Map each case to the fold in which it is validated.

    Args:
        path: a `splits_final.json`.
        cases: the cases' names; other cases in the file are ignored.

    Raises:
        UserError: the file cannot be read, or a case is validated in none of its folds or in several.
    """
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not (isinstance(splits, list) and all(_is_split(split) for split in splits)):
        raise UserError(f'{path}: not nnU-Net splits; expected [{{"train": [...], "val": [...]}}, ...]')
    folds: dict[str, int] = {}
    for case in cases:
        held_out = [fold for fold, split in enumerate(splits) if case in split["val"]]
        if len(held_out) != 1:
            where = f"in folds {held_out}" if held_out else "in no fold"
            raise UserError(
                f"{path}: '{case}' is validated {where}; expected one fold per case; pass --folds to draw folds"
            )
        folds[case] = held_out[0]
    return folds


def _is_split(split: Any) -> bool:
    return isinstance(split, dict) and all(isinstance(split.get(part), list) for part in ("train", "val"))


# Pairs of image and label, by folders and file names.

_LABEL_ENDING = re.compile(r"[_\-.](labels?|seg|segmentation|mask|gt)$", re.IGNORECASE)
_IMAGE_ENDING = re.compile(r"[_\-.](image|img)$", re.IGNORECASE)
#: nnU-Net numbers an image's channels.
_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class Pairing:
    """Pairs as (case name, image, label), and the files that are in no pair, each with the reason."""

    pairs: list[tuple[str, str, str]]
    unpaired: list[tuple[str, str]]


def nifti_files(folder: Path) -> list[str]:
    """Sorted names of a folder's NIfTI files, without hidden ones; empty if the folder cannot be read."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    return [name for name in names if name.endswith((".nii", ".nii.gz")) and not name.startswith(".")]


def stem(file: str) -> str:
    """A file's name without its folders and its NIfTI extension."""
    return re.sub(r"\.nii(\.gz)?$", "", file.rsplit("/", 1)[-1])


def layout_labels(folder: Path, files: list[str]) -> list[str]:
    """Those of a folder's files that are labels: by their names, as in a folder with images and labels side by side.

    A folder of images by its name (`images`, `imagesTr`, `imagesTs`) has none.
    """
    return [] if folder.absolute().name.startswith("images") else [file for file in files if is_label_name(file)]


def is_label_name(file: str) -> bool:
    """Whether a file among images is a label, by its name."""
    return _LABEL_ENDING.search(f"_{stem(file)}") is not None or stem(file).startswith("segmentation-")


def pair_by_name(images: list[str], labels: list[str]) -> Pairing:
    """Pair paths whose names differ only in the suffix for image, label or first channel.

    Two images or two labels of the same name are left unpaired together with their counterpart, since it is unknown
    which is right. The same holds for an image named like a label (`a_seg`) together with an image named like that
    label without its suffix (`a`).
    """
    named = names_of(labels)
    groups: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    pairs: list[tuple[str, str, str]] = []
    unpaired = []
    for image in images:
        name, channel = image_name(image, named)
        if channel > 0:
            unpaired.append((image, f"channel {channel} of '{name}', which is not among its images"))
        else:
            groups[name][0].append(image)
    bare = set(groups)
    for label in labels:
        # A label has its image's name; a suffix is only removed if there is no image of the full name.
        name = stem(label) if stem(label) in bare else _LABEL_ENDING.sub("", stem(label))
        groups[name][1].append(label)
    without_label = {name for name in bare if not groups[name][1]}
    for name in list(groups):
        other = _LABEL_ENDING.sub("", name)
        if other != name and other in without_label and all(groups[name]):
            for into, moved in zip(groups[other], groups.pop(name), strict=True):
                into.extend(moved)
    for name, (of_images, of_labels) in groups.items():
        problem: str | None
        if not of_labels:
            problem = "image without a label"
        elif not of_images:
            problem = "label without an image"
        elif len(of_images) > 1:
            problem = f"duplicate: '{name}' has {len(of_images)} images"
        elif len(of_labels) > 1:
            problem = f"duplicate: '{name}' has {len(of_labels)} labels"
        else:
            problem = path_problem(of_images[0]) or path_problem(of_labels[0])
        if problem is None:
            pairs.append((name, of_images[0], of_labels[0]))
        else:
            unpaired.extend((file, problem) for file in (*of_images, *of_labels))
    return Pairing(sorted(pairs), sorted(unpaired))


def pair_predictions(predictions: list[str], labels: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Pair the files of two folders: a prediction is named as an image with that label would be.

    Returns:
        Label to prediction; and the predictions and the labels that share their name with another in their folder.
    """
    pairing = pair_by_name([f"p/{name}" for name in predictions], [f"l/{name}" for name in labels])
    # If one side has two files of a name, all files of that name are left unpaired.
    sides = {"images": "p/", "labels": "l/"}
    duplicates = [file for file, reason in pairing.unpaired
                  if reason.startswith("duplicate") and file.startswith(sides[reason.rsplit(" ", 1)[1]])]  # fmt: skip
    of_side = {side: [file[2:] for file in duplicates if file.startswith(side)] for side in ("p/", "l/")}
    return {label[2:]: prediction[2:] for _, prediction, label in pairing.pairs}, of_side["p/"], of_side["l/"]


def names_of(labels: Iterable[str]) -> set[str]:
    """Names that the labels' images may have: the labels' own, with and without their suffixes."""
    return {name for label in labels for name in (stem(label), _LABEL_ENDING.sub("", stem(label)))}


def image_name(image: str, named: set[str]) -> tuple[str, int]:
    """The name by which an image's label is looked up, and the image's channel."""
    name = stem(image)
    if name in named:
        return name, 0
    channel = _CHANNEL.search(name)
    if channel is not None and name[: channel.start()] in named:
        return name[: channel.start()], int(channel[1])
    plain = _IMAGE_ENDING.sub("", name)
    return plain, 0
