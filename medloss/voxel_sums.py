"""Primitives 1 and 2 in one pass: the sums over voxels that region and cross entropy losses are functions of."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from medloss.inputs import LossInputs
from medloss.kernels import operators
from medloss.kernels.sum_spec import Row, VoxelTerms


@dataclass(frozen=True)
class Requested:
    """Which sums a loss reads; they share one softmax.

    Attributes:
        overlap: the sums of v y p, v p and v y.
        squares: the sums of v p^2 and v y^2.
        errors: the sums of v (y - p)^2 over y and over 1 - y.
        entropy: the sums of v y h and of v (1 - y) h: `""` for none; `plain` h = -ln p, `focal`
            h = -(1 - p)^gamma ln p, `power` h = max(-ln p, 1e-7)^gamma, where p is the probability given to what
            is there; `focal_background` the focal one for class 0 of a softmax and an independent channel's 1 - y,
            else the plain one.
        gamma: the exponent.
        soft_overlap: v (p + y - |p - y|) / 2 in the place of v y p; the same where y is 0 or 1.
        label_smoothing: e of `LossInputs.smoothed`, whose target the entropy reads; not together with other sums.
    """

    overlap: bool = False
    squares: bool = False
    errors: bool = False
    entropy: str = ""
    gamma: float = 0.0
    soft_overlap: bool = False
    label_smoothing: float = 0.0

    def terms(self, inputs: LossInputs) -> VoxelTerms:
        """The same, with the mode and the classes of the inputs."""
        first = 0 if inputs.include_background else 1
        maps = inputs.target.is_floating_point() and inputs.target.shape[1] == inputs.logits.shape[1]
        return VoxelTerms(
            inputs.mode.value,
            first,
            self.overlap,
            self.squares,
            self.errors,
            self.entropy,
            self.gamma,
            soft_overlap=self.soft_overlap and maps,
        )


@dataclass(frozen=True)
class VoxelSums:
    """Sums over each item's counted voxels; `Row` defines each, `[B, C']`."""

    rows: Mapping[Row, Tensor]  # [B, C] each; those that were requested
    inputs: LossInputs

    def row(self, row: Row) -> Tensor:
        """One of the requested sums of the classes that count, `[B, C']`; 0 for the item-class pairs that do not."""
        return self.inputs.labelled_only(self.inputs.included(self.rows[row]))

    @property
    def all_targets(self) -> Tensor:
        """Sum y of all classes, background too, `[B, C]`, 0 where unlabelled; voxel weights do not enter."""
        targets = self.rows[Row.TARGET].detach()
        return targets if self.inputs.labelled is None else targets * self.inputs.labelled

    def cross_entropy(self, positive: Tensor | float = 1.0, negative: Tensor | float = 1.0) -> Tensor:
        """The weighted cross entropy, summed over an item: `[B, 1]` (categorical) or `[B, C']`.

        Args:
            positive: weight of y, broadcastable to `[B, C']`; the class weights come on top.
            negative: weight of 1 - y, likewise; categorical losses do not read it.
        """
        sums = self.class_cross_entropy(positive, negative)
        return sums.sum(1, keepdim=True) if self.inputs.categorical else sums

    def class_cross_entropy(self, positive: Tensor | float = 1.0, negative: Tensor | float = 1.0) -> Tensor:
        """`cross_entropy` of each class, `[B, C']`; of categorical losses that of the voxels which it labels."""
        weight = self.inputs.class_weight
        sums = self.row(Row.POSITIVE)
        # An operation on few numbers takes as long as one on many, after a step of the network much longer.
        if isinstance(positive, Tensor) or positive != 1:
            sums = sums * positive
        if not self.inputs.categorical:
            sums = sums + self.row(Row.NEGATIVE) * negative
        return sums if weight is None else sums * weight.to(sums)


def voxel_sums(inputs: LossInputs, requested: Requested, voxel_weight: Tensor | None = None) -> VoxelSums:
    """Compute the sums in one pass over the voxels.

    Args:
        inputs: the checked inputs of a loss.
        requested: which sums.
        voxel_weight: `[B, 1 or C', *spatial]`, without gradient. Default 1. Times the inputs' `voxel_weight` it is v, a
            factor of every sum but `Row.TARGET`.
    """
    terms = requested.terms(inputs)
    weight = inputs.voxel_weight
    if voxel_weight is not None:
        weight = inputs.times_voxel_weight(voxel_weight.detach().to(inputs.dtype))
    target = inputs.smoothed(requested.label_smoothing).target
    rows = operators.voxel_sums(terms, inputs.logits, target, inputs.mask, weight)
    if requested.label_smoothing:
        # How rare a class is does not depend on it.
        rows |= target_sums(inputs).rows
    return VoxelSums(rows, inputs)


def target_sums(inputs: LossInputs) -> VoxelSums:
    """The sums that the target alone gives."""
    terms = Requested().terms(inputs)
    return VoxelSums(operators.voxel_sums(terms, inputs.logits.detach(), inputs.target, inputs.mask), inputs)


def weighted_cross_entropy(
    inputs: LossInputs,
    positive: Tensor | float = 1.0,
    negative: Tensor | float = 1.0,
    *,
    entropy: str = "plain",
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy per voxel, each class's term times a weight, times the inputs' `voxel_weight`; 0 at masked voxels.

    Categorical: `sum_c w_c positive_c y_c h(p_c)`, shape `[B, 1, *spatial]`. Independent channels:
    `w_c [positive y h(p) + negative (1 - y) h(1 - p)]`, shape `[B, C', *spatial]`. w are the class weights.

    Args:
        inputs: the checked inputs of a loss.
        positive: weight of y, broadcastable to `[B, C']`.
        negative: weight of 1 - y, likewise; categorical losses do not read it.
        entropy: which h, as in `Requested`.
        gamma: its exponent.
        label_smoothing: as in `Requested`.
    """
    factors = [_all_classes(factor, inputs) for factor in (positive, negative)]
    terms = Requested(entropy=entropy, gamma=gamma).terms(inputs)
    target = inputs.smoothed(label_smoothing).target
    values = operators.entropy_map(terms, inputs.logits, target, inputs.mask, *factors)
    values = inputs.times_voxel_weight(values)
    return values if inputs.categorical else inputs.labelled_only(values)


def _all_classes(factor: Tensor | float, inputs: LossInputs) -> Tensor:
    """`[B, C]`: the factor times the class weights, and 0 for a background that does not count."""
    batch, channels = inputs.logits.shape[:2]
    factors = torch.zeros(batch, channels, dtype=inputs.dtype, device=inputs.logits.device)
    left = inputs.included(factors)
    left += factor
    if inputs.class_weight is not None:
        left *= inputs.class_weight.to(left)
    return factors
