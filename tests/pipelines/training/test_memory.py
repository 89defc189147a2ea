"""How much memory a run takes: constant in the number of cases, with an error where there is too little."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from cli_call import call_medloss
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from tiny import tiny_manifest

from pipelines.training.components import Training
from pipelines.training.run import Run, train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.utils import TrainingError, UserError
from pipelines.utils.files import sha256
from pipelines.utils.machine import is_out_of_memory

# Prepared, a case has five bytes a voxel, and four more where there is foreground: of 1,000 cases more than 300 MB.
SHAPE = (24, 48, 48)
MANY, FEW = 1_000, 100

# Prints the peak of the process, and the highest of its loader processes, as the system counted them, in MB.
MEASURED = """
import multiprocessing, sys
from pathlib import Path
from ignite.engine import Events
from pipelines.training.run import train_run
from pipelines.training.run_config import RunConfig

loaders = [0]

def attach(trainer, _):
    @trainer.on(Events.EPOCH_COMPLETED)
    def _measure():
        for process in multiprocessing.active_children():
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            loaders.extend(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))

result = train_run(RunConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), attach=attach)
print(result["peak_mb"], max(loaders))
"""


def volumes(folder: Path, count: int) -> Path:
    """Write a data set of so many cases, of which ten validate; returns its manifest's path."""
    random = np.random.default_rng(0)
    label = np.zeros(SHAPE, np.uint8)
    label[8:16, 12:36, 12:36] = 1
    cases = []
    for number in range(count):
        paths = {"image": f"images/{number:04d}.nii", "label": f"labels/{number:04d}.nii"}
        for kind, path in paths.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if number == 0:
                array = label if kind == "label" else random.normal(label, 1, SHAPE).astype(np.float32)
                nib.save(nib.Nifti1Image(array, np.eye(4)), folder / path)
            else:  # the cache goes by the case's name, too
                os.link(folder / f"{kind}s/0000.nii", folder / path)
        sums = {f"{kind}_sha256": sha256(folder / f"{kind}s/0000.nii") for kind in paths}
        cases.append({"id": f"c{number}", "patient": f"p{number}", "fold": int(number < 10), **paths, **sums})
    manifest = tiny_manifest(folder, spacing=[1.0, 1.0, 1.0], classes={0: "background", 1: "box"})
    content = yaml.safe_load(manifest.read_text())
    del content["generator"]
    manifest.write_text(yaml.safe_dump({**content, "cases": cases}))
    return manifest


def peaks(folder: Path, name: str, **changes: Any) -> tuple[float, float]:
    """MB of memory of a run, and of its largest loader process."""
    settings: dict[str, Any] = {
        "manifest": str(folder / "tiny_3d.yaml"), "data_root": str(folder), "cache_dir": str(folder / "cache"),
        "fold": 1, "epochs": 1, "batch_size": 10, "patch_size": (8, 24, 24), "levels": 2, "base_channels": 2,
        "precision": "float32", "device": "cpu", "threads": 1, "memory_mb": 16,
    }  # fmt: skip
    config = RunConfig(**(settings | changes))
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, config.model_dump_json(), str(folder / name)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    main, loaders = done.stdout.split()
    return float(main), float(loaders)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_flat_in_the_number_of_cases(tmp_path: Path) -> None:
    for count in (FEW, MANY):
        volumes(tmp_path / str(count), count)
    few, many = (peaks(tmp_path / str(count), "run")[0] for count in (FEW, MANY))
    assert many < 1.2 * few
    # It would be seen, were the cases kept.
    assert peaks(tmp_path / str(MANY), "kept", memory_mb=2048)[0] > 1.2 * few
    few_apart, many_apart = (peaks(tmp_path / str(count), "apart", workers=2) for count in (FEW, MANY))
    assert many_apart[0] < 1.2 * few_apart[0]
    assert 0 < many_apart[1] < 1.2 * few_apart[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_large_a_patch_says_what_to_lower(tmp_path: Path, workers: int) -> None:
    # More than any address space holds, whatever the system lends: 1 PB.
    config = RunConfig(
        manifest=str(tiny_manifest(tmp_path)), data_root=str(tmp_path / "data"), patch_size=(65536,) * 3, batch_size=2,
        epochs=1, threads=1, precision="float32", device="cpu", workers=workers,
    )  # fmt: skip
    with pytest.raises(TrainingError, match="out of memory") as error:
        train_run(config, tmp_path / "run")
    message = str(error.value)
    assert message == (
        "out of memory with 2 patches of 65536 x 65536 x 65536 voxels per step; lower the batch size (--batch-size), "
        "then the patch (--patch)" + ", then the loader processes (--workers, 1 now)" * workers
    )
    result = RunFolder(tmp_path / "run").result
    assert result is not None
    assert (result["state"], result["error"]) == ("failed", message)


def test_too_fine_a_grid_says_what_to_lower(tmp_path: Path) -> None:
    config = RunConfig(
        manifest=str(tiny_manifest(tmp_path)), data_root=str(tmp_path / "data"), patch_size=(8, 8, 8),
        spacing=(1e-3,) * 3, epochs=1, threads=1, device="cpu",
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"while the cases were prepared; train on a coarser grid \(--spacing\)$"):
        train_run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), True),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), True),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault. "), False),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (ValueError("a defect"), False),
    ],
)
def test_what_a_lack_of_memory_looks_like(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


class Killing(Sequence[dict[str, Any]]):
    """Cases that end the loader process, as a system does that has no memory left."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_loader_says_what_to_lower(tmp_path: Path) -> None:
    config = RunConfig(
        manifest=str(tiny_manifest(tmp_path, 2)), data_root=str(tmp_path / "data"), batch_size=2, epochs=1, threads=1,
        precision="float32", device="cpu", workers=1,
    )  # fmt: skip

    def attach(trainer: SupervisedTrainer, _: SupervisedEvaluator) -> None:
        trainer.data_loader.dataset.cases = Killing()

    with pytest.raises(TrainingError, match=r"out of memory with 2 patches .*\(--workers, 1 now\)$"):
        train_run(config, tmp_path / "run", attach=attach)


def test_the_command_says_so_in_a_line(tmp_path: Path) -> None:
    command = ["train", tiny_manifest(tmp_path), "--device", "cpu", "--threads", "1"]
    options = ["--data-root", tmp_path / "data", "--out", tmp_path / "run", "--patch", "65536,65536,65536"]
    code, out, err = call_medloss(*command, *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: out of memory with 2 patches of 65536 x 65536 x 65536 voxels per step; lower")
    assert err.count("\n") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_case_that_vanishes_is_told_in_a_line(tmp_path: Path, workers: int) -> None:
    config = RunConfig(
        manifest=str(tiny_manifest(tmp_path, 2)), data_root=str(tmp_path / "data"), batch_size=2, epochs=2, threads=1,
        precision="float32", device="cpu", workers=workers, memory_mb=1e-6,
    )  # fmt: skip
    training = Training(config)
    (training.cases.root / training.cases.cases[0].image).unlink()
    with pytest.raises(UserError) as error:
        Run(training, RunFolder(tmp_path / "run"))(resume=False)
    assert str(error.value).startswith("case 'phantom_001': ")
    assert str(error.value).endswith(".nii.gz: missing; `medloss check` lists every bad file")
