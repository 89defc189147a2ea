"""Times the steps of a comparison's runs on this machine, in as many processes as the comparison would use."""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

import nibabel as nib

from pipelines.comparison.executors.local import cause_of_death, last_line
from pipelines.comparison.step_timing_process import JOB, READY, Common, Step, megabytes
from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import load_manifest
from pipelines.preprocessing.case_store import EntryCache, content_key, take_fingerprint
from pipelines.training.auto_config import planned, preprocessing
from pipelines.training.components import prepared_data
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError
from pipelines.utils.files import read_json, write_json
from pipelines.utils.machine import chosen_device, thread_environment

# The timing processes: started, watched, and their results collected.

_POLL_S = 0.05


def time_steps(
    configs: Sequence[RunConfig], jobs: int, threads: int, folder: Path, message: Callable[[str], None]
) -> tuple[dict[str, Step], Common, float]:
    """Time the steps of losses in `jobs` processes, which write into `folder`.

    Returns:
        The steps by loss, what all losses have in common, and the seconds until a process is ready.

    Raises:
        UserError: the processes end before they time any loss.
    """
    folder.mkdir()
    processes = [_TimingProcess(folder / str(number), configs, number, jobs, threads) for number in range(jobs)]
    found: dict[str, Step] = {}
    try:
        for process in processes:
            process.start()
        while len(found) < len(configs):
            time.sleep(_POLL_S)
            for loss, step in (pair for process in processes for pair in process.new_steps()):
                found[loss] = step
                what = step.error if step.seconds is None else f"{step.seconds:.3f} s per step"
                message(f"measured {len(found)}/{len(configs)}: {loss}: {what}")
    finally:
        for process in processes:
            process.end()
    common = [process.common for process in processes if process.common is not None]
    names = [field.name for field in fields(Common)] if common else []
    mean = Common(**{name: fmean(getattr(one, name) for one in common) for name in names})
    worker_s = max(process.ready_s for process in processes)
    return {config.loss: found[config.loss] for config in configs}, mean, worker_s


class _TimingProcess:
    """One process, which times every `jobs`-th loss, and keeps the machine busy until all are timed."""

    def __init__(self, folder: Path, configs: Sequence[RunConfig], number: int, jobs: int, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.timed = configs[number::jobs]
        self.configs = self.timed or [configs[number % len(configs)]]
        self.done = 0
        self.ready_s = 0.0
        self.common: Common | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, at the first loss that is not timed yet."""
        self.folder.mkdir(exist_ok=True)
        configs = [config.model_dump(mode="json") for config in self.configs]
        job = {"configs": configs, "first": self.done, "timed": len(self.timed), "began": time.time()}
        write_json(self.folder / JOB, job)
        command = [sys.executable, "-m", "pipelines.comparison.step_timing_process", str(self.folder), str(os.getpid())]
        environment = os.environ | thread_environment(self.threads)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def new_steps(self) -> Iterator[tuple[str, Step]]:
        """The losses timed since the last call; one that ends the process counts as failed."""
        died = None if self.process is None else self.process.poll()
        ready = read_json(self.folder / READY)
        if ready is None:
            if died is not None:
                raise UserError(f"nothing can be measured: {last_line(self.folder / 'log', 'its process died')}")
            return
        self.ready_s = self.ready_s or ready["seconds"]
        while self.done < len(self.timed) and (found := read_json(self.folder / f"{self.done}.json")) is not None:
            self.common = self.common or (Common(**found["common"]) if found["common"] else None)
            yield self._next(Step(**found["step"]))
        if died is not None and self.done < len(self.timed):
            advice = "; often a lack of memory: fewer --jobs, or a lower --batch-size" if died == -9 else ""
            yield self._next(Step(None, error=f"its process died ({cause_of_death(died)}){advice}"))
            self.start()

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _next(self, step: Step) -> tuple[str, Step]:
        self.done += 1
        return self.timed[self.done - 1].loss, step


# The measurement of all losses.


@dataclass(frozen=True)
class Measured:
    """The measurement's results."""

    config: RunConfig  #: planned, of the first loss
    device: str
    steps: dict[str, Step]  #: by loss
    common: Common
    worker_s: float  #: until a worker is ready, having imported its packages
    prepare_s: float  #: to read and prepare all cases once, for all folds
    cache_mb: float  #: of the prepared cases, over all folds
    labels_mb: float = 0.0  #: of a fold's label files; its predictions will be about as large
    probabilities_mb: float = 0.0  #: of a fold's probabilities in float16, before compression


def measure(
    configs: Sequence[RunConfig],
    folds: Sequence[int],
    jobs: int,
    threads: int,
    cache: Path | None,
    message: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Measure each config's loss, on the first fold, in `jobs` processes of `threads` threads; no file remains.

    Args:
        configs: one per loss.
        folds: of the comparison: their caches may differ.
        jobs: processes at a time.
        threads: of the processor, per process.
        cache: cases that are prepared already; they are read, and nothing is written there.
        message: called with lines to print.

    Raises:
        UserError: the config does not fit the data, or a case cannot be read.
    """
    with _borrowed(cache) as folder:
        named = {"fold": folds[0], "threads": threads, "cache_dir": str(folder)}
        configs = [config.model_copy(update=named) for config in configs]
        message(f"measuring: preparing the cases, in {folder}")
        began = time.perf_counter()
        data = prepared_data(configs[0].model_copy(update={"memory_mb": 1e-6}))
        prepare_s = time.perf_counter() - began
        ways = _ways_to_prepare(configs[0], folds, folder)
        cache_mb = megabytes(folder) * ways
        labels = [data.validation.root / case.label for case in data.validation.cases]
        message(f"measuring: a few steps of each of {len(configs)} losses, {jobs} at a time")
        steps, common, worker_s = time_steps(configs, jobs, threads, folder / "timing", message)
    labels_mb = sum(path.stat().st_size for path in labels) / 2**20
    voxels = sum(math.prod(nib.load(path).shape) for path in labels)
    probabilities_mb = 2 * voxels * data.manifest.scheme.channels / 2**20
    device = chosen_device(data.config.device).type
    return Measured(data.config, device, steps, common, worker_s, prepare_s * ways, cache_mb, labels_mb,
                    probabilities_mb)  # fmt: skip


def _ways_to_prepare(config: RunConfig, folds: Sequence[int], folder: Path) -> int:
    """How many caches of prepared cases the folds need.

    Grid and intensities are planned from each fold's training cases: CT folds need one cache each, MR folds mostly
    share one.
    """
    if len(folds) == 1:
        return 1
    manifest = load_manifest(config.manifest)
    root = resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
    cache = EntryCache(folder)
    keys = {case.id: content_key(case, root) for case in manifest.cases}
    reading = preprocessing(config, manifest)
    ways = set()
    for fold in folds:
        facts = take_fingerprint(manifest, manifest.split(fold)[0], root, reading, cache, keys)
        full = planned(config.model_copy(update={"fold": fold}), manifest, facts, chosen_device(config.device))
        ways.add(preprocessing(full, manifest).model_dump_json())
    return len(ways)


@contextmanager
def _borrowed(cache: Path | None) -> Iterator[Path]:
    """A temporary cache with links to the entries of another one, which is not changed."""
    with tempfile.TemporaryDirectory(prefix="medloss-") as name:
        folder = Path(name)
        if cache is not None and cache.is_dir():
            for entry in cache.glob("*.pt"):
                (folder / entry.name).symlink_to(entry.resolve())
        yield folder
