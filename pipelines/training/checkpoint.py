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
    """Write `checkpoint.pt` and its checksum; the one before stays as `checkpoint.previous.pt`.

    Args:
        folder: the run's folder.
        state: tensors, numbers, strings, and lists and dictionaries of them.
    """
    import torch  # not above: `has_checkpoint` answers without the seconds that it takes

    path, previous, new = folder / NAME, folder / PREVIOUS, folder / _NEW
    # Whole on the disk before the older ones move: a full disk, or a kill while it is written, costs nothing.
    write_atomically(new, lambda file: torch.save(state, file))
    digest = sha256(new)
    if path.is_file() and _checksum(path).is_file():
        path.replace(previous)
        _checksum(path).replace(_checksum(previous))
    elif previous.is_file() and sha256(previous) in _words(_checksum(path)):
        _checksum(path).replace(_checksum(previous))  # a run was killed between the two
    # The checksum first: a file without one would be none, though it were the first and only.
    write_text(_checksum(path), f"{digest}  {path.name}\n")
    new.replace(path)


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is what a run may leave that was killed while it wrote its first files."""
    return name in (_NEW, f"{NAME}.sha256") or (name.startswith(".") and name.endswith(".partial"))


def has_checkpoint(folder: Path) -> bool:
    """Whether there is something to resume from, whole or not."""
    return (folder / NAME).is_file() or (folder / PREVIOUS).is_file()


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint that is whole; None where there is none.

    A damaged one is passed over, with a warning, for the one before it.

    Raises:
        UserError: there are checkpoints, and none of them is whole; or one holds more than plain data.
    """
    for unfinished in folder.glob(".checkpoint.*.partial"):
        unfinished.unlink(missing_ok=True)  # of a run that was killed while it saved
    if not has_checkpoint(folder):
        return None
    paths = [folder / NAME, folder / PREVIOUS]
    # Either checksum will do: a kill between two renames leaves a file whose checksum has the other's name.
    digests = {word for path in paths for word in _words(_checksum(path))}
    for path in paths:
        if path.is_file() and sha256(path) in digests:
            return _load(path)
        if path.is_file():
            warnings.warn(f"{path} is damaged or was never finished; it is passed over", stacklevel=2)
    raise UserError(f"{folder}: no checkpoint in it is whole; remove the folder and start the run anew")


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
