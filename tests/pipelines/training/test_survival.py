"""What happens in a laboratory: killed processes, full disks, damaged files; made for real, and outlived."""

import errno
import io
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch
from cli_call import call_medloss
from forked import Forked
from small_disk import small_disk
from tiny import tiny_manifest
from torch import Tensor

from pipelines.runs.comparison_folder import adopt_plan, run_folder, run_states
from pipelines.runs.plan import make_plan
from pipelines.training.checkpoint import load_checkpoint
from pipelines.training.run import train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import DiskFullError
from pipelines.utils.files import is_disk_full, naming_a_full_disk, write_atomically

# Everything that has a state: averaged weights, momenta, a schedule, random patches, accumulated steps.
SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 2, "threads": 1, "precision": "float32", "device": "cpu", "network": "dynunet",
    "levels": 3, "base_channels": 4, "deep_supervision": 1, "ema": 0.9, "clip": 1.0, "accumulate": 2,
    "flip_axes": (0, 1), "val_interval": 2, "loss": "hausdorff_dt",
    "augmentation": {"rotation": 30, "scaling": (0.8, 1.2), "spatial_share": 0.5, "noise_share": 0.5,
                     "gamma_share": 0.5, "blur_share": 0.5},
}  # fmt: skip


def _killed_run(config: RunConfig, folder: Path, where: str) -> None:
    """Train, and end as by the kernel: in a step of the second epoch, or half way through its checkpoint's bytes."""
    calls = [0]
    step, save = torch.optim.AdamW.step, torch.save

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def stepped(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            die()
        return step(*args, **kwargs)

    def saved(state: Any, file: Any) -> None:
        calls[0] += "training" in state
        if calls[0] == 2:
            whole = io.BytesIO()
            save(state, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            die()
        save(state, file)

    # In a process that ends here.
    if where == "epoch":
        torch.optim.AdamW.step = stepped  # type: ignore[method-assign]
    else:
        torch.save = saved
    train_run(config, folder, resume=False)


def _config(folder: Path, **changes: Any) -> RunConfig:
    manifest = folder / "tiny_2d.yaml"
    manifest = manifest if manifest.exists() else tiny_manifest(folder, 2)
    return RunConfig(manifest=str(manifest), data_root=str(folder / "data"), **(SETTINGS | changes))


def _state(folder: Path) -> dict[str, Any]:
    state = load_checkpoint(folder)
    assert state is not None
    return dict(state["training"])


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted, next to its data."""
    folder = tmp_path_factory.mktemp("whole")
    train_run(_config(folder), folder / "run")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["epoch", "save"])
def test_killed_and_resumed_ends_in_the_same_bits(whole: Path, tmp_path: Path, where: str, workers: int) -> None:
    config = _config(whole, workers=workers)
    assert Forked(_killed_run, config, tmp_path / "run", where).join() == -signal.SIGKILL
    left = load_checkpoint(tmp_path / "run")
    assert left is not None and left["epoch"] == 1
    resumed = train_run(config, tmp_path / "run", resume=True)
    assert _same(_state(tmp_path / "run"), _state(whole / "run"))
    kept = RunFolder(whole / "run").result
    assert kept is not None
    assert resumed["metrics"] == pytest.approx(kept["metrics"], abs=0, nan_ok=True)
    models = [torch.load(folder / "model.pt", weights_only=True) for folder in (tmp_path / "run", whole / "run")]
    assert _same(models[0]["network"], models[1]["network"])
    assert not list((tmp_path / "run").glob(".*.partial"))


def test_averaged_weights_are_what_predicts(whole: Path) -> None:
    state = _state(whole / "run")
    model = torch.load(whole / "run" / "model.pt", weights_only=True)["network"]
    assert all(torch.equal(weight, state["average"][name]) for name, weight in model.items())
    assert not all(torch.equal(weight, state["network"][name]) for name, weight in model.items())


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A place with room for less than a run."""
    with small_disk(tmp_path / "small", kilobytes=400) as place:
        yield place


def test_a_full_disk_is_told_in_a_line_and_costs_no_checkpoint(full: Path, whole: Path, tmp_path: Path) -> None:
    config = _config(whole)
    command = ["train", config.manifest, "--data-root", config.data_root, "--threads", "1", "--no-check"]
    command += ["--cache-dir", tmp_path / "cache", "--epochs", "1", "--recipe", _tiny(tmp_path)]
    code, _, err = call_medloss(*command, "--out", full / "run")
    assert code == 0, err
    before = load_checkpoint(full / "run")
    assert before is not None
    filler = full / "filler"
    free = os.statvfs(full).f_bavail * os.statvfs(full).f_frsize
    filler.write_bytes(b"\0" * (free - 8192))
    # A second run has no room for its checkpoint; a first one that lies there stays whole.
    code, _, err = call_medloss(*command, "--out", full / "other")
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: --out: cannot write in {full / 'other'}: No space")
    assert "Traceback" not in err
    assert not list(full.glob("other/.*.partial"))
    after = load_checkpoint(full / "run")
    assert after is not None and _same(before["training"], after["training"])
    filler.unlink()
    code, _, err = call_medloss(*command, "--out", full / "other")
    assert code == 0, err


#: What a full disk is called: by the system, and by torch's writer, which hides the system's message.
_FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 468224 vs 468116"),
    RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed"),
]


@pytest.mark.parametrize("error", _FULL, ids=str)
def test_a_full_disk_by_any_name_is_one_and_leaves_nothing_behind(tmp_path: Path, error: Exception) -> None:
    def write(file: Any) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(OSError) as caught:
        write_atomically(tmp_path / "file", write)
    assert is_disk_full(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DiskFullError) as full, naming_a_full_disk(tmp_path):
        raise error
    assert str(full.value) == f"no space left in {tmp_path}: free some, and run the same command again to resume"


def test_other_errors_are_no_full_disk() -> None:
    reader = "[enforce fail at inline_container.cc:145] . PytorchStreamReader failed reading zip archive"
    for error in (RuntimeError(reader), OSError(errno.EACCES, "Permission denied"), ValueError("inline_container.cc")):
        assert not is_disk_full(error)
        with pytest.raises(type(error)) as caught, naming_a_full_disk(Path()):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("where", ["checkpoint", "prediction", "attempts"])
def test_a_run_that_met_a_full_disk_resumes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    config = _config(whole)
    plan = adopt_plan(tmp_path, make_plan([config], [config.fold], [config.seed], "tiny_2d", "ab" * 32))
    folder = run_folder(tmp_path, plan.runs[0])
    calls = [0]

    def full(*_: Any) -> None:
        raise _FULL[0 if where == "attempts" else 2]

    def saved(state: Any, file: Any) -> None:
        calls[0] += "training" in state
        if calls[0] == 2:
            full()
        save(state, file)

    save = torch.save
    with monkeypatch.context() as patch:
        if where == "checkpoint":
            patch.setattr(torch, "save", saved)
        elif where == "prediction":
            patch.setattr(nib.Nifti1Image, "to_stream", full)
        else:
            patch.setattr("pipelines.comparison.worker.write_json", full)
        code, _, message = call_medloss("worker", tmp_path, "--threads", "1")
    assert (code, message) == (DiskFullError.exit_code, f"error: {DiskFullError(tmp_path)}\n")
    assert [state.state for state in run_states(tmp_path, plan)] == [
        "waiting" if where == "attempts" else "interrupted"
    ]
    assert len(folder.epochs) == {"checkpoint": 1, "prediction": 2, "attempts": 0}[where]
    assert call_medloss("worker", tmp_path, "--threads", "1")[0] == 0
    assert folder.result is not None and folder.result["state"] == "done"
    assert _same(_state(folder.path), _state(whole / "run"))


def _tiny(folder: Path) -> str:
    recipe = folder / "tiny.yaml"
    recipe.write_text("levels: 2\nbase_channels: 2\n")
    return str(recipe)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_costs_an_epoch(whole: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(whole / "run", tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-1000], "flipped": content, "empty": b""}[damage])
    epochs: list[int] = []
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged or incomplete"):
        train_run(_config(whole), tmp_path / "run", resume=True, report=lambda p: epochs.append(p.epoch))
    assert epochs == [3]
    assert _same(_state(tmp_path / "run"), _state(whole / "run"))


def test_a_damaged_cache_is_mended_and_changes_nothing(whole: Path, tmp_path: Path) -> None:
    config = _config(whole, cache_dir=str(tmp_path / "cache"))
    train_run(config, tmp_path / "cold")
    entries = sorted((tmp_path / "cache").glob("*.pt"))
    assert len(entries) == 6 + 4 + 4  # prepared cases; facts, and distance maps, of those that train
    for entry in entries[::2]:
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 1
        entry.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged cache entry"):
        train_run(config, tmp_path / "warm")
    assert _same(_state(tmp_path / "cold"), _state(tmp_path / "warm"))
    assert _same(_state(tmp_path / "cold"), _state(whole / "run"))
