"""How prediction and reference overlap: the few sums over voxels that every region loss reads."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medloss.kernels.sum_spec import Row
from medloss.voxel_sums import VoxelSums


@dataclass(frozen=True)
class OverlapStatistics:
    """Sums over an item's counted voxels (or the whole batch's), each as often as it weighs, `[B or 1, C']`.

    Attributes:
        tp: sum y p.
        prediction: sum p.
        target: sum y.
        voxels: number of voxels that count, of the items that label the class.
        items: number of items that label the class: 0 or 1, or up to B.
        squared_prediction: sum p^2; 0 unless it was summed.
        squared_target: sum y^2; likewise.
        squared_error_inside: sum (y - p)^2 y; likewise.
        squared_error_outside: sum (y - p)^2 (1 - y); likewise.
    """

    tp: Tensor
    prediction: Tensor
    target: Tensor
    voxels: Tensor
    items: Tensor
    squared_prediction: Tensor
    squared_target: Tensor
    squared_error_inside: Tensor
    squared_error_outside: Tensor

    @classmethod
    def of(cls, sums: VoxelSums, *, batch: bool = False) -> "OverlapStatistics":
        """Name the sums' rows.

        Args:
            sums: what was summed.
            batch: sum over the batch as well.
        """
        inputs = sums.inputs
        voxels = inputs.included(inputs.class_counts(weighted=True))
        items = inputs.labelled_only(torch.ones_like(voxels))
        weighted = inputs.voxel_weight is not None

        def total(values: Tensor) -> Tensor:
            if weighted:
                # Where no voxel weighs anything a quotient may be 0/0, whose gradient must stay here.
                values = torch.where(voxels > 0, values, 0.0)
            return values.sum(0, keepdim=True) if batch else values

        return cls(
            tp=total(sums.row(Row.TP)),
            prediction=total(sums.row(Row.PREDICTION)),
            target=total(sums.row(Row.WEIGHTED_TARGET if weighted else Row.TARGET)),
            voxels=total(voxels),
            items=items.sum(0, keepdim=True) if batch else items,
            squared_prediction=total(sums.row(Row.SQUARED_PREDICTION)),
            squared_target=total(sums.row(Row.SQUARED_TARGET)),
            squared_error_inside=total(sums.row(Row.ERROR_INSIDE)),
            squared_error_outside=total(sums.row(Row.ERROR_OUTSIDE)),
        )

    @property
    def fp(self) -> Tensor:
        """Sum (1 - y) p."""
        return self.prediction - self.tp

    @property
    def fn(self) -> Tensor:
        """Sum y (1 - p)."""
        return self.target - self.tp
