"""The registry of metrics: how each is computed, and its properties for tables, plots and statistics.

Metrics are registered with `@register` in the files that `metrics/__init__.py` imports. Commands need their names at
start-up, so NumPy is imported only where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from importlib.util import find_spec
from math import inf, isfinite
from typing import TYPE_CHECKING, Any

from pipelines.utils import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipelines.evaluation.calibration import Calibration
    from pipelines.evaluation.lesions import Lesions
    from pipelines.evaluation.surface_distances import SurfaceDistances

#: Default tolerance of the NSD on grids of up to 1 mm; on coarser ones it is their largest voxel side.
NSD_TOLERANCE_MM = 1.0
#: Default overlap above which two lesions match, that of panoptic quality (Kirillov et al. 2019, arXiv 1801.00868).
LESION_OVERLAP = 0.5
#: Number of axes -> number of neighbours of a voxel -> number of axes along which a neighbour may differ.
CONNECTIVITIES = {2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}

#: Values of `Metric.empty_reference`.
EMPTY_REFERENCE = ("option", "left out", "value")


@dataclass(frozen=True)
class LesionRule:
    """What a lesion is, and when two lesions match.

    Attributes:
        connectivity: number of neighbours of a voxel in a connected component: 6, 18 or 26 in 3D, 4 or 8 in 2D; None:
            all, 26 or 8.
        overlap: a predicted and a reference lesion can match if their IoU is above this, 0 to below 1. At 0.5 and
            above, at most one match is possible per lesion; at 0, a shared voxel suffices.

    Raises:
        UserError: a number is out of range.
    """

    connectivity: int | None = None
    overlap: float = LESION_OVERLAP

    def __post_init__(self) -> None:
        if self.connectivity is not None and not any(self.connectivity in known for known in CONNECTIVITIES.values()):
            raise UserError(f"--connectivity: got {self.connectivity}; expected 6, 18 or 26 (3D), or 4 or 8 (2D)")
        if not 0 <= self.overlap < 1:
            raise UserError(f"--overlap: got {self.overlap:g}; expected an IoU from 0 to below 1")

    def steps(self, dimensions: int) -> int:
        """The number of axes along which two neighbours may differ.

        Raises:
            UserError: the connectivity is of another number of axes.
        """
        known = CONNECTIVITIES.get(dimensions, {})
        if self.connectivity is None:
            return dimensions
        if self.connectivity not in known:
            numbers = ", ".join(map(str, known))
            raise UserError(f"--connectivity: got {self.connectivity}; expected one of {numbers} in {dimensions}D")
        return known[self.connectivity]


@dataclass(frozen=True)
class MetricSettings:
    """What is computed of each class of each case.

    Attributes:
        names: names of the metrics, in the order of columns; None: the default ones.
        nsd_tolerance_mm: distance between surfaces up to which there is no error for the NSD, mm.
        lesions: what a lesion is, for lesion-wise metrics.

    Raises:
        UserError: an unknown metric, or a tolerance out of range.
    """

    names: tuple[str, ...] | None = None
    nsd_tolerance_mm: float = NSD_TOLERANCE_MM
    lesions: LesionRule = LesionRule()

    def __post_init__(self) -> None:
        if not (isfinite(self.nsd_tolerance_mm) and self.nsd_tolerance_mm >= 0):
            raise UserError(f"--tolerance: got {self.nsd_tolerance_mm}; expected a finite number of mm, 0 or more")
        if self.names is not None:
            refuse_unknown_metrics(self.names, "--metrics")

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics by name, with their tolerance."""
        names = default_metrics() if self.names is None else self.names
        return {name: REGISTERED[name].at_tolerance(self.nsd_tolerance_mm) for name in names}

    @property
    def by_probabilities(self) -> tuple[str, ...]:
        """The names of those metrics that need probabilities."""
        return tuple(name for name, metric in self.metrics.items() if metric.by_probabilities)

    def without_probabilities(self) -> MetricSettings:
        """The settings without the metrics that need probabilities."""
        return replace(self, names=tuple(name for name, metric in self.metrics.items() if not metric.by_probabilities))


