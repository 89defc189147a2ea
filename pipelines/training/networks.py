"""The networks, from MONAI, made of a run's config."""

from typing import Any

from monai.networks.nets import DynUNet, UNet, VNet
from torch import Tensor, nn

from pipelines.training.run_config import RunConfig

#: nnU-Net's bound on channels: coarser levels see few voxels, and need no more.
_MOST_CHANNELS = 320


def create_network(config: RunConfig, spatial_dims: int, num_classes: int) -> nn.Module:
    """A network that makes logits `[B, C, *spatial]` of images `[B, 1, *spatial]`.

    A network with deep supervision makes, while it trains, a list of logits, finest first.

    Args:
        config: planned: `strides`, `kernels` and `base_channels` are there (a V-Net needs none).
        spatial_dims: 2 or 3.
        num_classes: C, background included.
    """
    if config.network == "vnet":
        # Its dropout of half the channels is made for hundreds of epochs.
        return VNet(spatial_dims, 1, num_classes, dropout_prob_down=0.1, dropout_prob_up=(0.1, 0.1))
    strides = config.strides or ((1,) * spatial_dims, *((2,) * spatial_dims,) * ((config.levels or 3) - 1))
    width = config.base_channels or 16
    channels = [min(width * 2**level, _MOST_CHANNELS) for level in range(len(strides))]
    norm = ("INSTANCE", {"affine": True})
    if config.network == "unet":
        return UNet(
            spatial_dims,
            in_channels=1,
            out_channels=num_classes,
            channels=channels,
            strides=[list(stride) for stride in strides[1:]],
            num_res_units=1,
            norm=norm,
        )
    kernels = config.kernels or ((3,) * spatial_dims,) * len(strides)
    plain: dict[str, Any] = {
        "kernel_size": [list(kernel) for kernel in kernels],
        "strides": [list(stride) for stride in strides],
        "upsample_kernel_size": [list(stride) for stride in strides[1:]],
    }
    # The two coarsest levels have no heads: they see no shapes.
    heads = min(config.deep_supervision, len(strides) - 2)
    if heads > 0:
        plain |= {"deep_supervision": True, "deep_supr_num": heads}
    kind = SupervisedDynUNet if heads > 0 else DynUNet
    return kind(spatial_dims, 1, num_classes, filters=channels, norm_name=norm, **plain)


class SupervisedDynUNet(DynUNet):
    """MONAI's DynUNet, whose coarser outputs stay on their own grids.

    MONAI's own brings them all to the finest grid: eight times the voxels for the loss, on labels that are not there.
    """

    def forward(self, x: Tensor) -> Any:
        """Logits `[B, C, *spatial]`; while it trains with deep supervision, a list of them, finest first."""
        out = self.output_block(self.skip_layers(x))
        if self.training and self.deep_supervision:
            return [out, *self.heads]
        return out
