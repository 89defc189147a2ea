"""The share of an epoch's time that the training waits for its data: measured, and small."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_manifest

from pipelines.training.parts import Training
from pipelines.training.run import Run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder


class Slow(Sequence[dict[str, Any]]):
    """Cases that take their time."""

    def __init__(self, cases: Sequence[dict[str, Any]], seconds: float) -> None:
        self.cases = cases
        self.seconds = seconds

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: Any) -> Any:
        time.sleep(self.seconds)
        return self.cases[index]


def trained(folder: Path, seconds: float = 0.0, **changes: Any) -> list[dict[str, float]]:
    """The rows of a short training."""
    settings: dict[str, Any] = {
        "manifest": str(tiny_manifest(folder, 3, cases=12)), "data_root": str(folder / "data"), "batch_size": 2,
        "epochs": 3, "val_interval": 3, "threads": 1, "precision": "float32", "device": "cpu",
    }  # fmt: skip
    training = Training(RunConfig(**(settings | changes)))
    if seconds:
        training.dataset.cases = Slow(training.dataset.cases, seconds)
    Run(training, RunFolder(folder / "run"))(resume=False)
    return RunFolder(folder / "run").epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_loader_is_seen(tmp_path: Path, workers: int) -> None:
    rows = trained(tmp_path, seconds=0.15, workers=workers)
    for row in rows[1:]:  # the first step of all takes long, too
        assert 0.5 < row["data_share"] <= 1
        # Four batches of two items; while a batch computes, the next is waited for already.
        assert row["epoch_s"] > 4 * 2 * 0.15


def test_a_second_epoch_hardly_waits(tmp_path: Path) -> None:
    rows = trained(tmp_path, base_channels=32)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert min(row["data_share"] for row in rows[1:]) < 0.2


def test_what_is_made_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    alone = trained(tmp_path / "fast", base_channels=32)
    step = min(row["epoch_s"] for row in alone[1:]) / 4
    # A batch takes half of a step to make: only the first is waited for.
    rows = trained(tmp_path / "slow", seconds=step / 4, base_channels=32)
    assert min(row["data_share"] for row in rows[1:]) < 0.3
