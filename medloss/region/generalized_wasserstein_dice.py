"""Generalized Wasserstein Dice loss: errors between similar classes cost less."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from medloss.base import CommonArguments
from medloss.distributed import sum_over_ranks
from medloss.errors import InputError
from medloss.inputs import LossInputs
from medloss.kernels.group_operators import group_sums
from medloss.kernels.group_spec import MASS, OFF, GroupTerms
from medloss.loss_entry import register
from medloss.region.dice import checked_smoothing
from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import Requested, VoxelSums


@register(
    "generalized_wasserstein_dice",
    family="region",
    paper="Fidon et al. 2017, arXiv 1707.00478",
    summary="one overlap of all classes, an error costs the distance between the two classes",
)
class GeneralizedWassersteinDiceLoss(SumsLoss):
    r"""One minus a Dice coefficient in which a voxel's error is the distance between its label and its prediction.

    $$1 - \frac{2\, TP + s}{2\, TP + \sum D + s}, \quad D = \sum_c M_{lc}\, p_c, \quad TP = \sum_{l > 0} (1 - D)$$

    l: a voxel's label; p: the softmax's probability; M: distances between the classes; s: smoothing, in voxels; sums
    over an item's counted voxels, but for those of no class. With two classes it is the Dice loss of class 1.

    Classes exclude each other: only with `softmax=True`. Background has its place in M, so `include_background` is
    ignored. M is symmetric with a zero diagonal, and is divided by its largest value; background must then be at
    distance 1 from every other class, or a foreground voxel that is called background would still be partly right.

    Replaces MONAI's `GeneralizedWassersteinDiceLoss`, which does not check M, and whose s is 1e-5.

    Args:
        dist_matrix: M, C rows of C numbers. None: 1 between any two classes.
        weighting_mode: `default` as above, or `GDL`: each voxel, of background too, counts 1/(n_l + 1) times in both
            sums, n_l the number of the item's voxels with its label (Tilborghs 2020).
        smooth_nr: s in the numerator. Default 1 (ours, as in `DiceLoss`).
        smooth_dr: s in the denominator. Default 1.
        **common: the arguments of `SegmentationLoss`, without `weight`: M has the classes' weights. Targets must be
            hard. With `reduction="none"` the shape is `[B, 1, 1, 1(, 1)]`, one value per item.

    Raises:
        InputError: no softmax, a `weight`; a matrix that is not square, symmetric, with a zero diagonal, positive
            elsewhere and largest from background, or of another number of classes; an unknown `weighting_mode`, a
            negative smoothing term; a soft target.

    References:
        Fidon, Li, Garcia-Peraza-Herrera, Ekanayake, Kitchen, Ourselin and Vercauteren (2017), Generalised Wasserstein
        Dice Score for Imbalanced Multi-class Segmentation using Holistic Convolutional Networks, arXiv 1707.00478.
        Tilborghs et al. (2020), arXiv 2007.15546, for `GDL`.

    Example:
        >>> import torch, medloss
        >>> label = torch.tensor([[[[0, 1, 2]]]])
        >>> logits = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.3, 0.5]]).log().T[None, :, None]
        >>> matrix = [[0, 1, 1], [1, 0, 0.5], [1, 0.5, 0]]
        >>> loss = medloss.GeneralizedWassersteinDiceLoss(softmax=True, dist_matrix=matrix)
        >>> round(loss(logits, label).item(), 4)  # D = 0.4, 0.2, 0.35
        0.1959
    """

    soft_targets = False
    categorical_only: ClassVar[bool] = True

    matrix: Tensor | None

    def __init__(
        self,
        *,
        dist_matrix: Sequence[Sequence[float]] | Tensor | None = None,
        weighting_mode: str = "default",
        smooth_nr: float = 1.0,
        smooth_dr: float = 1.0,
        **common: Unpack[CommonArguments],
    ) -> None:
        super().__init__(**common)
        if self.class_weight is not None:
            raise InputError("weight: this loss takes none; expected the classes' distances in dist_matrix")
        if weighting_mode not in ("default", "GDL"):
            raise InputError(f"weighting_mode: got '{weighting_mode}'; expected 'default' or 'GDL'")
        self.weighting_mode = weighting_mode
        self.register_buffer("matrix", None if dist_matrix is None else _checked_matrix(dist_matrix))
        self.smooth_nr, self.smooth_dr = checked_smoothing(smooth_nr, smooth_dr)

    def check_channels(self, channels: int, target_channels: int) -> None:
        """Refuse logits of another number of classes than the matrix has."""
        super().check_channels(channels, target_channels)
        if self.matrix is not None and len(self.matrix) != channels:
            raise InputError(
                f"dist_matrix: got {len(self.matrix)} rows for logits of {channels} classes; expected one each"
            )

    def requested(self) -> Requested:
        """Each class's overlap, where that is all."""
        return Requested(overlap=self.matrix is None)

    def compute(self, inputs: LossInputs) -> Tensor:
        """Sum, and apply the formula; background always counts."""
        return super().compute(replace(inputs, include_background=True))

    def from_sums(self, sums: VoxelSums) -> Tensor:
        """Distances summed per label, their weights, and the formula."""
        inputs, overlap = sums.inputs, self.overlap(sums)
        if self.matrix is None:
            # Background is at distance 1 from all other classes, and so is each class from all others.
            volumes = overlap.target.detach()
            errors = volumes - overlap.tp
        else:
            volumes, errors = self._by_label(inputs)
        weights = 1 / (volumes + 1) if self.weighting_mode == "GDL" else torch.ones_like(volumes)
        errors = weights * errors
        background, foreground = errors[:, :1], errors[:, 1:].sum(1, keepdim=True)
        rows = slice(None) if self.weighting_mode == "GDL" else slice(1, None)
        right = (weights * volumes)[:, rows].sum(1, keepdim=True) - foreground
        if self.weighting_mode == "GDL":
            right = right - background
        both = 2 * right + background + foreground
        return self.reduced(1 - (2 * right + self.smooth_nr) / (both + self.smooth_dr), inputs, overlap)

    def _by_label(self, inputs: LossInputs) -> tuple[Tensor, Tensor]:
        """The number of voxels with each label, and the sum of D over them, `[B or 1, C]`."""
        assert self.matrix is not None
        indexed = inputs.target.shape[1] == 1
        labels = inputs.target if indexed else _labels(inputs)
        terms = GroupTerms(inputs.mode.value, 0, "labels", len(self.matrix))
        sums = group_sums(terms, inputs.logits, labels, inputs.mask, inputs.voxel_weight)
        # M is 0 on the diagonal: p - y serves as well as p. All classes have the same groups.
        volumes, distances = sums[MASS, :, 0], (sums[OFF] * self.matrix.to(sums)).sum(1)
        if self.batch:
            parts = (values.sum(0, keepdim=True) for values in (volumes, distances))
            volumes, distances = sum_over_ranks(inputs.logits, *parts)
        return volumes.to(inputs.dtype), distances.to(inputs.dtype)


