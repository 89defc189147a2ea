"""Real processes under `torchrun`: they train as one does on the same batches, and one that fails ends them all."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import TinySet, tiny_manifest

from pipelines.dataset.manifest import load_manifest
from pipelines.evaluation.metrics import METRICS
from pipelines.training.checkpoint import load_checkpoint
from pipelines.training.parts import Training
from pipelines.training.run import train_run
from pipelines.training.run_folder import RunFolder

# As `medloss train` does it; several trainings for one start of two processes.
MANY = """
import json, sys
from pathlib import Path
from pipelines.training.ranks import joined_ranks
from pipelines.training.run import train_run
from pipelines.training.run_config import RunConfig

with joined_ranks("cpu"):
    for name, config in json.loads(Path(sys.argv[1]).read_text()).items():
        train_run(RunConfig.model_validate(config), Path(sys.argv[2]) / name)
"""

# What goes wrong in one process alone; the moment is noted.
FAULTY = """
import os, signal, time
from pathlib import Path
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
            Path(os.environ["NOTE"]).write_text(str(time.time()))
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
    """Data sets that nobody has made yet; those of nine cases have three in a fold, which two cannot share evenly."""
    folder = tmp_path_factory.mktemp("sets")
    made = {f"{dims}d": tiny_manifest(folder / str(dims), dims, cases=9) for dims in (2, 3)}
    made["few"] = tiny_manifest(folder / "few", 2, cases=4)
    return {name: _Set(path, path.parent / "data") for name, path in made.items()}


