"""`dataset.json`, of the Medical Segmentation Decathlon or of nnU-Net: names of channels, classes and regions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from pipelines.utils import UserError

NAME = "dataset.json"


class DatasetCard(BaseModel):
    """The fields that a `dataset.json` shares with a manifest; empty where it has none."""

    name: str = ""
    description: str = ""
    license: str = ""
    citation: str = ""
    channels: tuple[str, ...] = ()
    classes: dict[int, str] = Field(default_factory=dict)
    regions: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    region_order: tuple[int, ...] = ()
    ignore: int | None = None


def read_card(folder: Path) -> DatasetCard:
    """Read a folder's `dataset.json`; an empty card if there is none.

    Raises:
        UserError: it is not valid JSON; its channels, labels or regions cannot be understood; or its files are not
            NIfTI.
    """
    path = folder / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # the second is reported where files are sought
        return DatasetCard()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with labels and other fields; got {type(content).__name__}")
    ending = content.get("file_ending")
    if isinstance(ending, str) and ending not in (".nii", ".nii.gz"):
        raise UserError(f"{path}: file_ending: got '{ending}'; only NIfTI is read, .nii or .nii.gz")
    return DatasetCard(
        name=_text(content, "name"),
        description=_text(content, "description"),
        license=_text(content, "licence") or _text(content, "license"),
        citation=_text(content, "reference"),
        channels=_channels(content, path),
        **_labels(content, path) if "labels" in content else {},
    )


def named_labels(names: Mapping[str, tuple[int, ...]], ignore: int | None) -> dict[str, Any]:
    """Classes, regions and ignored label of a `DatasetCard` from names with label values.

    With any union of labels, all names are regions. A region's voxels get, in a label map, its first label that no
    later region has, so regions within others come after them.

    Raises:
        UserError: a label has two names, or all labels of a region are in later ones.
    """
    of_one = [(values[0], name) for name, values in names.items() if len(values) == 1]
    classes = {0: "background"} | {value: f"class_{value}" for values in names.values() for value in values}
    made: dict[str, Any] = {"classes": dict(sorted((classes | dict(of_one)).items())), "ignore": ignore}
    if len(of_one) == len(names):
        if len(dict(of_one)) < len(of_one):
            twice = next(value for value, name in of_one if made["classes"][value] != name)
            raise UserError(f"--classes: the label {twice} has two names; expected one")
        return made | {"regions": {}, "region_order": ()}
    order, later = [], set[int]()
    for name, values in reversed(list(names.items())):
        alone = [value for value in values if value not in later]
        if not alone:
            raise UserError(f"--classes: all labels of {name} are in later regions; expected larger regions first")
        order.append(alone[0])
        later.update(values)
    return made | {"regions": dict(names), "region_order": tuple(reversed(order))}


def _text(content: dict[str, Any], field: str) -> str:
    value = content.get(field)
    return value.strip() if isinstance(value, str) else ""


def _channels(content: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Names in the order of their numbers; a name that appears twice gets its number."""
    field = "modality" if content.get("modality") else "channel_names"
    given = content.get(field) or {}
    given = {"0": given} if isinstance(given, str) else given
    try:
        names = [str(given[key]).strip() for key in sorted(given, key=int)]
    except (AttributeError, TypeError, ValueError):
        names = [""]
    if not all(names):
        raise UserError(f'{path}: {field}: got {given!r}; expected numbers with names, such as {{"0": "CT"}}')
    return tuple(name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names))


def _labels(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Classes, regions and ignored label, whichever of value and name is the key."""
    labels, entries = content["labels"], []
    try:
        for key, item in labels.items():
            # The Decathlon has {"1": "liver"}, nnU-Net {"liver": 1}, and for regions {"whole": [1, 2]}.
            name, values = (item, [int(key)]) if isinstance(item, str) else (key, item)
            values = tuple(values) if isinstance(values, list) else (values,)
            if not name.strip() or not values or not all(isinstance(value, int) and value >= 0 for value in values):
                raise ValueError
            entries.append((name.strip(), values))
        named = [values[0] for _, values in entries if len(values) == 1]
        has_regions = any(isinstance(item, list) for item in labels.values())
        if len(set(named)) < len(named) and not has_regions:
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise UserError(
            f'{path}: labels: got {labels!r}; expected values with names, such as {{"1": "liver"}}'
        ) from None
    # nnU-Net gives "ignore" its special meaning by this name.
    ignore = next((values[0] for name, values in entries if name == "ignore"), None)
    entries = [(name, values) for name, values in entries if name != "ignore"]
    classes = {0: "background"} | {value: f"class_{value}" for _, values in entries for value in values if value}
    classes |= {values[0]: name for name, values in entries if len(values) == 1}
    made = {"classes": dict(sorted(classes.items())), "ignore": ignore}
    if not has_regions:
        return made
    order = content.get("regions_class_order")
    if not (isinstance(order, list) and all(isinstance(value, int) for value in order)):
        raise UserError(
            f"{path}: regions_class_order: got {order!r}; expected the label that each region's voxels get in a label "
            "map, largest region first, such as [1, 2, 3]"
        )
    regions = {name: values for name, values in entries if values != (0,)}
    return made | {"regions": regions, "region_order": tuple(order)}
