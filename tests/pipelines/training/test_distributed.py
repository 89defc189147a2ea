"""Two processes train as one does on the same batches, and one that fails ends them all.

Most are forked, and find each other as `torchrun`'s do. What `torchrun` itself has a part in is run by it as well: one
training in `make test`, the rest in `make test-all`, for each start imports everything twice.
"""

import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked import LIMIT_S, Ended, Forked, Ranks
from tiny import TinySet, tiny_manifest
from waiting import wait_for

from pipelines import utils
from pipelines.data.manifest import load_manifest
from pipelines.evaluation.metrics.base import default_metrics
from pipelines.training import distributed
from pipelines.training.checkpoint import load_checkpoint
from pipelines.training.components import Training
from pipelines.training.run import train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder

# What goes wrong in one process alone.
FAULTY = """
import os, signal
import torch
from torch import nn

class Faulty(nn.Module):
    steps = 0

    def fault(self, value):
        return value

    def forward(self, logits, target):
        self.steps += 1
        value = logits.square().mean()
        if self.steps == 4 and os.environ["RANK"] == "1":
            return self.fault(value)
        return value

class NotANumber(Faulty):
    def fault(self, value):
        return value * float("nan")

class NoGradient(Faulty):
    def fault(self, value):
        return value + (value - value).sqrt()

class NoMemory(Faulty):
    def fault(self, value):
        return torch.empty(2**60).sum()

class Killed(Faulty):
    def fault(self, value):
        os.kill(os.getpid(), signal.SIGKILL)

class Defect(Faulty):
    def fault(self, value):
        raise KeyError("a defect")
"""


class _Set(TinySet):
    def options(self, out: Path, **changes: Any) -> list[str]:
        """As of the command line."""
        config = self.config(**changes)
        names = {"data_root", "epochs", "batch_size", "precision", "device", "loss"} | changes.keys()
        flags = [(f"--{name.replace('_', '-')}", str(getattr(config, name))) for name in sorted(names)]
        return ["train", config.manifest, "--out", str(out), *(part for flag in flags for part in flag)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, _Set]:
    """Data sets that do not exist yet; those of nine cases have three in a fold, which two cannot share evenly."""
    folder = tmp_path_factory.mktemp("sets")
    made = {f"{dims}d": tiny_manifest(folder / str(dims), dims, cases=9) for dims in (2, 3)}
    made["few"] = tiny_manifest(folder / "few", 2, cases=4)
    return {name: _Set(path, path.parent / "data") for name, path in made.items()}


