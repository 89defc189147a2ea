"""Locks between processes: held, seen, and free again however their holder ends."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.locks import held_lock, holder, is_held

_HOLD = """
import sys, time
from pathlib import Path
from pipelines.locks import held_lock
with held_lock(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def _other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == "True\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_a_lock_is_had_once(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "lock"
    assert not is_held(path)
    assert holder(path) is None
    with held_lock(path) as mine:
        assert mine
        assert is_held(path)
        assert holder(path) == os.getpid()
        with held_lock(path, patience=0.05) as second:
            assert not second
        assert is_held(path)
    assert not is_held(path)
    assert holder(path) == os.getpid()  # who had it last


def test_another_process_has_it_until_it_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path) as other:
        assert is_held(path)
        assert holder(path) == other.pid
        start = time.monotonic()
        with held_lock(path, patience=0.2) as mine:
            assert not mine
        assert 0.2 <= time.monotonic() - start < 2
        assert holder(path) == other.pid
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait(10) == 0
        with held_lock(path) as mine:
            assert mine


def test_a_killed_holder_leaves_it_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path) as other:
        other.kill()
        other.wait()
        assert not is_held(path)
        with held_lock(path, patience=0) as mine:
            assert mine
            assert holder(path) == os.getpid()


def test_looking_does_not_disturb(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_lock(path):
        assert is_held(path)
    before = path.read_bytes()
    assert not is_held(path)
    assert path.read_bytes() == before
    path.write_text("no number")
    assert holder(path) is None
