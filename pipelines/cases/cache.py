"""A folder of computed values that processes share; a damaged entry is found and computed anew."""

import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import UserError
from pipelines.files import write_atomically


class EntryCache:
    """Values by key, a file each.

    Each entry begins with its own SHA-256: torch reads one with flipped bits without an error. Tensors and plain
    values only: nothing in an entry can run.

    Args:
        folder: is made if need be.

    Raises:
        UserError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cache: cannot make {folder}: {error.strerror}") from None

    def get(self, key: list[str], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The value of a key: read, or computed and kept.

        Args:
            key: everything that the value depends on.
            compute: makes the value.
        """
        entry = self.folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.pt"
        value = _read(entry)
        if value is None:
            value = compute()
            _write(entry, value)
        return value


def _read(entry: Path) -> dict[str, Any] | None:
    try:
        content = entry.read_bytes()
    except FileNotFoundError:
        return None
    body = memoryview(content)[32:]
    if hashlib.sha256(body).digest() != content[:32]:
        warnings.warn(f"damaged cache entry {entry} is decoded anew", stacklevel=4)
        return None
    value: dict[str, Any] = torch.load(io.BytesIO(body), weights_only=True)
    return value


def _write(entry: Path, value: dict[str, Any]) -> None:
    body = io.BytesIO()
    torch.save(value, body)
    content = hashlib.sha256(body.getbuffer()).digest() + body.getvalue()
    try:
        write_atomically(entry, lambda file: file.write(content))
    except OSError as error:
        # A full disk costs time, not the run.
        warnings.warn(f"cache entry {entry} cannot be written: {error.strerror}", stacklevel=4)
