"""What a metric is: how it is computed from one class of one case, and all that tables, plots and statistics ask of it.

A metric's file says this by `@register`; `registry.py` lists the files. Commands ask for the metrics' names before they
wait for anything: NumPy is imported where it is used.
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

#: What `Metric.empty_reference` may be.
EMPTY_REFERENCE = ("option", "left out", "value")


@dataclass(frozen=True)
class ClassMasks:
    """One class of one case: what every metric is computed from, each part of it once.

    Attributes:
        prediction: where the class is predicted, `[*box]`, cropped to a box that holds both masks; without a voxel
            where both are empty.
        reference: where the class is in truth, of the same shape.
        voxels: of the whole volume, without those that are not counted.
        spacing: mm, in the order of the axes.
        diagonal: of the whole volume, mm: no two voxels are farther apart.
        tolerance: mm, up to which a surface's distance is no error; `--tolerance`.
    """

    prediction: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    voxels: int
    spacing: tuple[float, ...]
    diagonal: float
    tolerance: float

    @cached_property
    def predicted(self) -> int:
        """Voxels of the prediction."""
        return _count(self.prediction)

    @cached_property
    def present(self) -> int:
        """Voxels of the reference."""
        return _count(self.reference)

    @cached_property
    def tp(self) -> int:
        """Voxels of both."""
        return _count(self.prediction & self.reference)

    @property
    def fp(self) -> int:
        """Voxels of the prediction alone."""
        return self.predicted - self.tp

    @property
    def fn(self) -> int:
        """Voxels of the reference alone."""
        return self.present - self.tp

    @property
    def tn(self) -> int:
        """Voxels of neither, over the whole volume."""
        return self.voxels - self.predicted - self.fn

    @cached_property
    def surfaces(self) -> SurfaceDistances:
        """The distances between the two surfaces, mm.

        Raises:
            ValueError: one of the masks is empty.
        """
        from pipelines.evaluation.surface_distances import surface_distances

        return surface_distances(self.prediction, self.reference, self.spacing)


def _count(mask: NDArray[np.bool_]) -> int:
    import numpy as np

    return int(np.count_nonzero(mask))


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: its column in tables, its key in MLflow (`val/<name>`) and its name for `--metric`; with the unit at the
            end, if there is one: `hd95_mm`.
        label: how it is written for people.
        compute: its value for one class of one case; NaN where it has none. A function of a module, so that other
            processes find it.
        unit: `mm` for example; empty for a share.
        higher_is_better: the direction.
        lower: the smallest value that it can have.
        upper: the largest one; `inf` where there is none.
        decimals: how many are shown.
        empty_reference: what it is where the reference has nothing of the class. `option`: it has no value (NaN) for
            an empty prediction, which is right, and what that counts `--empty` says; for any other prediction, a false
            alarm, it has its worst value. `left out`: it has no value there, and such cases are left out for all
            losses. `value`: it has a value there as elsewhere.
        zero_without_overlap: whether it is 0 just where prediction and reference share no voxel.
        by_tolerance: whether it depends on `--tolerance`, which its heading then names.
        in_table: whether the table at the end of a comparison shows it; `table.csv` has all metrics.
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
        # A failed prediction counts the worst value, a rightly empty one the best: both must be known.
        if not isfinite(self.lower) or (self.higher_is_better and not self.bounded) or self.lower >= self.upper:
            raise ValueError(
                f"{self.name}: got {self.lower:g} to {self.upper:g}; expected a finite lower bound below the upper "
                "one, which is finite, too, where higher is better"
            )

    @property
    def sign(self) -> int:
        """Times this, more is better."""
        return 1 if self.higher_is_better else -1

    @property
    def bounded(self) -> bool:
        """Whether there is a largest value."""
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
        """What a failed prediction counts: the bound on the bad side, or where there is none the largest value seen."""
        if self.higher_is_better:
            return self.lower
        return self.upper if self.bounded else largest

    def shown(self, value: float, *, signed: bool = False, decimals: int | None = None) -> str:
        """A value as text, with its unit."""
        digits = f"{value:{'+' if signed else ''}.{self.decimals if decimals is None else decimals}f}"
        return f"{digits} {self.unit}" if self.unit else digits


#: All registered metrics, by name, in the order of registration.
REGISTERED: dict[str, Metric] = {}


_Compute = Callable[[ClassMasks], float]


def register(name: str, label: str, **about: Any) -> Callable[[_Compute], _Compute]:
    """Decorator that registers the function that computes a metric; the arguments are the attributes of `Metric`."""

    def add(compute: _Compute) -> _Compute:
        if name in REGISTERED:
            raise ValueError(f"a metric '{name}' is registered already: {REGISTERED[name].label}")
        REGISTERED[name] = Metric(name, label, compute, **about)
        return compute

    return add
