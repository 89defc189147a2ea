"""A tiny made data set, for tests that train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import load_manifest
from pipelines.training.run_config import RunConfig


@dataclass(frozen=True)
class TinySet:
    """A made data set, and short runs on it."""

    manifest: Path
    data: Path

    def config(self, **changes: Any) -> RunConfig:
        """A run's config that repeats itself to the bit."""
        settings: dict[str, Any] = {
            "manifest": str(self.manifest), "data_root": str(self.data), "epochs": 2, "batch_size": 2, "threads": 1,
            "precision": "float32", "device": "cpu",
        }  # fmt: skip
        return RunConfig(**(settings | changes))


def tiny_manifest(folder: Path, dims: int = 3, cases: int = 6, **changes: Any) -> Path:
    """Write a manifest whose data are made on first use; returns its path.

    Args:
        folder: where the manifest is written; it is made if need be.
        dims: 2 or 3.
        cases: number of cases, in 3 folds.
        changes: fields of the manifest to set; None drops one. `generator` is merged into the tiny one.
    """
    content: dict[str, Any] = {
        "name": f"tiny_{dims}d",
        "description": "A made data set of small volumes.",
        "task": "organ, shell and lesions",
        "license": "CC0-1.0",
        "citation": "none",
        "source": "made by the project",
        "modality": "MR",
        "dimensions": dims,
        "spacing": [3.0, 1.0, 2.0] if dims == 3 else [1.5, 0.8],
        "classes": {0: "background", 1: "organ", 2: "shell", 3: "lesion"},
    }
    generator = {
        "name": "phantom",
        "cases": cases,
        "folds": 3,
        "shape": [12, 24, 24] if dims == 3 else [32, 32],
        "seed": 0,
    }
    content["generator"] = {**generator, **(changes.pop("generator", None) or {})}
    content = {name: value for name, value in {**content, **changes}.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def tiny_regions(folder: Path, shape: tuple[int, ...] = (12, 14, 16), cases: int = 6, **changes: Any) -> Path:
    """Write a manifest of the phantom of regions: two channels, nested regions, ignored voxels and two spacings."""
    fields: dict[str, Any] = {
        "name": "tiny_regions",
        "modality": None,
        "channels": [{"name": "PET"}, {"name": "CT"}],
        "spacing": [3.0, 1.5, 1.5],
        "spacing_tolerance": 0.25,
        "classes": {0: "background", 1: "rim", 2: "core", 3: "centre"},
        "regions": {"whole": [1, 2, 3], "core": [2, 3], "centre": [3]},
        "region_order": [1, 2, 3],
        "ignore": 255,
        "generator": {"name": "phantom_regions", "shape": list(shape)},
    }
    return tiny_manifest(folder, cases=cases, **(fields | changes))


def listed(manifest: Path, data: Path, **changes: Any) -> tuple[Path, Path]:
    """A manifest that lists the files of a made data set, without checksums, so that they may be written again.

    Args:
        manifest: of the made data set, from `tiny_manifest`.
        data: the data root, in which it is made.
        changes: fields of the manifest to set; None drops one.

    Returns:
        The new manifest's path, and the folder of the files.
    """
    loaded = load_manifest(manifest)
    content = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    del content["generator"]
    content["cases"] = [
        case.model_dump(include={"id", "patient", "fold", "label"})
        | {"image": list(case.images) if len(case.images) > 1 else case.image}
        for case in loaded.cases
    ]
    content = {name: value for name, value in {**content, **changes}.items() if value is not None}
    path = manifest.with_name(f"{content['name']}_listed.yaml")
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path, resolve_data(loaded, data)
