"""Workers that import their packages before there is anything to do: what they train need not wait for that.

A comparison imports as much itself, and reads its data, while they do. Run as a program, this is such a worker.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines.imports import without_mlflow
from pipelines.threads import available_cores, thread_environment

_GPU = Path("/proc/driver/nvidia")
_ready: list[tuple[int, subprocess.Popen[bytes]]] = []


def make_ready(jobs: int | None) -> None:
    """Start some of the workers that will be needed: as many as there are cores which this process leaves free.

    Args:
        jobs: runs at a time; None: one a core, or one on a GPU.
    """
    cores = available_cores()
    jobs = jobs or (1 if _GPU.exists() else cores)
    threads = max(1, cores // jobs)
    for _ in range(min(jobs, max(1, cores - 1))):
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | thread_environment(threads),
        )
        _ready.append((threads, process))


def take_ready(threads: int, arguments: Sequence[str], log_file: Path) -> subprocess.Popen[bytes] | None:
    """Have a worker that is ready carry out a command line; None where there is none, and one has to be started.

    Args:
        threads: of the processor, that it must have been started with.
        arguments: of `medloss`.
        log_file: gets what it says from now on.
    """
    for entry in [entry for entry in _ready if entry[0] == threads]:
        _ready.remove(entry)
        process = entry[1]
        told = json.dumps({"arguments": list(arguments), "log": str(log_file.absolute())})
        assert process.stdin is not None
        with suppress(OSError), process.stdin:
            process.stdin.write(told.encode() + b"\n")
            return process
        process.kill()
        process.wait()
    return None


def end_ready() -> None:
    """End the workers that were not needed."""
    while _ready:
        _, process = _ready.pop()
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()
        process.kill()
        process.wait()


def main() -> None:
    """Import what a training needs, wait for a command line, and carry it out."""
    from pipelines.cli import main as command_line  # first: it filters what the others warn of

    gc.disable()  # nothing that is imported becomes garbage
    with without_mlflow():
        import pipelines.training.run  # noqa: F401
    gc.enable()
    line = sys.stdin.readline()
    if not line:
        return
    told = json.loads(line)
    log = os.open(told["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for own, other in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(own, other)
    sys.argv = ["medloss", *told["arguments"]]
    command_line()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
