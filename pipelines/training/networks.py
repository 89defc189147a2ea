"""MONAI's networks, created from a run's config, and the precision they compute in."""

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import DynUNet, UNet, VNet
from torch import Tensor, nn

from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError
from pipelines.utils.machine import processor_has_bfloat16

#: nnU-Net's limit on channels: coarser levels have few voxels, and need no more.
_MOST_CHANNELS = 320


def create_network(config: RunConfig, spatial_dims: int, out_channels: int, in_channels: int = 1) -> nn.Module:
    """A network from images `[B, K, *spatial]` to logits `[B, C, *spatial]`, by a planned config.

    C is the number of classes, background included, or of regions; K the number of channels of an image. In training
    mode, a network with deep supervision returns a list of logits, finest first.
    """
    if config.network == "vnet":
        # MONAI's default drops half of the channels, which suits runs of hundreds of epochs.
        return VNet(spatial_dims, in_channels, out_channels, dropout_prob_down=0.1, dropout_prob_up=(0.1, 0.1))
    strides = config.strides or ((1,) * spatial_dims, *((2,) * spatial_dims,) * ((config.levels or 3) - 1))
    width = config.base_channels or 16
    channels = [min(width * 2**level, _MOST_CHANNELS) for level in range(len(strides))]
    norm = ("INSTANCE", {"affine": True})
    if config.network == "unet":
        outer = {"in_channels": in_channels, "out_channels": out_channels}
        steps = list(map(list, strides[1:]))
        return UNet(spatial_dims, **outer, channels=channels, strides=steps, num_res_units=1, norm=norm)
    kernels = config.kernels or ((3,) * spatial_dims,) * len(strides)
    plain: dict[str, Any] = {
        "kernel_size": list(map(list, kernels)),
        "strides": list(map(list, strides)),
        "upsample_kernel_size": list(map(list, strides[1:])),
    }
    # The two coarsest levels have no heads: they are too coarse to show shapes.
    heads = min(config.deep_supervision, len(strides) - 2)
    if heads > 0:
        plain |= {"deep_supervision": True, "deep_supr_num": heads}
    kind = SupervisedDynUNet if heads > 0 else DynUNet
    return kind(spatial_dims, in_channels, out_channels, filters=channels, norm_name=norm, **plain)


class SupervisedDynUNet(DynUNet):
    """MONAI's DynUNet with the coarser outputs kept on their grids.

    MONAI's resizes them all to the finest grid: up to eight times the voxels for the loss, without new information.
    """

    def forward(self, x: Tensor) -> Any:
        """Logits `[B, C, *spatial]`; in training mode with deep supervision, a list of them, finest first."""
        out = self.output_block(self.skip_layers(x))
        return [out, *self.heads] if self.training and self.deep_supervision else out


def autocast_dtype(config: RunConfig, device: torch.device, patch: Sequence[int]) -> torch.dtype | None:
    """The type under autocast, or None for float32.

    `auto`: bfloat16 on a processor with instructions for it (AMX or AVX512-BF16; a training step of the small 3D U-Net
    then takes 0.7 to 0.8 of float32's time) if the feature maps of the training patch (voxels) are large enough, or on
    a GPU that supports it; else float32.

    Raises:
        UserError: bfloat16 was requested where it would give wrong gradients, or float16 without a GPU.
    """
    precision = config.precision
    if precision == "float32":
        return None
    if device.type == "cuda":
        if precision == "float16":
            return torch.float16
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_it or precision == "bfloat16" else None
    if precision == "float16":
        raise UserError("precision: got float16, which trains on GPUs only; expected bfloat16, float32 or auto")
    safe = not has_maps_below_kernels(config, patch)
    if precision == "bfloat16" and not safe:
        raise UserError(
            f"precision: got bfloat16, and '{config.network}' with patches of {tuple(patch)} has feature maps smaller "
            "than its kernels, whose gradients are wrong in bfloat16 on a CPU; expected float32, or a larger patch"
        )
    return torch.bfloat16 if precision == "bfloat16" or (safe and processor_has_bfloat16()) else None


def has_maps_below_kernels(config: RunConfig, patch: Sequence[int]) -> bool:
    """Whether a convolution gets maps that are smaller than its kernel along an axis.

    There the gradients of its weights are garbage in bfloat16 on a CPU (torch 2.13 with oneDNN on AVX512-BF16:
    uninitialised memory, and at times a corrupt heap). Float32, transposed convolutions and larger maps are right.
    """
    below = []

    def compare(module: Any, inputs: tuple[Tensor, ...]) -> None:
        below.append(any(n < k for n, k in zip(inputs[0].shape[2:], module.kernel_size, strict=True)))

    # On the meta device only shapes are computed.
    with torch.device("meta"):
        probe = create_network(config, len(patch), 2).eval()
        for module in probe.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.register_forward_pre_hook(compare)
        probe(torch.empty(1, 1, *patch))
    return any(below)
