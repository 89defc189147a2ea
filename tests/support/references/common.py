"""What all references share: activation, target, mask, class weights and reductions."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .complexstep import Array, clamp_min, log, log_sigmoid, log_softmax, sigmoid

Spacing = tuple[float, ...]


@dataclass(frozen=True)
class Problem:
    """One call of a loss, made ready: B items, C classes, and at masked voxels p = y without gradient."""

    categorical: bool
    mode: str
    y: Array  # [B, C, *spatial]
    z: Array  # [B, C, *spatial]: logits, or the probabilities
    p: Array  # [B, C, *spatial]
    not_p: Array  # 1 - p
    log_p: Array
    log_not_p: Array | None  # None in categorical mode
    counted: Array  # [B, *spatial], False: masked
    hard: Array  # [B, C, *spatial], bool: the hard prediction q, y at masked voxels
    fixed_p: Array  # p without gradient
    classes: list[int]  # the classes that are left: C' of them
    labelled: Array  # [B, C] bool: the item-class pairs that count
    voxel_weight: Array  # [B, *spatial]
    weight: dict[int, float]  # by class
    weight_given: bool
    spacing: list[Spacing]
    distance_map: Array | None
    skeleton_map: Array | None
    instance_map: Array | None
    reduction: str
    batch: bool

    @property
    def items(self) -> range:
        return range(self.y.shape[0])

    @property
    def regions(self) -> list[list[int]]:
        """The items that are summed together: each apart, or all of the batch."""
        return [list(self.items)] if self.batch else [[b] for b in self.items]

    def labelling(self, items: Sequence[int], c: int) -> list[int]:
        """Those of some items that label class c."""
        return [b for b in items if self.labelled[b, c]]

    def voxels(self, array: Array, items: Sequence[int], c: int) -> Array:
        """The counted voxels of class c of some items, in one row."""
        return np.concatenate([array[b, c][self.counted[b]] for b in items])

    def weights(self, items: Sequence[int]) -> Array:
        """The weights of the counted voxels of some items, in the order of `voxels`."""
        return np.concatenate([self.voxel_weight[b][self.counted[b]] for b in items])

    def mean_of(self, array: Array, items: Sequence[int], c: int) -> float:
        """The mean over the counted voxels of class c of some items; 0 without any."""
        voxels = self.voxels(array, items, c) if len(items) else np.zeros(0)
        return float(voxels.mean()) if voxels.size else 0.0

    def require_hard_target(self) -> None:
        y = self.y[np.broadcast_to(self.counted[:, None], self.y.shape)]
        if not np.isin(y, (0, 1)).all():
            raise ValueError("this loss has no meaning for a soft target")


def activate(z: Array, mode: str) -> tuple[Array, Array, Array, Array | None]:
    """p, 1 - p, ln p, ln (1 - p)."""
    if mode == "softmax":
        log_p = log_softmax(z)
        p = np.exp(log_p)
        others = [[k for k in range(z.shape[1]) if k != c] for c in range(z.shape[1])]
        not_p = np.stack([p[:, rest].sum(axis=1) for rest in others], axis=1)
        return p, not_p, log_p, None
    if mode == "sigmoid":
        return sigmoid(z), sigmoid(-z), log_sigmoid(z), log_sigmoid(-z)
    if mode == "probabilities":
        with np.errstate(divide="ignore"):
            return z, 1 - z, clamp_min(log(z), -100.0), clamp_min(log(1 - z), -100.0)
    raise ValueError(f"unknown mode {mode!r}")


def hard_prediction(z: Array, mode: str) -> Array:
    if mode == "softmax":
        winner = z.argmax(axis=1)
        return np.stack([winner == c for c in range(z.shape[1])], axis=1)
    return z > 0 if mode == "sigmoid" else z > 0.5


def one_map_per_class(target: Array, num_classes: int, ignore_index: int | None) -> Array:
    """An index map as C maps of 0 and 1 (an ignored voxel belongs to none); C maps as they are."""
    if target.shape[1] == num_classes and num_classes > 1:
        return target.astype(float)
    if num_classes == 1:
        return np.where(target == ignore_index, 0, target).astype(float)
    labels = target[:, 0]
    return np.stack([(labels == c) & (c != ignore_index) for c in range(num_classes)], axis=1).astype(float)


def one_number_per_class(given: float | Sequence[float], num_classes: int, classes: list[int]) -> dict[int, float]:
    """By class: a number for all, or one for each class that is left, or one for each class."""
    numbers = [float(given)] * len(classes) if np.isscalar(given) else list(given)  # type: ignore[arg-type]
    if len(numbers) == len(classes):
        return dict(zip(classes, numbers, strict=True))
    if len(numbers) == num_classes:
        return {c: numbers[c] for c in classes}
    raise ValueError(f"{len(numbers)} numbers for {len(classes)} classes")


def prepare(
    logits: Array,
    target: Array,
    *,
    mode: str = "softmax",
    include_background: bool = True,
    reduction: str = "mean",
    batch: bool = False,
    weight: float | Sequence[float] | None = None,
    mask: Array | None = None,
    ignore_index: int | None = None,
    spacing: Spacing | Sequence[Spacing] | None = None,
    distance_map: Array | None = None,
    skeleton_map: Array | None = None,
    instance_map: Array | None = None,
    labelled_classes: Array | None = None,
    voxel_weight: Array | None = None,
    frozen: Array | None = None,
) -> Problem:
    """Args are those of the references; ``frozen`` is logits from which all is taken that carries no gradient."""
    items, num_classes, *size = logits.shape
    y = one_map_per_class(np.asarray(target), num_classes, ignore_index)
    counted = np.ones((items, *size), dtype=bool)
    if mask is not None:
        counted &= np.asarray(mask, dtype=bool)[:, 0]
    if ignore_index is not None and target.shape[1] == 1:
        counted &= target[:, 0] != ignore_index

    everywhere = counted[:, None]
    z = np.where(everywhere, logits, 0.5)  # 0.5: any harmless number, p = y takes its place
    fixed_z = z.real if frozen is None else np.where(everywhere, frozen, 0.5).real
    labelled = np.ones((items, num_classes), dtype=bool)
    if labelled_classes is not None:
        labelled = np.array(labelled_classes, dtype=bool)
        if mode == "softmax":
            labelled[:, 0] = True
            z, fixed_z = merged(z, labelled), merged(fixed_z, labelled)
        # Label 0 of an index map says that a voxel is of no other class.
        first = 0 if target.shape[1] == num_classes else 1
        if any(y[b, c][counted[b]].any() for b, c in np.argwhere(~labelled) if c >= first):
            raise ValueError("a target with an unlabelled class")
    with np.errstate(invalid="ignore"):  # of classes that are merged into the background
        p, not_p, log_p, log_not_p = activate(z, mode)
    classes = list(range(num_classes))
    if not include_background and num_classes > 1:
        classes = classes[1:]
    spacing = (1.0,) * len(size) if spacing is None else spacing
    return Problem(
        categorical=mode == "softmax",
        mode=mode,
        y=y,
        z=z,
        p=np.where(everywhere, p, y),
        not_p=np.where(everywhere, not_p, 1 - y),
        log_p=log_p,
        log_not_p=log_not_p,
        counted=counted,
        hard=np.where(everywhere, hard_prediction(fixed_z, mode), y == 1),
        fixed_p=np.where(everywhere, activate(fixed_z, mode)[0], y),
        classes=classes,
        labelled=labelled,
        voxel_weight=np.ones(counted.shape) if voxel_weight is None else np.asarray(voxel_weight, dtype=float)[:, 0],
        weight=one_number_per_class(1.0 if weight is None else weight, num_classes, classes),
        weight_given=weight is not None,
        spacing=[spacing] * items if np.isscalar(spacing[0]) else list(spacing),  # type: ignore[list-item, arg-type]
        distance_map=distance_map,
        skeleton_map=skeleton_map,
        instance_map=instance_map,
        reduction=reduction,
        batch=batch,
    )


def merged(z: Array, labelled: Array) -> Array:
    """Logits in which the probabilities of an item's unlabelled classes are added to that of class 0."""
    z = z.copy()
    for b in range(z.shape[0]):
        unlabelled = [c for c in range(1, z.shape[1]) if not labelled[b, c]]
        if unlabelled:
            together = z[b, [0, *unlabelled]]
            top = together.real.max(axis=0)
            z[b, 0] = top + log(np.exp(together - top).sum(axis=0))
            z[b, unlabelled] = -1e3  # of which the probability is 0
    return z


