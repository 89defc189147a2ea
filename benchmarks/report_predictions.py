"""What `medloss report --predictions` takes: three methods, a hundred cases; the first time, and again.

The label maps are made: two classes, an organ with a part, rough as segmentations are, and as predictions of three
methods the same with errors of different size. Each call is a process of its own, as from a shell: its start, hashing,
measuring, statistics, plots and the page are in its time.

    python -m benchmarks.report_predictions
    python -m benchmarks.report_predictions --cases 20 --rounds 1
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.machine import machine
from pipelines.utils.files import write_text

_RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "report_predictions.md"
#: Seconds that the first and the second call may take.
GOALS = {"first": 60.0, "second": 10.0}
_SHAPE, _SPACING = (40, 56, 40), (1.0, 1.0, 1.0)
_METHODS = {"one": 0.02, "two": 0.03, "three": 0.05}


def make_label_maps(folder: Path, cases: int) -> None:
    """Write `labels/` and a folder a method."""
    axes = [np.linspace(-1, 1, n) for n in _SHAPE]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")))
    for number in range(cases):
        rng = np.random.default_rng(number)
        field = radius + 0.25 * _rough(rng)
        _write(folder / "labels" / f"case_{number:03d}.nii.gz", _labels(field))
        for name, size in _METHODS.items():
            _write(folder / name / f"case_{number:03d}.nii.gz", _labels(field + size * _rough(rng)))


def _rough(rng: np.random.Generator) -> NDArray[np.float64]:
    field = gaussian_filter(rng.normal(size=_SHAPE), 3)
    return np.asarray(field / field.std())


def _labels(field: NDArray[np.float64]) -> NDArray[np.uint8]:
    return (field < 0.6).astype(np.uint8) + (field < 0.35).astype(np.uint8)


def _write(path: Path, labels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.diag([*_SPACING, 1.0])), path)


def timed_call(folder: Path, out: Path) -> tuple[float, float, str]:
    """Seconds of one call by the clock, and of the processor, and the line that says what was measured."""
    methods = [f"{name}={folder / name}" for name in _METHODS]
    command = [sys.executable, "-m", "pipelines.cli", "report", "--predictions", *methods]
    command += ["--labels", str(folder / "labels"), "--out", str(out)]
    start, before = time.perf_counter(), _processor_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, _processor_seconds() - before, done.stdout.splitlines()[0]


def _processor_seconds() -> float:
    """Of all processes that this one, or they, have waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@click.command()
@click.option("--cases", default=100, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--write", is_flag=True, help="Record the result in docs/benchmarks.")
def main(cases: int, rounds: int, write: bool) -> None:
    """Measure, and print a table."""
    calls: dict[str, list[tuple[float, float, str]]] = {"first": [], "second": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_label_maps(folder, cases)
        for number in range(rounds):
            for own in calls.values():
                own.append(timed_call(folder, folder / f"report_{number}"))
    options = "" if (cases, rounds) == (100, 3) else f" --cases {cases} --rounds {rounds}"
    lines = [
        "# A report on existing predictions",
        "",
        f"    python -m benchmarks.report_predictions{options}",
        "",
        f"{len(_METHODS)} methods, {cases} cases of {' x '.join(map(str, _SHAPE))} voxels, 2 classes; the whole "
        f"call, including start and end of its process; medians of {rounds}.",
        f"Machine: {machine()}; load at the end {os.getloadavg()[0]:.1f}.",
        "",
        "| call | s | CPU time, s | goal, s | |",
        "| --- | ---: | ---: | ---: | --- |",
        *(
            f"| {name} | {statistics.median(own[0] for own in measured):.1f} "
            f"| {statistics.median(own[1] for own in measured):.1f} | {GOALS[name]:.0f} | {measured[-1][2]} |"
            for name, measured in calls.items()
        ),
        "",
    ]
    text = "\n".join(lines)
    click.echo(text)
    if write:
        write_text(_RESULT, text)


if __name__ == "__main__":
    main()