#: The default metrics.
DEFAULT_SETTINGS = MetricSettings()


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
        lesion_rule: what a lesion is, for lesion-wise metrics.
        calibration: how its probabilities agree with the reference; None without probabilities or reference.
    """

    prediction: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    voxels: int
    spacing: tuple[float, ...]
    diagonal: float
    tolerance: float
    ignored: NDArray[np.bool_] | None = None
    lesion_rule: LesionRule = LesionRule()
    calibration: Calibration | None = None

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

    @cached_property
    def lesions(self) -> Lesions:
        """The lesions of both masks, and which of them match.

        Raises:
            UserError: the connectivity is of another number of axes.
        """
        from pipelines.evaluation.lesions import find_lesions

        steps = self.lesion_rule.steps(len(self.spacing))
        return find_lesions(
            self.prediction,
            self.reference,
            self.spacing,
            steps=steps,
            overlap=self.lesion_rule.overlap,
            ignored=self.ignored,
        )


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
        default: whether every run and evaluation computes it; others are named, in a manifest's `metrics` or by
            `--metrics` or `--metric`.
        target: the value of a perfect prediction for a signed error, or a ratio, from which both directions are worse;
            such a metric describes a bias and cannot be compared between losses. None for all other metrics.
        by_probabilities: whether it needs the probabilities of the classes, and is undefined without them.
        requires: the optional package that computes it, as the name to import and that to install,
            `skimage/scikit-image`; empty if there is none.
        tolerance: the tolerance that it was computed with, mm, if known and if it depends on it.
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
    default: bool = True
    target: float | None = None
    by_probabilities: bool = False
    requires: str = ""
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.empty_reference not in EMPTY_REFERENCE:
            expected = ", ".join(EMPTY_REFERENCE)
            raise ValueError(f"{self.name}: empty_reference: got '{self.empty_reference}'; expected one of {expected}")
        if self.target is not None:
            if not self.lower <= self.target <= self.upper:
                raise ValueError(
                    f"{self.name}: got the target {self.target:g}; expected {self.lower:g} to {self.upper:g}"
                )
            return
        # A failed prediction counts as the worst value and a correct empty one as the best, so both must be known.
        if not isfinite(self.lower) or (self.higher_is_better and not self.bounded) or self.lower >= self.upper:
            raise ValueError(
                f"{self.name}: got {self.lower:g} to {self.upper:g}; expected a finite lower bound below the upper "
                "one, which must also be finite if higher is better"
            )

    @property
    def is_installed(self) -> bool:
        """Whether the package that computes it is installed, if it needs one."""
        return not self.requires or find_spec(self.requires.partition("/")[0]) is not None

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
        if self.target is not None:
            return self.target
        return self.upper if self.higher_is_better else self.lower

    @property
    def heading(self) -> str:
        """Its label with its unit, `HD95 (mm)`, or with its tolerance, if known: `NSD (1 mm)`."""
        unit = self.unit if self.tolerance is None else f"{self.tolerance:g} mm"
        return f"{self.label} ({unit})" if unit else self.label

    def at_tolerance(self, tolerance_mm: float | None) -> Metric:
        """The metric as computed with a tolerance (None: unknown); itself if it does not depend on one."""
        return replace(self, tolerance=tolerance_mm) if self.by_tolerance else self

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


def at_tolerance(tolerance_mm: float | None) -> dict[str, Metric]:
    """All metrics by name, in the order of columns, as computed with a tolerance of the NSD, mm (None: unknown)."""
    return {name: metric.at_tolerance(tolerance_mm) for name, metric in REGISTERED.items()}


def default_metrics() -> tuple[str, ...]:
    """The names of the metrics that every run and evaluation computes, in the order of columns."""
    return tuple(name for name, metric in REGISTERED.items() if metric.default)


def with_default(names: Iterable[str]) -> tuple[str, ...]:
    """The default metrics and the named ones, each once, in the order of columns."""
    chosen = {*default_metrics(), *names}
    return tuple(name for name in REGISTERED if name in chosen)


def refuse_unknown_metrics(names: Iterable[str], where: str) -> None:
    """Refuse names of no metric, and metrics of a package that is not installed; `where` they were given.

    Raises:
        UserError: there is one.
    """
    for name in names:
        if name not in REGISTERED:
            near = get_close_matches(name, REGISTERED, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; expected some of {', '.join(REGISTERED)}"
            raise UserError(f"{where}: no metric '{name}'{hint}")
        if not REGISTERED[name].is_installed:
            package = REGISTERED[name].requires.partition("/")[2]
            raise UserError(f"{where}: {name} needs the package {package}; install it: pip install {package}")