def torchrun(*arguments: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes, on a port that no other test has."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)


def medloss(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return torchrun("-m", "pipelines.cli", *arguments, **options)


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
#: Batch norm sees its own process's items alone.
BATCH_NORM: dict[str, tuple[str, dict[str, Any]]] = {"vnet": ("2d", {"network": "vnet", "epochs": 1})}


@pytest.fixture(scope="module")
def runs(sets: dict[str, _Set], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs' folders, made by two processes."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {name: sets[of].config(**changes) for name, (of, changes) in (SAME | BATCH_NORM).items()}
    todo, script = folder / "configs.json", folder / "many.py"
    todo.write_text(json.dumps({name: config.model_dump(mode="json") for name, config in configs.items()}))
    script.write_text(MANY)
    done = torchrun(str(script), str(todo), str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "arning" not in done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SAME)
def test_two_processes_train_as_one(sets: dict[str, _Set], runs: Path, tmp_path: Path, name: str) -> None:
    data, changes = SAME[name]
    alone = train_run(sets[data].config(**changes), tmp_path / "run")
    one, two = RunFolder(tmp_path / "run"), RunFolder(runs / name)
    assert [row["train_loss"] for row in two.epochs] == pytest.approx([row["train_loss"] for row in one.epochs], 1e-4)
    for metric in METRICS:
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
    assert _files(runs / name) == _files(tmp_path / "run")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deep", "vnet"])
def test_all_processes_validate_the_network_that_is_saved(sets: dict[str, _Set], runs: Path, name: str) -> None:
    data, changes = (SAME | BATCH_NORM)[name]
    training = Training(sets[data].config(**changes))
    state = load_checkpoint(runs / name)
    assert state is not None
    training.load_state(state["training"])
    rows = training.validate()
    told = RunFolder(runs / name).cases
    assert [row["case"] for row in told] == [row["case"] for row in rows]
    for metric in METRICS:
        assert [float(row[metric] or "nan") for row in told] == pytest.approx(
            [row[metric] for row in rows], rel=1e-6, nan_ok=True
        )


@pytest.mark.slow
def test_the_command_prints_once_and_goes_on(sets: dict[str, _Set], tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = medloss(*sets["2d"].options(whole, epochs=3))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert [line.split()[0] for line in lines[3:]] == [*METRICS, "written"]
    assert done.stderr == ""

    # Killed, as by the system, after an epoch.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*command, "-m", "pipelines.cli", *sets["2d"].options(stopped, epochs=3)], start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/3")
    os.killpg(process.pid, 9)
    process.wait()
    process.stdout.close()
    resumed = medloss(*sets["2d"].options(stopped, epochs=3), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert not resumed.stdout.startswith("epoch 1/3")
    for name in ("train_loss", "val_dice"):
        rows = [[row[name] for row in RunFolder(folder).epochs] for folder in (whole, stopped)]
        assert rows[0] == rows[1]
    assert _files(whole) == _files(stopped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ("NotANumber", r"the loss is nan in epoch 2, on the cases phantom_\d+, phantom_\d+;"),
        ("NoGradient", r"the gradient is nan in epoch 2, on the cases phantom_\d+, phantom_\d+;"),
        ("NoMemory", r"out of memory with 2 patches of 32 x 32 voxels a step; lower the batch size"),
    ],
)
def test_one_that_fails_ends_all(sets: dict[str, _Set], tmp_path: Path, loss: str, told: str) -> None:
    done, seconds = _with_fault(sets["2d"], tmp_path, loss)
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stderr
    assert re.search(told, errors[0])
    assert "pipelines/" not in done.stderr  # no traceback but torchrun's own
    assert seconds < 20
    result = RunFolder(tmp_path / "run").result
    assert result is not None
    assert result["state"] == "failed"
    assert result["error"] in errors[0]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "told"), [("Killed", "Signal 9 (SIGKILL)"), ("Defect", "KeyError: 'a defect'")])
def test_one_that_is_gone_ends_all(sets: dict[str, _Set], tmp_path: Path, loss: str, told: str) -> None:
    done, seconds = _with_fault(sets["2d"], tmp_path, loss)
    assert told in done.stderr
    assert "error:" not in done.stderr  # of the one that waited
    assert seconds < 20
    assert RunFolder(tmp_path / "run").result is None


def _with_fault(data: _Set, folder: Path, loss: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """What two processes print, and the seconds that they last after the fault."""
    (folder / "faulty.py").write_text(FAULTY)
    note = folder / "note"
    # Six cases train: the fourth step is in the second epoch.
    done = medloss(*data.options(folder / "run", loss=f"faulty.{loss}"), NOTE=str(note), PYTHONPATH=str(folder))
    ended = time.time()
    assert done.returncode == 1
    return done, ended - float(note.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("what", ["batch", "case"])
def test_what_is_refused_is_refused_once(tmp_path: Path, what: str) -> None:
    manifest = tiny_manifest(tmp_path, 2, cases=6)
    data = _Set(manifest, tmp_path / "data")
    options = data.options(tmp_path / "run", batch_size=3 if what == "batch" else 2)
    if what == "case":
        made = Training(data.config()).cases
        (made.root / made.cases[1].image).write_bytes(b"")
        options.append("--no-check")
    done = medloss(*options)
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1
    told = {
        "batch": "batch size: 3 items cannot be shared evenly by 2 processes; expected a multiple of 2",
        "case": "case 'phantom_002': ",
    }
    assert told[what] in errors[0]
    assert done.stdout == ""
    assert done.returncode == 1
    assert not (tmp_path / "run" / "config.json").exists()


def test_many_make_a_data_set_and_fill_a_cache_at_once(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, 3, cases=6)
    config = _Set(manifest, tmp_path / "data").config(cache_dir=str(tmp_path / "cache"))
    script = (
        "import sys\nfrom pipelines.training.run_config import RunConfig\n"
        "from pipelines.training.parts import Training\n"
        "print(flush=True)\nsys.stdin.readline()\nTraining(RunConfig.model_validate_json(sys.argv[1]))\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", script, config.model_dump_json()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()  # it has imported all, and waits
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        _, told = process.communicate(timeout=120)
        assert process.returncode == 0, told
    assert not list(tmp_path.rglob(".*"))  # nothing unfinished
    (folder,) = (tmp_path / "data").iterdir()
    assert len(load_manifest(manifest).cases) == len(list((folder / "images").iterdir()))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(before) == 6 + 4  # cases; facts of those that train
    Training(config)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before
