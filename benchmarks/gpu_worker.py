"""The process in which the steps of `benchmarks.gpu` run: started, given a step at a time, and ended at its limit."""

import argparse
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
#: What of a failure is kept.
CHARACTERS = 600
DONE, FAILED, SKIPPED, TIMED_OUT, NOT_REACHED = "done", "**failed**", "skipped", "**timed out**", "not reached"


@dataclass(frozen=True)
class Step:
    """A part of the run.

    Attributes:
        limit: seconds.
        work: gets the options, and returns a note, or rows one after the other.
    """

    limit: float
    work: Callable[[argparse.Namespace], Any]


@dataclass
class Outcome:
    """What became of a step.

    Attributes:
        status: `done`, `failed`, `skipped`, `timed out` or `not reached`.
        note: what was checked, or the reason.
        seconds: how long it took.
        code: of which code, a digest.
        date: when.
        rows: measurements, as JSON has them.
    """

    status: str
    note: str = ""
    seconds: float = 0.0
    code: str = ""
    date: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


class Worker:
    """A process that runs one step after the other: imports and CUDA's start take as long as many a step."""

    def __init__(self, options: argparse.Namespace, out: Path) -> None:
        self.description: dict[str, str] = {}
        self._results = out / "gpu_step.jsonl"
        words = [sys.executable, "-m", "benchmarks.gpu", "--worker", str(self._results), "--data", str(options.data)]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        }
        if options.dry:
            words.append("--dry")
            environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self._log = (out / "gpu.log").open("a")
        self._process = subprocess.Popen(
            words, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            start_new_session=True,
        )  # fmt: skip

    def run(self, name: str, limit: float, code: str) -> Outcome:
        """Run a step, for `limit` seconds at most; what it measured until then is kept."""
        start = time.monotonic()
        self._results.unlink(missing_ok=True)
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()
            answered = bool(select.select([self._process.stdout], [], [], limit)[0])
            ended = answered and not self._process.stdout.readline()
        except BrokenPipeError:
            answered = ended = True
        lines = self._results.read_text().splitlines() if self._results.is_file() else []
        found: dict[str, Any] = {}
        rows = []
        for line in lines:
            if line.endswith("}"):  # Not a line that was cut off.
                entry = json.loads(line)
                rows += [entry["row"]] if "row" in entry else []
                found |= entry
        self.description = found.get("machine", self.description)
        status, note = found.get("status", DONE), found.get("note", "")
        if not answered:
            status, note = TIMED_OUT, f"took more than {limit:.0f} s"
        elif ended:
            status, note = FAILED, f"the process ended with status {self._process.wait()}; see gpu.log"
        return Outcome(status, note, round(time.monotonic() - start, 1), code, today(), rows)

    def stop(self) -> None:
        """End the process and what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()
        self._results.unlink(missing_ok=True)


def work(steps: Mapping[str, Step], options: argparse.Namespace) -> None:
    """Run the steps that come in by name, and answer each with a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What a library prints belongs into the log.
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        with options.worker.open("w") as file:

            def put(entry: dict[str, Any], file: Any = file) -> None:
                file.write(json.dumps(entry) + "\n")
                file.flush()

            run_step(steps[line.strip()], options, put)
        answers.write("\n")
        answers.flush()


def run_step(step: Step, options: argparse.Namespace, put: Callable[[dict[str, Any]], None]) -> None:
    """Run a step in this process; `put` gets the machine, rows, and a note or why there is none."""
    import numpy as np
    import torch

    from benchmarks.gpu_checks import Skipped
    from benchmarks.machine import describe

    try:
        if not options.dry and not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU here; --dry runs on the CPU")
        put({"machine": describe("cpu" if options.dry else "cuda")})
        with np.errstate(all="ignore"):  # Of Triton's interpreter.
            found = step.work(options)
            if isinstance(found, str):
                put({"note": found})
                return
            count = 0
            for count, row in enumerate(found, 1):  # noqa: B007
                put({"row": {name: value for name, value in dataclasses.asdict(row).items() if value is not None}})
            put({"note": f"{count} rows"})
    except Skipped as reason:
        put({"status": SKIPPED, "note": str(reason)})
    except BaseException as error:
        put({"status": FAILED, "note": " ".join(f"{type(error).__name__}: {error}".split())[:CHARACTERS]})


def today() -> str:
    """The date in UTC, for the record."""
    return datetime.now(UTC).strftime("%Y-%m-%d")
