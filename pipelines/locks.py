"""Locks that the system frees when their holder dies, however it dies."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held_lock(path: Path, patience: float = 0.3) -> Iterator[bool]:
    """Hold a file's lock for a block; gives whether it could be had.

    Args:
        path: the lock's file; it stays, and holds the process id of whoever had it last.
        patience: seconds to try: whoever only looks at a lock holds it for a moment, too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + patience
        while not _try(handle, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                yield False
                return
            time.sleep(0.02)
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield True
    finally:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.is_file():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        return not _try(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def holder(path: Path) -> int | None:
    """The process that has, or last had, the lock."""
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return None


def _try(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
