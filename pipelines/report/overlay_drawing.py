"""Draws the pictures: the image, the outlines of reference (solid) and prediction (dashed), and wrong voxels tinted."""

import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray
from PIL import Image

from pipelines.evaluation.metrics import METRICS
from pipelines.report.overlay_slices import Panel, Shown, outlines
from pipelines.report.plots.base import WIDTH, names_as_text, short
from pipelines.utils.figures import indexed, styled

#: Okabe and Ito's sky blue, orange and reddish purple: on grey they are distinct with every kind of colour vision.
REFERENCE, PREDICTION, WRONG_CLASS = "#56B4E9", "#F0A000", "#CC79A7"
_HALO = "#101010"
#: Opacity of the tints; pink is paler than the others.
_TINT, _STRONG = 0.38, 0.6
_BACK, _PLAIN = "#F2F2F2", "#3D3D3D"
_DASHES = (0, (2.2, 2.2))
#: Panels per row in the picture of all losses.
_COLUMNS = 6
#: With more voxels than this across a panel, outlines are thinner: they would hide small structures.
_FINE = 90


def loss_picture(loss: str, panels: Sequence[Panel], metric: str) -> bytes:
    """Draw the worst, median and best case of a loss, as PNG."""
    side, gap, bottom, height = 2.79, 0.215, 0.5, 3.98
    classes = [_if_it_fits(class_text(panel, metric), 7.5, side + gap / 2) for panel in panels]
    if any(classes):
        bottom, height = bottom + 0.13, height + 0.13

    def draw(figure: Figure) -> None:
        figure.text(0.1 / WIDTH, 1 - 0.1 / height, short(loss, 70), fontsize=10.5, weight="bold", va="top")
        for number, panel in enumerate(panels):
            left = 0.1 + number * (side + gap)
            axes = figure.add_axes((left / WIDTH, bottom / height, side / WIDTH, side / height))
            case = f"{panel.choice.which}: {short(panel.choice.predicted.case, 34)}"
            for up, size, colour, text in (
                (side + 0.27, 8.5, "black", case),
                (side + 0.09, 8.5, "black", scores_text(panel, metric)),
                (-0.15, 7.5, "#555555", position_text(panel, metric)),
                (-0.28, 7.5, "#555555", classes[number]),
            ):
                figure.text(left / WIDTH, (bottom + up) / height, text, fontsize=size, color=colour)
            _draw_panel(axes, panel, 40, 1.35)
        _legend(figure, panels)

    return _png(draw, height)


def same_picture(panels: Sequence[Panel], metric: str) -> bytes:
    """Draw all losses on one slice, as PNG; the first panel shows the reference alone."""
    shown = next(panel.shown for panel in panels if panel.shown is not None)
    count = len(panels) + 1
    columns = ceil(count / ceil(count / min(_COLUMNS, count)))
    rows = ceil(count / columns)
    side = min((WIDTH - 0.2) / columns - 0.1, 2.86)
    classes = [_if_it_fits(class_text(panel, metric), 6.9, side + 0.05) for panel in panels]
    head = 0.48 if any(classes) else 0.36
    height = 0.3 + rows * (side + head) + 0.3

    def draw(figure: Figure) -> None:
        heading = ", ".join(filter(None, (short(panels[0].choice.predicted.case, 60), position_text(panels[0]))))
        figure.text(0.1 / WIDTH, 1 - 0.08 / height, heading, fontsize=10, va="top")
        for number, panel in enumerate([None, *panels]):
            row, column = divmod(number, columns)
            left, bottom = 0.1 + column * (side + 0.1), 0.3 + (rows - 1 - row) * (side + head)
            axes = figure.add_axes((left / WIDTH, bottom / height, side / WIDTH, side / height))
            if panel is None:
                title = "reference label" + (2 if any(classes) else 1) * "\n"
                _draw_image(axes, shown)
                _draw_outline(axes, shown.reference, shown, REFERENCE, "solid", 1.1)
                _finish(axes, shown)
            else:
                score = _value(panel.choice.metrics.get(metric), metric)
                title = f"{short(panel.choice.predicted.loss, round(18.3 * side))}\n{METRICS[metric].label} {score}"
                title += f"\n{classes[number - 1]}" * any(classes)
                _draw_panel(axes, panel, round(14 * side), 1.1, bare=True)
            figure.text(left / WIDTH, (bottom + side + 0.03) / height, title, fontsize=6.9, va="bottom")
        _legend(figure, panels)

    return _png(draw, height)