def reference(formula: Callable[..., Any]) -> Callable[..., Any]:
    """``formula(problem, **hyperparameters)`` as a function of logits, target, and all arguments by name."""
    shared = set(inspect.signature(prepare).parameters) - {"logits", "target"}

    @functools.wraps(formula)
    def call(logits: Array, target: Array, **arguments: Any) -> Any:
        given = {name: value for name, value in arguments.items() if name in shared}
        hyperparameters = {name: value for name, value in arguments.items() if name not in shared}
        return formula(prepare(logits, target, **given), **hyperparameters)

    return call


def foreground_reference(formula: Callable[..., Any]) -> Callable[..., Any]:
    """As `reference`, for losses in which class 0 never counts where classes exclude each other."""
    whole = reference(formula)

    @functools.wraps(formula)
    def call(logits: Array, target: Array, **arguments: Any) -> Any:
        if arguments.get("mode", "softmax") == "softmax":
            arguments["include_background"] = False
        return whole(logits, target, **arguments)

    return call


def reduce_voxels(problem: Problem, values: Array) -> Any:
    """``values`` [B, 1 or C', *spatial]; the mean pools all counted values of the batch."""
    counted = np.broadcast_to(problem.counted[:, None], values.shape)
    if not problem.categorical:
        labelled = problem.labelled[:, problem.classes]
        counted = counted & labelled.reshape(*labelled.shape, *(1,) * (values.ndim - 2))
    values = np.where(counted, values, 0.0)
    if problem.reduction == "none":
        return values
    total = values.sum()
    return total / max(counted.sum(), 1) if problem.reduction == "mean" else total


