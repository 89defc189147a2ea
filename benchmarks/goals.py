"""The goals, and whether the measurements reach them: each by the worst of its cases."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import FRESH, RECYCLED, Row
from benchmarks.selections import CLASSES, HAUSDORFF, SIDES
from benchmarks.transforms import bandwidth

#: Slopes in a log-log plot that still count as linear: what is measured has noise, and caches have sizes.
LINEAR = 1.1


@dataclass(frozen=True)
class Verdict:
    """A goal's worst case. `value` is None where nothing was measured."""

    what: str
    limit: float
    value: float | None
    where: str = ""
    at_least: bool = False

    @property
    def text(self) -> str:
        """Met, or missed by how much."""
        if self.value is None:
            return "not measured"
        miss = self.limit / self.value if self.at_least else self.value / self.limit
        return "met" if miss <= 1 else f"**missed by {100 * (miss - 1):.0f} %**"


def reference_of(row: Row, rows: Iterable[Row], library: str, loss: str) -> Row | None:
    """The row that took turns with `row` and is what it is compared with."""
    same = ("group", "size", "classes", "batch", "dtype", "device", "regime")
    for other in rows:
        if other.library == library and other.loss == loss and not other.cached_map and other.total:
            fits = library != "medloss" or other.kernels == row.kernels
            if fits and all(getattr(row, name) == getattr(other, name) for name in same):
                return other
    return None


def share(row: Row, reference: Row | None) -> float | None:
    """A row's time as a share of its reference's."""
    return None if reference is None or not reference.total or row.total is None else row.total / reference.total


def verdicts(rows: list[Row]) -> list[Verdict]:
    """All goals for the CPU, in the order of the table."""
    found = _against_monai(rows)
    for group, name in (
        ("others", "other voxelwise and region losses"),
        ("mapped", "losses with a map or local statistic"),
    ):
        for kernels in _kernels(rows):
            chosen = [r for r in rows if r.group == group and r.kernels == kernels and r.loss != "dice"]
            shares = [(r, share(r, reference_of(r, rows, "medloss", "dice"))) for r in chosen]
            found.append(_worst(f"{name}, {kernels}: time relative to our Dice's", 1.5, shares))
            found.append(
                _worst(f"{name}, {kernels}: peak memory relative to the logits", 1.5, [(r, r.peak) for r in chosen])
            )
    found += _second_set(rows)
    found += _hausdorff(rows)
    for axis in ("voxels", "classes"):
        slopes = growth_slopes(rows, axis)
        worst = max(slopes, key=lambda key: slopes[key], default=None)
        value = None if worst is None else slopes[worst]
        where = "" if worst is None else f"{worst[0]}, {worst[1]}"
        found.append(Verdict(f"growth with {axis}: slope in a log-log plot", LINEAR, value, where))
    return found


def gpu_verdicts(rows: list[Row]) -> list[Verdict]:
    """The goals for a GPU."""
    chosen = {r.loss: r for r in rows if r.group == "gpu" and r.total}
    speed = bandwidth(rows)
    found = []
    for loss in ("dice", "binary_cross_entropy"):
        value, row = None, chosen.get(loss)
        if row is not None and row.total and speed:
            # Logits are read twice and the gradient is written once, two bytes a number.
            value = row.total / (3 * 2 * row.voxels * row.classes / speed)
        found.append(
            Verdict(f"{loss}, bfloat16 2 x 14 x 128^3: time relative to three passes over the logits", 2.0, value)
        )
    pair = [chosen.get("hausdorff_dt"), chosen.get("dice")]
    value = share(pair[0], pair[1]) if pair[0] else None
    found.append(Verdict("hausdorff_dt: time relative to dice's", 3.0, value))
    times = {r.library: r.total for r in rows if r.group == "transform"}
    ours, host = times.get("medloss"), times.get("SimpleITK")
    value = host / ours if ours and host else None
    found.append(Verdict("Euclidean transform at 256^3: times faster than SimpleITK", 50.0, value, at_least=True))
    return found


def growth_slopes(rows: list[Row], axis: str) -> dict[tuple[str, str], float]:
    """Slopes of log time over log voxels (from 64^3 up: below, fixed costs weigh) or log classes, a loss and regime."""
    slopes = {}
    for loss, regime in dict.fromkeys((r.loss, r.regime) for r in rows if r.group == "growth"):
        x, y = growth_points(rows, axis, loss, regime)
        kept = [(a, b) for a, b in zip(x, y, strict=True) if axis == "classes" or a >= 64**3]
        if len(kept) > 1:
            logs = np.log(np.array(kept))
            slopes[loss, regime] = float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])
    return slopes


