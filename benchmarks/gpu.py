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
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import medloss
from benchmarks.gpu_worker import (
    CHARACTERS,
    DONE,
    FAILED,
    NOT_REACHED,
    SKIPPED,
    TIMED_OUT,
    Outcome,
    Step,
    Worker,
    today,
    work,
)

_ROOT = Path(__file__).resolve().parents[1]
_DATA = Path(os.environ.get("MEDLOSS_DATA") or _ROOT.parent / "shared" / "data") / "Task04_Hippocampus"
#: A step is not begun with less time than this, seconds.
_LEAST = 5.0
NOT_MEASURED = "Not measured on a GPU: none was available."


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
    assert ran.returncode == 0, ran.stderr.strip()[-CHARACTERS:]
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
    assert ran.returncode == 0, ran.stdout[-CHARACTERS:]
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
        work(steps(), options)
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
    worker: Worker | None = None
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
                outcomes[name] = Outcome(NOT_REACHED, f"{options.minutes:g} minutes were over", code=code, date=today())
            else:
                worker = worker or Worker(options, out)
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


def code_digest() -> str:
    """Of medloss's code: finished steps hold for it."""
    digest, folder = hashlib.sha256(), Path(medloss.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


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
