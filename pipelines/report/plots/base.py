"""The registry of the report's plots, their common look, and their rendering as SVG and PNG."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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

    @property
    def inline(self) -> str:
        """The SVG as part of an HTML page: without header and metadata, and with ids that are unique on the page."""
        text = self.svg[self.svg.index("<svg") :]
        text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)


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
    return Plot(name, svg.getvalue().decode(), png.getvalue())


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
    return "<.001" if p < 0.001 else ">.99" if p > 0.99 else f"{p:.2g}".removeprefix("0")
