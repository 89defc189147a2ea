"""What a training does to its machine, sampled while it runs into `system.jsonl` of its folder."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pynvml

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
