"""Locks between processes: held, seen, and free again however their holder ends."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import PROCESS_S, wait_for

from pipelines.utils import UserError, locks
from pipelines.utils.locks import held_lock, holder, holder_host, is_held

_HOLD = """
import sys, time
from pathlib import Path
from pipelines.utils.locks import held_lock
with held_lock(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    sys.stdin.readline()
"""


@contextmanager
def _other_process(path: Path, before: str = "") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", before + _HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
        assert time.monotonic() - start >= 0.2
        assert holder(path) == other.pid
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait(PROCESS_S) == 0
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


#: A holder that takes itself for another machine's, as one look at the file would find it there.
_ELSEWHERE = """
import pipelines.utils.locks, pipelines.utils.locks
pipelines.utils.locks.machine_id = lambda: 'another-boot'
pipelines.utils.locks._BEAT_S = 0.1
"""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat every tenth of a second; two minutes stay, for a holder that lives and is slow."""
    monkeypatch.setattr(locks, "_BEAT_S", 0.1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, hasty: None) -> None:
    """Two minutes become a second, too: for holders that are dead."""
    monkeypatch.setattr(locks, "_DEAD_S", 1.0)


def _left_by_another_machine(path: Path, seconds_ago: float) -> None:
    path.write_text("4711\nanother-boot\nnode7\n")
    os.utime(path, (time.time() - seconds_ago,) * 2)


@pytest.mark.usefixtures("hasty")
def test_a_lost_machine_holds_nothing_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    _left_by_another_machine(path, seconds_ago=0)
    assert is_held(path)
    assert (holder(path), holder_host(path)) == (4711, "node7")
    with held_lock(path) as mine:
        assert not mine  # heard of a moment ago, though the system holds no lock
    monkeypatch.setattr(locks, "_DEAD_S", 2.0)
    path.touch()
    silent_since = path.stat().st_mtime
    told: list[str] = []
    with held_lock(path, wait=told.append) as mine:
        assert mine
        assert locks.folder_clock(tmp_path) - silent_since > 2
        assert told == [f"{path}: node7 had it and may be at work: waiting for a sign of life, two minutes at most"]
        assert holder(path) == os.getpid()
        assert is_held(path)
    assert not is_held(path)
    assert holder_host(path) is None


def test_a_machine_that_is_renamed_keeps_its_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    with held_lock(path) as mine:
        assert mine
        monkeypatch.setattr("socket.gethostname", lambda: "renamed")
        assert not locks._lost(path)


@pytest.mark.usefixtures("impatient")
def test_one_look_takes_no_lock_of_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    _left_by_another_machine(path, seconds_ago=3600)
    assert not is_held(path)
    with held_lock(path, patience=0.05) as mine:
        assert not mine  # the file server may just have come back, and the holder with it
    with held_lock(path, wait=print) as mine:
        assert mine


@pytest.mark.usefixtures("hasty")
def test_another_machine_that_lives_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path, _ELSEWHERE) as other:
        # Not even where the system's lock is not seen on this machine: the other's file, and no lock of the system.
        unseen = tmp_path / "unseen"
        beats = threading.Event()

        def beat() -> None:
            while not beats.wait(0.1):
                os.utime(unseen)

        _left_by_another_machine(unseen, seconds_ago=3600)
        thread = threading.Thread(target=beat)
        thread.start()
        for one in (path, unseen):
            with held_lock(one, wait=print) as mine:
                assert not mine
        beats.set()
        thread.join()
        assert other.poll() is None
        assert holder(path) == other.pid


@pytest.mark.usefixtures("impatient")
def test_a_frozen_machine_loses_its_lock_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path, _ELSEWHERE) as other:
        # The system goes on to hold its lock, as an NFS server does for a machine that never came back.
        os.kill(other.pid, signal.SIGSTOP)
        with held_lock(path, wait=print) as mine:
            assert mine
            assert holder(path) == os.getpid()
            with held_lock(path, patience=0.05) as second:
                assert not second
            os.kill(other.pid, signal.SIGCONT)
            assert other.wait(PROCESS_S) == 1
            assert holder(path) == os.getpid()
            assert is_held(path)
    assert not is_held(path)


@pytest.mark.usefixtures("impatient")
def test_only_one_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path, _ELSEWHERE) as other:
        os.kill(other.pid, signal.SIGSTOP)
        had: list[bool] = []

        def take() -> None:
            with held_lock(path, wait=print) as mine:
                had.append(mine)
                end.wait(300)

        end = threading.Event()
        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(had) == 4, what="all four have looked")
        end.set()
        for thread in threads:
            thread.join()
        assert sorted(had) == [False, False, False, True]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("fast", [3600, -3600])
def test_clocks_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: int) -> None:
    path, dead = tmp_path / "lock", tmp_path / "dead"
    _left_by_another_machine(dead, seconds_ago=1000)
    monkeypatch.setattr(locks, "_ahead", {})
    real = time.time
    with _other_process(path, _ELSEWHERE) as other, monkeypatch.context() as context:
        context.setattr(time, "time", lambda: real() + fast)  # this machine's clock, not the file system's
        assert is_held(path)
        assert not is_held(dead)
        with held_lock(path, wait=print) as mine:
            assert not mine
        with held_lock(dead, wait=print) as mine:
            assert mine
        assert other.poll() is None


@pytest.mark.usefixtures("impatient")
def test_a_time_in_the_future_is_no_sign_of_life(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    _left_by_another_machine(path, seconds_ago=-3600)
    with held_lock(path, wait=print) as mine:
        assert mine


def test_a_holder_that_lost_its_lock_ends_where_it_asks(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    asks = _HOLD.replace("sys.stdin.readline()", "sys.stdin.readline(); end_if_lost(Path(sys.argv[1]))")
    asks = asks.replace("import held_lock", "import end_if_lost, held_lock") + "print('went on')"
    command = [sys.executable, "-c", asks, str(path)]
    for taken in (False, True):
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "True\n"
            if taken:
                path.unlink()
                _left_by_another_machine(path, seconds_ago=0)
            shown, told = process.communicate("\n", timeout=PROCESS_S)
        assert process.returncode == int(taken)
        assert ("went on" in shown) is not taken
        assert told == (f"{path}: taken over while this process was silent, which ends now\n" if taken else "")


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path = tmp_path / "lock"
    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(UserError) as refusal, held_lock(path):
        pass
    assert str(refusal.value) == (
        f"{path}: this file system knows no locks (No locks available); name a folder on another one, or have it "
        "mounted with them (flock)"
    )
