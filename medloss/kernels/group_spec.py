"""Sums over groups of an item's voxels: bins of their probability, or their labels.

A kernel set (`eager`, `numba`) has the functions:

- `group_sums(terms, logits, target, mask, voxel_weight) -> Tensor`: `[2, B, C, groups]` of `total_type`.
- `group_sums_backward(terms, logits, target, mask, voxel_weight, sum_gradients) -> Tensor`: the gradient of
  `(sum_gradients * group_sums(...)).sum()`, as `logits`.

Tensors and symbols are those of `sum_spec`; `voxel_weight` is `[B, 1, N]`.
"""

from dataclasses import dataclass

import torch

#: The rows: sum v, and sum v (p - y), over the voxels of a group; 0 for classes below `GroupTerms.first`.
MASS, OFF = 0, 1


@dataclass(frozen=True)
class GroupTerms:
    """Which groups.

    Attributes:
        mode: as in `VoxelTerms`.
        first: as in `VoxelTerms`.
        by: `bins`, M equal ones of p, ((m-1)/M, m/M], 0 in the first; `soft_bins`, shares of a voxel, linear in p
            between the two bins whose centres (m-1/2)/M enclose it, with the gradient through them; `labels`, the
            class that an index map gives a voxel. Only `soft_bins` have a gradient of the first row.
        groups: how many: M, or C.
    """

    mode: str
    first: int
    by: str
    groups: int


def total_type(logits: torch.Tensor) -> torch.dtype:
    """The type of the sums: float64, where the device has it."""
    return torch.float32 if logits.device.type == "mps" else torch.float64
