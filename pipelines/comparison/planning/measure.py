"""What a comparison's trainings take on this machine, measured by as many processes at a time as it would have."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.cases.cache import EntryCache
from pipelines.cases.fingerprint import take_fingerprint
from pipelines.cases.store import content_key
from pipelines.comparison.planning.probe import Common, Step, megabytes
from pipelines.comparison.planning.probers import probe
from pipelines.dataset.data_root import resolve_data
from pipelines.dataset.manifest import load_manifest
from pipelines.training.optimization import chosen_device
from pipelines.training.parts import prepared_data
from pipelines.training.planning import planned, preprocessing
from pipelines.training.run_config import RunConfig


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
