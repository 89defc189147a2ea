"""Where a manifest's files are; a generated data set is generated on first use."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pipelines.data.manifest import UNKNOWN, Case, Manifest, load_manifest
from pipelines.data.phantom import VERSION, is_generated, make_phantom
from pipelines.utils import UserError


def resolve_data(manifest: Manifest, data_root: Path | None = None) -> Path:
    """The folder to which the manifest's paths are relative.

    It is `data_root`, else `MEDLOSS_DATA`, or the manifest's `folder` in it if that exists. A generated data set is in
    a folder named by its parameters: in `data_root`, else in `MEDLOSS_DATA` if it was generated there, else in
    `MEDLOSS_CACHE` or `~/.cache/medloss`, where it is generated on first use (data folders are often shared and
    read-only).

    Raises:
        UserError: the folder does not exist or cannot be generated; the message says where the data are available.
    """
    if manifest.generator is not None:
        return _generated(manifest, data_root)
    named = os.environ.get("MEDLOSS_DATA")
    root = data_root or (Path(named) if named else None)
    if root is None:
        raise UserError(
            f"'{manifest.name}' needs its data: pass --data-root or set MEDLOSS_DATA{available_at(manifest)}"
        )
    if not root.is_dir():
        raise UserError(
            f"data root: {root} is not a folder; expected that of '{manifest.name}'{available_at(manifest)}"
        )
    if manifest.folder is not None and (root / manifest.folder).is_dir():
        return root / manifest.folder
    return root


def available_at(manifest: Manifest) -> str:
    """The end of a message that says where the data are available; empty if the manifest's author has not said."""
    return "" if manifest.source.startswith(UNKNOWN) else f"; the data are available at {manifest.source}"


def refuse_other_data(manifest: Manifest, root: Path, files: Iterable[str], kind: str) -> None:
    """Refuse a root that has none of the expected files, since it is that of another data set.

    Args:
        manifest: the expected data set.
        root: the folder to which the paths are relative.
        files: the paths.
        kind: what the files are, such as `image`.

    Raises:
        UserError: none of the files exists.
    """
    expected = ""
    for file in files:
        if os.path.lexists(root / file):
            return
        expected = expected or f", for example {file}"
    raise UserError(
        f"{root} holds no {kind} of '{manifest.name}'{expected}: pass the folder that does as --data-root"
        f"{available_at(manifest)}"
    )


def _generated(manifest: Manifest, data_root: Path | None) -> Path:
    assert manifest.generator is not None
    parameters: list[Any] = [VERSION, manifest.generator.model_dump(), manifest.spacing, manifest.label_values]
    parameters += [] if manifest.ignore is None else [manifest.ignore]
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{manifest.name}-{digest}"
    shared = os.environ.get("MEDLOSS_DATA")
    if data_root is None and shared and is_generated(Path(shared) / name):
        return Path(shared) / name
    default = Path(os.environ.get("MEDLOSS_CACHE") or Path.home() / ".cache" / "medloss")
    folder = (data_root or default) / name
    try:
        make_phantom(manifest, folder)
    except OSError as error:
        raise UserError(
            f"cannot generate '{manifest.name}' in {folder}: {error.strerror}; pass --data-root or set MEDLOSS_CACHE"
        ) from None
    return folder


def located_cases(
    name: str, data_root: Path | None, fold: int | None, kind: Literal["image", "label"]
) -> tuple[Manifest, list[Case], Path]:
    """A manifest, its cases (or the validation cases of a fold), and the root of their files.

    Args:
        name: the manifest's name or path.
        data_root: the folder of its files; None as in `resolve_data`.
        fold: only the validation cases of this fold.
        kind: which files to look for in the root.

    Raises:
        UserError: no such manifest, fold or data; or the root has none of the files.
    """
    manifest = load_manifest(name)
    cases = manifest.cases if fold is None else manifest.split(fold)[1]
    root = resolve_data(manifest, data_root)
    files = (file for case in cases for file in (case.images if kind == "image" else (case.label,)))
    refuse_other_data(manifest, root, files, kind)
    return manifest, cases, root
