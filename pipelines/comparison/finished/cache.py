"""What was measured, kept by the content of the files: a later call, or one that goes on after a crash, reads it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.files import write_text


class ResultCache:
    """Results by key, a small file each, which begins with the SHA-256 of what follows.

    Files are written whole or not at all, so any number of processes may use one folder.

    Args:
        folder: is made when there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: list[Any], tell: Callable[[str], None]) -> Any:
        """The result of a key; None where there is none, or a damaged one, which is told.

        Args:
            key: everything that the result depends on; plain values.
            tell: gets a line for a person.
        """
        path = self._path(key)
        try:
            digest, _, content = path.read_bytes().partition(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            tell(f"cache: {self.folder} cannot be read ({error.strerror}); what is in it is measured anew")
            return None
        if digest.decode(errors="replace") == hashlib.sha256(content).hexdigest():
            return json.loads(content)
        tell(f"cache: {path} is damaged; it is measured anew")
        return None

    def write(self, key: list[Any], result: Any) -> str | None:
        """Keep a result; returns why it could not be kept, which costs time alone."""
        content = json.dumps(result)
        try:
            write_text(self._path(key), f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}")
        except OSError as error:
            return f"cache: {self.folder} cannot be written ({error.strerror}); the next call measures again"
        return None

    def _path(self, key: list[Any]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"
