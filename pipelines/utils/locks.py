"""Locks between processes, on one machine and between machines that share a folder.

On one machine `flock` suffices: the system releases it whenever its holder dies. Between machines it does not: an NFS
server may keep the lock of a node that never comes back, and some file systems do not show a lock to other machines.
A holder therefore also writes its name into the file and touches the file every two seconds (a heartbeat). Another
machine's lock (a rebooted one is another) is stale after two minutes without a heartbeat, of which at least ten seconds
were watched, by the file system's clock and in counted looks: clocks may differ, and a file server may hang. A holder
that finds its lock taken over, after it was frozen for minutes, ends its process.

Assumptions: all machines see each other's files and their times within seconds, and the kernel's boot id is unique. If
`flock` is not visible to other machines, two that start at the same moment may both continue for two seconds.
"""

import fcntl
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipelines.utils import UserError
from pipelines.utils.files import SHARED_MODE

#: Seconds between two heartbeats.
_BEAT_S = 2.0
#: Seconds without a heartbeat after which another machine's lock is stale.
_STALE_S = 120.0
#: Heartbeats that must be missed while the lock is watched.
_MISSED_BEATS = 5
#: Seconds for which a measured difference of two clocks is reused.
_CLOCK_S = 60.0
_clock_offsets: dict[int, tuple[float, float]] = {}


