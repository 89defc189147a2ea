"""The registry of metrics: how each is computed, and its properties for tables, plots and statistics.

Metrics are registered with `@register` in the files that `metrics/__init__.py` imports. Commands need their names at
start-up, so NumPy is imported only where it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipelines.evaluation.surface_distances import SurfaceDistances

#: Values of `Metric.empty_reference`.
EMPTY_REFERENCE = ("option", "left out", "value")


@dataclass(frozen=True)
class ClassMasks:
    """One class of one case, the input of every metric; shared quantities are computed once.

    Attributes:
        prediction: mask of the prediction, `[*box]`, cropped to the bounding box of both masks; of size 0 if both are
            empty.
        reference: mask of the reference, of the same shape.
        voxels: number of voxels in the whole volume, without ignored ones.
        spacing: mm, in the order of the axes.
        diagonal: diagonal of the whole volume, mm, which no distance exceeds.
        tolerance: distance between surfaces up to which there is no error, mm (`--tolerance`).
        ignored: ignored voxels, `[*box]`, which are in neither mask; None if there are none.
    """

    prediction: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    voxels: int
    spacing: tuple[float, ...]
    diagonal: float
    tolerance: float
    ignored: NDArray[np.bool_] | None = None

    @cached_property
    def predicted(self) -> int:
        """Number of voxels in the prediction."""
        return _count(self.prediction)

    @cached_property
    def present(self) -> int:
        """Number of voxels in the reference."""
        return _count(self.reference)

    @cached_property
    def tp(self) -> int:
        """True positives: number of voxels in both masks."""
        return _count(self.prediction & self.reference)

    @property
    def fp(self) -> int:
        """False positives: number of voxels in the prediction only."""
        return self.predicted - self.tp

    @property
    def fn(self) -> int:
        """False negatives: number of voxels in the reference only."""
        return self.present - self.tp

    @property
    def tn(self) -> int:
        """True negatives: number of voxels of the whole volume in neither mask."""
        return self.voxels - self.predicted - self.fn

    @cached_property
    def surfaces(self) -> SurfaceDistances:
        """The distances between the two surfaces, mm.

        Raises:
            ValueError: one of the masks is empty.
        """
        from pipelines.evaluation.surface_distances import surface_distances

        return surface_distances(self.prediction, self.reference, self.spacing, self.ignored)


def _count(mask: NDArray[np.bool_]) -> int:
    import numpy as np

    return int(np.count_nonzero(mask))


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: its column in tables, its key in MLflow (`val/<name>`) and its name for `--metric`; ends with the unit if
            there is one, as in `hd95_mm`.
        label: the name shown to users.
        compute: computes the value for one class of one case, NaN if undefined. A module-level function, so that it
            can be pickled.
        unit: such as `mm`; empty if dimensionless.
        higher_is_better: the direction.
        lower: lower bound.
        upper: upper bound; `inf` if there is none.
        decimals: number of decimals shown.
        empty_reference: how a class that is missing in the reference counts. `option`: for an empty prediction, which
            is correct, the metric is undefined (NaN) and `--empty` decides how it counts; for any other prediction, a
            false alarm, it has its worst value. `left out`: it is undefined, and such cases are left out for all
            losses. `value`: it has a value as in other cases.
        zero_without_overlap: whether it is 0 exactly if prediction and reference share no voxel.
        by_tolerance: whether it depends on `--tolerance`, which is then shown in its heading.
        in_table: whether it is in the table at the end of a comparison; `table.csv` has all metrics.
    """

    name: str
    label: str
    compute: Callable[[ClassMasks], float]
    unit: str = ""
    higher_is_better: bool = True
    lower: float = 0.0
    upper: float = 1.0
    decimals: int = 4
    empty_reference: str = "option"
    zero_without_overlap: bool = False
    by_tolerance: bool = False
    in_table: bool = True

    def __post_init__(self) -> None:
        if self.empty_reference not in EMPTY_REFERENCE:
            expected = ", ".join(EMPTY_REFERENCE)
            raise ValueError(f"{self.name}: empty_reference: got '{self.empty_reference}'; expected one of {expected}")
        # A failed prediction counts as the worst value and a correct empty one as the best, so both must be known.
        if not isfinite(self.lower) or (self.higher_is_better and not self.bounded) or self.lower >= self.upper:
            raise ValueError(
                f"{self.name}: got {self.lower:g} to {self.upper:g}; expected a finite lower bound below the upper "
                "one, which must also be finite if higher is better"
            )

    @property
    def sign(self) -> int:
        """1 or -1: the metric times this is better if higher."""
        return 1 if self.higher_is_better else -1

    @property
    def bounded(self) -> bool:
        """Whether there is a finite upper bound."""
        return self.upper < inf

    @property
    def best(self) -> float:
        """The value of a perfect prediction."""
        return self.upper if self.higher_is_better else self.lower

    @property
    def heading(self) -> str:
        """Its label with its unit: `HD95 (mm)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def worst(self, largest: float) -> float:
        """The value of a failed prediction: the bound on the bad side, or the largest value seen if there is none."""
        if self.higher_is_better:
            return self.lower
        return self.upper if self.bounded else largest

    def shown(self, value: float, *, signed: bool = False, decimals: int | None = None) -> str:
        """Format a value with its unit."""
        digits = f"{value:{'+' if signed else ''}.{self.decimals if decimals is None else decimals}f}"
        return f"{digits} {self.unit}" if self.unit else digits


#: All registered metrics, by name, in the order of registration.
REGISTERED: dict[str, Metric] = {}


_Compute = Callable[[ClassMasks], float]


def register(name: str, label: str, **about: Any) -> Callable[[_Compute], _Compute]:
    """Decorator that registers the function that computes a metric; arguments are the attributes of `Metric`."""

    def add(compute: _Compute) -> _Compute:
        if name in REGISTERED:
            raise ValueError(f"a metric '{name}' is registered already: {REGISTERED[name].label}")
        REGISTERED[name] = Metric(name, label, compute, **about)
        return compute

    return add
