"""Checkpoints: written whole, verified by SHA-256, loaded without running code."""

import warnings
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.files import sha256, write_atomically, write_text

NAME = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `checkpoint.pt` and its checksum; the one before stays as `checkpoint.previous.pt`.

    Args:
        folder: the run's folder.
        state: tensors, numbers, strings, and lists and dictionaries of them.
    """
    path = folder / NAME
    if path.is_file() and _checksum(path).is_file():
        previous = folder / "checkpoint.previous.pt"
        _checksum(path).replace(_checksum(previous))
        path.replace(previous)
    write_atomically(path, lambda file: torch.save(state, file))
    write_text(_checksum(path), f"{sha256(path)}  {path.name}\n")


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole; None where there is none.

    A damaged one is passed over, with a warning, for the one before it.

    Raises:
        UserError: there are checkpoints, and none of them is whole.
    """
    found = False
    for name in (NAME, "checkpoint.previous.pt"):
        path = folder / name
        if not path.is_file():
            continue
        found = True
        checksum = _checksum(path)
        if checksum.is_file() and checksum.read_text().split()[0] == sha256(path):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        warnings.warn(f"{path} is damaged or was never finished; going back to the checkpoint before it", stacklevel=2)
    if found:
        raise UserError(f"{folder}: no checkpoint in it is whole; remove the folder and start the run anew")
    return None


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