@contextmanager
def held_lock(path: Path, patience: float = 0.3, *, wait: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Hold a file's lock while the block runs; the context's value is whether the lock was taken.

    Args:
        path: the lock's file; it remains afterwards and names the last holder.
        patience: seconds to try, since looking at a lock also holds it for a moment.
        wait: what to do if another machine has the lock, or died with it. A function: call it once with a message, and
            wait until there is a heartbeat (seconds), or until the lock is found stale (up to two minutes) and taken
            over. None: do not wait, and leave the lock.

    Raises:
        UserError: the file system does not support locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    watch = _Watch(path)
    while (handle := _take(path, watch)) is None:
        if time.monotonic() < deadline:
            time.sleep(0.02)
            continue
        if wait is None or not watch.undecided:
            yield False
            return
        if not watch.announced:
            watch.announced = True
            host = holder_host(path) or "another machine"
            wait(f"{path}: held by {host}, which may be active: waiting for a heartbeat, at most two minutes")
        time.sleep(_BEAT_S / 2)
    stop = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beats.start()
    try:
        yield True
    finally:
        stop.set()
        beats.join()
        with suppress(OSError):
            if not _lost(path):
                _write(handle, f"{os.getpid()}\n")  # without a machine: released in order
        os.close(handle)


def end_if_lost(path: Path) -> None:
    """End this process if another one has taken over its lock, since both would write the same files."""
    if _lost(path):
        print(f"{path}: taken over while this process was frozen; it ends now", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)


def is_held(path: Path) -> bool:
    """Whether a live process holds the lock, as far as one look can show."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return False
    with file:
        free = _try_lock(file.fileno(), fcntl.LOCK_SH, path)
        if _is_elsewhere(file.fileno()):
            return time.time() + _clock_ahead(path.parent) - os.fstat(file.fileno()).st_mtime < _STALE_S
        return not free


def holder(path: Path) -> int | None:
    """Process id of the lock's current or last holder."""
    words = _words(path)
    return int(words[0]) if words and words[0].isdecimal() else None


def holder_host(path: Path) -> str | None:
    """Host name of the machine whose process has the lock, or died with it."""
    words = _words(path)
    return words[2] if len(words) > 2 else None


def _beat(path: Path, stop: threading.Event) -> None:
    """Touch the lock's file regularly; end the process if another one took over the lock."""
    while not stop.wait(_BEAT_S):
        end_if_lost(path)
        with suppress(OSError):  # the file server hangs, or the folder was removed
            os.utime(path)


# What is in the file


@cache
def machine_id() -> str:
    """A unique id of this machine until its next reboot."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else socket.gethostname()


@cache
def this_host() -> str:
    """This machine's host name at the first call: a holder must still recognise its lock if the host is renamed."""
    return socket.gethostname()


def _text() -> str:
    return f"{os.getpid()}\n{machine_id()}\n{this_host()}\n"


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").split()
    except FileNotFoundError:
        return []


def _is_elsewhere(handle: int) -> bool:
    """Whether a process on another machine has the lock, or died with it."""
    words = os.pread(handle, 1000, 0).split()
    return len(words) > 1 and words[1].decode(errors="replace") != machine_id()


def _write(handle: int, text: str) -> None:
    # Write before truncating: an empty file would have no holder.
    os.ftruncate(handle, os.pwrite(handle, text.encode(), 0))
    os.fsync(handle)  # otherwise other machines see it half a minute later


def _lost(path: Path) -> bool:
    """Whether the lock's file no longer names this process."""
    try:
        # Opened again, since over NFS only that asks the server.
        return path.read_bytes() != _text().encode()
    except OSError:
        return False  # no other holder


# The clock of the folder's file system, which sets the files' modification times


def folder_clock(folder: Path) -> float:
    """The time by that clock."""
    with tempfile.NamedTemporaryFile(prefix=".clock.", dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _clock_ahead(folder: Path) -> float:
    """Seconds that it is ahead of this machine's; 0 if nothing can be written."""
    device = folder.stat().st_dev
    measured_at, ahead = _clock_offsets.get(device, (-_CLOCK_S, 0.0))
    if time.monotonic() - measured_at >= _CLOCK_S:
        with suppress(OSError):
            ahead = folder_clock(folder) - time.time()
        _clock_offsets[device] = (time.monotonic(), ahead)
    return ahead


# Taking the lock


def _try_lock(handle: int, kind: int, path: Path) -> bool:
    """Try to take the system's lock, exclusive or shared; whether it was free."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise UserError(
            f"{path}: this file system does not support locks ({error.strerror}); name a folder on another one, or "
            "mount it with lock support (flock)"
        ) from None
    return True


def _same_file(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        with path.open("rb") as current:
            return os.path.sameopenfile(handle, current.fileno())
    except FileNotFoundError:
        return False


@dataclass
class _Watch:
    """Heartbeats of another machine's holder, look by look."""

    path: Path
    last: tuple[int, int] | None = None
    looked_at: float = 0.0
    missed_beats: int = 0
    undecided: bool = False
    announced: bool = False

    def is_stale(self, handle: int) -> bool:
        """Look again; whether the lock is stale by now."""
        stat = os.fstat(handle)
        beat = (stat.st_ino, stat.st_mtime_ns)
        if beat != self.last:
            self.undecided = self.last is None  # with a second heartbeat, the holder is alive
            self.last, self.looked_at, self.missed_beats = beat, time.monotonic(), 0
            return False
        # However long the file system hung, that was one look.
        if time.monotonic() - self.looked_at > _BEAT_S:
            self.looked_at, self.missed_beats = time.monotonic(), self.missed_beats + 1
        if self.missed_beats < _MISSED_BEATS:
            return False
        # If the file's time is in the future, after a clock was set back, only the looks count.
        silence = folder_clock(self.path.parent) - stat.st_mtime
        return silence > _STALE_S or self.missed_beats * _BEAT_S > _STALE_S


def _take(path: Path, watch: _Watch) -> int | None:
    """Try to take the lock; return its open file, or None if another process has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    taken = False
    try:
        free = _try_lock(handle, fcntl.LOCK_EX, path)
        if not _same_file(handle, path):
            watch.undecided = True  # taken over a moment ago
        elif not _is_elsewhere(handle):
            watch.undecided = False  # the system knows whether a holder on this machine is alive
            taken = free
        elif watch.is_stale(handle):
            taken = free
            if not free:
                _take_over(handle, path)
        if taken:
            _write(handle, _text())
        return handle if taken else None
    finally:
        if not taken:
            os.close(handle)


def _take_over(handle: int, path: Path) -> None:
    """Replace a file whose lock the server keeps for a dead machine by a new one that this machine holds."""
    guard = path.with_name(f"{path.name}.takeover")
    with guard.open("ab") as file:
        # If several processes found it stale, one replaces it, and the others see another file.
        if _try_lock(file.fileno(), fcntl.LOCK_EX, path) and _same_file(handle, path):
            new, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            os.fchmod(new, SHARED_MODE)
            _write(new, _text())
            os.close(new)
            Path(name).replace(path)
            guard.unlink(missing_ok=True)
