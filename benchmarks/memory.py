"""How much memory a piece of work takes at its peak, whoever allocates it: torch, NumPy, numba or ITK.

On Linux the kernel's high-water mark of the resident memory is set back (`/proc/self/clear_refs`), and compared with
the resident memory before. Memory that glibc keeps after it was freed would spoil that. So what it keeps is given back
first, and the process should have run in the regime `exact` from its start, in which large pieces come from the system
and go back at once: after other regimes free pieces of the heap are filled, and stay resident.
"""

import ctypes
import gc
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

_PROC = Path("/proc/self")


def peak_memory(work: Callable[[], object], device: torch.device, times: int = 3) -> int | None:
    """Bytes at the peak of `work` beyond those before it: the median of some runs; None where it is not available.

    Args:
        work: what to run; what it returns is dropped.
        device: a GPU's own allocations are counted, not the host's.
        times: runs.
    """
    try:
        return round(statistics.median(_peak(work, device) for _ in range(times)))
    except OSError:
        return None


def _peak(work: Callable[[], object], device: torch.device) -> int:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    (_PROC / "clear_refs").write_text("5")
    before = _resident("VmRSS")
    work()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    for line in (_PROC / "status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
