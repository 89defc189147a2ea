"""Primitive 1: the few sums over voxels that every region loss reads."""

from dataclasses import dataclass

from torch import Tensor

from medloss.inputs import LossInputs


@dataclass(frozen=True)
class OverlapStatistics:
    """Sums over an item's counted voxels (or the whole batch's), each `[B or 1, C']`.

    Attributes:
        tp: sum y p.
        prediction: sum p.
        target: sum y.
        voxels: number of voxels that count, `[B or 1, 1]`.
        squared_prediction: sum p^2; None unless asked for.
        squared_target: sum y^2; None unless asked for.
        squared_error_inside: sum (y - p)^2 y; None unless asked for.
        squared_error_outside: sum (y - p)^2 (1 - y); None unless asked for.
    """

    tp: Tensor
    prediction: Tensor
    target: Tensor
    voxels: Tensor
    squared_prediction: Tensor | None = None
    squared_target: Tensor | None = None
    squared_error_inside: Tensor | None = None
    squared_error_outside: Tensor | None = None

    @property
    def fp(self) -> Tensor:
        """Sum (1 - y) p."""
        return self.prediction - self.tp

    @property
    def fn(self) -> Tensor:
        """Sum y (1 - p)."""
        return self.target - self.tp


def overlap_statistics(
    inputs: LossInputs, *, batch: bool = False, squares: bool = False, squared_errors: bool = False
) -> OverlapStatistics:
    """Compute the sums of `OverlapStatistics` for the classes that count.

    Args:
        inputs: the checked inputs of a loss.
        batch: sum over the batch as well.
        squares: also sum p^2 and sum y^2.
        squared_errors: also the sums of (y - p)^2 over y and over 1 - y.
    """
    axes = (0, *inputs.spatial_axes) if batch else inputs.spatial_axes
    p = inputs.included(inputs.counted(inputs.probabilities()))
    y = inputs.included(inputs.counted(inputs.target))
    voxels = inputs.counts()

    def total(values: Tensor) -> Tensor:
        sums = values.sum(axes)
        return sums.unsqueeze(0) if batch else sums

    error = (y - p) ** 2 if squared_errors else None
    return OverlapStatistics(
        tp=total(p * y),
        prediction=total(p),
        target=total(y),
        voxels=voxels.sum(0, keepdim=True) if batch else voxels,
        squared_prediction=total(p * p) if squares else None,
        squared_target=total(y * y) if squares else None,
        squared_error_inside=None if error is None else total(error * y),
        squared_error_outside=None if error is None else total(error * (1 - y)),
    )
