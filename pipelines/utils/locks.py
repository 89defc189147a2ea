"""Locks between processes, on one machine and between machines that share a folder.

Locks between processes, on one machine and between machines that share a folder.

On one machine the system's own lock (`flock`) says all: it is freed when its holder dies, however it dies. Between
machines it is not enough. Over NFS the server keeps it, and may keep that of a node which never came back; on some
cluster file systems, and where mounted so, it is not seen on other machines at all. So a holder also writes its name
into the file and touches it every other second. Another machine's lock is never taken while it is touched. It counts
as dead when nothing was heard of it for two minutes, of which it was watched for ten seconds at least: by the clock of
the file system, which stamps the file and is asked for its time, and by counted looks, so that neither clocks that
differ nor a file server that hung for a while make a lock look dead. A machine that was started anew is another one.

A holder that finds its lock taken (it had been frozen for minutes) ends its process; it looks every other second, and
whenever it is asked to by `end_if_lost`.

Assumed: all machines see each other's files and their times within seconds, and the kernel's boot id is a machine's
own. Where `flock` is not seen on other machines, two that begin at the same moment may both go on for two seconds.
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
from functools import cache
from pathlib import Path

from pipelines.utils import UserError
from pipelines.utils.files import SHARED_MODE

# A lock's file: whose name stands in it, how it is written and locked, and the time by its file system's clock.

#: Seconds for which the difference of two clocks is believed.
_CLOCK_S = 60.0
_ahead: dict[int, tuple[float, float]] = {}


@cache
def machine_id() -> str:
    """What is this machine's own, from one start to the next."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.is_file() else socket.gethostname()


@cache
def own_host() -> str:
    """This machine's name when it was first asked for: by another one a holder would take itself for another."""
    return socket.gethostname()


def own_name() -> str:
    """What this process writes into a lock that it holds: its number, the machine, and the machine's name."""
    return f"{os.getpid()}\n{machine_id()}\n{own_host()}\n"


def lock_words(path: Path) -> list[str]:
    """What stands in a lock's file; nothing where there is none."""
    try:
        return path.read_text(errors="replace").split()
    except FileNotFoundError:
        return []


def is_elsewhere(handle: int) -> bool:
    """Whether a process of another machine has the lock, or died with it."""
    told = os.pread(handle, 1000, 0).split()
    return len(told) > 1 and told[1].decode(errors="replace") != machine_id()


def write_lock(handle: int, text: str) -> None:
    """Write a lock's file, at once on the server, too."""
    # In this order: an empty file would be nobody's.
    os.ftruncate(handle, os.pwrite(handle, text.encode(), 0))
    os.fsync(handle)  # else other machines see it half a minute later