def scores_text(panel: Panel, metric: str) -> str:
    """The primary metric, Dice and HD95 of the run that is drawn."""
    metrics = panel.choice.metrics
    names = [name for name in dict.fromkeys((metric, "dice", "hd95_mm")) if name in metrics]
    return ", ".join(f"{METRICS[name].label} {_value(metrics[name], name)}" for name in names)


def class_text(panel: Panel, metric: str) -> str:
    """The primary metric of each class, which shows where the errors are; empty where it is longer than 300 letters."""
    if panel.shown is None:
        return ""
    values = (f"{name} {_value(value, metric, less=2)}" for name, value in panel.choice.classes.items())
    return text if len(text := ", ".join(values)) <= 300 else ""


def _if_it_fits(text: str, size: float, width: float) -> str:
    """A text of a size in points, unless it is wider than so many inches: the next panel's would cover its end."""
    font = FontProperties(family="DejaVu Sans", size=size)
    with styled(), names_as_text():
        points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return text if points / 72 <= width else ""


def _value(value: float | None, metric: str, less: int = 1) -> str:
    """The value with fewer decimals than in tables."""
    return "–" if value is None else METRICS[metric].shown(value, decimals=max(1, METRICS[metric].decimals - less))


def position_text(panel: Panel, metric: str | None = None) -> str:
    """The position of the slice; with a metric also, of several runs, the one that is drawn and the mean of all."""
    choice, parts = panel.choice, []
    if panel.shown is not None and panel.shown.plane.across is not None:
        parts.append(f"{panel.shown.plane.name} slice {panel.shown.index + 1} of {panel.shown.slices}")
    if metric is not None and choice.runs > 1:
        parts.append(f"fold {choice.predicted.fold} seed {choice.predicted.seed}")
        parts.append(f"mean of {choice.runs} runs {_value(choice.score, metric)}")
    if panel.shown is not None and panel.shown.no_image is not None:
        parts.append("image missing")
    return ", ".join(parts)


def scale_bar(width: float) -> float:
    """The length of a scale bar in mm: 1, 2 or 5 times a power of ten, at most a third of the width."""
    power = 10.0 ** np.floor(np.log10(width / 3))
    return float(next(step * power for step in (5, 2, 1) if step * power <= width / 3))


def tints(reference: NDArray[Any], prediction: NDArray[Any]) -> NDArray[np.float64]:
    """Tints of missed voxels, false positives and voxels of another class: `[rows, columns, 4]`, RGBA."""
    painted = np.zeros((*reference.shape, 4))
    wrong = reference != prediction
    painted[wrong & (prediction == 0)] = to_rgba(REFERENCE, _TINT)
    painted[wrong & (reference == 0)] = to_rgba(PREDICTION, _TINT)
    painted[wrong & (reference != 0) & (prediction != 0)] = to_rgba(WRONG_CLASS, _STRONG)
    return painted


def _draw_panel(axes: Axes, panel: Panel, letters: int, line: float, bare: bool = False) -> None:
    shown = panel.shown
    if shown is None:
        _finish(axes, None)
        text = textwrap.fill(f"no picture: {panel.problem}", letters, max_lines=12, placeholder=" …")
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=7.5, color="#555555")
        return
    prediction = shown.predictions[panel.choice.predicted]
    if max(prediction.shape) > _FINE:
        line *= 0.75
    _draw_image(axes, shown)
    axes.imshow(tints(shown.reference, prediction), **_placed(shown))
    _draw_outline(axes, shown.reference, shown, REFERENCE, "solid", line)
    _draw_outline(axes, prediction, shown, PREDICTION, _DASHES, line)
    _finish(axes, shown, bare)


def _placed(shown: Shown) -> dict[str, Any]:
    width, height = shown.size
    return {"extent": (0, width, 0, height), "origin": "lower", "aspect": "equal", "interpolation": "nearest"}


def _draw_image(axes: Axes, shown: Shown) -> None:
    if shown.image is None:
        axes.imshow(np.full((*shown.reference.shape, 3), to_rgb(_PLAIN)), **_placed(shown))
        return
    usable = shown.image[np.isfinite(shown.image)]
    low, high = np.percentile(usable, (1, 99)) if usable.size else (0.0, 1.0)
    high = max(high, low + 1e-6 * max(abs(low), 1.0))
    image = np.nan_to_num(shown.image.astype(np.float64), nan=low, posinf=high, neginf=low)
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, **_placed(shown))


