"""How prediction and reference overlap: the few sums over voxels that every region loss reads."""

from collections.abc import Callable

import torch
from torch import Tensor

from medloss.distributed import sum_over_ranks
from medloss.kernels.sum_spec import Row
from medloss.voxel_sums import VoxelSums

_ROWS = (
    Row.TP,
    Row.PREDICTION,
    Row.TARGET,
    Row.WEIGHTED_TARGET,
    Row.SQUARED_PREDICTION,
    Row.SQUARED_TARGET,
    Row.ERROR_INSIDE,
    Row.ERROR_OUTSIDE,
)


class OverlapStatistics:
    """Sums over an item's counted voxels, or those of the batch, each as often as it weighs, `[B or 1, C']`.

    Those that a loss reads must have been requested. The numbers of voxels and items are made when they are read: in a
    training step an operation on few numbers takes as long as one on many.

    Args:
        sums: what was summed.
        batch: sum over the batch, in training over those of all ranks.
    """

    def __init__(self, sums: VoxelSums, *, batch: bool = False) -> None:
        self._sums = sums
        self._totals: dict[Row | str, Tensor] = {}
        if batch:
            # Whether this rank was given weights must make no difference to the number of values.
            unread = None if sums.inputs.voxel_weight is None else Row.TARGET
            rows = [row for row in _ROWS if row in sums.rows and row is not unread]
            values: dict[Row | str, Tensor] = {row: self._row(row) for row in rows}
            values |= {"voxels": self.voxels, "items": self.items}
            totals = (value.sum(0, keepdim=True) for value in values.values())
            self._totals = dict(zip(values, sum_over_ranks(sums.inputs.logits, *totals), strict=True))

    @property
    def tp(self) -> Tensor:
        """Sum y p."""
        return self._row(Row.TP)

    @property
    def prediction(self) -> Tensor:
        """Sum p."""
        return self._row(Row.PREDICTION)

    @property
    def target(self) -> Tensor:
        """Sum y."""
        return self._row(Row.TARGET if self._sums.inputs.voxel_weight is None else Row.WEIGHTED_TARGET)

    @property
    def fp(self) -> Tensor:
        """Sum (1 - y) p."""
        return self.prediction - self.tp

    @property
    def fn(self) -> Tensor:
        """Sum y (1 - p)."""
        return self.target - self.tp

    @property
    def squared_prediction(self) -> Tensor:
        """Sum p^2."""
        return self._row(Row.SQUARED_PREDICTION)

    @property
    def squared_target(self) -> Tensor:
        """Sum y^2."""
        return self._row(Row.SQUARED_TARGET)

    @property
    def squared_error_inside(self) -> Tensor:
        """Sum (y - p)^2 y."""
        return self._row(Row.ERROR_INSIDE)

    @property
    def squared_error_outside(self) -> Tensor:
        """Sum (y - p)^2 (1 - y)."""
        return self._row(Row.ERROR_OUTSIDE)

    @property
    def voxels(self) -> Tensor:
        """Number of voxels that count, of the items that label the class."""
        inputs = self._sums.inputs
        return self._total("voxels", lambda: inputs.included(inputs.class_counts(weighted=True)))

    def with_voxels(self, voxels: Tensor) -> "OverlapStatistics":
        """The same with other numbers of voxels."""
        other = OverlapStatistics(self._sums)
        other._totals = self._totals | {"voxels": voxels}
        return other

    @property
    def items(self) -> Tensor:
        """Number of items that label the class: 0 or 1, or up to B."""
        return self._total("items", lambda: self._sums.inputs.labelled_only(torch.ones_like(self.voxels)))

    def _row(self, row: Row) -> Tensor:
        return self._total(row, lambda: self._weighted(self._sums.row(row)))

    def _total(self, key: Row | str, of_items: Callable[[], Tensor]) -> Tensor:
        if key not in self._totals:
            self._totals[key] = of_items()
        return self._totals[key]

    def _weighted(self, values: Tensor) -> Tensor:
        # Where no voxel weighs anything a quotient may be 0/0, whose gradient must stay here.
        return values if self._sums.inputs.voxel_weight is None else torch.where(self.voxels > 0, values, 0.0)
