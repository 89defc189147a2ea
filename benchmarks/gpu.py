"""The losses on a GPU: that they are right, and how fast they are, in at most 8 minutes.

    benchmarks/gpu.sh            or: python -m benchmarks.gpu

Steps that are finished are not repeated while medloss's code stays as it is: run the command again to resume. Each step
has a time limit; one that fails is recorded and the others follow. Results are written to gpu.md and gpu.json after
each step. Torch for CUDA, MONAI, triton, numpy and scipy are all that is needed.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import medloss

_ROOT = Path(__file__).resolve().parents[1]
_DATA = Path(os.environ.get("MEDLOSS_DATA") or _ROOT.parent / "shared" / "data") / "Task04_Hippocampus"
#: What of a failure is kept.
_CHARACTERS = 600
#: A step is not begun with less time than this, seconds.
_LEAST = 5.0
NOT_MEASURED = "Not measured on a GPU: none was available."

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


def steps() -> dict[str, Step]:
    """All steps, in their order: first whether the losses are right."""
    found = {"install": Step(40, _install)}
    limits = {"self_checks": 60, "contract": 75, "half_precision": 60, "large": 40, "compiled": 60}
    for name in (
        "self_checks",
        "contract",
        "half_precision",
        "distances",
        "streams",
        "graphs",
        "second_device",
        "large",
    ):
        found[name] = Step(limits.get(name, 30), partial(_check, name))
    for side in (128, 192):
        for dtype in ("bfloat16", "float32"):
            found[f"losses, {side}^3, {dtype}"] = Step(45, partial(_losses, side, dtype))
    found["transforms"] = Step(40, _transforms)
    found["Hausdorff losses"] = Step(40, _hausdorff)
    found["other losses"] = Step(40, _others)
    found["compiled"] = Step(60, partial(_check, "compiled"))
    found |= {f"compiled rivals, {dtype}": Step(75, partial(_rivals, dtype)) for dtype in ("bfloat16", "float32")}
    found["training"] = Step(50, _training)
    found["tests"] = Step(90, _tests)
    return found


# The steps import what they need: the process that waits for them needs no torch.


def _machine(options: argparse.Namespace) -> Any:
    from benchmarks.gpu_checks import Machine

    return Machine(options.dry)


def _check(name: str, options: argparse.Namespace) -> str:
    from benchmarks.gpu_checks import CHECKS

    return CHECKS[name](_machine(options))


def _losses(side: int, dtype: str, options: argparse.Namespace) -> Iterator[Any]:
    from benchmarks import gpu_bench

    return gpu_bench.losses(_machine(options), gpu_bench.DRY_SIDE if options.dry else side, dtype)


def _rivals(dtype: str, options: argparse.Namespace) -> Iterator[Any]:
    from benchmarks import gpu_bench

    return gpu_bench.compiled(_machine(options), dtype)


def _hausdorff(options: argparse.Namespace) -> Iterator[Any]:
    from benchmarks import gpu_bench

    return gpu_bench.hausdorff(_machine(options))


def _others(options: argparse.Namespace) -> Iterator[Any]:
    from benchmarks import gpu_bench

    return gpu_bench.others(_machine(options))


def _transforms(options: argparse.Namespace) -> Iterator[Any]:
    from benchmarks import gpu_bench

    return gpu_bench.transforms(_machine(options))


def _training(options: argparse.Namespace) -> str:
    from benchmarks.gpu_training import training

    return training(_machine(options), options.data, 0.0 if options.dry else 20.0)


def _install(options: argparse.Namespace) -> str:
    """The checkout without its dependencies; the other steps import it from its folder all the same."""
    from benchmarks.gpu_checks import Skipped

    if options.dry:
        raise Skipped("a dry run changes no installation")
    words = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--quiet", str(_ROOT)]
    ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr.strip()[-_CHARACTERS:]
    return "pip install --no-deps"


def _tests(options: argparse.Namespace) -> str:
    """Those marked `gpu`, and of Triton's kernels, where pytest and what the tests import is installed."""
    from benchmarks.gpu_checks import Skipped

    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing or options.dry:
        raise Skipped("a dry run" if options.dry else f"{', '.join(missing)} not installed: the checks are the same")
    files = ["tests/medloss/kernels/test_triton.py", "tests/benchmarks/test_gpu.py"]
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu or not slow", *files]
    ran = subprocess.run(words, cwd=_ROOT, capture_output=True, text=True)
    last = (ran.stdout.strip().splitlines() or [ran.stderr.strip()])[-1]
    assert ran.returncode == 0, ran.stdout[-_CHARACTERS:]
    return last


