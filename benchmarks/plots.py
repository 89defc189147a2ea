"""The figures: shares of MONAI's time, the losses compared with Dice, and growth."""

from io import BytesIO
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.cases import Row
from benchmarks.goals import growth_points, growth_slopes, reference_of, share
from benchmarks.regimes import EXPLAINED
from benchmarks.selections import CLASSES, SIDES
from pipelines.utils.figures import figure, styled
from pipelines.utils.files import write_atomically

#: Okabe and Ito's colours, distinguishable with every kind of colour vision; and a marker each, for prints in grey.
LOOKS = (
    ("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#D55E00", "D"),
    ("#CC79A7", "v"), ("#56B4E9", "P"), ("#000000", "X"),
)  # fmt: skip
SIDE_LOOKS = {"medloss, numba": 0, "medloss, eager": 1, "medloss, triton": 2, "MONAI": 3, "kornia": 4, "torch": 6}


def draw_all(rows: list[Row], folder: Path, prefix: str) -> dict[str, str]:
    """Draw the figures for which there are rows.

    Returns:
        Group to the picture's file name.
    """
    makers = {"goals": _goals, "others": _others, "growth": _growth, "grid": _grid}
    names = {}
    for group, make in makers.items():
        chosen = [r for r in rows if r.group == group and r.total is not None]
        if chosen:
            names[group] = f"{prefix}-{group}.png"
            with styled():
                _write(make(chosen), folder / names[group])
    return names


def _goals(rows: list[Row]) -> Figure:
    """One line per loss and C; each side's time as a share of MONAI's."""
    labels = list(dict.fromkeys((r.loss, r.classes) for r in rows))
    regimes = list(dict.fromkeys(r.regime for r in rows))
    out = figure(4.6 * len(regimes), 1.2 + 0.42 * len(labels))
    for axes, regime in zip(_panels(out, 1, len(regimes)), regimes, strict=True):
        for side in dict.fromkeys(r.side for r in rows if r.library != "MONAI"):
            of_side = [r for r in rows if r.side == side and r.regime == regime]
            points = [
                (share(r, reference_of(r, rows, "MONAI", r.loss)), labels.index((r.loss, r.classes))) for r in of_side
            ]
            _scatter(axes, points, side)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_yticks(range(len(labels)), [f"{loss}, C = {classes}" for loss, classes in labels])
        axes.set(title=EXPLAINED[regime][0], xlabel="time, in MONAI's (log)", ylim=(len(labels) - 0.5, -0.5))
        _log_shares(axes)
    _legend(out)
    return out


def _others(rows: list[Row]) -> Figure:
    """One line per loss; its time relative to our Dice's, and its memory."""
    losses = list(dict.fromkeys(r.loss for r in rows if r.loss != "dice"))
    regimes = list(dict.fromkeys(r.regime for r in rows))
    out = figure(3.6 * len(regimes) + 4.4, 1.4 + 0.3 * len(losses))
    panels = _panels(out, 1, len(regimes) + 1)
    sides = list(dict.fromkeys((r.side, r.classes) for r in rows))
    for axes, regime in zip(panels, [*regimes, ""], strict=True):
        for side, classes in sides:
            chosen = [r for r in rows if (r.side, r.classes) == (side, classes) and r.loss != "dice"]
            if regime:
                of_regime = [r for r in chosen if r.regime == regime]
                points = [(share(r, reference_of(r, rows, "medloss", "dice")), losses.index(r.loss)) for r in of_regime]
            else:
                points = [(r.peak, losses.index(r.loss)) for r in chosen if r.peak is not None]
            _scatter(axes, points, f"{side}, C = {classes}", SIDE_LOOKS.get(side, 6), filled=classes <= 3)
        axes.axvline(1.5, color="black", linewidth=1, linestyle="--")
        title = EXPLAINED[regime][0] if regime else "memory"
        axes.set(title=title, xlabel="time, in our Dice's" if regime else "peak, in the logits' size")
        axes.set(ylim=(len(losses) - 0.5, -0.5), xlim=(0, None))
        axes.set_yticks(range(len(losses)), losses)
        axes.tick_params(labelleft=axes is panels[0])
    _legend(out)
    return out