def _draw_outline(axes: Axes, labels: NDArray[Any], shown: Shown, colour: str, style: Any, width: float) -> None:
    lines = outlines(labels, shown.plane.spacing)
    if lines:
        halo = [withStroke(linewidth=width + 1.0, foreground=_HALO, alpha=0.55)]
        drawn = LineCollection(
            lines, colors=[colour], linestyles=[style], linewidths=[width], capstyle="butt", path_effects=halo
        )
        axes.add_collection(drawn, autolim=False)


def _finish(axes: Axes, shown: Shown | None, bare: bool = False) -> None:
    axes.set_facecolor(_BACK)
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if shown is None:
        return
    width, height = shown.size
    side = max(width, height)
    # All panels are square; a section that is not leaves a part of its panel empty.
    axes.set(xlim=((width - side) / 2, (width + side) / 2), ylim=((height - side) / 2, (height + side) / 2))
    if bare:
        return
    length = scale_bar(width)
    x, y = 0.05 * width, 0.05 * height
    axes.plot([x, x + length], [y, y], color="white", linewidth=2.2, solid_capstyle="butt",
              path_effects=[withStroke(linewidth=3.6, foreground=_HALO)])  # fmt: skip
    halo = [withStroke(linewidth=1.8, foreground=_HALO)]
    at: dict[str, Any] = {"fontsize": 7.5, "color": "white", "path_effects": halo}
    axes.text(x, y + 0.02 * side, f"{length:g} mm", va="bottom", ha="left", **at)
    places = ((0.012, 0.5), (0.988, 0.5), (0.5, 0.012), (0.5, 0.988))
    sides = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
    for letter, (right, up), (ha, va) in zip(shown.plane.letters, places, sides, strict=False):
        axes.text(right * width, up * height, letter, ha=ha, va=va, **at)


def _legend(figure: Figure, panels: Sequence[Panel]) -> None:
    halo = [withStroke(linewidth=2.4, foreground=_HALO, alpha=0.55)]
    keys: list[Any] = [
        Line2D([], [], color=REFERENCE, linewidth=1.4, label="reference label", path_effects=halo),
        Line2D([], [], color=PREDICTION, linewidth=1.4, linestyle=_DASHES, label="prediction", path_effects=halo),
        Patch(color=_flat(REFERENCE), label="missed"),
        Patch(color=_flat(PREDICTION), label="false positive"),
    ]
    shown = [panel.shown for panel in panels if panel.shown is not None]
    maps = [labels for section in shown for labels in (section.reference, *section.predictions.values())]
    if any(len(np.unique(labels[labels != 0])) > 1 for labels in maps):
        keys.append(Patch(color=_flat(WRONG_CLASS), label="wrong class"))
    figure.legend(
        handles=keys, loc="lower left", bbox_to_anchor=(0.08 / WIDTH, 0.01 / figure.get_figheight()), ncols=len(keys),
        fontsize=8, borderaxespad=0, borderpad=0.2, handlelength=2.2, columnspacing=1.6,
    )  # fmt: skip


def _flat(colour: str) -> tuple[float, float, float]:
    """The colour of a tint on middle grey."""
    share = _STRONG if colour == WRONG_CLASS else _TINT
    red, green, blue = (share * part + (1 - share) * 0.5 for part in to_rgb(colour))
    return red, green, blue


def _png(draw: Callable[[Figure], None], height: float) -> bytes:
    """Draw, and write with a palette of 256 colours to a third of the size; the same data give the same bytes."""
    with styled(), names_as_text():
        # Laid out by hand: matplotlib's layout engines take longer than all the drawing.
        figure = Figure(figsize=(WIDTH, height), dpi=130, facecolor="white")
        draw(figure)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    small = BytesIO()
    indexed(Image.fromarray(np.asarray(canvas.buffer_rgba())), _palette()).save(small, format="PNG")
    return small.getvalue()


@cache
def _palette() -> NDArray[np.uint8]:
    """Greys, tints over greys, and the colours from lines to halo: `[256, 3]`, red, green and blue."""
    greys = np.linspace((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 100)
    parts = [greys]
    for colour, share in ((REFERENCE, _TINT), (PREDICTION, _TINT), (WRONG_CLASS, _STRONG)):
        parts.append(share * np.array(to_rgb(colour)) + (1 - share) * greys[::3])
    parts += [np.linspace(to_rgb(_HALO), to_rgb(line), 27) for line in (REFERENCE, PREDICTION)]
    return np.rint(255 * np.concatenate(parts)).astype(np.uint8)
