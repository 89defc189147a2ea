"""Atomic writing of files, and the data files that the packages ship."""

import difflib
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.utils import DiskFullError, UserError

#: The disk or the user's quota is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _shared_mode() -> int:
    """The default permissions of a new file under the umask."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


#: Read once: reading the umask means setting it, which would affect files of other threads.
SHARED_MODE = _shared_mode()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file such that readers, even after a crash, see the old or the new file, never a partial one.

    `write` is called with an open temporary file in the same folder.

    Raises:
        OSError: the file cannot be written; also if `write` reports a full disk by another exception.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's files are private to their owner; results are shared as the umask says.
        temporary.chmod(SHARED_MODE)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error) and not isinstance(error, OSError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise
    # The file's new name is an entry of the folder and not of the file.
    handle = os.open(path.parent, os.O_RDONLY)
    with suppress(OSError):  # not supported by some network file systems
        os.fsync(handle)
    os.close(handle)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error was caused by a full disk.

    torch's writer hides the system's error: a failed write only says `enforce fail at inline_container.cc`.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        message = str(error) if isinstance(error, RuntimeError) else ""
        if "PytorchStreamWriter failed" in message or (
            "inline_container.cc" in message and "PytorchStreamReader" not in message
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Turn an error from a full disk into a `DiskFullError`, whose message names the folder."""
    try:
        yield
    except Exception as error:
        if is_disk_full(error) and not isinstance(error, DiskFullError):
            raise DiskFullError(folder) from None
        raise


def refuse_existing(path: Path, force: bool, flag: str = "--out") -> None:
    """Raise a `UserError` if the file to write, named by a flag, exists and `--force` is not given, or is a folder."""
    if path.is_dir():
        raise UserError(f"{flag}: {path} is a folder; expected a file to write")
    if path.exists() and not force:
        raise UserError(f"{flag}: {path} is there already; pass --force to overwrite it, or name another file")


def refuse_unwritable(path: Path, flag: str) -> None:
    """Raise a `UserError` if the file that a flag names cannot be written; its folder is created if needed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be written: {error.strerror}") from None


def refuse_unwritable_folder(folder: Path, flag: str) -> None:
    """Raise a `UserError` if nothing can be written in the folder that a flag names, which is not created."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{flag}: {folder} is no folder; name another")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{flag}: cannot write in {folder}: {error.strerror}; name another folder") from None


def write_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically. NaN and infinity, which JSON does not have, become null."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; None if the file does not exist."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass(frozen=True)
class NamedFile:
    """A file, the name of its case, and its SHA-256 if known."""

    path: Path
    name: str
    sha256: str | None = None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Shipped files, in the checkout or in the installed wheel.


def resource_folder(name: str) -> Path:
    """The shipped folder `name` (`data_manifests` or `configs`) of the wheel or the checkout."""
    package = Path(__file__).parents[1]
    shipped = package / "_shipped"
    return (shipped if shipped.is_dir() else package.parent) / name


def shipped_manifests() -> dict[str, Path]:
    """The shipped manifests: name (without `.yaml`) to path."""
    return {path.stem: path for path in sorted(resource_folder("data_manifests").glob("*.yaml"))}


def manifest_path(name_or_path: str | Path) -> Path:
    """Find a manifest by path, or by the name of a shipped one, such as `phantom`, with or without `.yaml`.

    Raises:
        UserError: neither a file nor a shipped name; the message names the nearest one.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = shipped_manifests()
    name = path.stem if path.suffix in {".yaml", ".yml"} else str(name_or_path)
    if name in shipped and path.parent == Path():
        return shipped[name]
    near = difflib.get_close_matches(name, shipped, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"shipped manifests: {', '.join(shipped)}"
    raise UserError(f"no manifest '{name_or_path}': neither a file nor a shipped manifest; {hint}")