def growth_points(rows: list[Row], axis: str, loss: str, regime: str) -> tuple[list[int], list[float]]:
    """Voxels or classes, and seconds."""
    points = []
    for r in rows:
        if r.group == "growth" and r.loss == loss and r.regime == regime and r.total:
            if axis == "voxels" and r.classes == 3 and r.size[0] in SIDES:
                points.append((r.voxels, r.total))
            elif axis == "classes" and r.size == (64,) * 3 and r.classes in CLASSES:
                points.append((r.classes, r.total))
    points.sort()
    return [p[0] for p in points], [p[1] for p in points]


def _against_monai(rows: list[Row]) -> list[Verdict]:
    found = []
    chosen = [r for r in rows if r.group == "goals" and r.library == "medloss"]
    for kernels, fresh, recycled, memory in (("numba", 1.0, 1.0, 1.05), ("eager", 0.75, 1.25, 1.2)):
        ours = [r for r in chosen if r.kernels == kernels]
        what = f"dice, tversky, focal, {kernels}"
        shares = [(r, share(r, reference_of(r, rows, "MONAI", r.loss))) for r in ours]
        for regime, limit in ((FRESH, fresh), (RECYCLED, recycled)):
            of_regime = [(r, value) for r, value in shares if r.regime == regime]
            found.append(_worst(f"{what}: time relative to MONAI's, {regime}", limit, of_regime, regimes=False))
        if kernels == "numba":
            title = f"{what}: geometric mean of both regimes"
            found.append(_worst(title, 0.65, _means_of_regimes(shares), regimes=False))
        found.append(
            _worst(f"{what}: peak memory relative to the logits", memory, [(r, r.peak) for r in ours], regimes=False)
        )
    return found


def _means_of_regimes(shares: list[tuple[Row, float | None]]) -> list[tuple[Row, float]]:
    """Geometric means of the shares in the two regimes, a case."""
    found: dict[tuple[str, int], list[tuple[Row, float]]] = {}
    for r, value in shares:
        if value is not None:
            found.setdefault((r.loss, r.classes), []).append((r, value))
    pairs = [pair for pair in found.values() if len(pair) == 2]
    return [(pair[0][0], statistics.geometric_mean(value for _, value in pair)) for pair in pairs]


def _second_set(rows: list[Row]) -> list[Verdict]:
    chosen = [r for r in rows if r.group == "more" and r.loss != "dice"]
    # A sort takes longer than sums: lovasz is compared with others' below.
    summed = [r for r in chosen if r.loss != "lovasz"]
    shares = [(r, share(r, reference_of(r, rows, "medloss", "dice"))) for r in summed]
    found = [
        _worst("second set of losses, without lovasz: time relative to our Dice's", 2.0, shares),
        _worst("second set of losses: peak memory relative to the logits", 1.5, [(r, r.peak) for r in chosen]),
    ]
    best = next((r.kernels for r in chosen), "")
    ours = [r for r in rows if r.group == "lovasz" and r.kernels and r.kernels == best]
    for library, name in (("kornia", "kornia's"), ("smp", "segmentation_models_pytorch's")):
        shares = [(r, share(r, reference_of(r, rows, library, "lovasz"))) for r in ours]
        found.append(_worst(f"lovasz: time relative to {name}", 1.0, shares))
    given = [r for r in rows if r.group == "instances" and r.cached_map]
    shares = [(r, share(r, reference_of(r, rows, "medloss", "dice+binary_cross_entropy"))) for r in given]
    title = "instance_wise, 100 components, map given: time relative to the inner loss's of the volume"
    return [*found, _worst(title, 3.0, shares)]


def _hausdorff(rows: list[Row]) -> list[Verdict]:
    chosen = [r for r in rows if r.group == "hausdorff" and r.library == "medloss" and not r.cached_map]
    best = next((r.kernels for r in chosen), "")
    small = [r for r in chosen if r.size[0] == 64 and r.kernels == best]
    shares = [(r, share(r, reference_of(r, rows, "MONAI", r.loss))) for r in small]
    found = [_worst(f"hausdorff_dt, {best}, both maps, 64^3: time relative to MONAI's", 0.2, shares)]
    for loss in HAUSDORFF[1:]:
        large = [r for r in chosen if r.loss == loss]
        shares = [(r, share(r, reference_of(r, rows, "medloss", "hausdorff_dt"))) for r in large]
        found.append(_worst(f"{loss}, 96^3: time relative to hausdorff_dt's", 2.0, shares))
        found.append(_worst(f"{loss}, 96^3: peak memory relative to the logits", 3.0, [(r, r.peak) for r in large]))
    return found


def _worst(what: str, limit: float, values: Sequence[tuple[Row, float | None]], *, regimes: bool = True) -> Verdict:
    known = [(row, value) for row, value in values if value is not None and not math.isnan(value)]
    if not known:
        return Verdict(what, limit, None)
    row, value = max(known, key=lambda pair: pair[1])
    where = f"{row.loss}, C = {row.classes}" + (f", {row.regime}" if regimes else "")
    return Verdict(what, limit, value, where)


def _kernels(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(r.kernels for r in rows if r.kernels and r.group in ("others", "mapped")))
