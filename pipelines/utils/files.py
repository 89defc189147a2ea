"""Files that are whole or not there, and the data files that the packages ship."""

import difflib
import errno
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipelines.utils import DiskFullError, UserError

# Files that are whole or not there: written beside their place, flushed, and moved.

#: A disk, or the part of it that a user may fill, is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def _shared_mode() -> int:
    """What the umask makes of a file that all may read and write."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


#: Looked up once: it can be read by setting it alone, which another thread's files must not meet.
SHARED_MODE = _shared_mode()


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one, never half of one.

    Args:
        path: where it will lie.
        write: gets the open temporary file in the same folder.

    Raises:
        OSError: it cannot be written; also where `write` calls a full disk by another name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner reads; these are results, to be shared as the umask says.
        temporary.chmod(SHARED_MODE)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_disk_full(error) and not isinstance(error, OSError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise
    _flush_folder(path.parent)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error came of a disk that is full.

    torch's writer hides what the system said: of a write that failed it says `enforce fail at inline_container.cc`.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if isinstance(error, RuntimeError) and _is_of_torchs_writer(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_of_torchs_writer(message: str) -> bool:
    return "PytorchStreamWriter failed" in message or (
        "inline_container.cc" in message and "PytorchStreamReader" not in message
    )


@contextmanager
def naming_a_full_disk(folder: Path) -> Iterator[None]:
    """Have a full disk end the block in an error for people, which names the folder.

    Raises:
        DiskFullError: the disk is full.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise DiskFullError(folder) from None
        raise


def _flush_folder(folder: Path) -> None:
    """Have the new name on the disk, too: it is an entry of the folder, not of the file."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        return  # some network file systems cannot
    finally:
        os.close(handle)


def refuse_unwritable(path: Path, flag: str) -> None:
    """Find out before the work whether its result can be written.

    Args:
        path: the file; its folder is made if need be.
        flag: the option that named it.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be written: {error.strerror}") from None


def refuse_unwritable_folder(folder: Path, flag: str) -> None:
    """Find out whether files can be written in a folder, without making it: its nearest parent that is there is tried.

    Args:
        folder: need not be there.
        flag: the option that named it.

    Raises:
        UserError: nothing can be written there.
    """
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
    """Write JSON, atomically. NaN and infinity become null: JSON has none."""
    write_text(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; None where there is no such file."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


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


# Where the files that travel with the packages lie: in the checkout, or inside the installed wheel.

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = _PACKAGE / "_shipped"


def resource_folder(name: str) -> Path:
    """The shipped folder `name` (`data_manifests` or `configs`), of the wheel or of the checkout."""
    return (_SHIPPED if _SHIPPED.is_dir() else _PACKAGE.parent) / name


def shipped_manifests() -> dict[str, Path]:
    """The shipped manifests: name (without `.yaml`) to path."""
    return {path.stem: path for path in sorted(resource_folder("data_manifests").glob("*.yaml"))}


def manifest_path(name_or_path: str | Path) -> Path:
    """Find a manifest by path, or by the name of a shipped one.

    Args:
        name_or_path: an existing file, or a name such as `phantom`, with or without `.yaml`.

    Raises:
        UserError: neither a file nor a shipped name; names the nearest one.
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
