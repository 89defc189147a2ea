"""The machine and its processes: device, memory, versions, cores, child processes, samples of CPU and GPU."""

import contextlib
import json
import math
import multiprocessing
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution, version
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pynvml
import torch

from pipelines.utils import UserError


def seed_everything(seed: int, epoch: int, rank: int = 0) -> None:
    """Set every generator by the seed, the epoch and the process: so a resumed run needs none of their states."""
    number = 1_000_003 * seed + epoch + 7_919 * rank
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002  for libraries that use it


def chosen_device(name: str) -> torch.device:
    """The device of a name, `auto` being the GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if name == "auto":
        return torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device: got '{name}'; expected cpu, cuda or auto") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device: got 'cuda', and there is no CUDA device; expected cpu or auto")
    return device


# What the run ran on: versions, machine, and the memory that it took.

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
    root = Path(__file__).resolve().parents[2]
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


# Cores, and how many threads a process takes: said before it starts, since libraries ask when they are imported.


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_environment(threads: int) -> dict[str, str]:
    """The variables that give torch, NumPy and SimpleITK so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return dict.fromkeys(names, str(threads))


# Processes of a pool that end with the one that they work for.


def live_with_the_parent() -> None:
    """Leave keys pressed on the terminal to the parent, and end when it ends, however that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def end_at_once(pool: ProcessPoolExecutor) -> None:
    """End a pool with what its processes are at, which nobody waits for any more."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


# Imports that leave out what a process does not use, and pass over what other packages warn of meanwhile.


@contextmanager
def without_mlflow() -> Iterator[None]:
    """Have MONAI imported, while the block runs, as where there is no MLflow.

    MONAI imports MLflow for a handler that nothing here uses: a tenth of the time that a worker takes to start. In a
    process that has imported MLflow already, nothing is left out.
    """
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    try:
        yield
    finally:
        del sys.modules["mlflow"]


#: What other packages warn of while they are imported, or by what they call themselves; nothing that a user can change.
_FOREIGN_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Ignite and MONAI import a part of torch that scripts its functions.
    (r"`torch\.jit\.[a-z_]*` is deprecated", DeprecationWarning),
    (r"The ``noload`` loader strategy is deprecated", DeprecationWarning),  # MLflow, of SQLAlchemy 2.1
)


def ignore_foreign_warnings() -> None:
    """Ignore, each by name, the warnings of other packages that even `python -W error` must not make errors of."""
    for message, category in _FOREIGN_WARNINGS:
        warnings.filterwarnings("ignore", message, category)


# What a training does to its machine, sampled while it runs into `system.jsonl` of its folder.

#: A line a sample.
NAME = "system.jsonl"
#: Seconds between two samples, at first; later a share of the run's time: a run of a day has a thousand, not ten.
_LEAST_S = 10.0
_SHARE = 0.005


@contextlib.contextmanager
def sampled(folder: Path, least_s: float = _LEAST_S) -> Iterator[None]:
    """Sample the machine while the block runs, and once at its end.

    The file grows line by line: what was sampled before a kill stays. Nothing that goes wrong here ends the block.

    Args:
        folder: the run's.
        least_s: seconds between samples at the start.
    """
    over = threading.Event()

    def sample() -> None:
        # Whatever the disk, /proc or a driver have against it: a training is worth more than its samples.
        with contextlib.suppress(Exception), (folder / NAME).open("a+b") as file, _gpus() as gpus:
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")  # half a line that a kill, or a full disk, left
            start = time.monotonic()
            psutil.cpu_percent()  # from here on counts
            ended = False
            while not ended:
                ended = over.wait(max(least_s, _SHARE * (time.monotonic() - start)))
                file.write(json.dumps(_sample(gpus)).encode() + b"\n")
                file.flush()

    thread = threading.Thread(target=sample, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


def read_samples(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The samples in a run's folder, each with its number, from 1; the numbers stay when more are added.

    A sample has `time` (unix time, seconds) and measures under MLflow's names: `cpu_utilization_percentage`,
    `system_memory_usage_megabytes`, ..., of the whole machine.
    """
    path = folder / NAME
    if not path.is_file():
        return []
    samples = []
    # Behind the last newline stands a line that is being written.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        with contextlib.suppress(ValueError, TypeError, AttributeError):  # a damaged line
            sample = {name: float(value) for name, value in json.loads(line).items()}
            if "time" in sample and all(map(math.isfinite, sample.values())):
                samples.append((number, sample))
    return samples


def _ends_a_line(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")


def _sample(gpus: list[Any]) -> dict[str, float]:
    memory = psutil.virtual_memory()
    sample = {
        "time": round(time.time(), 3),
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system_memory_usage_percentage": round(100 * memory.used / memory.total, 1),
    }
    for index, gpu in enumerate(gpus):
        for measure in (_gpu_memory, _gpu_utilization, _gpu_power):
            with contextlib.suppress(pynvml.NVMLError):  # not every card tells everything
                sample |= {f"gpu_{index}_{name}": round(value, 1) for name, value in measure(gpu).items()}
    return sample


def _gpu_memory(gpu: Any) -> dict[str, float]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    return {"memory_usage_percentage": 100 * memory.used / memory.total, "memory_usage_megabytes": memory.used / 1e6}


def _gpu_utilization(gpu: Any) -> dict[str, float]:
    return {"utilization_percentage": float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)}


def _gpu_power(gpu: Any) -> dict[str, float]:
    used, most = pynvml.nvmlDeviceGetPowerUsage(gpu), pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    return {"power_usage_watts": used / 1000, "power_usage_percentage": 100 * used / most}


@contextlib.contextmanager
def _gpus() -> Iterator[list[Any]]:
    """Handles of the machine's NVIDIA cards; none without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield []
        return
    try:
        yield [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
