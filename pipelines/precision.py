"""In which numbers a network computes."""

from pathlib import Path

import torch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type under autocast, or None for float32.

    `auto`: bfloat16 where the processor has instructions for it (AMX or AVX512-BF16; a training step of the small
    U-Net then takes 0.6 to 0.75 of float32's time), or a GPU that has them; else float32.
    """
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if _processor_computes_bfloat16() else None


def _processor_computes_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.is_file() else []
    return "amx_bf16" in flags or "avx512_bf16" in flags
