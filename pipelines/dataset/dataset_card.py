"""What a folder's `dataset.json` says, the Medical Segmentation Decathlon's or nnU-Net's."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from pipelines.errors import UserError

NAME = "dataset.json"


class DatasetCard(BaseModel):
    """The parts of a `dataset.json` that a manifest has, too; empty where it says nothing."""

    name: str = ""
    description: str = ""
    license: str = ""
    citation: str = ""
    modality: str = ""
    classes: dict[int, str] = Field(default_factory=dict)


def read_card(folder: Path) -> DatasetCard:
    """Read a folder's `dataset.json`; an empty card where there is none.

    Raises:
        UserError: it is there, but no JSON; its labels are no list of values and names, but regions, say; its files
            are no NIfTI.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return DatasetCard()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with labels and so on; got {type(content).__name__}")
    ending = content.get("file_ending")
    if isinstance(ending, str) and ending not in (".nii", ".nii.gz"):
        raise UserError(f"{path}: file_ending: got '{ending}'; only NIfTI is read, .nii or .nii.gz")
    channels = content.get("modality") or content.get("channel_names")
    channel = channels.get("0") if isinstance(channels, dict) else channels
    modality = str(channel or "")
    return DatasetCard(
        name=_text(content, "name"),
        description=_text(content, "description"),
        license=_text(content, "licence") or _text(content, "license"),
        citation=_text(content, "reference"),
        modality="MR" if modality.upper() == "MRI" else modality,
        classes=_classes(content["labels"], path) if "labels" in content else {},
    )


def _text(content: dict[str, Any], field: str) -> str:
    value = content.get(field)
    return value.strip() if isinstance(value, str) else ""


def _classes(labels: Any, path: Path) -> dict[int, str]:
    """Value to name, whichever of the two is the key."""
    classes: dict[int, str] = {0: "background"}
    seen: set[int] = set()
    if isinstance(labels, dict):
        _refuse_what_only_nnunet_has(labels, path)
    try:
        for key, item in labels.items():
            # The Decathlon has {"1": "liver"}, nnU-Net {"liver": 1}.
            value, name = (item, key) if isinstance(item, int) else (int(key), item)
            if not isinstance(name, str) or not name.strip() or value < 0 or value in seen:
                raise ValueError
            seen.add(value)
            classes[value] = name.strip()
    except (AttributeError, TypeError, ValueError):
        raise UserError(f'{path}: labels: got {labels!r}; expected values with names, as {{"1": "liver"}}') from None
    return dict(sorted(classes.items()))


def _refuse_what_only_nnunet_has(labels: dict[str, Any], path: Path) -> None:
    for name, value in labels.items():
        if isinstance(value, list):
            raise UserError(
                f"{path}: labels: '{name}' is a region of the values {value}; a manifest has one class a value, and "
                "classes that exclude each other: train regions with nnU-Net itself (medloss nnunet path)"
            )
        if name == "ignore":
            raise UserError(
                f"{path}: labels: 'ignore' marks voxels that nobody labelled, which a manifest cannot leave out: "
                "train such data with nnU-Net itself (medloss nnunet path)"
            )
