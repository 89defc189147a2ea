"""A new plot is one file and one line: one that is registered here is on the page and in the folder."""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from cli_call import call_medloss
from matplotlib.figure import Figure
from page_reader import read_page
from PIL import Image
from results_tables import long_table

from pipelines.report.collect import Collected
from pipelines.report.plots import PLOTS
from pipelines.report.plots.base import register
from pipelines.statistics.results import Analysis
from pipelines.utils.figures import figure

_NAME = "histogram"


@pytest.fixture
def histogram() -> Iterator[None]:
    """A plot for reports without a reference."""

    @register(
        _NAME,
        title=lambda analysis: f"All <{analysis.unit}s> in one",
        link="Histogram",
        note="Every loss together.",
        applies=lambda analysis, collected: analysis.reference is None,
    )
    def draw_histogram(analysis: Analysis, collected: Collected) -> Figure:
        drawn = figure(6, 3)
        drawn.add_subplot().hist([value for scores in analysis.scores.values() for value in scores])
        return drawn

    yield
    del PLOTS[_NAME]


def test_a_new_plot_is_found_everywhere(tmp_path: Path, histogram: None) -> None:
    table, out = tmp_path / "results.csv", tmp_path / "report"
    long_table({loss: [0.7 + case / 50 for case in range(8)] for loss in "ab"}).to_csv(table, index=False)
    report = ("report", "--cases", table, "--out", out)
    code, _, err = call_medloss(*report, "--reference", "none")
    assert code == 0, err
    page = read_page(out / "report.html")
    html = (out / "report.html").read_text()
    assert f'<a href="#{_NAME}">Histogram</a>' in html and f'<section id="{_NAME}">' in html
    assert 'aria-label="All &lt;cases&gt; in one"' in html
    assert page.text.index("Scores per case") < page.text.index("All <cases> in one")
    assert page.text.index("All <cases> in one") < page.text.index("Every loss together.")
    assert ElementTree.parse(out / "plots" / f"{_NAME}.svg").getroot().tag.endswith("svg")
    with Image.open(out / "plots" / f"{_NAME}.png") as picture:
        assert picture.width == 900

    # If it does not apply it is not drawn, and an older one is removed.
    code, _, err = call_medloss(*report, "--reference", "a")
    assert code == 0, err
    assert _NAME not in (out / "report.html").read_text()
    assert not list((out / "plots").glob(f"{_NAME}.*")) and (out / "plots" / "boxes.svg").is_file()


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="plot 'boxes' is already registered: draw_boxes"):
        register("boxes", title="Boxes", note="Once more.")(lambda analysis, collected: Figure())
