"""The gallery's pictures: value and gradient as curves, and the negative gradient on one slice."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from pipelines.gallery.scenes import PROBABILITIES, SHARES, imbalance_curve, is_voxelwise, probability_curve
from pipelines.utils.figures import (
    BACKGROUND,
    FOREGROUND,
    GRADIENT_COLOURS,
    NEIGHBOUR_GREY,
    PREDICTION,
    figure,
    plain,
    styled,
)

_SCALE_LABEL = (
    "negative gradient -dL/dz of the logit z, relative to\nthe slice's largest |dL/dz|  (+: towards foreground)"
)
#: Drawn in grey for comparison with each loss: name to label and line.
_NEIGHBOURS = {"binary_cross_entropy": ("cross entropy", "--"), "dice": ("Dice", ":")}


def probability_figure(name: str) -> Figure:
    """Value and gradient dL/dz of a loss, for a foreground and a background region whose voxels have probability p."""
    unit = "mean per voxel of the region" if is_voxelwise(name) else "whole region"
    with styled():
        picture = figure(7.4, 3.0)
        left, right = picture.subplots(1, 2)
        for foreground, colour, line in ((True, FOREGROUND, "-"), (False, BACKGROUND, "--")):
            label = "foreground region (y = 1)" if foreground else "background region (y = 0)"
            values, gradients = probability_curve(name, foreground)
            left.plot(PROBABILITIES, values, line, color=colour, label=label)
            right.plot(PROBABILITIES, gradients, line, color=colour)
        left.set(title=f"value ({unit})", ylabel="L")
        right.set(title=f"gradient ({unit})", ylabel="dL/dz, z: logit")
        right.axhline(0, color="black", linewidth=0.8, zorder=1)
        for axes in (left, right):
            axes.set(xlabel="predicted probability p in the region", xlim=(0, 1))
            _spread(axes)
        picture.legend(loc="outside upper center", ncols=2)
    return picture


def imbalance_figure(name: str) -> Figure:
    """Value, and |dL/dz| per foreground voxel, against the foreground's share, with cross entropy and Dice."""
    with styled():
        picture = figure(7.4, 3.0)
        left, right = picture.subplots(1, 2)
        curves = imbalance_curve(name)
        for other, (label, line) in _NEIGHBOURS.items():
            if other != name:
                for axes, numbers in zip((left, right), imbalance_curve(other), strict=True):
                    axes.plot(SHARES, numbers, line, color=NEIGHBOUR_GREY, label=label if axes is left else None)
        for axes, numbers in zip((left, right), curves, strict=True):
            axes.plot(
                SHARES, np.where(numbers > 0, numbers, np.nan), color=FOREGROUND, label=name if axes is left else None
            )
            axes.set(xscale="log", yscale="log", xlabel="foreground's share of the image", xlim=(SHARES[0], SHARES[-1]))
            axes.set_xticks([1e-4, 1e-3, 1e-2, 1e-1, 0.5], ["0.01 %", "0.1 %", "1 %", "10 %", "50 %"])
            axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            low, high = axes.get_ylim()
            if high / low < 30:  # there would be one labelled tick only
                axes.set_ylim(np.sqrt(low * high) / 6, np.sqrt(low * high) * 6)
        left.set(title=f"value{_zeros(curves[0])}", ylabel="L")
        right.set(title=f"gradient per foreground voxel{_zeros(curves[1])}", ylabel="|dL/dz|, z: logit")
        picture.legend(loc="outside upper center", ncols=3)
    return picture


def _spread(axes: Axes) -> None:
    """Use a symmetric logarithmic axis where one curve's peak would flatten the others."""
    heights = np.abs(np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines]))
    heights = heights[heights > 0]
    if len(heights) and heights.max() > 300 * np.median(heights):
        threshold = 10 ** np.floor(np.log10(np.median(heights)))
        axes.set_yscale("symlog", linthresh=threshold)
        axes.set_ylabel(f"{axes.get_ylabel()}  (log beyond {threshold:g})")


def _zeros(numbers: NDArray[np.float64]) -> str:
    """The title's note on zeros, which a logarithmic axis cannot show."""
    zeros = np.flatnonzero(~(numbers > 0))
    if not len(zeros):
        return ""
    return f" ({'0 up to' if zeros[0] == 0 else '0 at'} {100 * SHARES[zeros[-1]]:.2g} %)"


@dataclass(frozen=True)
class Slice:
    """One slice of a case.

    Attributes:
        reference: the structure, `[rows, columns]`, rows drawn upwards.
        prediction: the hard prediction.
        spacing: mm, rows and columns.
        image: intensities.
        axis_labels: of rows and columns, with the unit.
    """

    reference: NDArray[np.bool_]
    prediction: NDArray[np.bool_]
    spacing: tuple[float, float]
    image: NDArray
    axis_labels: tuple[str, str]


def normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values divided by their largest absolute value, so within -1 and 1; zeros stay zeros."""
    largest = np.abs(values).max()
    return values / largest if largest > 0 else values


def densest_slice(reference: NDArray[np.bool_], prediction: NDArray[np.bool_], axis: int) -> int:
    """Index along `axis` of the slice with most wrong voxels; if none is wrong, of that with most foreground."""
    wrong = reference ^ prediction
    across = tuple(a for a in range(reference.ndim) if a != axis)
    return int(np.argmax((wrong if wrong.any() else reference).sum(across)))


def gradient_figure(shown: Slice, negative_gradient: NDArray[np.float64], title: str, note: str = "") -> Figure:
    """Image with both contours, and next to it the normalised negative gradient over the faint image.

    Args:
        shown: the slice.
        negative_gradient: -dL/dz, `[rows, columns]`.
        title: of the map; `note`: a line below.
    """
    height, width = (n * s for n, s in zip(shown.reference.shape, shown.spacing, strict=True))
    with styled():
        # Two panels of at most 3 x 3.4 inches, wide enough for their titles and labels, and room for the rest.
        scale = min(3.0 / width, 3.4 / height)
        inches = 2 * max(scale * width, 2.5) + 2.3
        caption = textwrap.fill(note, int(13 * inches))
        picture = figure(inches, max(scale * height, 2.0) + 1.35 + 0.15 * len(caption.splitlines()))
        left, right = picture.subplots(1, 2, sharex=True, sharey=True)
        _draw_image(left, shown)
        left.set(title="image, reference and prediction", ylabel=shown.axis_labels[0])
        _draw_image(right, shown, faint=True)
        _draw_map(right, shown, negative_gradient)
        right.set_title(title if np.any(negative_gradient) else f"{title}: no gradient here")
        for axes in (left, right):
            axes.set_xlabel(shown.axis_labels[1])
        bar = picture.colorbar(_scale(), ax=right, shrink=0.95, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.set_label(_SCALE_LABEL, fontsize=8)
        picture.legend(handles=_legend(), loc="outside upper center", ncols=2)
        if caption:
            picture.supxlabel(caption, fontsize=8)
    return picture


def overview_figure(shown: Slice, maps: Mapping[str, NDArray[np.float64]]) -> Figure:
    """The negative gradients of many losses on the same slice, with one scale; `maps`: a loss's title to its map."""
    columns = min(6, len(maps) + 1)
    rows = -(-(len(maps) + 1) // columns)
    with styled():
        picture = figure(1.65 * columns + 1.0, 1.85 * rows + 0.8)
        grid = picture.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        _draw_image(grid[0, 0], shown)
        grid[0, 0].set_title("the image", fontsize=8.5)
        for axes, (title, values) in zip(grid.flat[1:], maps.items(), strict=False):
            _draw_map(axes, shown, values)
            # The longest name would run into its neighbours.
            axes.set_title(title, fontsize=min(8, 8 * 22 / len(title)))
        for number in range(len(maps) + 1, grid.size):
            grid.flat[number].set_axis_off()
            grid.flat[number - columns].tick_params(labelbottom=True)
        picture.supxlabel(shown.axis_labels[1], fontsize=9)
        picture.supylabel(shown.axis_labels[0], fontsize=9)
        bar = picture.colorbar(_scale(), ax=grid, shrink=0.7, aspect=30, ticks=[-1, -0.5, 0, 0.5, 1])
        bar.set_label(_SCALE_LABEL.replace("slice's", "map's"))
        picture.legend(handles=_legend(), loc="outside upper center", ncols=2)
    return picture


def _draw_map(axes: Axes, shown: Slice, values: NDArray[np.float64]) -> None:
    plain(axes)
    axes.imshow(normalised(values), cmap=_colours(), vmin=-1, vmax=1, **_placement(shown))
    _draw_outlines(axes, shown)


def _draw_image(axes: Axes, shown: Slice, faint: bool = False) -> None:
    plain(axes)
    image = np.nan_to_num(shown.image.astype(float))
    low, high = np.percentile(image, (1, 99))
    high = max(high, low + 1e-9)
    # Faint: between light grey and white, so that colours keep their meaning.
    bottom = low - 7 * (high - low) if faint else low
    axes.imshow(image, cmap="gray", vmin=bottom, vmax=high, **_placement(shown))
    if not faint:
        _draw_outlines(axes, shown)


def _draw_outlines(axes: Axes, shown: Slice) -> None:
    """Along the voxels' edges: each voxel is subdivided, so that the contour follows them."""
    parts = 4
    for mask, colour, line in ((shown.reference, "black", "solid"), (shown.prediction, PREDICTION, "dashed")):
        if not mask.any() or mask.all():
            continue
        fine = np.pad(mask.repeat(parts, 0).repeat(parts, 1), 1).astype(float)
        rows, columns = (
            (np.arange(n) - 0.5) * s / parts - s / 2 for n, s in zip(fine.shape, shown.spacing, strict=True)
        )
        drawn = axes.contour(columns, rows, fine, [0.5], colors=[colour], linewidths=1.3, linestyles=[line], zorder=3)
        drawn.set_path_effects([withStroke(linewidth=2.4, foreground="white", alpha=0.85)])


def _placement(shown: Slice) -> dict[str, Any]:
    (rows, columns), (down, across) = shown.reference.shape, shown.spacing
    extent = (-across / 2, (columns - 0.5) * across, -down / 2, (rows - 0.5) * down)
    return {"extent": extent, "origin": "lower", "aspect": "equal", "interpolation": "nearest"}


def _colours() -> Colormap:
    """Blue, white, red, for every colour vision; transparent around 0, so that the image shows there."""
    colours = GRADIENT_COLOURS(np.linspace(0, 1, 513))
    colours[:, 3] = np.clip(np.abs(np.linspace(-1, 1, 513)) / 0.08, 0, 1)
    return ListedColormap(colours, "negative gradient")


def _scale() -> ScalarMappable:
    return ScalarMappable(Normalize(-1, 1), _colours())


def _legend() -> list[Line2D]:
    return [
        Line2D([], [], color="black", label="reference"),
        Line2D([], [], color=PREDICTION, linestyle="dashed", label="prediction (p > 0.5)"),
    ]
