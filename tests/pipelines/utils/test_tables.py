"""Tables on terminals of any width: text wraps, and names and numbers stay whole."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_call import call_medloss
from made_comparison import made_comparison
from rich.console import Console
from tiny import tiny_manifest

from medloss.names import loss_names
from pipelines.comparison.dry_run import _losses
from pipelines.comparison.execution import Comparison
from pipelines.comparison.remaining_runs import Display
from pipelines.comparison.results import print_results
from pipelines.runs.comparison_folder import run_states
from pipelines.runs.summary import comparison_table
from pipelines.utils.text import Column, abbreviated, numbers, print_table

_WIDTHS = (100, 80, 60, 40)
_SUM = "0.5*binary_cross_entropy+0.5*structural_similarity"
_LOSSES = ["weighted_cross_entropy", "dice", "sensitivity_specificity"]


@pytest.fixture(params=_WIDTHS)
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """A terminal of this width, as far as Rich can tell."""
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setenv("TERM", "xterm")
    return int(request.param)


def _whole(shown: str, words: list[str], width: int) -> None:
    """No line is wider than the terminal, and none of the words is cut."""
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
    for word in words:
        assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", shown), word


def test_losses(width: int) -> None:
    code, shown, _ = call_medloss("losses")
    assert code == 0
    table = shown.split("\nTrained as")[0]
    # Of 40 columns, a name of 28 leaves too few for the rest, and may break.
    names = [name for name in loss_names() if width > 40 or len(name) < 28]
    _whole(table, [*names, "distribution", "boundary", *(["2020,"] * (width > 40))], width)


def test_status_and_the_table_at_the_end(width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = made_comparison(
        tmp_path, _LOSSES, lambda config: "failed" if config.loss == "dice" else "done", seeds=(0, 123456)
    )
    states = run_states(tmp_path, plan)
    code, shown, _ = call_medloss("status", tmp_path)
    assert code == 0
    dice = [f"{state.dice:.3f}" for state in states if state.dice is not None]
    _whole(shown, [*_LOSSES, "123456", "done", "failed", "3/3", "0/3", *dice], width)
    assert "case <c1>" in " ".join(shown.split()) or width < 80  # the reason, over several lines

    table = comparison_table(tmp_path, plan)
    print_results(Comparison(tmp_path, plan), table, None)
    shown = capsys.readouterr().out.split("\nmeans over")[0]
    values = [f"{value:.4f}" for value in table.rows["dice"].dropna()]
    _whole(shown, [*_LOSSES, *values, "sensitivity", "specificity", "0.9900", "2/2", "0/2"], width)


def test_the_live_table(width: int, tmp_path: Path) -> None:
    plan = made_comparison(tmp_path, _LOSSES, lambda config: None if config.loss == "dice" else "done", seeds=(0, 1))
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, height=16)
    display = Display(console)
    display.update(run_states(tmp_path, plan))
    console.print(display.live.renderable)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    _whole(shown, ["done"], width)
    assert len(shown.splitlines()) < 16


def test_check_and_evaluate(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    classes = {0: "background", 1: "organ_with_a_long_name", 2: "shell", 3: "lesion"}
    manifest = tiny_manifest(tmp_path, 2, cases=3, classes=classes)
    code, shown, _ = call_medloss("check", manifest)
    assert code == 0
    _whole(shown, ["organ_with_a_long_name", "mm2:", "median", "32"], width)
    (labels,) = (tmp_path / "cache").glob("*/labels")
    code, shown, _ = call_medloss("evaluate", labels, "--manifest", manifest)
    assert code == 0
    _whole(shown, ["organ_with_a_long_name", "1.0000", "0.00", "sensitivity"], width)


def test_the_dry_runs_losses(width: int) -> None:
    step = SimpleNamespace(seconds=1.25, error=None, peak_mb=1234.5)
    grid = SimpleNamespace(losses=[_SUM], folds=[0], seeds=[0], epochs=2, stages=())
    forecast = SimpleNamespace(
        measured=SimpleNamespace(steps={_SUM: step}), epoch_s=lambda loss, fold: 98765.4, run_s=lambda run: 6000.0
    )
    shown = "\n".join(_losses(grid, forecast, []))  # type: ignore[arg-type]
    _whole(shown, ["1.250", "98765.4", "100.0", "1234", *([_SUM] if width > 60 else [])], width)


def test_in_a_pipe_a_row_is_a_line() -> None:
    file = io.StringIO()
    text = "why " * 100
    columns = [Column("loss"), *numbers("Dice"), Column("left", wraps=True)]
    print_table(columns, [[_SUM, "0.1234", text], ["[dice]", "1", ""]], title="2 runs", console=Console(file=file))
    title, head, first, second = file.getvalue().splitlines()
    assert title == "2 runs"
    assert head.split() == ["loss", "Dice", "left"]
    assert first == f"{_SUM}  0.1234  {text.rstrip()}"
    assert second.split() == ["[dice]", "1"]


@pytest.mark.parametrize(
    ("items", "expected"),
    [([], ""), (["a", Path("b")], "a, b"), (range(4), "0, 1, 2 and 1 more"), (["a\nb", 1], r"'a\nb', 1")],
)
def test_only_the_first_items_are_listed(items: list[object], expected: str) -> None:
    assert abbreviated(items, 3) == expected