def main(arguments: list[str] | None = None) -> None:
    """Run what is not finished, and write the report."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__, formatter_class=_formatter)
    parser.add_argument("--dry", action="store_true", help="tiny sizes on the CPU, by Triton's interpreter")
    parser.add_argument("--again", action="store_true", help="also repeat finished steps")
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="this step; may be repeated")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything; default 8")
    parser.add_argument("--out", type=Path, help="folder; default docs/benchmarks/losses, dry results/gpu-dry")
    parser.add_argument("--data", type=Path, default=_DATA, help="Task04_Hippocampus, for the training")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        _work(options)
        return
    if unknown := sorted(set(options.only) - set(steps())):
        parser.error(f"--only {unknown[0]}: no such step; expected one of {', '.join(steps())}")
    default = _ROOT / ("results/gpu-dry" if options.dry else "docs/benchmarks/losses")
    run(options, options.out or default)


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, width=110)


def run(options: argparse.Namespace, out: Path) -> dict[str, Outcome]:
    """Run the steps that are not finished, within the time; outcomes by name."""
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    code, state = code_digest(), _read(out / "gpu.json")
    description, outcomes = state["machine"], state["steps"]
    worker: _Worker | None = None
    try:
        for name, step in steps().items():
            if options.only and name not in options.only:
                continue
            before = outcomes.get(name)
            finished = before is not None and before.status in (DONE, SKIPPED) and before.code == code
            if finished and not options.again:
                print(f"{name}: finished before", flush=True)
                continue
            left = min(step.limit, deadline - time.monotonic())
            if left < _LEAST:
                outcomes[name] = Outcome(
                    NOT_REACHED, f"{options.minutes:g} minutes were over", code=code, date=_today()
                )
            else:
                worker = worker or _Worker(options, out)
                outcomes[name] = worker.run(name, left, code)
                description = worker.description or description
                if outcomes[name].status in (FAILED, TIMED_OUT):
                    # After an error of CUDA's a process is of no more use.
                    worker.stop()
                    worker = None
            outcome = outcomes[name]
            print(f"{name}: {outcome.status}, {outcome.seconds:.0f} s; {outcome.note}".rstrip("; "), flush=True)
            _write(out, description, outcomes, options)
    finally:
        if worker is not None:
            worker.stop()
    _write(out, description, outcomes, options)
    print(f"written to {out / 'gpu.md'}", flush=True)
    return outcomes


class _Worker:
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
        return Outcome(status, note, round(time.monotonic() - start, 1), code, _today(), rows)

    def stop(self) -> None:
        """End the process and what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                stream.close()
        self._results.unlink(missing_ok=True)


def _work(options: argparse.Namespace) -> None:
    """Run the steps that come in by name, and answer each with a line."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What a library prints belongs into the log.
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        with options.worker.open("w") as file:

            def put(entry: dict[str, Any], file: Any = file) -> None:
                file.write(json.dumps(entry) + "\n")
                file.flush()

            _run_step(steps()[line.strip()], options, put)
        answers.write("\n")
        answers.flush()


def _run_step(step: Step, options: argparse.Namespace, put: Callable[[dict[str, Any]], None]) -> None:
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
        put({"status": FAILED, "note": " ".join(f"{type(error).__name__}: {error}".split())[:_CHARACTERS]})


def code_digest() -> str:
    """Of medloss's code: finished steps hold for it."""
    digest, folder = hashlib.sha256(), Path(medloss.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _read(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text()) if path.is_file() else {"machine": {}, "steps": {}}
    return data | {"steps": {name: Outcome(**outcome) for name, outcome in data["steps"].items()}}


def _write(out: Path, machine: dict[str, str], outcomes: dict[str, Outcome], options: argparse.Namespace) -> None:
    from benchmarks.gpu_report import page

    data = {"machine": machine, "steps": {name: dataclasses.asdict(outcome) for name, outcome in outcomes.items()}}
    texts = {"gpu.json": json.dumps(data, indent=1) + "\n", "gpu.md": page(machine, outcomes, options.dry)}
    for name, text in texts.items():
        temporary = out / f".{name}.new"
        temporary.write_text(text)
        temporary.replace(out / name)


if __name__ == "__main__":
    main()
