"""Several losses of one prediction: those that are functions of sums over voxels share one pass, and one softmax."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from medloss.checks import checked_tensors
from medloss.create import call_loss
from medloss.inputs import LossInputs
from medloss.kernels.sum_spec import sum_type
from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import Requested, VoxelSums, voxel_sums
from medloss.voxelwise import VoxelwiseLoss

# What decides how logits, target and mask are read. Which classes count may differ between the losses: the sums are
# computed for every class that counts for one of them.
_READING = ("softmax", "sigmoid", "other_act", "ignore_index", "validate", "soft_targets")


def values_of(losses: Sequence[nn.Module], logits: Any, target: Any, **keywords: Any) -> list[Tensor]:
    """The value of each loss, in their order; keywords as `SegmentationLoss.forward` takes them."""
    values: dict[int, Tensor] = {}
    groups = _groups(losses)
    if len(groups) > 1 and isinstance(logits, Tensor) and logits.is_floating_point():
        # Or the groups' gradients would be added in half precision.
        logits = logits.to(sum_type(logits))
    for group in groups:
        if len(group) == 1:
            values[group[0]] = call_loss(losses[group[0]], logits, target, **keywords)
        else:
            shared = [losses[i] for i in group]
            values |= zip(group, _shared(shared, logits, target, **keywords), strict=True)  # type: ignore[arg-type]
    return [values[i] for i in range(len(losses))]


def _shared(losses: Sequence[SumsLoss], logits: Any, target: Any, **keywords: Any) -> list[Tensor]:
    checked_tensors(logits, target, **{name: value for name, value in keywords.items() if name != "spacing"})
    with torch.autocast(logits.device.type, enabled=False):
        widest = next((loss for loss in losses if loss.include_background), losses[0])
        inputs = widest.prepare(logits, target, **keywords)
        for loss in losses:
            if loss is not widest:  # which the preparation has checked
                loss.check_channels(logits.shape[1], target.shape[1])
        requested = losses[0].requested()
        for loss in losses[1:]:
            requested = _united(requested, loss.requested())
        rows = voxel_sums(inputs, requested).rows
        return [loss.from_sums(VoxelSums(rows, _seen_by(loss, inputs))) for loss in losses]


def _seen_by(loss: SumsLoss, inputs: LossInputs) -> LossInputs:
    """The inputs, with the class weights and background setting of one loss of the group."""
    background = loss.include_background or inputs.logits.shape[1] == 1
    return replace(inputs, class_weight=loss.class_weight, include_background=background)


def _groups(losses: Sequence[nn.Module]) -> list[list[int]]:
    groups: list[list[int]] = []
    for i, loss in enumerate(losses):
        fitting = (group for group in groups if all(_fit(losses[j], loss) for j in group))
        group = next(fitting, None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return groups


def _fit(first: nn.Module, second: nn.Module) -> bool:
    if not (_shareable(first) and _shareable(second)):
        return False
    assert isinstance(first, SumsLoss) and isinstance(second, SumsLoss)
    if any(getattr(first, name) != getattr(second, name) for name in _READING):
        return False
    one, other = first.requested(), second.requested()
    return not (one.entropy and other.entropy) or (one.entropy, one.gamma) == (other.entropy, other.gamma)


def _shareable(loss: nn.Module) -> bool:
    # A subclass that does more than sums, and a module with hooks, are called as they are.
    return (
        isinstance(loss, SumsLoss)
        and type(loss).forward is SumsLoss.forward
        and type(loss).compute in (SumsLoss.compute, VoxelwiseLoss.compute)
        and type(loss).voxel_weight is SumsLoss.voxel_weight
        and not (isinstance(loss, VoxelwiseLoss) and loss.reduction == "none")
        and not (loss._forward_hooks or loss._forward_pre_hooks)
        and not _reads_otherwise(loss.requested())
    )


def _reads_otherwise(requested: Requested) -> bool:
    return requested.soft_overlap or requested.label_smoothing != 0


def _united(one: Requested, other: Requested) -> Requested:
    entropy, gamma = (one.entropy, one.gamma) if one.entropy else (other.entropy, other.gamma)
    return Requested(
        one.overlap or other.overlap, one.squares or other.squares, one.errors or other.errors, entropy, gamma
    )
