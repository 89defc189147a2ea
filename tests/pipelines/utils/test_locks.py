"""Locks between processes: held, visible, and released however their holder ends."""

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
with held_lock(Path(sys.argv[1])) as taken:
    print(taken, flush=True)
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


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "lock"
    assert not is_held(path)
    assert holder(path) is None
    with held_lock(path) as taken:
        assert taken
        assert is_held(path)
        assert holder(path) == os.getpid()
        with held_lock(path, patience=0.05) as second:
            assert not second
        assert is_held(path)
    assert not is_held(path)
    assert holder(path) == os.getpid()  # the last holder


def test_another_process_holds_it_until_it_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path) as other:
        assert is_held(path)
        assert holder(path) == other.pid
        start = time.monotonic()
        with held_lock(path, patience=0.2) as taken:
            assert not taken
        assert time.monotonic() - start >= 0.2
        assert holder(path) == other.pid
        assert other.stdin is not None
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait(PROCESS_S) == 0
        with held_lock(path) as taken:
            assert taken


def test_a_killed_holder_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path) as other:
        other.kill()
        other.wait()
        assert not is_held(path)
        with held_lock(path, patience=0) as taken:
            assert taken
            assert holder(path) == os.getpid()


def test_looking_does_not_change_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held_lock(path):
        assert is_held(path)
    before = path.read_bytes()
    assert not is_held(path)
    assert path.read_bytes() == before
    path.write_text("no number")
    assert holder(path) is None


#: A holder that pretends to be on another machine.
_ELSEWHERE = """
import pipelines.utils.locks, pipelines.utils.locks
pipelines.utils.locks.machine_id = lambda: 'another-boot'
pipelines.utils.locks._BEAT_S = 0.1
"""


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat every tenth of a second; stale still means two minutes, for holders that are alive but slow."""
    monkeypatch.setattr(locks, "_BEAT_S", 0.1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, hasty: None) -> None:
    """In addition, two minutes become a second, for holders that are dead."""
    monkeypatch.setattr(locks, "_STALE_S", 1.0)


def _left_by_another_machine(path: Path, seconds_ago: float) -> None:
    path.write_text("4711\nanother-boot\nnode7\n")
    os.utime(path, (time.time() - seconds_ago,) * 2)


@pytest.mark.usefixtures("hasty")
def test_a_lost_machine_does_not_hold_a_lock_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    _left_by_another_machine(path, seconds_ago=0)
    assert is_held(path)
    assert (holder(path), holder_host(path)) == (4711, "node7")
    with held_lock(path) as taken:
        assert not taken  # a recent heartbeat, although the system holds no lock
    monkeypatch.setattr(locks, "_STALE_S", 2.0)
    path.touch()
    silent_since = path.stat().st_mtime
    messages: list[str] = []
    with held_lock(path, wait=messages.append) as taken:
        assert taken
        assert locks.folder_clock(tmp_path) - silent_since > 2
        assert messages == [f"{path}: held by node7, which may be active: waiting for a heartbeat, at most two minutes"]
        assert holder(path) == os.getpid()
        assert is_held(path)
    assert not is_held(path)
    assert holder_host(path) is None


def test_a_renamed_machine_keeps_its_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    with held_lock(path) as taken:
        assert taken
        monkeypatch.setattr("socket.gethostname", lambda: "renamed")
        assert not locks._lost(path)


@pytest.mark.usefixtures("impatient")
def test_one_look_does_not_take_over_another_machines_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    _left_by_another_machine(path, seconds_ago=3600)
    assert not is_held(path)
    with held_lock(path, patience=0.05) as taken:
        assert not taken  # the file server may just have come back, and the holder with it
    with held_lock(path, wait=print) as taken:
        assert taken


@pytest.mark.usefixtures("hasty")
def test_a_lock_with_heartbeats_is_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path, _ELSEWHERE) as other:
        # Also if the system's lock is not visible on this machine: there is only the other's file.
        unseen = tmp_path / "unseen"
        beats = threading.Event()

        def beat() -> None:
            while not beats.wait(0.1):
                os.utime(unseen)

        _left_by_another_machine(unseen, seconds_ago=3600)
        thread = threading.Thread(target=beat)
        thread.start()
        for one in (path, unseen):
            with held_lock(one, wait=print) as taken:
                assert not taken
        beats.set()
        thread.join()
        assert other.poll() is None
        assert holder(path) == other.pid


@pytest.mark.usefixtures("impatient")
def test_a_frozen_machine_loses_its_lock_and_exits(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path, _ELSEWHERE) as other:
        # The system still holds its lock, as an NFS server does for a machine that never comes back.
        os.kill(other.pid, signal.SIGSTOP)
        with held_lock(path, wait=print) as taken:
            assert taken
            assert holder(path) == os.getpid()
            with held_lock(path, patience=0.05) as second:
                assert not second
            os.kill(other.pid, signal.SIGCONT)
            assert other.wait(PROCESS_S) == 1
            assert holder(path) == os.getpid()
            assert is_held(path)
    assert not is_held(path)


@pytest.mark.usefixtures("impatient")
def test_only_one_process_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with _other_process(path, _ELSEWHERE) as other:
        os.kill(other.pid, signal.SIGSTOP)
        had: list[bool] = []

        def take() -> None:
            with held_lock(path, wait=print) as taken:
                had.append(taken)
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
    monkeypatch.setattr(locks, "_clock_offsets", {})
    real = time.time
    with _other_process(path, _ELSEWHERE) as other, monkeypatch.context() as context:
        context.setattr(time, "time", lambda: real() + fast)  # this machine's clock, not the file system's
        assert is_held(path)
        assert not is_held(dead)
        with held_lock(path, wait=print) as taken:
            assert not taken
        with held_lock(dead, wait=print) as taken:
            assert taken
        assert other.poll() is None


@pytest.mark.usefixtures("impatient")
def test_a_time_in_the_future_is_not_a_heartbeat(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    _left_by_another_machine(path, seconds_ago=-3600)
    with held_lock(path, wait=print) as taken:
        assert taken


def test_a_holder_that_lost_its_lock_exits_when_it_checks(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    asks = _HOLD.replace("sys.stdin.readline()", "sys.stdin.readline(); end_if_lost(Path(sys.argv[1]))")
    asks = asks.replace("import held_lock", "import end_if_lost, held_lock") + "print('continued')"
    command = [sys.executable, "-c", asks, str(path)]
    for taken in (False, True):
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "True\n"
            if taken:
                path.unlink()
                _left_by_another_machine(path, seconds_ago=0)
            out, err = process.communicate("\n", timeout=PROCESS_S)
        assert process.returncode == int(taken)
        assert ("continued" in out) is not taken
        assert err == (f"{path}: taken over while this process was frozen; it ends now\n" if taken else "")


def test_a_file_system_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    path = tmp_path / "lock"
    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(UserError) as refusal, held_lock(path):
        pass
    assert str(refusal.value) == (
        f"{path}: this file system does not support locks (No locks available); name a folder on another one, or "
        "mount it with lock support (flock)"
    )
