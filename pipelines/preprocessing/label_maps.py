"""Maps of a label that some losses read: signed distances, tubes around centre lines, nearest instances."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from medloss.base import SegmentationLoss
from medloss.call_arguments import TARGET_MAPS
from pipelines.data.label_scheme import LabelScheme

#: Arguments of a loss's call that are maps of the label.
MAPS = TARGET_MAPS


def wanted_maps(loss: nn.Module) -> tuple[str, ...]:
    """Those of `MAPS` that a loss reads."""
    read = {name for part in loss.modules() if isinstance(part, SegmentationLoss) for name in part.reads_maps}
    return tuple(name for name in MAPS if name in read)


def channel_masks(label: Tensor, scheme: LabelScheme) -> Tensor:
    """Where each channel of a network's output is present, `[B, C, *spatial]`, of class indices `[B, 1, *spatial]`."""
    of_channels = scheme.members if scheme.regions else [(index,) for index in range(len(scheme.values))]
    masks = [torch.isin(label, torch.tensor(of, dtype=label.dtype, device=label.device)) for of in of_channels]
    return torch.cat(masks, 1)


def label_maps(names: Iterable[str], label: Tensor, spacing: Sequence[float], scheme: LabelScheme) -> dict[str, Tensor]:
    """Maps of a label, `[C, *spatial]` each.

    Args:
        names: some of `MAPS`.
        label: class indices `[1, *spatial]`.
        spacing: mm per axis.
        scheme: the classes or regions.
    """
    if not names:
        return {}
    masks = channel_masks(label[None], scheme)
    return {name: _computed(name, masks, tuple(spacing))[0] for name in names}


def _computed(name: str, masks: Tensor, spacing: tuple[float, ...]) -> Tensor:
    if name == "distance_map":
        from medloss.distance import signed_distance_map

        return signed_distance_map(masks, spacing)
    from medloss import maps

    return maps.tube_map(masks, spacing) if name == "skeleton_map" else maps.instance_map(masks, spacing)
