"""Which losses may share one pass over the voxels."""

from collections.abc import Sequence
from typing import TypeGuard

from torch import nn

from medloss.sums_loss import SumsLoss
from medloss.voxel_sums import Requested
from medloss.voxelwise import VoxelwiseLoss

# What decides how logits, target and mask are read. Which classes count may differ between the losses: the sums are
# computed for every class that counts for one of them.
_READING = ("softmax", "sigmoid", "other_act", "ignore_index", "validate", "soft_targets")


def fitting_groups(losses: Sequence[nn.Module]) -> list[list[int]]:
    """The losses' places, those together that may share a pass."""
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
    if not (shareable(first) and shareable(second)):
        return False
    assert isinstance(first, SumsLoss) and isinstance(second, SumsLoss)
    if any(getattr(first, name) != getattr(second, name) for name in _READING):
        return False
    one, other = first.requested(), second.requested()
    return not (one.entropy and other.entropy) or (one.entropy, one.gamma) == (other.entropy, other.gamma)


def shareable(loss: nn.Module) -> TypeGuard[SumsLoss]:
    """Whether a loss is no more than a function of its sums."""
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


def united(one: Requested, other: Requested) -> Requested:
    """The sums of two losses that fit."""
    entropy, gamma = (one.entropy, one.gamma) if one.entropy else (other.entropy, other.gamma)
    return Requested(
        one.overlap or other.overlap, one.squares or other.squares, one.errors or other.errors, entropy, gamma
    )