def reduce_regions(
    problem: Problem,
    value: Callable[[list[int], int], Any],
    *,
    weighted: bool = False,
    region_weights: bool = True,
) -> Any:
    """``value(items, c)`` of each region and class, times the class's weight unless that is in it already.

    A region without a voxel that counts has the value 0; with ``region_weights`` a voxel of weight 0 does not count.
    ``items`` are those that label the class; a class that none of them labels leaves the mean.
    """
    values, left = [], []
    for items in problem.regions:
        for c in problem.classes:
            labelling = problem.labelling(items, c)
            factor = 1.0 if weighted else problem.weight[c]
            empty = not problem.counted[labelling].any()
            if not empty and region_weights:
                empty = not problem.weights(labelling).any()
            values.append(0.0 if empty else factor * value(labelling, c))
            left.append(bool(labelling))
    if problem.reduction == "none":
        return np.array(values).reshape(-1, len(problem.classes), *(1,) * (problem.y.ndim - 2))
    total = np.array(values).sum()
    return total / max(sum(left), 1) if problem.reduction == "mean" else total


def reduce_joined(problem: Problem, classes: list[int], value: Callable[[list[int]], Any]) -> Any:
    """``value(items)`` of each region, of all ``classes`` together and with their weights in it."""
    labelled = problem.labelled[:, classes].any(axis=1, keepdims=True)
    one = Problem(**{**problem.__dict__, "classes": [0], "weight": {0: 1.0}, "labelled": labelled})
    return reduce_regions(one, lambda items, _: value(items))


def reduce_items(problem: Problem, value: Callable[[int, int], Any]) -> Any:
    """As `reduce_regions`, for losses that take each item by itself whatever ``batch``."""
    apart = Problem(**{**problem.__dict__, "batch": False})
    return reduce_regions(apart, lambda items, c: value(items[0], c), region_weights=False)


def shifted(array: Array, offset: Sequence[int], padding: str) -> Array:
    """``array[x + offset]`` at every voxel x; outside the volume 0 ("constant") or the nearest voxel ("edge")."""
    reach = [abs(o) for o in offset]
    padded = np.pad(array, [(r, r) for r in reach], mode=padding)  # type: ignore[call-overload]
    window = tuple(slice(r + o, r + o + n) for r, o, n in zip(reach, offset, array.shape, strict=True))
    return padded[window]


def box_offsets(reach: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All offsets of at most ``reach[a]`` voxels along axis a."""
    return itertools.product(*(range(-r, r + 1) for r in reach))
