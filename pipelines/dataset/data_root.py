"""Where a manifest's files lie: the folder that the user names, or the made data set's place."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pipelines.dataset.manifest import UNKNOWN, Case, Manifest, load_manifest
from pipelines.errors import UserError


def resolve_data(manifest: Manifest, data_root: Path | None = None) -> Path:
    """The folder to which the manifest's paths are relative.

    `data_root`, else `MEDLOSS_DATA`; in it the manifest's own folder, if it is there. A made data set lies in a folder
    named by its parameters: in `data_root`, else in `MEDLOSS_DATA` if it was made there, else in `MEDLOSS_CACHE` or
    `~/.cache/medloss`, where it is made on first use (data folders are often shared, and read-only).

    Raises:
        UserError: there is no such folder, or it cannot be made; says where the data can be had.
    """
    if manifest.generator is not None:
        return _made(manifest, data_root)
    named = os.environ.get("MEDLOSS_DATA")
    root = data_root or (Path(named) if named else None)
    if root is None:
        raise UserError(
            f"'{manifest.name}' needs its data: pass --data-root or set MEDLOSS_DATA{available_at(manifest)}"
        )
    if not root.is_dir():
        raise UserError(f"data root: {root} is no folder; expected that of '{manifest.name}'{available_at(manifest)}")
    if manifest.folder is not None and (root / manifest.folder).is_dir():
        return root / manifest.folder
    return root


def available_at(manifest: Manifest) -> str:
    """Where to get a manifest's data, to end a message with; nothing where its author has not filled that in."""
    return "" if manifest.source.startswith(UNKNOWN) else f"; the data are available at {manifest.source}"


def refuse_other_data(manifest: Manifest, root: Path, files: Iterable[str], kind: str) -> None:
    """Refuse a root that holds none of the files which it should hold: it is another data set's.

    Args:
        manifest: what should be there.
        root: to which the paths are relative.
        files: the paths.
        kind: what they are: `image`.

    Raises:
        UserError: none of them is there.
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


def _made(manifest: Manifest, data_root: Path | None) -> Path:
    from pipelines.dataset.phantom import is_made, make_phantom
    from pipelines.dataset.phantom_shapes import VERSION

    assert manifest.generator is not None
    parameters = [VERSION, manifest.generator.model_dump(), manifest.spacing, manifest.label_values]
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{manifest.name}-{digest}"
    shared = os.environ.get("MEDLOSS_DATA")
    if data_root is None and shared and is_made(Path(shared) / name):
        return Path(shared) / name
    default = Path(os.environ.get("MEDLOSS_CACHE") or Path.home() / ".cache" / "medloss")
    folder = (data_root or default) / name
    try:
        make_phantom(manifest, folder)
    except OSError as error:
        raise UserError(
            f"cannot make '{manifest.name}' in {folder}: {error.strerror}; pass --data-root or set MEDLOSS_CACHE"
        ) from None
    return folder


def located_cases(
    name: str, data_root: Path | None, fold: int | None, kind: Literal["image", "label"]
) -> tuple[Manifest, list[Case], Path]:
    """A manifest, its cases, or those that its fold `fold` validates, and the root of their files.

    Args:
        name: the manifest's name or path.
        data_root: the folder of its files; None as in `resolve_data`.
        fold: only the cases that this fold validates.
        kind: of which files at least one must be there.

    Raises:
        UserError: no such manifest, fold or data; or the root holds none of the files.
    """
    manifest = load_manifest(name)
    cases = manifest.cases if fold is None else manifest.split(fold)[1]
    root = resolve_data(manifest, data_root)
    refuse_other_data(manifest, root, (getattr(case, kind) for case in cases), kind)
    return manifest, cases, root
