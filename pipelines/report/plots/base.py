"""The registry of the report's plots, their common look, and their rendering as SVG and PNG."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import Any, Literal
from weakref import WeakKeyDictionary

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.report.collect import Collected
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import BACKGROUND, FOREGROUND, NEIGHBOUR_GREY, PREDICTION, styled

# The registry: the file of a plot adds it by `@register`.

#: A text of the page, or a function that returns it for an analysis.
Text = str | Callable[[Analysis], str]
Draw = Callable[[Analysis, Collected], Figure]


@dataclass(frozen=True)
class PlotEntry:
    """A plot of the report; `register` describes its attributes."""

    name: str
    title: Text
    link: Text
    note: Text
    draw: Draw
    applies: Callable[[Analysis, Collected], bool]

    def text(self, kind: Literal["title", "link", "note"], analysis: Analysis) -> str:
        """One of its texts for this analysis."""
        text: Text = getattr(self, kind)
        return text if isinstance(text, str) else text(analysis)


#: All registered plots, by name, in the order of registration.
REGISTERED: dict[str, PlotEntry] = {}


def register(
    name: str,
    *,
    title: Text,
    note: Text,
    link: Text | None = None,
    applies: Callable[[Analysis, Collected], bool] = lambda analysis, collected: True,
) -> Callable[[Draw], Draw]:
    """Return a decorator that registers the function that draws a plot.

    Args:
        name: name of its section and of its files: `plots/<name>.svg` and `.png`.
        title: heading of its section, and its text for screen readers.
        note: the paragraph below it: what it shows, and what it does not.
        link: text of the link to it, in the list of contents; by default its title.
        applies: whether there is anything to draw; by default always.
    """

    def add(draw: Draw) -> Draw:
        if name in REGISTERED:
            raise ValueError(f"plot '{name}' is already registered: {REGISTERED[name].draw.__name__}")
        REGISTERED[name] = PlotEntry(name, title, title if link is None else link, note, draw, applies)
        return draw

    return add


# The common look of the plots, and their rendering as SVG and PNG.

BLUE, ORANGE, GREEN, GREY = FOREGROUND, BACKGROUND, PREDICTION, "#6B6B6B"
PALE = "#D9D9D9"
#: A colour and a marker per verdict, so that verdicts can be distinguished in black and white, too.
VERDICT_STYLE = {
    "better": (BLUE, "^"),
    "worse": (ORANGE, "v"),
    "equivalent": (GREEN, "s"),
    "non-inferior": (GREEN, "D"),
    "undecided": (NEIGHBOUR_GREY, "o"),
}
#: Inches; on the page 864 pixels, so that text of 9 points appears in that size.
WIDTH = 9.0


@dataclass(frozen=True)
class Plot:
    """A drawn plot: the name of its files without the ending, and their contents."""

    name: str
    svg: str
    png: bytes

    def inline(self, links: Mapping["Key", str] | None = None) -> str:
        """The SVG as part of an HTML page: without header and metadata, and with ids that are unique on the page.

        Args:
            links: ids on the page to which named points lead, by the points' keys.
        """
        text = self.svg[self.svg.index("<svg") :]
        text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)

        def linked(point: re.Match[str]) -> str:
            target = (links or {}).get((int(point[1]), int(point[2])))
            return point[3] if target is None else f'<a href="#{escape(target)}">{point[3]}</a>'

        return _POINT.sub(linked, text)


# Points with names.

#: A score in the analysis: the place of its loss in the ranking, and of its case among the patients.
Key = tuple[int, int]
#: A named point in the SVG.
_POINT = re.compile(r'<g data-point="(\d+),(\d+)">(.*?)</g>')
#: Points with names -> the names, and their keys.
_NAMED: "WeakKeyDictionary[PathCollection, tuple[Sequence[str], Sequence[Key]]]" = WeakKeyDictionary()
#: A plot names at most about this many points, which take 1.5 MB.
MOST_POINTS = 6000


def named_points(axes: Axes, x: Any, y: Any, names: Sequence[str], keys: Sequence[Key], **style: Any) -> None:
    """Draw points that show their names, and lead to the picture of their case if there is one; without a script.

    Args:
        axes: whose limits must contain all points, since matplotlib omits others.
        x: `[n]`.
        y: `[n]`.
        names: `[n]`.
        keys: `[n]`, which loss and case each point belongs to.
        style: of `Axes.scatter`; one colour and size for all.
    """
    if not len(names):
        return
    points = axes.scatter(x, y, linewidths=0, **style)
    figure = axes.get_figure()
    place = 0 if figure is None else figure.axes.index(axes)
    points.set_gid(f"points-{place}-{len(axes.collections)}")
    _NAMED[points] = names, keys


def is_crowded(analysis: Analysis) -> bool:
    """Whether there are too many scores to draw and name each."""
    return len(analysis.scores) * len(analysis.patients) > MOST_POINTS


def extremes(values: NDArray[np.float64], losses: int) -> NDArray[np.intp]:
    """The indices of the values that are drawn as points, in order: all, or of very many the lowest and highest."""
    most = max(10, MOST_POINTS // losses)
    if len(values) <= most:
        return np.arange(len(values))
    order = np.argsort(values, kind="stable")
    return np.sort(np.concatenate([order[: most // 2], order[-(most - most // 2) :]]))


def _with_names(svg: str, figure: Figure) -> str:
    for points in figure.findobj(PathCollection):
        if points not in _NAMED:
            continue
        names, keys = _NAMED[points]
        start = svg.index(f'<g id="{points.get_gid()}">')
        end = svg.find('<g id="', start + 1) % (len(svg) + 1)
        part = svg[start:end]
        if part.count("<use ") != len(names):
            continue  # another version of matplotlib: the points stay without names
        of_points = iter(zip(names, keys, strict=True))

        def name(use: re.Match[str], of_points: Iterator[tuple[str, Key]] = of_points) -> str:
            text, (loss, case) = next(of_points)
            return f'<g data-point="{loss},{case}">{use[1]}><title>{escape(text)}</title></use></g>'

        svg = svg[:start] + re.sub(r"(<use [^>]*?)/>", name, part) + svg[end:]
    return svg


@contextmanager
def names_as_text() -> Iterator[None]:
    """Draw within this context, inside `styled`, so that untrusted names are drawn as plain text."""
    with warnings.catch_warnings():
        # Letters that the font does not have become boxes in the plot; the table shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # A `$` in a name must not start a formula.
        matplotlib.rcParams.update({"text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "medloss"})
        yield


def drawn(name: str, draw: Callable[[], Figure]) -> Plot:
    """Draw a plot and render it in both formats; the same data give the same bytes."""
    with styled(), names_as_text():
        figure = draw()
        svg, png = BytesIO(), BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # the layout is final now
        figure.savefig(png, format="png", dpi=150)
    return Plot(name, _with_names(svg.getvalue().decode(), figure), png.getvalue())


def short(name: str, at_most: int = 38) -> str:
    """A name in one line; a long name loses its middle."""
    line = " ".join(name.split())
    half = (at_most - 1) // 2
    return line if len(line) <= at_most else f"{line[:half]}…{line[-half:]}"


def name_rows(axes: Axes, losses: list[str], reference: str | None) -> None:
    """Label one row per loss, the first on top; the reference is marked as such."""
    labels = [short(loss) + (" (reference)" if loss == reference else "") for loss in losses]
    axes.set_yticks(range(len(losses)), labels)
    axes.set_ylim(len(losses) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def p_text(p: float) -> str:
    """A p-value as a short text."""
    return "<.001" if p < 0.001 else f"{p:.2g}".removeprefix("0")
