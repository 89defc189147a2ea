"""One process that measures losses: a few real steps each, some validated cases, a checkpoint; no file is kept.

As many processes as jobs measure at a time, and train until all have finished, since jobs slow each other down.
"""

import ctypes
import gc
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from ignite.engine import Events

from pipelines.comparison.worker import exit_with, one_line
from pipelines.training.checkpoint import save_checkpoint
from pipelines.training.components import Training
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import save_model
from pipelines.utils import TrainingError
from pipelines.utils.files import read_json, write_json
from pipelines.utils.machine import is_out_of_memory, peak_memory_mb, reset_peak_memory

#: After a warm-up step: the least number of timed steps, their least time, and the time that ends slow ones earlier.
_STEPS = 5
_LEAST_S = 1.0
_LONG_S = 8.0
#: Epochs that a config has at least here, so that there are enough steps.
_MOST_STEPS = 1000
_VALIDATED = 3
#: Files of a process: its configs, of which the `first` and the following are `timed`; and when it could begin.
JOB, READY = "job.json", "ready.json"


@dataclass(frozen=True)
class Step:
    """The steps of one loss."""

    seconds: float | None  #: median of the timed steps, loading and the optimizer included; None: it failed
    first_s: float = 0.0  #: of the first step, including any compilation
    peak_mb: float = 0.0  #: peak memory of the process; on a GPU, of its allocations
    error: str | None = None


@dataclass(frozen=True)
class Common:
    """What all losses have in common."""

    case_s: float = 0.0  #: to validate a case
    start_s: float = 0.0  #: to start a run whose cases are prepared
    save_s: float = 0.0  #: to write a checkpoint, at the end of each epoch
    checkpoint_mb: float = 0.0
    model_mb: float = 0.0
    peak_mb: float = 0.0  #: peak memory of a validation


def measured(config: RunConfig, folder: Path, common: bool) -> tuple[Step, Common | None]:
    """Measure a loss, and with `common` also what does not depend on the loss; temporary files go to `folder`."""
    try:
        return _measured(config, folder, common)
    except TrainingError as error:
        return Step(None, error=str(error)), None
    except Exception as error:
        if is_out_of_memory(error):
            return Step(None, error="out of memory; lower --batch-size, then --patch"), None
        # As in a worker: an error of one loss does not affect the others.
        return Step(None, error=one_line(error)), None
    finally:
        _give_back_memory()


def _measured(config: RunConfig, folder: Path, common: bool) -> tuple[Step, Common | None]:
    reset_peak_memory()
    began = time.perf_counter()
    # A recipe may have too few epochs for the steps.
    training = Training(config.model_copy(update={"epochs": max(config.epochs, _MOST_STEPS)}))
    start_s = time.perf_counter() - began
    first_s, *later = _steps(training)
    step = Step(statistics.median(later), first_s, peak_memory_mb(training.device))
    return step, _common(training, folder, start_s) if common else None


def _steps(training: Training) -> list[float]:
    """Seconds of each step, from the first."""
    trainer = training.trainer
    clock = [time.perf_counter()]

    @trainer.on(Events.EPOCH_STARTED)
    def _start() -> None:
        training.start_epoch(trainer.state.epoch)

    @trainer.on(Events.ITERATION_COMPLETED)
    def _note() -> None:
        # The loss's value was read, so the step has finished on a GPU, too.
        clock.append(time.perf_counter())
        timed, spent = len(clock) - 2, clock[-1] - clock[1]
        if (timed >= _STEPS and spent > _LEAST_S) or (timed >= 2 and spent > _LONG_S):
            trainer.terminate()

    trainer.run()
    return [after - before for before, after in pairwise(clock)]


def _common(training: Training, folder: Path, start_s: float) -> Common:
    reset_peak_memory()
    clock = [time.perf_counter()]
    evaluator = training.evaluator

    @evaluator.on(Events.ITERATION_COMPLETED)
    def _note() -> None:
        clock.append(time.perf_counter())
        if len(clock) > _VALIDATED:
            evaluator.terminate()

    evaluator.run()
    peak = peak_memory_mb(training.device)
    # The first case is a warm-up, unless it is the only one.
    taken = [after - before for before, after in pairwise(clock)]
    case_s = statistics.fmean(taken[1:] or taken)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        temporary = Path(name)
        began = time.perf_counter()
        save_checkpoint(temporary, {"training": training.state()})
        save_s = time.perf_counter() - began
        checkpoint_mb = megabytes(temporary)
        model = temporary / "model.pt"
        save_model(model, training.best_network, training.config, training.manifest, training.preprocessing)
        return Common(case_s, start_s, save_s, checkpoint_mb, model.stat().st_size / 2**20, peak)


def _give_back_memory() -> None:
    """Return freed memory to the system: it would count in the peak of the next loss."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # another C library


def megabytes(folder: Path) -> float:
    """Size of the files in a folder, without links, MB."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 2**20


def main(folder: Path, parent: int) -> None:
    """Time the losses of the job in `folder`, then train until the process is ended."""
    exit_with(parent)
    job = read_json(folder / JOB)
    configs = [RunConfig.model_validate(config) for config in job["configs"]]
    write_json(folder / READY, {"seconds": time.time() - job["began"]})
    known = None
    for index in range(job["first"], job["timed"]):
        step, common = measured(configs[index], folder, common=known is None)
        known = known or common
        write_json(folder / f"{index}.json", {"step": asdict(step), "common": common and asdict(common)})
    while True:
        measured(configs[-1], folder, common=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
