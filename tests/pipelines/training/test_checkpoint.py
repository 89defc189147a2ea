"""Checkpoints that are damaged, interrupted, or hold code."""

import contextlib
import errno
import itertools
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.training.checkpoint import NAME, PREVIOUS, has_checkpoint, load_checkpoint, save_checkpoint
from pipelines.utils import UserError
from pipelines.utils.files import sha256


def _state(epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "network": {"weight": torch.full((50, 50), float(epoch))}, "rows": [{"loss": 0.5}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the checkpoints of epochs 2 and, before it, 1."""
    for epoch in (0, 1, 2):
        save_checkpoint(tmp_path, _state(epoch))
    return tmp_path


def _epoch(path: Path) -> int:
    state = load_checkpoint(path)
    assert state is not None
    assert torch.equal(state["network"]["weight"], torch.full((50, 50), float(state["epoch"])))
    return int(state["epoch"])


def test_round_trip(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None
    assert not has_checkpoint(tmp_path)
    save_checkpoint(tmp_path, _state(7))
    state = load_checkpoint(tmp_path)
    assert state is not None
    assert state["rows"] == [{"loss": 0.5}]
    assert state["network"]["weight"].equal(_state(7)["network"]["weight"])
    assert state["network"]["weight"].dtype == torch.float32
    assert (tmp_path / f"{NAME}.sha256").read_text() == f"{sha256(tmp_path / NAME)}  {NAME}\n"


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _state(7))
    (tmp_path / "usual").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "usual").stat().st_mode}


def test_the_one_before_is_kept_and_no_more(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        PREVIOUS, f"{PREVIOUS}.sha256", NAME, f"{NAME}.sha256",
    ]  # fmt: skip
    assert _epoch(folder) == 2
    (folder / NAME).unlink()
    assert _epoch(folder) == 1


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _drop_checksum(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").unlink()


def _empty_checksum(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").write_bytes(b"")


def _garble_checksum(path: Path) -> None:
    path.with_name(f"{path.name}.sha256").write_bytes(b"\xff\xfe\x00 \x81")


DAMAGES = [_truncate, _empty, _flip, _drop_checksum, _empty_checksum, _garble_checksum]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_passed_over_loudly(folder: Path, damage: Any) -> None:
    damage(folder / NAME)
    with pytest.warns(UserWarning, match="checkpoint.pt is damaged"):
        assert _epoch(folder) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_all_damaged(folder: Path, damage: Any) -> None:
    damage(folder / NAME)
    damage(folder / PREVIOUS)
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(UserError, match="no checkpoint in it is intact"):
        load_checkpoint(folder)


class _Code:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("save", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state, 2))])
def test_code_is_refused_with_a_right_checksum(folder: Path, save: Any) -> None:
    save({"epoch": 3, "network": _Code(folder / "ran")}, folder / NAME)
    (folder / f"{NAME}.sha256").write_text(f"{sha256(folder / NAME)}  {NAME}\n")
    with pytest.raises(UserError, match="refused"):
        load_checkpoint(folder)
    assert not (folder / "ran").exists()


def test_a_full_disk_leaves_the_old_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        save_checkpoint(folder, _state(3))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert _epoch(folder) == 2


class _KilledError(BaseException):
    pass


def _killed_before(steps: int) -> Callable[[Path, Path], Path]:
    """`Path.replace` until a kill: every step by which `save_checkpoint` changes the folder is a rename."""
    replace, done = Path.replace, itertools.count()

    def until_killed(self: Path, target: Path) -> Path:
        if next(done) >= steps:
            raise _KilledError
        return replace(self, target)

    return until_killed


def test_a_kill_at_any_moment_leaves_one_to_resume_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    epoch = 2
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", _killed_before(steps))
            try:
                save_checkpoint(folder, _state(epoch + 1))
            except _KilledError:
                interrupted = True
            else:
                interrupted = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert has_checkpoint(folder)
            assert _epoch(folder) == (epoch if interrupted else epoch + 1)
        if not interrupted:
            break
        save_checkpoint(folder, _state(epoch + 1))  # the resumed run saves that epoch again
        epoch += 1
        assert _epoch(folder) == epoch
        steps += 1
    assert steps >= 4


@pytest.mark.parametrize("first", range(6))
@pytest.mark.parametrize("second", range(6))
def test_two_kills_in_a_row_leave_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    # Also from a folder without any: there is none yet, or a whole one.
    for saved in (0, 2):
        folder = tmp_path / f"after {saved}"
        folder.mkdir()
        for epoch in range(saved):
            save_checkpoint(folder, _state(epoch + 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for steps in (first, second):
                with monkeypatch.context() as patch, contextlib.suppress(_KilledError):
                    patch.setattr(Path, "replace", _killed_before(steps))
                    save_checkpoint(folder, _state(saved + 1))
                if saved or has_checkpoint(folder):
                    assert _epoch(folder) in (saved, saved + 1)
            save_checkpoint(folder, _state(saved + 1))
            assert _epoch(folder) == saved + 1


def test_what_a_killed_run_left_half_written_is_removed(folder: Path) -> None:
    (folder / f".{NAME}.abc123.partial").write_bytes(b"half")
    assert _epoch(folder) == 2
    assert not list(folder.glob(".*"))
