"""Calibration: how well probabilities agree with the reference, in bins of the probability; for all its metrics.

Measured around the reference's mask alone, on the same voxels for every prediction: `docs/metrics.md` has the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Box = tuple[slice, ...]

#: Number of bins of equal width, as in Guo et al. 2017, arXiv 1706.04599.
BINS = 15
#: How far around the reference's bounding box voxels count, mm; rounded up to whole voxels.
AROUND_MM = 5.0


@dataclass(frozen=True)
class Calibration:
    """Counts of the voxels of one class, of one case or of several together.

    Attributes:
        voxels: number of voxels per bin of their probability, `[BINS]`.
        probability: sum of their probabilities per bin.
        present: number of those that are in the reference, per bin.
        squares: sum of the squared differences between probability and reference (0 or 1), over all bins.
    """

    voxels: Floats
    probability: Floats
    present: Floats
    squares: float

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over voxels of |mean probability - share in the reference| of their bin."""
        return float(np.abs(self.probability - self.present).sum() / self.voxels.sum())

    @property
    def brier(self) -> float:
        """Brier score: mean over voxels of the squared difference between probability and reference."""
        return float(self.squares / self.voxels.sum())

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            self.voxels + other.voxels,
            self.probability + other.probability,
            self.present + other.present,
            self.squares + other.squares,
        )

    def to_list(self) -> list[float]:
        """All numbers, for files: voxels, probabilities, present ones per bin, and the squares."""
        return [*self.voxels.tolist(), *self.probability.tolist(), *self.present.tolist(), self.squares]

    @classmethod
    def from_list(cls, numbers: Sequence[float]) -> Calibration | None:
        """The inverse of `to_list`; None of `NOTHING`."""
        if math.isnan(numbers[-1]):
            return None
        voxels, probability, present = np.array(numbers[:-1], np.float64).reshape(3, BINS)
        return cls(voxels, probability, present, float(numbers[-1]))


#: `to_list` of a class without calibration.
NOTHING = [math.nan] * (3 * BINS + 1)


def measure(
    probability: NDArray[np.floating], reference: NDArray[np.bool_], ignored: NDArray[np.bool_] | None = None
) -> Calibration | None:
    """Count voxels in bins; None if none counts.

    Args:
        probability: of the class, 0 to 1. A bin contains its lower end, and the last one 1 as well.
        reference: whether the class is there; of the same shape.
        ignored: voxels that do not count.
    """
    values, truth = probability.astype(np.float64).ravel(), reference.ravel()
    if ignored is not None:
        values, truth = values[~ignored.ravel()], truth[~ignored.ravel()]
    if not values.size:
        return None
    places = np.minimum((values * BINS).astype(np.intp), BINS - 1)
    return Calibration(
        np.bincount(places, minlength=BINS).astype(np.float64),
        np.bincount(places, values, BINS).astype(np.float64),
        np.bincount(places, truth, BINS).astype(np.float64),
        float(np.square(values - truth).sum()),
    )


def around(box: Box, shape: Sequence[int], spacing: Sequence[float]) -> Box:
    """A bounding box, enlarged by `AROUND_MM` on each side, within the volume."""
    steps = [math.ceil(AROUND_MM / side - 1e-6) for side in spacing]
    return tuple(
        slice(max(0, axis.start - step), min(length, axis.stop + step))
        for axis, length, step in zip(box, shape, steps, strict=True)
    )


@dataclass(frozen=True)
class Probabilities:
    """The probabilities of one case.

    Attributes:
        data: `[C, *spatial]`, on the reference's grid.
        channels: the channels of each region, whose sum is its probability: of a softmax those of its classes, of
            a sigmoid its own.
    """

    data: NDArray[np.floating]
    channels: Sequence[tuple[int, ...]]

    def of(self, region: int, box: Box) -> NDArray[np.floating]:
        """The probability of a region in a box, at most 1."""
        channels = self.channels[region]
        found = [self.data[channel][box] for channel in channels]
        return found[0] if len(found) == 1 else np.minimum(np.sum(found, 0, np.float64), 1.0)


def together(found: Iterable[tuple[str, Sequence[float]]]) -> dict[str, Calibration]:
    """Name -> the sum of its `to_list`s; names with nothing are left out."""
    sums: dict[str, Calibration] = {}
    for name, numbers in found:
        if (one := Calibration.from_list(numbers)) is not None:
            sums[name] = sums[name] + one if name in sums else one
    return sums


# Tables of bins, in `calibration.csv` of a run's folder.

#: Columns of a table of bins, next to `case` and `class`.
COLUMNS = ("case", "class", "low", "high", "voxels", "probability", "present", "squares")


def bin_rows(case: str, class_name: str, found: Calibration | None) -> list[dict[str, Any]]:
    """A row per bin that has voxels: its ends, number of voxels, their mean probability and share in the reference.

    `squares`, the sum over all bins, is repeated in each row.
    """
    if found is None:
        return []
    return [
        {
            "case": case, "class": class_name, "low": number / BINS, "high": (number + 1) / BINS,
            "voxels": int(found.voxels[number]), "probability": float(found.probability[number] / found.voxels[number]),
            "present": float(found.present[number] / found.voxels[number]), "squares": found.squares,
        }
        for number in np.flatnonzero(found.voxels).tolist()
    ]  # fmt: skip


def loss_rows(loss: str, found: Calibration) -> list[dict[str, Any]]:
    """The rows of a loss's bins over all cases and classes, without the squares."""
    rows = bin_rows("", "", found)
    return [{"loss": loss} | {name: row[name] for name in ("low", "high", "voxels", "probability", "present")}
            for row in rows]  # fmt: skip


def from_rows(rows: Iterable[Mapping[str, Any]]) -> Calibration | None:
    """All rows of a table of bins together, as read from a CSV file; None without rows.

    Raises:
        ValueError: a cell is missing or no number.
    """
    voxels, probability, present = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    squares: dict[tuple[str, str], float] = {}
    for row in rows:
        try:
            place, count = round(float(row["low"]) * BINS), float(row["voxels"])
            voxels[place] += count
            probability[place] += count * float(row["probability"])
            present[place] += count * float(row["present"])
            squares[row["case"], row["class"]] = float(row["squares"])
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(f"no row of a table of bins: {error}") from None
    return Calibration(voxels, probability, present, sum(squares.values())) if squares else None
