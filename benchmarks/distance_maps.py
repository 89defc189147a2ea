"""Signed distance maps beside scipy's and MONAI's, on the same mask, alternating.

python -m benchmarks.distance_maps [--size 128] [--rounds 5]
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from monai.transforms.utils import distance_transform_edt
from numpy.typing import NDArray
from scipy import ndimage

from medloss.distance import signed_distance_map

SPACING = (3.0, 1.0, 0.8)


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


def with_medloss(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Both sides by this package."""
    return signed_distance_map(torch.from_numpy(mask)[None, None], SPACING)[0, 0].numpy()


def main() -> None:
    """Print medians and ratios as a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    mask = organ(options.size)
    ways: dict[str, Callable[[NDArray[np.bool_]], NDArray]] = {
        "scipy": with_scipy, "MONAI": with_monai, "medloss": with_medloss,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way(mask)
            times[name].append(time.perf_counter() - start)
    largest = np.abs(with_medloss(mask) - with_scipy(mask)).max()
    ours = statistics.median(times["medloss"])
    print(
        f"{options.size}^3 voxels of {SPACING} mm, {torch.get_num_threads()} threads, {platform.processor() or 'CPU'}"
    )
    print(f"largest difference from scipy: {largest:.1e} mm\n")
    print("| | median, s | times medloss's |\n| --- | ---: | ---: |")
    for name, seconds in times.items():
        print(f"| {name} | {statistics.median(seconds):.3f} | {statistics.median(seconds) / ours:.1f} |")


if __name__ == "__main__":
    main()