def _labels(inputs: LossInputs) -> Tensor:
    """The label of each voxel of a map per class, `[B, 1, *spatial]`; -1 for none, which no sum counts."""
    masks = inputs.target_masks()
    labels = torch.full_like(masks[:, :1], -1, dtype=torch.int16)
    for c in range(masks.shape[1]):
        labels.masked_fill_(masks[:, c : c + 1], c)
    return labels


def _checked_matrix(matrix: Sequence[Sequence[float]] | Tensor) -> Tensor:
    """M, divided by its largest value, in float32."""
    try:
        m = torch.as_tensor(matrix, dtype=torch.float32).detach().clone()
    except (TypeError, ValueError):
        m = torch.empty(0)
    if m.ndim != 2 or m.shape[0] != m.shape[1] or m.shape[0] < 2:
        raise InputError(f"dist_matrix: got shape {tuple(m.shape)}; expected C rows of C numbers, C >= 2")
    apart = m[~torch.eye(len(m), dtype=torch.bool)]
    if not (m.isfinite().all() and (apart > 0).all() and (m.diagonal() == 0).all() and torch.equal(m, m.T)):
        raise InputError(
            "dist_matrix: expected a symmetric matrix, 0 on the diagonal and positive elsewhere: the classes' distances"
        )
    m /= m.max()
    if not (m[0, 1:] == 1).all():
        raise InputError(
            f"dist_matrix: background is at {[round(d, 6) for d in m[0, 1:].tolist()]} of the largest distance; "
            "expected the largest from every class, so that foreground called background is wrong"
        )
    return m
