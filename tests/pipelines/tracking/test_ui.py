"""The page of `mlflow ui` on a comparison, in a browser: what a user sees by default."""

import contextlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import Browser, open_browser
from made_comparison import made_comparison
from mlflow_server import free_port, mlflow_server

from pipelines.comparison.compare import compare_losses
from pipelines.comparison.execution import Execution
from pipelines.tracking.mlflow_store import local_uri
from pipelines.utils.files import read_json

pytestmark = pytest.mark.slow

#: The best first.
_LOSSES = ["dice", "focal", "dice+focal"]
_NAMES = _LOSSES
#: What MLflow's pages say of themselves: one without accounts is asked for the user; panes are resized in a row.
_NOT_OURS = ("/ajax-api/2.0/mlflow/users/current", "ResizeObserver loop completed with undelivered notifications")


@dataclass
class Page:
    """MLflow's pages on a finished comparison."""

    browser: Browser
    server: str
    charts: str
    listed: str
    notes: dict[str, dict[str, str]]

    def open(self, address: str) -> Browser:
        """Load a page as a first visitor."""
        self.browser.open("about:blank")
        # MLflow's page keeps its last filter there.
        self.browser.call("Storage.clearDataForOrigin", origin=self.server, storageTypes="local_storage")
        self.browser.open(address)
        return self.browser

    @property
    def runs(self) -> str:
        """The address of the experiment's runs."""
        return f"{self.server}/#/experiments/{self.notes['experiment']}/runs"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("made") / "comparison"
    plan = made_comparison(folder, _LOSSES)
    shutil.copy(empty_store, folder / "mlflow.db")
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert compare_losses(folder, plan, Execution()) == 0
    charts = re.search(r"^charts +http://127\.0\.0\.1:5000(/.*)$", told.getvalue(), re.MULTILINE)
    listed = re.search(r"^list +http://127\.0\.0\.1:5000(/.*)$", told.getvalue(), re.MULTILINE)
    assert charts and listed, told.getvalue()
    work = tmp_path_factory.mktemp("browser")
    store = ("--backend-store-uri", local_uri(folder))
    command = re.search(r"^MLflow +(.*)$", told.getvalue(), re.MULTILINE)
    assert command
    program, *words = shlex.split(command[1])
    assert Path(program).is_file()
    assert words == ["ui", *store]
    with (
        open_browser(work, width=1600, height=1000) as browser,
        mlflow_server(work, free_port(), *store, command="ui") as server,
    ):
        yield Page(browser, server, server + charts[1], server + listed[1], read_json(folder / "mlflow.json"))


def _assert_nothing_is_wrong(page: Page) -> None:
    bad = [line for line in page.browser.console if line.startswith(("error", "exception"))]
    assert [line for line in (*bad, *page.browser.failed) if not any(known in line for known in _NOT_OURS)] == []


def _wait_for_order(browser: Browser) -> None:
    """Until the runs are listed, the best first: parts of the page have a loss's name before its list is there."""
    browser.wait_for(
        f"(() => {{ const lines = document.body.innerText.split('\\n'); const at = {json.dumps(_NAMES)}.map("
        "name => lines.indexOf(name)); return at.every((place, i) => place > (i ? at[i - 1] : -1)); })()",
        what=f"{', '.join(_NAMES)}, in this order",
    )


def _wait_for_charts(browser: Browser) -> None:
    """Until the curves of val/dice are drawn, which they are when they come into sight."""
    browser.wait_for(
        "(() => { for (const e of document.querySelectorAll('*')) if (e.scrollHeight > e.clientHeight + 50)"
        f" e.scrollTop += 300; return {[f'{name} (val/dice)' for name in _NAMES]}.every("
        "text => document.body.innerText.includes(text)); })()",
        what="curves of val/dice",
    )


def test_the_list_shows_the_runs_by_name(page: Page) -> None:
    browser = page.open(page.runs)
    browser.wait_for_text("3 losses · ")
    for name in _NAMES:
        browser.wait_for_text(name)  # below their parent, which is open
    browser.wait_for_text("made data without fold 0 (abababababab)")
    _assert_nothing_is_wrong(page)


def test_the_list_of_the_comparison_has_scores_and_verdicts(page: Page) -> None:
    """The address of the list that `medloss compare` prints."""
    browser = page.open(page.listed)
    for text in ("val/dice", "medloss.verdict", "rank 1", "rank 3", "0.8"):
        browser.wait_for_text(text)
    _assert_nothing_is_wrong(page)


def test_the_charts_compare_the_losses(page: Page) -> None:
    """The address that `medloss compare` prints."""
    browser = page.open(page.charts)
    _wait_for_order(browser)
    assert "3 losses · " not in browser.text()  # the parent has no curves
    _wait_for_charts(browser)
    _assert_nothing_is_wrong(page)


def test_the_chart_view_without_the_address(page: Page) -> None:
    """The button of the list's page."""
    browser = page.open(f"{page.runs}?compareRunsMode=CHART")
    for name in _NAMES:
        browser.wait_for_text(name)
    _wait_for_charts(browser)
    _assert_nothing_is_wrong(page)


def test_the_comparison_shows_its_verdict(page: Page) -> None:
    browser = page.open(f"{page.runs}/{page.notes['parent']['id']}")
    browser.wait_for_text("On 12 cases, one run per loss: dice had the best mean Dice")
    _assert_nothing_is_wrong(page)
