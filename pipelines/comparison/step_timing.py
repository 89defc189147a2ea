"""Times the steps of a comparison's runs on this machine, in as many processes as it would use."""

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

# Starts the processes that measure, watches them, and gathers what they found.

_POLL_S = 0.05


def probe(
    configs: Sequence[RunConfig], jobs: int, threads: int, folder: Path, tell: Callable[[str], None]
) -> tuple[dict[str, Step], Common, float]:
    """Measure losses in so many processes at a time.

    Args:
        configs: one a loss.
        jobs: processes; those without a loss of their own train, too.
        threads: of the processor, for each.
        folder: for what they tell.
        tell: called with a line for people as each loss is done.

    Returns:
        The steps by loss, what all losses have in common, and the seconds until a process is ready.

    Raises:
        UserError: no process gets as far as a loss.
    """
    folder.mkdir()
    probers = [_Prober(folder, number, configs, jobs, threads) for number in range(jobs)]
    told = 0
    try:
        began = time.perf_counter()
        for prober in probers:
            prober.start()
        while not all(prober.ready() for prober in probers):
            time.sleep(_POLL_S)
        worker_s = time.perf_counter() - began
        go_file(folder).touch()
        at_work = True
        while at_work:
            time.sleep(_POLL_S)
            at_work = False
            for prober in probers:
                at_work |= not prober.over()
                for loss, step in prober.news():
                    told += 1
                    what = step.error if step.seconds is None else f"{step.seconds:.3f} s a step"
                    tell(f"measured {told}/{len(configs)}: {loss}: {what}")
    finally:
        for prober in probers:
            prober.end()
    found = {loss: step for prober in probers for loss, step in prober.steps.items()}
    return {config.loss: found[config.loss] for config in configs}, _mean([p.common for p in probers]), worker_s


class _Prober:
    """One process: every `jobs`-th loss is its own."""

    def __init__(self, folder: Path, number: int, configs: Sequence[RunConfig], jobs: int, threads: int) -> None:
        self.folder, self.number, self.threads = folder, number, threads
        self.own = list(configs[number::jobs])
        # Without a loss of its own it is company alone.
        self.trained = self.own or [configs[number % len(configs)]]
        self.steps: dict[str, Step] = {}
        self.common: Common | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.told = 0

    @property
    def log(self) -> Path:
        return self.folder / f"log{self.number}"

    def start(self) -> None:
        """Start the process, at the first loss of which nothing is known."""
        job: dict[str, Any] = {"configs": [config.model_dump(mode="json") for config in self.trained]}
        write_json(job_file(self.folder, self.number), job | {"first": len(self.steps), "measured": len(self.own)})
        command = [sys.executable, "-m", "pipelines.comparison.step_timing_process", str(self.folder)]
        command += [str(self.number), str(os.getpid())]
        environment = os.environ | thread_environment(self.threads)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def ready(self) -> bool:
        """Whether it has come as far as its first loss."""
        if self._died() is not None:
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            raise UserError(f"nothing can be measured: {lines[-1][:300] if lines else 'its process died'}")
        return ready_file(self.folder, self.number).exists()

    def over(self) -> bool:
        """Whether all its losses are measured; one that ends its process counts as failed."""
        died = self._died()
        while len(self.steps) < len(self.own):
            found = read_json(result_file(self.folder, self.number, len(self.steps)))
            if found is None:
                break
            self._note(Step(**found["step"]))
            self.common = self.common or (Common(**found["common"]) if found["common"] else None)
        left = len(self.steps) < len(self.own)
        if died is not None and left:
            cause = f"signal {-died}" if died < 0 else f"exit code {died}"
            advice = "; often a lack of memory: fewer --jobs, or a lower --batch-size" if died == -9 else ""
            self._note(Step(None, error=f"its process died ({cause}){advice}"))
            self.start()
        return not left

    def news(self) -> list[tuple[str, Step]]:
        """What has become known since it was last asked."""
        new = list(self.steps.items())[self.told :]
        self.told = len(self.steps)
        return new

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _note(self, step: Step) -> None:
        self.steps[self.own[len(self.steps)].loss] = step

    def _died(self) -> int | None:
        return None if self.process is None else self.process.poll()


def _mean(found: Sequence[Common | None]) -> Common:
    known = [common for common in found if common is not None]
    if not known:
        return Common()
    return Common(**{field.name: fmean(getattr(own, field.name) for own in known) for field in fields(Common)})


# What a comparison's trainings take on this machine, measured by as many processes at a time as it would have.


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        config: planned, of the first loss.
        device: where it computes: `cpu` or `cuda`.
        steps: by loss.
        common: what all losses have in common.
        worker_s: until a worker is ready: it imports its packages.
        prepare_s: to read and prepare all cases once, for all folds.
        cache_mb: of the prepared cases, over all folds.
        labels_mb: of a fold's label files, which its predictions will be as large as.
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
    tell: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Measure each config's loss, on the first fold; leaves nothing behind.

    Args:
        configs: one a loss.
        folds: of the comparison: their caches may differ.
        jobs: processes at a time.
        threads: of the processor, that each will have.
        cache: prepared cases that are there already; they are read, and nothing is written there.
        tell: called with lines for people.

    Raises:
        UserError: the config does not fit the data, or a case cannot be read.
    """
    with _borrowed(cache) as folder:
        named = {"fold": folds[0], "threads": threads, "cache_dir": str(folder)}
        own = [config.model_copy(update=named) for config in configs]
        tell(f"measuring: preparing the cases, in {folder}")
        began = time.perf_counter()
        data = prepared_data(own[0].model_copy(update={"memory_mb": 1e-6}))
        prepare_s = time.perf_counter() - began
        ways = _ways_to_prepare(own[0], folds, folder)
        cache_mb = megabytes(folder) * ways
        labels = [data.validation.root / case.label for case in data.validation.cases]
        tell(f"measuring: a few steps of each of {len(own)} losses, {jobs} at a time")
        steps, common, worker_s = probe(own, jobs, threads, folder / "probes", tell)
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
    """How many ways there are to prepare the cases: grid and intensities are planned from each fold's training cases.

    So caches are counted, not guessed: of CT each fold has its own, of MR mostly all share one.
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
        own = config.model_copy(update={"fold": fold})
        ways.add(preprocessing(planned(own, manifest, facts, chosen_device(config.device)), manifest).model_dump_json())
    return len(ways)


@contextmanager
def _borrowed(cache: Path | None) -> Iterator[Path]:
    """A temporary cache that shows the entries of another one; what is added to it, or mended, stays in it."""
    with tempfile.TemporaryDirectory(prefix="medloss-") as name:
        folder = Path(name)
        if cache is not None and cache.is_dir():
            for entry in cache.glob("*.pt"):
                (folder / entry.name).symlink_to(entry.resolve())
        yield folder
