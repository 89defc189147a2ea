"""What the run ran on: versions, and the memory that it took."""

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def versions() -> dict[str, str]:
    """Versions of what a result hangs on."""
    found = {"python": platform.python_version()}
    for package in ("medloss", "torch", "monai", "pytorch-ignite", "SimpleITK", "nibabel", "mlflow", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def reset_peak_memory() -> None:
    """Start the measure of `peak_memory_mb` anew, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        # Linux: makes VmHWM the present size. One process runs many trainings, each with a peak of its own.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory since `reset_peak_memory`, MB: the GPU's allocations, or the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; of a loader process, that the system killed it."""
    signs = ("allocate memory", "bad_alloc", "killed by signal: Killed")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
