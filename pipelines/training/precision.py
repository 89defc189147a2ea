"""In which numbers a network computes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import UserError
from pipelines.training.networks import create_network
from pipelines.training.run_config import RunConfig


def autocast_dtype(config: RunConfig, device: torch.device, patch: Sequence[int]) -> torch.dtype | None:
    """The type under autocast, or None for float32.

    `auto`: bfloat16 on a processor that has instructions for it (AMX or AVX512-BF16; a training step of the small 3D
    U-Net then takes 0.7 to 0.8 of float32's time) and for feature maps that are large enough, or on a GPU that has
    them; else float32.

    Args:
        config: planned; its `precision` is `auto`, `float32`, `bfloat16` or `float16`.
        device: where the network computes.
        patch: what it is trained with, voxels.

    Raises:
        UserError: bfloat16 was asked for where it would give wrong gradients, or float16 without a GPU.
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
        raise UserError("precision: got float16, in which processors do not train; expected bfloat16, float32 or auto")
    safe = not has_maps_below_kernels(config, patch)
    if precision == "bfloat16" and not safe:
        raise UserError(
            f"precision: got bfloat16, and '{config.network}' with patches of {tuple(patch)} has feature maps smaller "
            "than its kernels, whose gradients processors get wrong in bfloat16; expected float32, or a larger patch"
        )
    return torch.bfloat16 if precision == "bfloat16" or (safe and _processor_computes_bfloat16()) else None


def has_maps_below_kernels(config: RunConfig, patch: Sequence[int]) -> bool:
    """Whether a convolution meets maps that are smaller than its kernel along an axis.

    There the gradients of its weights are garbage in bfloat16 on a processor (torch 2.13 with oneDNN on AVX512-BF16:
    memory that nobody set, up to 1e37 or NaN, and at times a corrupt heap; seen for kernels of 3 and 5 in 3D, and for
    strides of 2 in 2D). Float32, transposed convolutions and larger maps were right in every case tried.
    """
    below = []

    def look(module: Any, inputs: tuple[Tensor, ...]) -> None:
        below.append(any(n < k for n, k in zip(inputs[0].shape[2:], module.kernel_size, strict=True)))

    # On the meta device shapes are computed, and nothing else.
    with torch.device("meta"):
        probe = create_network(config, len(patch), 2).eval()
        for module in probe.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                module.register_forward_pre_hook(look)
        probe(torch.empty(1, 1, *patch))
    return any(below)


def _processor_computes_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags
