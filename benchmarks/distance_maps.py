"""Signed distance maps compared with scipy's, MONAI's and the package edt's, on the same mask, alternating.

python -m benchmarks.distance_maps [--size 128] [--rounds 5] [--write]
"""

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.transforms.utils import distance_transform_edt
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.machine import machine
from medloss.distance.maps import signed_distance_map
from pipelines.utils.files import write_text

SPACING = (3.0, 1.0, 0.8)
_RESULT = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "distance_maps.md"


def organ(size: int) -> NDArray[np.bool_]:
    """A ball whose radius is a fifth of the volume's side, with a rough surface, as a segmentation has it."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(size),) * 3, indexing="ij")) - size / 2
    rough = ndimage.gaussian_filter(rng.normal(size=(size,) * 3), 3)
    mask: NDArray[np.bool_] = np.sqrt((grid**2).sum(0)) + 20 * rough < size / 5
    return mask


def with_scipy(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Both sides by scipy."""
    outside = ndimage.distance_transform_edt(~mask, sampling=SPACING)
    inside = ndimage.distance_transform_edt(mask, sampling=SPACING)
    return np.asarray(outside) - np.asarray(inside)


def with_monai(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Both sides by MONAI's wrapper, as its Hausdorff loss calls it, but for the spacing."""
    outside = distance_transform_edt(~mask[None], sampling=list(SPACING))
    inside = distance_transform_edt(mask[None], sampling=list(SPACING))
    return np.asarray(outside)[0] - np.asarray(inside)[0]


def with_edt(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Both sides by the package edt, on as many threads as torch has."""
    edt = importlib.import_module("edt")
    threads = torch.get_num_threads()
    outside = edt.edt(~mask, anisotropy=SPACING, parallel=threads)
    return np.asarray(outside) - np.asarray(edt.edt(mask, anisotropy=SPACING, parallel=threads))


def with_medloss(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Both sides by this package."""
    return signed_distance_map(torch.from_numpy(mask)[None, None], SPACING)[0, 0].numpy()


def measure(size: int, rounds: int) -> list[str]:
    """Medians and ratios as a Markdown table, with the largest differences from scipy's map."""
    mask = organ(size)
    ways: dict[str, Callable[[NDArray[np.bool_]], NDArray]] = {
        "scipy": with_scipy, "MONAI": with_monai, "edt": with_edt, "medloss": with_medloss,
    }  # fmt: skip
    missing = [] if importlib.util.find_spec("edt") else ["", "edt is not installed, and did not take part."]
    if missing:
        del ways["edt"]
    times: dict[str, list[float]] = {name: [] for name in ways}
    # One round of all warms up: threads start, and kernels are compiled.
    differences = {name: np.abs(way(mask) - with_scipy(mask)).max() for name, way in ways.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(mask)
            times[name].append(time.perf_counter() - start)
    ours = statistics.median(times["medloss"])
    lines = [
        f"{size}^3 voxels of {SPACING} mm, medians of {rounds}, glibc's default allocator.",
        f"Machine: {machine()}.",
        "",
        "| | median, s | times medloss's | largest difference from scipy, mm |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        lines.append(f"| {name} | {middle:.3f} | {middle / ours:.1f} | {differences[name]:.1e} |")
    return lines + missing


def main() -> None:
    """Print the table, and write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help=f"write {_RESULT.name} into docs/benchmarks, too")
    options = parser.parse_args()
    text = "\n".join(measure(options.size, options.rounds))
    print(text)
    if options.write:
        command = f"python -m benchmarks.distance_maps --size {options.size} --rounds {options.rounds}"
        about = "A rough ball whose radius is a fifth of the volume's side; the ways take turns."
        title = "# Signed distance maps compared with scipy's, MONAI's and edt's"
        write_text(_RESULT, f"{title}\n\n    {command}\n\n{about}\n\n{text}\n")


if __name__ == "__main__":
    main()
