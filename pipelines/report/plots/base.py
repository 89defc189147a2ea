"""What a plot of the report is, how all of them look, and how they become SVG and PNG."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipelines.report.collect import Collected
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import BACKGROUND, FOREGROUND, NEIGHBOUR_GREY, PREDICTION, styled

# What the report knows of a plot; each plot's file says it of itself, by `@register`, and `registry.py` lists them.

#: A text of the page, or what makes it of an analysis.
Text = str | Callable[[Analysis], str]
Draw = Callable[[Analysis, Collected], Figure]


@dataclass(frozen=True)
class PlotEntry:
    """A plot of the report.

    Attributes:
        name: of its section, and of its files: `plots/<name>.svg` and `.png`.
        title: its section's heading, and what screen readers say in its place.
        link: to its section, in the list of contents.
        note: what it shows, and what it does not: the paragraph below it.
        draw: draws it, in the colours and of the width that `render.py` has.
        applies: whether there is something to draw.
    """

    name: str
    title: Text
    link: Text
    note: Text
    draw: Draw
    applies: Callable[[Analysis, Collected], bool]


#: All registered plots, by name, in the order of registration.
REGISTERED: dict[str, PlotEntry] = {}


def _always(analysis: Analysis, collected: Collected) -> bool:
    return True


def register(
    name: str,
    *,
    title: Text,
    note: Text,
    link: Text | None = None,
    applies: Callable[[Analysis, Collected], bool] = _always,
) -> Callable[[Draw], Draw]:
    """Decorator that registers the function that draws a plot; the arguments are the attributes of `PlotEntry`.

    Args:
        name: of the plot.
        title: of its section.
        note: below it.
        link: to it; by default its title.
        applies: whether there is something to draw; by default there always is.
    """

    def add(draw: Draw) -> Draw:
        if name in REGISTERED:
            raise ValueError(f"a plot '{name}' is registered already: {REGISTERED[name].draw.__name__}")
        REGISTERED[name] = PlotEntry(name, title, title if link is None else link, note, draw, applies)
        return draw

    return add


def written(text: Text, analysis: Analysis) -> str:
    """A text of the page, of this analysis."""
    return text if isinstance(text, str) else text(analysis)


# How the report's plots look, and how they become SVG and PNG.

BLUE, ORANGE, GREEN, GREY = FOREGROUND, BACKGROUND, PREDICTION, "#6B6B6B"
PALE = "#D9D9D9"
#: A colour and a marker a verdict: they are told apart in black and white, too.
VERDICT_STYLE = {
    "better": (BLUE, "^"),
    "worse": (ORANGE, "v"),
    "equivalent": (GREEN, "s"),
    "non-inferior": (GREEN, "D"),
    "undecided": (NEIGHBOUR_GREY, "o"),
}
#: Inches: on the page 864 pixels wide, so that text of 9 points is read as such.
WIDTH = 9.0


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Attributes:
        name: its files' name.
        svg: the whole file.
        png: the whole file.
    """

    name: str
    svg: str
    png: bytes

    @property
    def inline(self) -> str:
        """The SVG as a part of an HTML page: without head and metadata, its ids its own."""
        text = self.svg[self.svg.index("<svg") :]
        text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)


@contextmanager
def names_as_text() -> Iterator[None]:
    """Draw in here, within `styled`: names of strangers are text, whatever is in them."""
    with warnings.catch_warnings():
        # A name in letters that the font lacks: boxes in the plot, the table has it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # Of `$` in a name no formula is made.
        matplotlib.rcParams.update({"text.parse_math": False, "svg.fonttype": "path", "svg.hashsalt": "medloss"})
        yield


def drawn(name: str, draw: Callable[[], Figure]) -> Plot:
    """Draw a plot, and write it in both formats; the same data give the same bytes."""
    with styled(), names_as_text():
        figure = draw()
        svg, png = BytesIO(), BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # everything has its place now
        figure.savefig(png, format="png", dpi=150)
    return Plot(name, svg.getvalue().decode(), png.getvalue())


def short(name: str, at_most: int = 38) -> str:
    """A name in one line; of a long one the middle is left out."""
    line = " ".join(name.split())
    half = (at_most - 1) // 2
    return line if len(line) <= at_most else f"{line[:half]}…{line[-half:]}"


def name_rows(axes: Axes, losses: list[str], reference: str | None) -> None:
    """A row a loss, the first on top; the reference is named as such."""
    labels = [short(loss) + (" (reference)" if loss == reference else "") for loss in losses]
    axes.set_yticks(range(len(losses)), labels)
    axes.set_ylim(len(losses) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def unit(analysis: Analysis) -> str:
    """The primary measure as an axis has it: `Dice`, `HD95 (mm)`."""
    return analysis.metric.heading


def p_text(p: float) -> str:
    """A p-value in few letters."""
    return "<.001" if p < 0.001 else ">.99" if p > 0.99 else f"{p:.2g}".removeprefix("0")
