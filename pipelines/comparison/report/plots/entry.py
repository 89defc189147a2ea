"""What the report knows of a plot; each plot's file says it of itself, by `@register`, and `registry.py` lists them."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from pipelines.comparison.report.collect import Collected
from pipelines.comparison.statistics import Analysis

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
