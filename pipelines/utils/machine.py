"""The machine and its processes: device, memory, versions, cores, child processes."""

import json
import multiprocessing
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pynvml

from pipelines.utils import UserError

if TYPE_CHECKING:  # the command imports this module, and does not wait for it
    import torch


def seed_everything(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed all generators by seed, epoch and rank, so that a resumed run needs none of their states."""
    import numpy as np
    import torch

    number = 1_000_003 * seed + epoch + 7_919 * rank
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002  for libraries that use it


def chosen_device(name: str) -> "torch.device":
    """The device of a name, or a `UserError`; `auto` is the GPU if there is one."""
    import torch

    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: got '{name}'; expected cpu, cuda or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device: got 'cuda', but there is no CUDA device; expected cpu or auto")
    return device


# Versions, machine and memory.


def versions() -> dict[str, str]:
    """Versions of the software that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("medloss", "torch", "monai", "pytorch-ignite", "SimpleITK", "nibabel", "mlflow", "numpy"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    commit = _commit()
    return found | ({"medloss commit": commit} if commit else {})


def machine(device: "torch.device") -> dict[str, str]:
    """The machine: `processor`, `cores` (available to this process), `memory`, `system`, and `gpu` if it is used."""
    import torch

    found = {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(available_cores()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": platform.platform(terse=True),
    }
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {})


def processor_has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 (AMX or AVX512-BF16), without which float32 is faster."""
    flags = (_field("/proc/cpuinfo", "flags") or "").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def nvidia_gpus() -> int:
    """Number of NVIDIA GPUs that the driver lists, whether or not torch can use them."""
    with nvidia_handles() as gpus:
        return len(gpus)


@contextmanager
def nvidia_handles() -> Iterator[list[Any]]:
    """Handles of the machine's NVIDIA GPUs; empty without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield []
        return
    try:
        yield [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _field(path: str, name: str) -> str | None:
    """The value of the first `name: value` in a file of Linux's /proc."""
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return line.partition(":")[2].strip()
    return None


def _commit() -> str | None:
    """The commit that this package runs from or was installed from; None for a release."""
    try:
        url = distribution("medloss").read_text("direct_url.json")
        commit: str | None = (json.loads(url or "{}").get("vcs_info") or {}).get("commit_id")
    except (PackageNotFoundError, ValueError, AttributeError):
        commit = None
    root = Path(__file__).resolve().parents[2]
    if commit is None and (root / ".git").exists():
        try:
            commit, changed = (
                subprocess.run(
                    ["git", "-C", str(root), *words.split()], capture_output=True, text=True, timeout=10, check=True
                ).stdout.strip()
                for words in ("rev-parse HEAD", "status --porcelain --untracked-files=no")
            )
        except (OSError, subprocess.SubprocessError):
            return None
        commit += ", changed since" if changed else ""
    return commit


def reset_peak_memory() -> None:
    """Reset `peak_memory_mb`, if the system supports it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        # Linux: resets VmHWM to the current size, since one process trains many runs.
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: "torch.device") -> float:
    """Peak memory since `reset_peak_memory`, MB: the GPU's allocations, or the process's resident memory."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if peak_kb := _field("/proc/self/status", "VmHWM"):
        return int(peak_kb.split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is due to insufficient memory; for a loader process, that the system killed it."""
    import torch

    # torch reports how a loader process ended, or only that it did if it was reaped before torch looked.
    signs = ("allocate memory", "bad_alloc", "killed by signal: Killed", ") exited unexpectedly")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


# Cores and threads.


def available_cores() -> int:
    """Number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_environment(threads: int) -> dict[str, str]:
    """Environment variables that limit torch, NumPy and SimpleITK to so many threads; read when they are imported."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return dict.fromkeys(names, str(threads))


# Processes of a pool.


def end_with_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and end when the parent ends for whatever reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_after(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=end_after, args=(parent.sentinel,), daemon=True).start()


def kill_pool(pool: ProcessPoolExecutor) -> None:
    """Kill a pool's processes without waiting for their work."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


# Imports.


@contextmanager
def without_mlflow() -> Iterator[None]:
    """Make MONAI's import behave as if MLflow were not installed while the block runs.

    MONAI imports MLflow for a handler that is not used here, which takes a tenth of a worker's start-up time. If the
    process has already imported MLflow, this has no effect.
    """
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # marks the module as not installed
    try:
        yield
    finally:
        del sys.modules["mlflow"]


def ignore_foreign_warnings() -> None:
    """Ignore warnings of other packages, so that they are no errors under `python -W error` either."""
    # Ignite and MONAI import a part of torch that scripts its functions.
    warnings.filterwarnings("ignore", r"`torch\.jit\.[a-z_]*` is deprecated", DeprecationWarning)
    # MLflow, of SQLAlchemy 2.1
    warnings.filterwarnings("ignore", "The ``noload`` loader strategy is deprecated", DeprecationWarning)