def new_lock_file(path: Path) -> None:
    """Put a new file with this process's name, which others may read as the umask says, in the place of a lock's."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.fchmod(handle, SHARED_MODE)
    write_lock(handle, own_name())
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


def folder_clock(folder: Path) -> float:
    """The time by the clock of the folder's file system, which stamps all files in it."""
    with tempfile.NamedTemporaryFile(prefix=".clock.", dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime


def clock_ahead(folder: Path) -> float:
    """Seconds that the file system's clock is ahead of this machine's; 0 where nothing can be written."""
    device = folder.stat().st_dev
    asked, ahead = _ahead.get(device, (-_CLOCK_S, 0.0))
    if time.monotonic() - asked >= _CLOCK_S:
        with suppress(OSError):
            ahead = folder_clock(folder) - time.time()
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


#: Seconds between two signs of life.
_BEAT_S = 2.0
#: Seconds of silence after which another machine's holder is dead.
_DEAD_S = 120.0
#: So many beats must be missed while someone watches, too.
_MISSED_BEATS = 5


@contextmanager
def held_lock(path: Path, patience: float = 0.3, *, wait: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Hold a file's lock for a block; gives whether it could be had.

    Args:
        path: the lock's file; it stays, and names whoever had it last.
        patience: seconds to try: whoever only looks at a lock holds it for a moment, too.
        wait: where another machine has the lock, or died with it: wait until it gives a sign of life (seconds), or is
            found dead (up to two minutes) and its lock is taken over. Called once, with a line for people that says
            so. None: do not wait, and leave such a lock alone.

    Raises:
        UserError: the file system knows no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    watch = _Watch(path)
    told = False
    while (handle := _taken(path, watch)) is None:
        if time.monotonic() < deadline:
            time.sleep(0.02)
            continue
        if wait is None or not watch.undecided:
            yield False
            return
        if not told:
            told = True
            host = holder_host(path) or "another machine"
            wait(f"{path}: {host} had it and may be at work: waiting for a sign of life, two minutes at most")
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
                write_lock(handle, f"{os.getpid()}\n")  # let go in order: no machine stands there any more
        os.close(handle)


def end_if_lost(path: Path) -> None:
    """End this process, which holds the lock, if another one has taken it over: both would write the same files."""
    if _lost(path):
        print(f"{path}: taken over while this process was silent, which ends now", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock, as far as one look can tell."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        free = try_lock(handle, fcntl.LOCK_SH, path)
        if is_elsewhere(handle):
            return time.time() + clock_ahead(path.parent) - os.fstat(handle).st_mtime < _DEAD_S
        return not free
    finally:
        os.close(handle)


def holder(path: Path) -> int | None:
    """The process that has, or last had, the lock."""
    words = lock_words(path)
    return int(words[0]) if words and words[0].isdecimal() else None


def holder_host(path: Path) -> str | None:
    """The machine whose process has the lock, or died with it."""
    words = lock_words(path)
    return words[2] if len(words) > 2 else None


class _Watch:
    """What was heard of another machine's holder, look by look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: tuple[int, int] | None = None
        self.looked = 0.0
        self.silent_looks = 0
        self.undecided = False

    def dead(self, handle: int) -> bool:
        """Look once more; whether the holder is dead by now."""
        stat = os.fstat(handle)
        seen = (stat.st_ino, stat.st_mtime_ns)
        if seen != self.last:
            self.undecided = self.last is None  # heard of a second time, it is alive
            self.last, self.looked, self.silent_looks = seen, time.monotonic(), 0
            return False
        # However long the file system hung, that was one look.
        if time.monotonic() - self.looked > _BEAT_S:
            self.looked, self.silent_looks = time.monotonic(), self.silent_looks + 1
        if self.silent_looks < _MISSED_BEATS:
            return False
        # Where the file's time lies in the future, of a clock that was set back, the looks decide alone.
        silent = folder_clock(self.path.parent) - stat.st_mtime
        return silent > _DEAD_S or self.silent_looks * _BEAT_S > _DEAD_S


def _taken(path: Path, watch: _Watch) -> int | None:
    """Take the lock; its open file, or None if another has it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    mine = False
    try:
        free = try_lock(handle, fcntl.LOCK_EX, path)
        if not same_file(handle, path):
            watch.undecided = True  # taken over a moment ago
        elif not is_elsewhere(handle):
            watch.undecided = False  # the system knows whether a holder on this machine lives
            mine = free
        elif watch.dead(handle):
            mine = free
            if not free:
                _take_over(handle, path)
        if mine:
            write_lock(handle, own_name())
        return handle if mine else None
    finally:
        if not mine:
            os.close(handle)


def _take_over(handle: int, path: Path) -> None:
    """Put a new file, which this machine has, in place of one whose lock the server keeps for a dead machine."""
    beside = path.with_name(f"{path.name}.takeover")
    guard = os.open(beside, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # Of several that found it dead, one: the others find another file.
        if try_lock(guard, fcntl.LOCK_EX, path) and same_file(handle, path):
            new_lock_file(path)
            beside.unlink(missing_ok=True)
    finally:
        os.close(guard)


def _beat(path: Path, stop: threading.Event) -> None:
    """Touch the lock's file again and again; end the process if another took the lock."""
    while not stop.wait(_BEAT_S):
        end_if_lost(path)
        with suppress(OSError):  # a file server that hangs, or a folder that was removed
            os.utime(path)


def _lost(path: Path) -> bool:
    """Whether the file names another holder than this process, which had the lock."""
    try:
        # A new look, not the open file: over NFS only that asks the server.
        return path.read_bytes() != own_name().encode()
    except OSError:
        return False  # nobody's
