"""Times the steps of a comparison's runs on this machine, in as many processes as the comparison would use."""

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
from typing import Any

from pipelines.comparison.step_timing_process import (
    Common,
    Step,
    go_file,
    job_file,
    megabytes,
    ready_file,
    result_file,
)
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
    """Measure losses in `jobs` processes.

    Args:
        configs: one per loss.
        jobs: processes; those that have no loss to measure train, too.
        threads: of the processor, per process.
        folder: for the processes' files.
        message: called with a line to print as each loss is done.

    Returns:
        The steps by loss, what all losses have in common, and the seconds until a process is ready.

    Raises:
        UserError: the processes end before they measure any loss.
    """
    folder.mkdir()
    processes = [_TimingProcess(folder, number, configs, jobs, threads) for number in range(jobs)]
    measured = 0
    try:
        began = time.perf_counter()
        for process in processes:
            process.start()
        while not all(process.ready() for process in processes):
            time.sleep(_POLL_S)
        worker_s = time.perf_counter() - began
        go_file(folder).touch()
        busy = True
        while busy:
            time.sleep(_POLL_S)
            busy = False
            for process in processes:
                busy |= not process.over()
                for loss, step in process.news():
                    measured += 1
                    what = step.error if step.seconds is None else f"{step.seconds:.3f} s per step"
                    message(f"measured {measured}/{len(configs)}: {loss}: {what}")
    finally:
        for process in processes:
            process.end()
    found = {loss: step for process in processes for loss, step in process.steps.items()}
    return {config.loss: found[config.loss] for config in configs}, _mean([p.common for p in processes]), worker_s


class _TimingProcess:
    """One process, which measures every `jobs`-th loss."""

    def __init__(self, folder: Path, number: int, configs: Sequence[RunConfig], jobs: int, threads: int) -> None:
        self.folder, self.number, self.threads = folder, number, threads
        self.measured = list(configs[number::jobs])
        # A process without a loss to measure trains one, as load on the machine.
        self.trained = self.measured or [configs[number % len(configs)]]
        self.steps: dict[str, Step] = {}
        self.common: Common | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.reported = 0

    @property
    def log(self) -> Path:
        return self.folder / f"log{self.number}"

    def start(self) -> None:
        """Start the process, at the first loss that is not measured yet."""
        job: dict[str, Any] = {"configs": [config.model_dump(mode="json") for config in self.trained]}
        write_json(job_file(self.folder, self.number), job | {"first": len(self.steps), "measured": len(self.measured)})
        command = [sys.executable, "-m", "pipelines.comparison.step_timing_process", str(self.folder)]
        command += [str(self.number), str(os.getpid())]
        environment = os.environ | thread_environment(self.threads)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def ready(self) -> bool:
        """Whether it can begin with its first loss."""
        if self._died() is not None:
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise UserError(f"nothing can be measured: {lines[-1][:300] if lines else 'its process died'}")
        return ready_file(self.folder, self.number).exists()

    def over(self) -> bool:
        """Whether all its losses are measured; one that ends its process counts as failed."""
        died = self._died()
        while len(self.steps) < len(self.measured):
            found = read_json(result_file(self.folder, self.number, len(self.steps)))
            if found is None:
                break
            self._note(Step(**found["step"]))
            self.common = self.common or (Common(**found["common"]) if found["common"] else None)
        unfinished = len(self.steps) < len(self.measured)
        if died is not None and unfinished:
            cause = f"signal {-died}" if died < 0 else f"exit code {died}"
            advice = "; often a lack of memory: fewer --jobs, or a lower --batch-size" if died == -9 else ""
            self._note(Step(None, error=f"its process died ({cause}){advice}"))
            self.start()
        return not unfinished

    def news(self) -> list[tuple[str, Step]]:
        """The losses measured since the last call."""
        new = list(self.steps.items())[self.reported :]
        self.reported = len(self.steps)
        return new

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _note(self, step: Step) -> None:
        self.steps[self.measured[len(self.steps)].loss] = step

    def _died(self) -> int | None:
        return None if self.process is None else self.process.poll()


def _mean(found: Sequence[Common | None]) -> Common:
    known = [common for common in found if common is not None]
    if not known:
        return Common()
    return Common(**{field.name: fmean(getattr(common, field.name) for common in known) for field in fields(Common)})


# The measurement of all losses.


@dataclass(frozen=True)
class Measured:
    """The measurement's results.

    Attributes:
        config: planned, of the first loss.
        device: `cpu` or `cuda`.
        steps: by loss.
        common: what all losses have in common.
        worker_s: until a worker is ready, having imported its packages.
        prepare_s: to read and prepare all cases once, for all folds.
        cache_mb: of the prepared cases, over all folds.
        labels_mb: of a fold's label files; its predictions will be about as large.
    """

    config: RunConfig
    device: str
    steps: dict[str, Step]
    common: Common
    worker_s: float
    prepare_s: float
    cache_mb: float
    labels_mb: float = 0.0


def measure(
    configs: Sequence[RunConfig],
    folds: Sequence[int],
    jobs: int,
    threads: int,
    cache: Path | None,
    message: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Measure each config's loss, on the first fold; no file remains.

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
    return Measured(
        config=data.config,
        device=chosen_device(data.config.device).type,
        steps=steps,
        common=common,
        worker_s=worker_s,
        prepare_s=prepare_s * ways,
        cache_mb=cache_mb,
        labels_mb=sum(path.stat().st_size for path in labels) / 2**20,
    )


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
    ways = set()
    for fold in folds:
        facts = take_fingerprint(manifest, manifest.split(fold)[0], root, cache, keys)
        on_fold = config.model_copy(update={"fold": fold})
        ways.add(
            preprocessing(planned(on_fold, manifest, facts, chosen_device(config.device)), manifest).model_dump_json()
        )
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
