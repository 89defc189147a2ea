"""Workers as threads of the test's process, which train nothing: for how a comparison starts, watches and ends them."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.comparison.executors import local
from pipelines.data.manifest import load_manifest
from pipelines.runs.comparison_folder import attempts, require_plan, run_folder
from pipelines.runs.plan import PlannedRun
from pipelines.utils import DiskFullError
from pipelines.utils.files import read_json, write_json
from pipelines.utils.locks import held_lock

#: What becomes of a run, by its loss, if it is not done.
DIES, FAILS, WAITS, FULL = "dies", "fails", "waits", "full"
_ERROR = "the loss is nan in epoch 1, on the cases [a, b]"


class Workers:
    """Takes the place of the local executor's processes.

    Attributes:
        behaviour: DIES, FAILS, WAITS or FULL by loss; all others are done after three epochs. One that waits ends with
            its worker, after its first epoch; FULL is a disk on which nothing can be written.
        waits: called once in a worker whose run waits.
        started: by run, how often it was begun.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.behaviour: dict[str, str] = {}
        self.waits: Callable[[], object] = lambda: None
        self.started: Counter[str] = Counter()
        self.all: list[_Worker] = []
        monkeypatch.setattr(local, "start_worker", self._start)
        monkeypatch.setattr(local, "_POLL_S", 0.02)

    def _start(self, log_file: Path, folder: Path, threads: int, index: int | None = None) -> "_Worker":
        self.all.append(_Worker(lambda end: self._work(folder, end)))
        return self.all[-1]

    def _work(self, folder: Path, end: threading.Event) -> int:
        for run in require_plan(folder).runs:
            own = run_folder(folder, run)
            if own.result is not None or end.is_set():
                continue
            with held_lock(own.path / "lock") as mine:
                if not mine or own.result is not None:
                    continue
                self.started[run.id] += 1
                write_json(own.path / "attempts.json", {"attempts": attempts(folder, run) + 1})
                own.begin(run.config)
                behaviour = self.behaviour.get(run.config.loss)
                if behaviour == DIES:
                    return -signal.SIGKILL
                if behaviour == FULL:
                    return DiskFullError.exit_code
                if behaviour == FAILS:
                    own.write_result({"state": "failed", "error": _ERROR})
                    continue
                _train(folder, run, 1 if behaviour == WAITS else run.config.epochs or 3)
                if behaviour == WAITS:
                    self.waits()
                    assert end.wait(300)
                    return 128 + signal.SIGTERM
                _finish(folder, run)
        return 0


class _Worker:
    """As much of a process as the executor looks at."""

    def __init__(self, work: Callable[[threading.Event], int]) -> None:
        self.pid = os.getpid()
        self.returncode: int | None = None
        self.end = threading.Event()

        def run() -> None:
            code = 1
            try:
                code = work(self.end)
            finally:
                self.returncode = code

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self.thread.join()
        return self.returncode

    def terminate(self) -> None:
        self.end.set()

    kill = terminate


def _train(folder: Path, run: PlannedRun, epochs: int) -> None:
    """Leave epochs as a training does; the better the earlier its loss stands in the plan."""
    own = run_folder(folder, run)
    dice = _dice(folder, run)
    rows = [
        {"epoch": epoch, "train_loss": 1 / epoch, "epoch_s": 1.0, "time": 1_700_000_000.0 + epoch, "val_dice": dice}
        for epoch in range(1, epochs + 1)
    ]
    own.write_epochs(rows)
    own.write_progress(epochs, run.config.epochs or 3, 1.0, dice)


def _finish(folder: Path, run: PlannedRun) -> None:
    own = run_folder(folder, run)
    dice = _dice(folder, run)
    measured = {"dice": dice, "iou": dice / 2, "sensitivity": dice, "specificity": 0.9, "hd95_mm": 1 / dice,
                "assd_mm": 1.0, "nsd": dice}  # fmt: skip
    _, validation = load_manifest(run.config.manifest).split(run.config.fold)
    rows: list[dict[str, Any]] = [
        {"case": case.id, "patient": case.patient, "class": "organ", **measured} for case in validation
    ]
    own.write_cases(rows)
    result = {"state": "done", "error": None, "metrics": measured, "seconds": 3.0, "epoch_s": 1.0, "peak_mb": 1.0}
    own.write_result(result)


def _dice(folder: Path, run: PlannedRun) -> float:
    return 0.9 - 0.05 * require_plan(folder).losses.index(run.config.loss)


def mirrored_status(folder: Path, run: str) -> str | None:
    """What MLflow was last told of a run's status."""
    try:
        notes = read_json(folder / "mlflow.json") or {}
    except ValueError:  # it is being written
        return None
    status = notes.get("runs", {}).get(run, {}).get("status")
    return None if status is None else str(status)
