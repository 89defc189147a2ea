"""nnU-Net's folds: `splits_final.json`."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipelines.errors import UserError
from pipelines.nnunet.folders import nnunet_folder

SPLITS = "splits_final.json"
_DATASET = re.compile(r"Dataset\d{3}_.+")


def find_splits(folder: Path) -> Path | None:
    """The splits of a data set: in its folder, whatever that is called, else where nnU-Net has preprocessed it.

    nnU-Net knows a data set by its folder's name, as `Dataset042_Thing`. `nnUNet_preprocessed` says where it
    preprocesses; unset, a folder of this name next to that of the raw data sets. None without.
    """
    folder = folder.resolve()
    places = [folder / SPLITS]
    if _DATASET.fullmatch(folder.name):
        preprocessed = nnunet_folder("preprocessed") or folder.parent.parent / "nnUNet_preprocessed"
        places.append(preprocessed / folder.name / SPLITS)
    return next((place for place in places if place.is_file()), None)


def folds_of(path: Path, cases: Iterable[str]) -> dict[str, int]:
    """Case to the fold that validates it.

    Args:
        path: a `splits_final.json`.
        cases: the cases' names; of others that the file has nothing is said.

    Raises:
        UserError: it cannot be read, or a case validates in none of its folds, or in several.
    """
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON: {error}") from None
    if not (isinstance(splits, list) and all(_is_split(split) for split in splits)):
        raise UserError(f'{path}: no splits of nnU-Net; expected [{{"train": [...], "val": [...]}}, ...]')
    folds: dict[str, int] = {}
    for case in cases:
        held_out = [fold for fold, split in enumerate(splits) if case in split["val"]]
        if len(held_out) != 1:
            where = f"in folds {held_out}" if held_out else "in no fold"
            raise UserError(
                f"{path}: '{case}' validates {where}; expected one for each case; pass --folds to have folds drawn"
            )
        folds[case] = held_out[0]
    return folds


def _is_split(split: Any) -> bool:
    return isinstance(split, dict) and all(isinstance(split.get(part), list) for part in ("train", "val"))
