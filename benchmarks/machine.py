"""What was measured on: the processor, the threads and the versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

#: Packages whose versions a comparison hangs on; those that are missing are named as missing.
PACKAGES = ("torch", "monai", "numba", "triton", "kornia", "numpy", "scipy", "SimpleITK", "edt")
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def processor() -> str:
    """The processor's name and those of its instructions that matter."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in _FLAGS if flag in flags]
    return f"{model or 'a CPU'} ({', '.join(known) or platform.machine()})"


def machine() -> str:
    """The processor, the threads, and the versions of Python and torch, in a line."""
    return (
        f"{processor()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def versions() -> dict[str, str]:
    """Package to version; `missing` where it is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def describe(device: str) -> dict[str, str]:
    """What a group of measurements was made on, for the results' file."""
    description = {
        "processor": f"{processor()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores",
        "versions": ", ".join(f"{name} {number}" for name, number in versions().items()),
    }
    if device == "cuda":
        gigabytes = torch.cuda.get_device_properties(0).total_memory / 2**30
        description["gpu"] = f"{torch.cuda.get_device_name()}, {gigabytes:.0f} GiB, CUDA {torch.version.cuda}"
    return description
