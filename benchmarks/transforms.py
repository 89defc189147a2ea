"""The Euclidean transform on a GPU compared with SimpleITK's on the host, and the bandwidth that the goals refer to."""

import statistics
from collections.abc import Callable

import torch

from benchmarks.cases import Case, Contender, Row, row
from benchmarks.measure import Stopwatch, summary
from benchmarks.scenes import scene
from medloss.distance.maps import signed_distance_map


def transform_rows(case: Case, regime: str) -> list[Row]:
    """Rows of the device's signed distance map, of the host's, and of a copy within the device's memory."""
    device = torch.device(case.device)
    _, label = scene(case.size, 2, case.batch)
    mask = label == 1
    there = mask.to(device)
    source = torch.empty(case.logits_bytes // 4, dtype=torch.float32, device=device).normal_()
    target = torch.empty_like(source)
    host = torch.device("cpu")
    works: list[tuple[str, torch.device, Callable[[], object]]] = [
        ("medloss", device, lambda: signed_distance_map(there)),
        ("SimpleITK", host, lambda: signed_distance_map(mask)),
        ("copy", device, lambda: target.copy_(source)),
    ]
    rows = []
    for name, where, work in works:
        times = [_timed(work, where) for _ in range(case.warmup + case.rounds)][case.warmup :]
        side = Contender(name, "copy" if name == "copy" else "signed_distance_map")
        rows.append(row(case, side, regime, **summary([(seconds, 0.0) for seconds in times])))
    return rows


def bandwidth(rows: list[Row]) -> float | None:
    """Bytes a second, read and written, of the measured copy; None where there was none."""
    copies = [r for r in rows if r.library == "copy" and r.total]
    # A copy reads and writes each byte; its size is the case's, float32.
    return statistics.median(2 * 4 * r.voxels * r.classes / r.total for r in copies if r.total) if copies else None


def _timed(work: Callable[[], object], device: torch.device) -> float:
    watch = Stopwatch(device)
    watch.mark()
    work()
    watch.mark()
    return watch.seconds()[0]
