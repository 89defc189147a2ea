"""The share of an epoch's time that the training waits for its data: measured, and small.

The clock is fake, and advances only where a case is made or a step is computed: no machine is too busy for it.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ignite.engine import Engine, Events
from tiny import tiny_manifest
from waiting import wait_for

from pipelines.preprocessing import case_store
from pipelines.training import run
from pipelines.training.components import Training
from pipelines.training.run import Run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder

CASE_S, STEP_S = 0.25, 0.5
BATCHES, ITEMS = 4, 2


class Clock:
    """A clock that loader processes share; it starts at 0."""

    def __init__(self) -> None:
        self._seconds = multiprocessing.get_context("fork").Value("d", 0.0)

    def __call__(self) -> float:
        return float(self._seconds.value)

    def go_on(self, seconds: float) -> None:
        with self._seconds.get_lock():
            self._seconds.value += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=made, time=made))
    monkeypatch.setattr("ignite.handlers.timing.perf_counter", made)
    return made


class Slow(Sequence[dict[str, Any]]):
    """Cases that take their time; each is made when it is allowed."""

    def __init__(self, cases: Sequence[dict[str, Any]], clock: Clock) -> None:
        context = multiprocessing.get_context("fork")
        self.cases = cases
        self.clock = clock
        self.allowed = context.Semaphore(0)
        self.allows = 0
        self.made = context.Value("i", 0)

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: Any) -> Any:
        self.allowed.acquire()
        self.clock.go_on(CASE_S)
        with self.made.get_lock():
            self.made.value += 1
        return self.cases[index]

    def allow(self, batches: int) -> None:
        """So many batches may be made, of the whole training."""
        while self.allows < batches * ITEMS:
            self.allows += 1
            self.allowed.release()


def made_training(folder: Path, **changes: Any) -> Training:
    settings: dict[str, Any] = {
        "manifest": str(tiny_manifest(folder, 3, cases=12)), "data_root": str(folder / "data"), "batch_size": ITEMS,
        "epochs": 3, "val_interval": 3, "threads": 1, "precision": "float32", "device": "cpu",
    }  # fmt: skip
    return Training(RunConfig(**(settings | changes)))


def allow_at(training: Training, event: Events, slow: Slow) -> None:
    """Allow the next batch at an event, when the run has looked at the clock: its handlers are attached before."""

    @training.trainer.on(Events.STARTED)
    def _attach(engine: Engine) -> None:
        engine.on(event)(lambda engine: slow.allow(engine.state.iteration + 1))


def trained(training: Training, folder: Path, clock: Clock, step: Callable[[Engine], None]) -> list[dict[str, float]]:
    """The rows of a run whose steps take `STEP_S`, after `step` was called."""

    @training.trainer.on(Events.ITERATION_STARTED)
    def _step(engine: Engine) -> None:
        step(engine)
        clock.go_on(STEP_S)

    Run(training, RunFolder(folder / "run"))(resume=False)
    return RunFolder(folder / "run").epochs


@pytest.mark.parametrize("workers", [0, 1])
def test_a_slow_loader_is_seen(tmp_path: Path, clock: Clock, workers: int) -> None:
    training = made_training(tmp_path, workers=workers)
    slow = Slow(training.dataset.cases, clock)
    training.dataset.cases = slow
    # No case is made before it is waited for.
    allow_at(training, Events.GET_BATCH_STARTED, slow)
    waited, computed = BATCHES * ITEMS * CASE_S, BATCHES * STEP_S
    for row in trained(training, tmp_path, clock, lambda _: None):
        assert row["data_share"] == pytest.approx(waited / (waited + computed), abs=1e-4)
        assert row["epoch_s"] == pytest.approx(waited + computed)


def test_no_epoch_decodes_what_fits_into_memory(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    read = case_store.read_case

    def slow(*arguments: Any) -> Any:
        clock.go_on(CASE_S)
        return read(*arguments)

    monkeypatch.setattr(case_store, "read_case", slow)
    training = made_training(tmp_path)
    assert clock() >= 12 * CASE_S  # it would be seen
    rows = trained(training, tmp_path, clock, lambda _: None)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["data_share"] for row in rows] == [0, 0, 0]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_made_meanwhile_is_not_waited_for(tmp_path: Path, clock: Clock, workers: int) -> None:
    training = made_training(tmp_path, workers=workers)
    slow = Slow(training.dataset.cases, clock)
    training.dataset.cases = slow
    allow_at(training, Events.EPOCH_STARTED, slow)

    def next_is_made(engine: Engine) -> None:
        """During each step but an epoch's last, the next batch is made."""
        count = engine.state.iteration
        if count % BATCHES:
            slow.allow(count + 1)
            wait_for(lambda: slow.made.value >= ITEMS * (count + 1), what="the next batch, during a step")

    for row in trained(training, tmp_path, clock, next_is_made):
        assert row["epoch_s"] == pytest.approx(BATCHES * (ITEMS * CASE_S + STEP_S))
        # Only the first is waited for.
        assert row["data_share"] <= 0.25 * BATCHES * ITEMS * CASE_S / row["epoch_s"] + 1e-4
