"""Checkpoints: written whole, verified by SHA-256, loaded without running code."""

import pickle
import warnings
from pathlib import Path
from typing import Any

from pipelines.utils import UserError
from pipelines.utils.files import sha256, write_atomically, write_text

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
_NEW = "checkpoint.new.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `checkpoint.pt` and its checksum in a run's folder; the previous one becomes `checkpoint.previous.pt`.

    The state holds tensors, numbers, strings, and lists and dictionaries of them.
    """
    import torch  # here: `has_checkpoint` does without the seconds that the import takes

    path, previous, new = folder / NAME, folder / PREVIOUS, folder / _NEW
    # Completely on disk before the older ones are moved: a full disk, or a kill during the write, loses nothing.
    write_atomically(new, lambda file: torch.save(state, file))
    digest = sha256(new)
    if path.is_file() and _checksum(path).is_file():
        path.replace(previous)
        _checksum(path).replace(_checksum(previous))
    elif previous.is_file() and sha256(previous) in _words(_checksum(path)):
        _checksum(path).replace(_checksum(previous))  # a run was killed between the two
    # The checksum first: a checkpoint without one does not count, even if it is the only one.
    write_text(_checksum(path), f"{digest}  {path.name}\n")
    new.replace(path)


def is_unfinished(name: str) -> bool:
    """Whether a run that was killed while it wrote its first checkpoint may leave a file of this name."""
    return name in (_NEW, f"{NAME}.sha256") or (name.startswith(".") and name.endswith(".partial"))


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to resume from, intact or not."""
    return (folder / NAME).is_file() or (folder / PREVIOUS).is_file()


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the newest intact checkpoint; None where there is none.

    A damaged one is skipped, with a warning, for the previous one.

    Raises:
        UserError: there are checkpoints, but none of them is intact; or one holds more than plain data.
    """
    for unfinished in folder.glob(".checkpoint.*.partial"):
        unfinished.unlink(missing_ok=True)  # left by a run that was killed while saving
    if not has_checkpoint(folder):
        return None
    paths = [folder / NAME, folder / PREVIOUS]
    # Either checksum counts: a kill between two renames leaves a file whose checksum has the other's name.
    digests = {word for path in paths for word in _words(_checksum(path))}
    for path in paths:
        if path.is_file() and sha256(path) in digests:
            return _load(path)
        if path.is_file():
            warnings.warn(f"{path} is damaged or incomplete; it is skipped", stacklevel=2)
    raise UserError(f"{folder}: no checkpoint in it is intact; remove the folder and start the run again")


def _load(path: Path) -> dict[str, Any]:
    import torch

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: refused: it holds more than tensors, numbers and text, perhaps code") from None
    return state


def _words(path: Path) -> list[str]:
    return path.read_text(errors="replace").split() if path.is_file() else []


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
