"""Primitive 2: cross entropy a voxel, from logits, with weights; what every voxelwise loss is made of."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medloss.inputs import LossInputs, Mode

# torch's BCELoss clamps the logarithm of a given probability at -100, and so does this.
_LOG_FLOOR = -100.0


def negative_log(inputs: LossInputs) -> Tensor:
    """-ln p of all C classes, `[B, C, *spatial]`."""
    if inputs.mode is Mode.CATEGORICAL:
        return -torch.log_softmax(inputs.logits, 1)
    if inputs.mode is Mode.BERNOULLI:
        return -F.logsigmoid(inputs.logits)
    return -_clamped_log(_given_probabilities(inputs))


def negative_log_complement(inputs: LossInputs) -> Tensor:
    """-ln(1 - p) of all C channels, `[B, C, *spatial]`; each channel its own yes/no."""
    if inputs.mode is Mode.BERNOULLI:
        return -F.logsigmoid(-inputs.logits)
    return -_clamped_log(1 - _given_probabilities(inputs))


def weighted_cross_entropy(
    inputs: LossInputs, positive: Tensor | float = 1.0, negative: Tensor | float = 1.0
) -> Tensor:
    """Cross entropy a voxel, each class's term times a weight; 0 at masked voxels.

    Categorical: `-sum_c w_c positive_c y_c ln p_c`, shape `[B, 1, *spatial]`. Each channel its own yes/no:
    `-w_c [positive y ln p + negative (1 - y) ln(1 - p)]`, shape `[B, C', *spatial]`. w are the class weights.

    Args:
        inputs: the checked inputs of a loss.
        positive: weight of y, broadcastable to `[B, C', *spatial]`.
        negative: weight of 1 - y, likewise; categorical losses do not read it.
    """
    y = inputs.included(inputs.target)
    terms = inputs.weights() * positive * y * inputs.included(negative_log(inputs))
    if inputs.categorical:
        return inputs.counted(terms.sum(1, keepdim=True))
    terms = terms + inputs.weights() * negative * (1 - y) * inputs.included(negative_log_complement(inputs))
    return inputs.counted(terms)


def _given_probabilities(inputs: LossInputs) -> Tensor:
    return inputs.logits if inputs.activation is None else inputs.activation(inputs.logits)


def _clamped_log(p: Tensor) -> Tensor:
    # Written with `where` twice: the gradient of log at 0 is infinite, and infinity times 0 would be NaN.
    floor = max(math.exp(_LOG_FLOOR), torch.finfo(p.dtype).tiny)
    above = ~(p < floor)
    return torch.where(above, torch.where(above, p, torch.ones_like(p)).log(), p.new_tensor(_LOG_FLOOR))