Launch = Callable[..., Ended]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*arguments: str, **environment: str) -> Ended:
    """`medloss` in two processes, on a port that no other test has."""
    command = [*TORCHRUN, "-m", "pipelines.cli", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def forked(*arguments: str, **environment: str) -> Ended:
    """The same without the start-up."""
    return Ranks.of_module("pipelines.cli", *arguments, **environment).join()


BOTH = pytest.mark.parametrize("launch", [forked, pytest.param(torchrun, marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def _the_first_one_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked processes that wait to be ended wait long enough on any machine."""
    monkeypatch.setattr(utils, "_HEAD_START_S", LIMIT_S)
    monkeypatch.setattr(distributed, "_PATIENCE_S", LIMIT_S)


#: Data set, and changes of the config.
SAME: dict[str, tuple[str, dict[str, Any]]] = {
    "2d": ("2d", {}),
    "3d": ("3d", {"flip_axes": (0, 2), "memory_mb": 0.01}),
    "batch": ("3d", {"loss_arguments": {"batch": True, "include_background": False}, "batch_size": 6}),
    "sum": ("2d", {"loss": "0.3*dice+binary_cross_entropy", "workers": 1}),
    "balanced": ("2d", {"loss": "hausdorff_dt"}),
    "deep": (
        "2d",
        {"network": "dynunet", "levels": 4, "deep_supervision": 2, "ema": 0.9, "clip": 0.5, "accumulate": 2},
    ),
    "one case to validate": ("few", {"fold": 1}),
}
#: Batch norm sees the items of one process only.
BATCH_NORM: dict[str, tuple[str, dict[str, Any]]] = {"vnet": ("2d", {"network": "vnet", "epochs": 1})}


def _train_all(configs: dict[str, RunConfig], folder: Path) -> None:
    """Train as `medloss train` does; several runs one after the other."""
    with distributed.joined_ranks("cpu"):
        for name, config in configs.items():
            train_run(config, folder / name)


@pytest.fixture(scope="module")
def runs(sets: dict[str, _Set], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs' folders, made by two processes."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {name: sets[of].config(**changes) for name, (of, changes) in (SAME | BATCH_NORM).items()}
    done = Ranks(_train_all, configs, folder).join()
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "arning" not in done.stderr
    return folder


@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one(sets: dict[str, _Set], runs: Path, tmp_path: Path, name: str) -> None:
    data, changes = SAME[name]
    alone = train_run(sets[data].config(**changes), tmp_path / "run")
    _assert_same(tmp_path / "run", alone, runs / name)
    assert _files(runs / name) == _files(tmp_path / "run")


def test_torchrun_trains_as_one_process(sets: dict[str, _Set], tmp_path: Path) -> None:
    alone = train_run(sets["2d"].config(epochs=1), tmp_path / "alone")
    done = torchrun(*sets["2d"].options(tmp_path / "run", epochs=1))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["epoch", *default_metrics(), "written"]
    _assert_same(tmp_path / "alone", alone, tmp_path / "run")


def _assert_same(one_folder: Path, alone: dict[str, Any], two_folder: Path) -> None:
    """One process and two came to the same in two folders; `alone` is what the one returned."""
    one, two = RunFolder(one_folder), RunFolder(two_folder)
    assert [row["train_loss"] for row in two.epochs] == pytest.approx([row["train_loss"] for row in one.epochs], 1e-4)
    for metric in default_metrics():
        column = f"val_{metric}"
        assert [row[column] for row in two.epochs] == pytest.approx(
            [row[column] for row in one.epochs], rel=1e-2, nan_ok=True
        )
    assert [[row[key] for key in ("case", "patient", "class")] for row in two.cases] == [
        [row[key] for key in ("case", "patient", "class")] for row in one.cases
    ]
    assert two.result is not None
    assert two.result["metrics"]["dice"] == pytest.approx(alone["metrics"]["dice"], rel=1e-2)
    assert two.result.keys() == alone.keys() | {"finished"}


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", ["deep", "vnet"])
def test_all_processes_validate_the_network_that_is_saved(sets: dict[str, _Set], runs: Path, name: str) -> None:
    data, changes = (SAME | BATCH_NORM)[name]
    training = Training(sets[data].config(**changes))
    state = load_checkpoint(runs / name)
    assert state is not None
    training.load_state(state["training"])
    rows = training.validate()
    recorded = RunFolder(runs / name).cases
    assert [row["case"] for row in recorded] == [row["case"] for row in rows]
    for metric in default_metrics():
        assert [float(row[metric] or "nan") for row in recorded] == pytest.approx(
            [row[metric] for row in rows], rel=1e-6, nan_ok=True
        )


@BOTH
def test_the_command_prints_once_and_goes_on(sets: dict[str, _Set], tmp_path: Path, launch: Launch) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = launch(*sets["2d"].options(whole, epochs=3))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert [line.split()[0] for line in lines[3:]] == [*default_metrics(), "written"]
    assert done.stderr == ""

    _killed_after_an_epoch(launch, sets["2d"].options(stopped, epochs=3))
    resumed = launch(*sets["2d"].options(stopped, epochs=3), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not resumed.stdout.startswith("epoch 1/3")
    for name in ("train_loss", "val_dice"):
        rows = [[row[name] for row in RunFolder(folder).epochs] for folder in (whole, stopped)]
        assert rows[0] == rows[1]
    assert _files(whole) == _files(stopped)


def _killed_after_an_epoch(launch: Launch, arguments: list[str]) -> None:
    """Start `medloss`, and kill it, as the system does, when it has printed the first epoch."""
    if launch is forked:
        started = Ranks.of_module("pipelines.cli", *arguments)
        first = started.processes[0]
        wait_for(lambda: first.stdout.startswith("epoch 1/3") or not first.process.is_alive())
        started.kill()
        assert first.stdout.startswith("epoch 1/3"), first.stderr
        return
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "pipelines.cli", *arguments], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/3")
    os.killpg(process.pid, 9)
    process.wait()
    process.stdout.close()


@BOTH
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("NotANumber", r"the loss is nan in epoch 2, on the cases phantom_\d+, phantom_\d+;"),
        ("NoGradient", r"the gradient is nan in epoch 2, on the cases phantom_\d+, phantom_\d+;"),
        ("NoMemory", r"out of memory with 2 patches of 32 x 32 voxels per step; lower the batch size"),
    ],
)
def test_one_that_fails_ends_all(
    sets: dict[str, _Set], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch: Launch, loss: str, message: str
) -> None:
    if loss == "NoMemory":  # it fails alone, so the first process does not report it
        monkeypatch.setattr(utils, "_HEAD_START_S", 0)
    done = _with_fault(launch, sets["2d"], tmp_path, loss)
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1, done.stderr
    assert re.search(message, lines[0])
    assert "pipelines/" not in done.stderr  # no traceback except that of torchrun
    result = RunFolder(tmp_path / "run").result
    assert result is not None
    assert result["state"] == "failed"
    assert result["error"] in lines[0]


@BOTH
@pytest.mark.parametrize(("loss", "message"), [("Killed", "Signal 9 (SIGKILL)"), ("Defect", "KeyError: 'a defect'")])
def test_one_that_is_gone_ends_all(
    sets: dict[str, _Set], tmp_path: Path, launch: Launch, loss: str, message: str
) -> None:
    done = _with_fault(launch, sets["2d"], tmp_path, loss)
    assert message in done.stderr
    assert "error:" not in done.stderr  # of the one that waited
    assert RunFolder(tmp_path / "run").result is None


def test_one_that_nobody_ends_says_what_it_lacks(
    sets: dict[str, _Set], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_PATIENCE_S", 0)
    command = _faulty(sets["2d"], tmp_path, "Killed")
    started = Ranks.of_module("pipelines.cli", *command, PYTHONPATH=str(tmp_path))
    first, second = started.processes
    assert second.join() == -9
    assert first.join() == 1
    assert first.stderr == "error: another process of this run has ended, and this one cannot continue without it\n"


def _with_fault(launch: Launch, data: _Set, folder: Path, loss: str) -> Ended:
    """What two processes print, of which one has a fault; both end."""
    done = launch(*_faulty(data, folder, loss), PYTHONPATH=str(folder))
    assert done.returncode == 1
    return done


def _faulty(data: _Set, folder: Path, loss: str) -> list[str]:
    """The command of a run in which the second process has a fault."""
    (folder / "faulty.py").write_text(FAULTY)
    # Six cases train: the fourth step is in the second epoch.
    return data.options(folder / "run", loss=f"faulty.{loss}")


@BOTH
@pytest.mark.parametrize("what", ["batch", "case"])
def test_what_is_refused_is_refused_once(tmp_path: Path, launch: Launch, what: str) -> None:
    manifest = tiny_manifest(tmp_path, 2, cases=6)
    data = _Set(manifest, tmp_path / "data")
    options = data.options(tmp_path / "run", batch_size=3 if what == "batch" else 2)
    if what == "case":
        made = Training(data.config()).cases
        (made.root / made.cases[1].image).write_bytes(b"")
        options.append("--no-check")
    done = launch(*options)
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(lines) == 1
    message = {
        "batch": "batch size: 3 items cannot be shared evenly by 2 processes; expected a multiple of 2",
        "case": "case 'phantom_002': ",
    }
    assert message[what] in lines[0]
    assert done.stdout == ""
    assert done.returncode == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_many_make_a_data_set_and_fill_a_cache_at_once(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, 3, cases=6)
    config = _Set(manifest, tmp_path / "data").config(cache_dir=str(tmp_path / "cache"))
    barrier = multiprocessing.get_context("fork").Barrier(3)

    def make() -> None:
        warnings.simplefilter("error", UserWarning)
        barrier.wait()
        Training(config)

    started = [Forked(make) for _ in range(3)]
    for process in started:
        assert process.join() == 0, process.stderr
    assert not list(tmp_path.rglob(".*"))  # nothing unfinished
    (folder,) = (tmp_path / "data").iterdir()
    assert len(load_manifest(manifest).cases) == len(list((folder / "images").iterdir()))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(before) == 6 + 4  # cases; facts of those that train
    Training(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before