def _growth(rows: list[Row]) -> Figure:
    """Time over voxels and over classes, log-log, with the fitted slopes."""
    regimes = list(dict.fromkeys(r.regime for r in rows))
    out = figure(10, 3.6 * len(regimes))
    panels = _panels(out, len(regimes), 2, sharey=False)
    for index, axes in enumerate(panels):
        regime, axis = regimes[index // 2], ("voxels", "classes")[index % 2]
        slopes = growth_slopes(rows, axis)
        for number, loss in enumerate(dict.fromkeys(r.loss for r in rows)):
            x, y = growth_points(rows, axis, loss, regime)
            colour, marker = LOOKS[number % len(LOOKS)]
            slope = slopes.get((loss, regime))
            label = loss if slope is None else f"{loss}, slope {slope:.2f}"
            axes.plot(x, y, color=colour, marker=marker, markersize=4.5, linewidth=1.3, label=label)
        axes.set(xscale="log", yscale="log", ylabel="forward and backward, s")
        fixed = "1 x 3 classes; slopes from 64³ up" if axis == "voxels" else "1 x C x 64³"
        axes.set(xlabel=f"{axis} ({fixed})", title=EXPLAINED[regime][0])
        ticks = {n: str(n) for n in CLASSES} if axis == "classes" else {n**3: f"{n}³" for n in SIDES}
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xticks([], minor=True)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return out


def _grid(rows: list[Row]) -> Figure:
    """Nanoseconds per logit over classes at 3D float32: what grows with C would rise."""
    kept = [r for r in rows if len(r.size) == 3 and r.dtype == "float32" and r.regime == rows[0].regime]
    losses, sizes = list(dict.fromkeys(r.loss for r in kept)), sorted({r.size for r in kept})
    out = figure(2.9 * len(sizes) + 0.6, 2.3 * len(losses) + 0.6)
    for index, axes in enumerate(_panels(out, len(losses), len(sizes), sharex=True)):
        loss, size = losses[index // len(sizes)], sizes[index % len(sizes)]
        for side in dict.fromkeys(r.side for r in kept):
            mine = sorted((r for r in kept if (r.loss, r.size, r.side) == (loss, size, side)), key=lambda r: r.classes)
            colour, marker = LOOKS[SIDE_LOOKS.get(side, 5)]
            times = [1e9 * (r.total or 0) / r.voxels / r.classes for r in mine]
            axes.plot(
                [r.classes for r in mine], times, color=colour, marker=marker, markersize=4, label=side, linewidth=1.2
            )
        axes.set(xscale="log", yscale="log", title=f"{loss}, {size[0]}^3")
        _plain_logarithms(axes.yaxis)
        axes.set_xticks([2, 3, 14, 104], ["2", "3", "14", "104"])
        axes.set_xticks([], minor=True)
    out.supxlabel(f"classes; {EXPLAINED[rows[0].regime][0]}", fontsize=9)
    out.supylabel("ns a logit, forward and backward", fontsize=9)
    _legend(out)
    return out


def _panels(out: Figure, rows: int, columns: int, *, sharey: bool = True, sharex: bool = False) -> list[Axes]:
    return list(out.subplots(rows, columns, squeeze=False, sharey="row" if sharey else False, sharex=sharex).flat)


def _scatter(
    axes: Axes, points: list[tuple[float | None, int]], label: str, look: int | None = None, *, filled: bool = True
) -> None:
    known = [(x, y) for x, y in points if x is not None]
    if known:
        colour, marker = LOOKS[SIDE_LOOKS.get(label, 5) if look is None else look]
        x, y = zip(*known, strict=True)
        axes.scatter(x, y, s=32, marker=marker, facecolors=colour if filled else "none", edgecolors=colour, label=label)


def _log_shares(axes: Axes) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.4), max(high, 1.3))
    _plain_logarithms(axes.xaxis)


def _plain_logarithms(axis: Axis) -> None:
    """1, 2, 5, 10 and so on as they are written."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _legend(out: Figure) -> None:
    handles: dict[str, Artist] = {}
    for axes in out.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    out.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=4)


def _write(out: Figure, path: Path) -> None:
    buffer = BytesIO()
    out.savefig(buffer, format="png")
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
