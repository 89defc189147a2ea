"""Curves: value and slope against the predicted probability, and against the foreground's share."""

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.gallery.measure import PROBABILITIES, SHARES, imbalance_curve, is_voxelwise, probability_curve
from pipelines.gallery.style import BACKGROUND, FOREGROUND, NEIGHBOUR_GREY, figure, styled

#: Drawn in grey beside each loss, where they are registered: name to label and line.
_NEIGHBOURS = {"binary_cross_entropy": ("cross entropy", "--"), "dice": ("Dice", ":")}


def probability_figure(name: str) -> Figure:
    """Value and slope dL/dz of a loss, for a foreground and a background region whose every voxel has probability p."""
    unit = "mean a voxel of the region" if is_voxelwise(name) else "whole region"
    with styled():
        picture = figure(7.4, 3.0)
        left, right = picture.subplots(1, 2)
        for foreground, colour, line in ((True, FOREGROUND, "-"), (False, BACKGROUND, "--")):
            label = "foreground region (y = 1)" if foreground else "background region (y = 0)"
            values, slopes = probability_curve(name, foreground)
            left.plot(PROBABILITIES, values, line, color=colour, label=label)
            right.plot(PROBABILITIES, slopes, line, color=colour)
        left.set(title=f"value ({unit})", ylabel="L")
        right.set(title=f"slope ({unit})", ylabel="dL/dz, z: logit")
        right.axhline(0, color="black", linewidth=0.8, zorder=1)
        for axes in (left, right):
            axes.set(xlabel="predicted probability p in the region", xlim=(0, 1))
            _spread(axes)
        picture.legend(loc="outside upper center", ncols=2)
    return picture


def imbalance_figure(name: str) -> Figure:
    """Value, and |dL/dz| a foreground voxel, against the foreground's share, beside cross entropy and Dice."""
    with styled():
        picture = figure(7.4, 3.0)
        left, right = picture.subplots(1, 2)
        own = imbalance_curve(name)
        for other, (label, line) in _NEIGHBOURS.items():
            if other != name:
                for axes, numbers in zip((left, right), imbalance_curve(other), strict=True):
                    axes.plot(SHARES, numbers, line, color=NEIGHBOUR_GREY, label=label if axes is left else None)
        for axes, numbers in zip((left, right), own, strict=True):
            axes.plot(SHARES, _positive(numbers), color=FOREGROUND, label=name if axes is left else None)
            axes.set(xscale="log", yscale="log", xlabel="foreground's share of the image", xlim=(SHARES[0], SHARES[-1]))
            axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 0.5], ["0.01 %", "0.1 %", "1 %", "10 %", "50 %"])
            axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            _few_decades(axes)
        left.set(title=f"value{_zeros(own[0])}", ylabel="L")
        right.set(title=f"slope, mean a foreground voxel{_zeros(own[1])}", ylabel="|dL/dz|, z: logit")
        picture.legend(loc="outside upper center", ncols=3)
    return picture


def _spread(axes: Axes) -> None:
    """A symmetric logarithmic axis where one curve's peak would flatten all else."""
    heights = np.abs(np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines]))
    heights = heights[heights > 0]
    if len(heights) and heights.max() > 300 * np.median(heights):
        threshold = 10 ** np.floor(np.log10(np.median(heights)))
        axes.set_yscale("symlog", linthresh=threshold)
        axes.set_ylabel(f"{axes.get_ylabel()}  (log beyond {threshold:g})")


def _few_decades(axes: Axes) -> None:
    """Less than a decade would leave a logarithmic axis with one labelled tick."""
    low, high = axes.get_ylim()
    if high / low < 30:
        centre = np.sqrt(low * high)
        axes.set_ylim(centre / 6, centre * 6)


def _positive(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(numbers > 0, numbers, np.nan)


def _zeros(numbers: NDArray[np.float64]) -> str:
    """Zeros do not show on a logarithmic axis, so the title tells of them."""
    zeros = np.flatnonzero(~(numbers > 0))
    if not len(zeros):
        return ""
    return f" ({'0 up to' if zeros[0] == 0 else '0 at'} {100 * SHARES[zeros[-1]]:.2g} %)"
