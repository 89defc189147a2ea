"""What the run ran on: versions, machine, and the memory that it took."""

import json
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import psutil
import torch

from pipelines.threads import available_cores

_STATUS = Path("/proc/self/status")


def versions() -> dict[str, str]:
    """Versions of what a result hangs on."""
    found = {"python": platform.python_version()}
    for package in ("medloss", "torch", "monai", "pytorch-ignite", "SimpleITK", "nibabel", "mlflow", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = _commit()
    return found | ({"medloss commit": commit} if commit else {})


def machine(device: torch.device) -> dict[str, str]:
    """The machine: `processor`, `cores` (that this process may use), `memory`, `system`, `gpu` if it computes."""
    found = {
        "processor": _processor(),
        "cores": str(available_cores()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
    }
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, or was installed from; None for a release."""
    try:
        url = distribution("medloss").read_text("direct_url.json")
        commit: str | None = (json.loads(url or "{}").get("vcs_info") or {}).get("commit_id")
    except (PackageNotFoundError, ValueError, AttributeError):
        commit = None
    root = Path(__file__).resolve().parent.parent
    if commit is None and (root / ".git").exists():
        git = ["git", "-C", str(root)]
        try:
            head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
            state = [*git, "status", "--porcelain", "--untracked-files=no"]
            changed = subprocess.run(state, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        commit = head.stdout.strip() + (", changed since" if changed.stdout.strip() else "")
    return commit


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
    # torch says how a loader process ended, or, where it was reaped before torch looked, only that it did.
    signs = ("allocate memory", "bad_alloc", "killed by signal: Killed", ") exited unexpectedly")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)
