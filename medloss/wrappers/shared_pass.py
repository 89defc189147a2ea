"""Several losses of one prediction: those that are functions of sums over voxels share one pass, and one softmax."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Unpack

from torch import Tensor, nn

from medloss.base import without_autocast
from medloss.call_arguments import CallArguments, tensors_of
from medloss.checks import checked_tensors
from medloss.create import call_loss
from medloss.inputs import LossInputs
from medloss.kernels.sum_spec import sum_type
from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import VoxelSums, voxel_sums
from medloss.wrappers.sums_groups import fitting_groups, united


def values_of(losses: Sequence[nn.Module], logits: Any, target: Any, **given: Unpack[CallArguments]) -> list[Tensor]:
    """The value of each loss, in their order."""
    values: dict[int, Tensor] = {}
    groups = list(fitting_groups(losses))
    if len(groups) > 1 and isinstance(logits, Tensor) and logits.is_floating_point():
        # Or the groups' gradients would be added in half precision.
        logits = logits.to(sum_type(logits))
    for group in groups:
        if len(group) == 1:
            values[group[0]] = call_loss(losses[group[0]], logits, target, **given)
        else:
            shared = [losses[i] for i in group]
            values |= zip(group, _shared(shared, logits, target, **given), strict=True)  # type: ignore[arg-type]
    return [values[i] for i in range(len(losses))]


def _shared(losses: Sequence[SumsLoss], logits: Any, target: Any, **given: Unpack[CallArguments]) -> list[Tensor]:
    checked_tensors(logits, target, **tensors_of(given))
    with without_autocast(logits):
        widest = next((loss for loss in losses if loss.include_background), losses[0])
        inputs = widest.prepare(logits, target, **given)
        for loss in losses:
            if loss is not widest:  # which the preparation has checked
                loss.check_channels(logits.shape[1], target.shape[1])
        requested = losses[0].requested()
        for loss in losses[1:]:
            requested = united(requested, loss.requested())
        rows = voxel_sums(inputs, requested).rows
        return [loss.from_sums(VoxelSums(rows, _seen_by(loss, inputs))) for loss in losses]


def _seen_by(loss: SumsLoss, inputs: LossInputs) -> LossInputs:
    """The inputs, with the class weights and background setting of one loss of the group."""
    background = loss.include_background or inputs.logits.shape[1] == 1
    return replace(inputs, class_weight=loss.class_weight, include_background=background)
