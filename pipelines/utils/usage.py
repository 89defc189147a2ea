"""Samples of the machine's CPU, memory and GPUs while a run trains."""

import json
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pynvml

from pipelines.utils.machine import nvidia_handles

#: File in the run's folder, one line per sample.
NAME = "system.jsonl"
#: Seconds between samples at the start, and later the share of the run's time between samples: a run of a day has about
#: a thousand samples.
_MIN_INTERVAL_S = 10.0
_SHARE = 0.005


@contextmanager
def sampled(folder: Path, min_interval_s: float = _MIN_INTERVAL_S) -> Iterator[None]:
    """Sample the machine while the block runs, and once at its end.

    The run's folder has a file that grows line by line, so samples taken before a kill are kept. Errors here never end
    the block. `min_interval_s` are the seconds between samples at the start.
    """
    stop = threading.Event()

    def sample() -> None:
        # A run is worth more than its samples, so errors of the disk, /proc or a driver are ignored.
        with suppress(Exception), (folder / NAME).open("a+b") as file, nvidia_handles() as gpus:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")  # after an incomplete line left by a kill or a full disk
            start = time.monotonic()
            psutil.cpu_percent()  # the next call reports the utilisation since this one
            ended = False
            while not ended:
                ended = stop.wait(max(min_interval_s, _SHARE * (time.monotonic() - start)))
                file.write(json.dumps(_sample(gpus)).encode() + b"\n")
                file.flush()

    thread = threading.Thread(target=sample, name="system metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


def read_samples(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """The samples in a run's folder, each with its number, from 1; numbers do not change when samples are added.

    A sample has `time` (Unix time, seconds) and MLflow's system metrics of the whole machine, such as
    `cpu_utilization_percentage` and `system_memory_usage_megabytes`.
    """
    path = folder / NAME
    if not path.is_file():
        return []
    samples = []
    # After the last newline there may be a line that is being written.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        with suppress(ValueError, TypeError, AttributeError):  # a damaged line
            sample = {name: float(value) for name, value in json.loads(line).items()}
            if "time" in sample and all(map(math.isfinite, sample.values())):
                samples.append((number, sample))
    return samples


def _sample(gpus: list[Any]) -> dict[str, float]:
    memory = psutil.virtual_memory()
    sample = {
        "time": round(time.time(), 3),
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": round(memory.used / 1e6, 1),
        "system_memory_usage_percentage": round(100 * memory.used / memory.total, 1),
    }
    for index, gpu in enumerate(gpus):
        for read in (_gpu_memory, _gpu_utilization, _gpu_power):
            with suppress(pynvml.NVMLError):  # not every card reports everything
                sample |= {f"gpu_{index}_{name}": round(value, 1) for name, value in read(gpu).items()}
    return sample


def _gpu_memory(gpu: Any) -> dict[str, float]:
    memory = pynvml.nvmlDeviceGetMemoryInfo(gpu)
    return {"memory_usage_percentage": 100 * memory.used / memory.total, "memory_usage_megabytes": memory.used / 1e6}


def _gpu_utilization(gpu: Any) -> dict[str, float]:
    return {"utilization_percentage": float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)}


def _gpu_power(gpu: Any) -> dict[str, float]:
    used, limit = pynvml.nvmlDeviceGetPowerUsage(gpu), pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
    return {"power_usage_watts": used / 1000, "power_usage_percentage": 100 * used / limit}
