"""Lovász extensions of one minus the Jaccard index: what is asked for, and what comes back.

`extensions(terms, logits, target, mask, ...)` gives, with flattened space as `sum_spec` has it:

- values: `[B, C]`, or `[1, C]` with `batch`; 0 for classes below `first`.
- positives: how many counted voxels are of the class, likewise, int64.
- slopes: `[B, C, N]` in the type of the sums, the values' gradients for p (for the logits with `hinge`); what stands
  in classes below `first` means nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class LovaszTerms:
    """Which extensions.

    Attributes:
        mode: as in `VoxelTerms`; `probabilities` with `hinge`, whose errors are linear in the logits.
        first: as in `VoxelTerms`.
        hinge: errors are max(0, 1 - z (2y - 1)) instead of |y - p|.
        batch: the voxels of all items are sorted together.
    """

    mode: str
    first: int
    hinge: bool
    batch: bool
