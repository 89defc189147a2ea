"""The networks, from MONAI, and the patches that fit them."""

import math
from collections.abc import Sequence

import numpy as np
from monai.networks.nets import UNet, VNet
from torch import nn

#: By what a patch must be divisible: each network halves it so many times.
DIVISOR = {"unet": 4, "vnet": 16}
#: A planned patch holds at most this many voxels: what a small machine trains in batches.
_MOST_VOXELS = 96**3


def create_network(name: str, spatial_dims: int, num_classes: int) -> nn.Module:
    """A network that makes logits `[B, C, *spatial]` of images `[B, 1, *spatial]`.

    Args:
        name: `unet` (MONAI's, 16-32-64 channels, one residual unit a level) or `vnet` (MONAI's).
        spatial_dims: 2 or 3.
        num_classes: C, background included.
    """
    if name == "vnet":
        # Its dropout of half the channels is made for hundreds of epochs.
        return VNet(spatial_dims, 1, num_classes, dropout_prob_down=0.1, dropout_prob_up=(0.1, 0.1))
    return UNet(
        spatial_dims,
        in_channels=1,
        out_channels=num_classes,
        channels=(16, 32, 64),
        strides=(2, 2),
        num_res_units=1,
        norm=("INSTANCE", {"affine": True}),
    )


def planned_patch(shapes: Sequence[Sequence[int]], network: str) -> tuple[int, ...]:
    """A patch that holds most of a median case: its shape rounded up to what the network divides by, bounded.

    Args:
        shapes: the training cases' shapes, voxels.
        network: whose divisor holds.
    """
    step = max(DIVISOR[network], 8)
    patch = [math.ceil(n / step) * step for n in np.median(np.array(shapes), axis=0)]
    while math.prod(patch) > _MOST_VOXELS:
        longest = max(range(len(patch)), key=lambda axis: patch[axis])
        patch[longest] -= step
    return tuple(patch)
