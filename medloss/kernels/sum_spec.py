"""The specification of a pass over the voxels: the rows of its sums, and their formulas.

A kernel set (`eager`, `numba`, `triton`) is a module with the same functions:

- `supports(device, dtype) -> bool`: whether it supports such logits.
- `preferred(device, dtype) -> bool`: whether it is selected by default.
- `voxel_sums(terms, logits, target, mask, voxel_weight) -> Tensor`: `[ROWS, B, C]`.
- `voxel_sums_backward(terms, logits, target, mask, voxel_weight, sum_gradients) -> Tensor`: the gradient of
  `(sum_gradients * voxel_sums(...)).sum()`, `[B, C, N]` in the type of `logits`.
- `entropy_map(terms, logits, target, mask, positive, negative) -> Tensor`: the cross entropy per voxel.

`logits` are `[B, C, N]`, contiguous or with adjacent channels (strides C N, 1, C), and so is their gradient; everything
else is contiguous.

Symbols, for item b, class c, voxel x: p probability, y target, v voxel weight (`[B, 1 or C - first, N]`, without
gradient; 1 unless given), l = ln p, q = ln(1 - p).
Only voxels under the mask count: elsewhere nothing is read into a sum (NaN included) and the gradient is 0.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import torch


class Row(IntEnum):
    """The sums, per item and class; classes below `VoxelTerms.first` are 0, except for `TARGET`."""

    TP = 0  #: sum v y p, or sum v min(p, y)
    PREDICTION = 1  #: sum v p
    TARGET = 2  #: sum y: always there, of all classes
    SQUARED_PREDICTION = 3  #: sum v p^2
    SQUARED_TARGET = 4  #: sum v y^2
    ERROR_INSIDE = 5  #: sum v (y - p)^2 y
    ERROR_OUTSIDE = 6  #: sum v (y - p)^2 (1 - y)
    POSITIVE = 7  #: sum v y h(l, q)
    NEGATIVE = 8  #: sum v (1 - y) h(q, l); 0 for a softmax
    WEIGHTED_TARGET = 9  #: sum v y, where v is given


ROWS = len(Row)


@dataclass(frozen=True)
class VoxelTerms:
    """Which sums are requested; other rows are 0, and their gradients are not read.

    Attributes:
        mode: `softmax`, `sigmoid` or `probabilities` (given as they are, of independent channels).
        first: the first class that counts: 0, or 1 to leave out the background.
        overlap: TP, PREDICTION and WEIGHTED_TARGET.
        squares: SQUARED_PREDICTION and SQUARED_TARGET.
        errors: ERROR_INSIDE and ERROR_OUTSIDE.
        entropy: POSITIVE and NEGATIVE; `""` for none, else which h(l, q):
            `plain` -l, `focal` -l exp(gamma q) = -l (1 - p)^gamma, `power` max(-l, 1e-7)^gamma with gradient 0 below,
            `focal_background` the focal one for what is background, class 0 of a softmax and the no (1 - y) of an
            independent channel, and the plain one for the rest.
        gamma: the exponent.
        soft_overlap: TP is the sum of v min(p, y), with half the gradient where p = y; only `eager` has it.
    """

    mode: str
    first: int = 0
    overlap: bool = False
    squares: bool = False
    errors: bool = False
    entropy: str = ""
    gamma: float = 0.0
    soft_overlap: bool = False

    def rows(self, *, weighted: bool) -> tuple[Row, ...]:
        """The rows that are summed.

        Args:
            weighted: whether v is given.
        """
        rows = [Row.TARGET]
        if self.overlap:
            rows += [Row.TP, Row.PREDICTION, *([Row.WEIGHTED_TARGET] if weighted else [])]
        if self.squares:
            rows += [Row.SQUARED_PREDICTION, Row.SQUARED_TARGET]
        if self.errors:
            rows += [Row.ERROR_INSIDE, Row.ERROR_OUTSIDE]
        if self.entropy:
            rows += [Row.POSITIVE] if self.mode == "softmax" else [Row.POSITIVE, Row.NEGATIVE]
        return tuple(rows)


#: The logarithm of a given probability is kept at or above this, as torch's BCELoss does; no gradient below.
LOG_FLOOR = -100.0
#: The logarithm of a softmax's or sigmoid's probability is kept at or above this, by the type of the sums: minus
#: infinity times a target or a weight of 0, or times p = 0, would be NaN. The same in every kernel set.
LOWEST_LOG = {dtype: -math.sqrt(torch.finfo(dtype).max) for dtype in (torch.float32, torch.float64)}
#: The base of `power` is kept at or above this; no gradient below.
POWER_FLOOR = 1e-7


def sum_type(logits: torch.Tensor) -> torch.dtype:
    """The type of sums and maps: float32, or float64 for float64 logits."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
