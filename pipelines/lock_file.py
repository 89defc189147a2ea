"""A lock's file: whose name stands in it, how it is written and locked, and the time by its file system's clock."""

import fcntl
import os
import socket
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipelines.errors import UserError
from pipelines.files import SHARED_MODE

#: Seconds for which the difference of two clocks is believed.
_CLOCK_S = 60.0
_ahead: dict[int, tuple[float, float]] = {}


@cache
def machine() -> str:
    """What is this machine's own, from one start to the next."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else socket.gethostname()


@cache
def host() -> str:
    """This machine's name when it was first asked for: by another one a holder would take itself for another."""
    return socket.gethostname()


def own_name() -> str:
    """What this process writes into a lock that it holds: its number, the machine, and the machine's name."""
    return f"{os.getpid()}\n{machine()}\n{host()}\n"


def words(path: Path) -> list[str]:
    """What stands in a lock's file; nothing where there is none."""
    try:
        return path.read_text(errors="replace").split()
    except FileNotFoundError:
        return []


def elsewhere(handle: int) -> bool:
    """Whether a process of another machine has the lock, or died with it."""
    told = os.pread(handle, 1000, 0).split()
    return len(told) > 1 and told[1].decode(errors="replace") != machine()


def write(handle: int, text: str) -> None:
    """Write a lock's file, at once on the server, too."""
    # In this order: an empty file would be nobody's.
    os.ftruncate(handle, os.pwrite(handle, text.encode(), 0))
    os.fsync(handle)  # else other machines see it half a minute later


def new_file(path: Path) -> None:
    """Put a new file with this process's name, which others may read as the umask says, in the place of a lock's."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.fchmod(handle, SHARED_MODE)
    write(handle, own_name())
    os.close(handle)
    Path(name).replace(path)


def same_file(handle: int, path: Path) -> bool:
    """Whether an open file is the one that lies there now."""
    try:
        now = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return os.path.sameopenfile(handle, now)
    finally:
        os.close(now)


def clock(folder: Path) -> float:
    """The time by the clock of the folder's file system, which stamps all files in it."""
    with tempfile.NamedTemporaryFile(prefix=".clock.", dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime


def clock_ahead(folder: Path) -> float:
    """Seconds that the file system's clock is ahead of this machine's; 0 where nothing can be written."""
    device = folder.stat().st_dev
    asked, ahead = _ahead.get(device, (-_CLOCK_S, 0.0))
    if time.monotonic() - asked >= _CLOCK_S:
        with suppress(OSError):
            ahead = clock(folder) - time.time()
        _ahead[device] = (time.monotonic(), ahead)
    return ahead


def try_lock(handle: int, kind: int, path: Path) -> bool:
    """Ask the system for a lock; whether it was free.

    Args:
        handle: the open file.
        kind: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.
        path: of the file, for the message.

    Raises:
        UserError: the file system knows no locks.
    """
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{path}: this file system knows no locks ({error.strerror}); name a folder on another one, or have it "
            "mounted with them (flock)"
        ) from None
    return True
