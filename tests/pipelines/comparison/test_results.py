"""What a comparison prints: estimates while it runs, and at the end the verdict before the table."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from made_comparison import made_comparison
from rich.console import Console

from pipelines.comparison.execution import Comparison
from pipelines.comparison.remaining_runs import Display
from pipelines.comparison.results import Estimates, Report, print_results, verdict_rows
from pipelines.report.collect import from_folder
from pipelines.report.write import write_report
from pipelines.runs.comparison_folder import keep_plan, run_folder, run_states
from pipelines.runs.plan import Plan
from pipelines.runs.summary import comparison_table
from pipelines.training.run_config import RunConfig

_LOSSES = ["dice", "focal", "tversky"]


def _report(folder: Path, plan: Plan, **options: object) -> Report:
    return Report(*write_report(from_folder(folder), folder / "report", bootstraps=100, **options))  # type: ignore[arg-type]


def _named(folder: Path, plan: Plan, reference: str = "dice") -> Plan:
    keep_plan(folder, named := plan.model_copy(update={"reference": reference}))
    return named


def test_the_verdict_comes_first_and_the_table_has_its_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = _named(tmp_path, made_comparison(tmp_path, _LOSSES))
    table, report = comparison_table(tmp_path, plan), _report(tmp_path, plan)
    print_results(Comparison(tmp_path, plan), table, report)
    shown = capsys.readouterr().out
    assert shown.startswith(f"\n{report.analysis.verdict}\n")
    assert shown.index(report.analysis.verdict) < shown.index("difference (95 %)") < shown.index("Still improving")
    footer = shown.splitlines()[-3:]
    assert [line.split()[0] for line in footer] == ["report", "table", "runs"]
    assert footer[0] == f"report    {tmp_path / 'report' / 'report.html'}  (open this in a browser)"

    head, *rows = verdict_rows(table, report.analysis)
    hardest = min(report.analysis.classes, key=lambda name: report.analysis.classes[name].ranking[0].mean)
    assert head == ["loss", "Dice", "difference (95 %)", "verdict", f"Dice {hardest}", "HD95 (mm)", "s/epoch", "runs"]
    assert [row[0] for row in rows] == _LOSSES  # the best mean first
    assert rows[0][2:4] == ["", "reference"]
    for row, found in zip(rows[1:], report.analysis.primary.comparisons, strict=True):
        assert found.interval is not None
        low, high = found.interval
        assert row[2:4] == [f"{found.difference:+.4f} ({low:+.4f} to {high:+.4f})", "worse"]
        assert float(row[1]) == pytest.approx(table.rows.set_index("loss").loc[row[0], "dice"], abs=1e-4)
        assert re.fullmatch(r"\d+\.\d\d", row[5])


def test_a_run_that_did_not_find_a_class_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _named(tmp_path, made_comparison(tmp_path, _LOSSES, folds=(0, 1, 2)))
    run = next(run for run in plan.runs if (run.config.loss, run.config.fold) == ("tversky", 1))
    rows = run_folder(tmp_path, run).cases
    nothing = dict.fromkeys(("dice", "iou", "sensitivity", "nsd"), 0.0)
    run_folder(tmp_path, run).write_cases([row | (nothing if row["class"] == "shell" else {}) for row in rows])
    print_results(Comparison(tmp_path, plan), comparison_table(tmp_path, plan), _report(tmp_path, plan))
    shown = capsys.readouterr().out
    assert "tversky fold 1 seed 0: shell was found in none of the 12 cases that have it; at least one other" in shown
    assert "The interval of tversky uses a variance between 3 runs that is estimated separately (2 degrees" in shown


def test_without_a_reference_the_ranks_that_are_possible(tmp_path: Path) -> None:
    plan = _named(tmp_path, made_comparison(tmp_path, _LOSSES), "none")
    head, *rows = verdict_rows(comparison_table(tmp_path, plan), _report(tmp_path, plan).analysis)
    assert head[2] == "ranks (95 %)"
    assert [row[2] for row in rows] == ["1", "2", "3"]  # each is worse than the one before


def test_losses_whose_runs_all_failed_come_last(tmp_path: Path) -> None:
    def ended(config: RunConfig) -> str:
        return "failed" if config.loss == "focal" else "done"

    plan = _named(tmp_path, made_comparison(tmp_path, _LOSSES, ended))
    _, *rows = verdict_rows(comparison_table(tmp_path, plan), _report(tmp_path, plan).analysis)
    assert rows[-1][0] == "focal"
    assert rows[-1][3] == "worse"


def test_one_patient_has_no_interval(tmp_path: Path) -> None:
    plan = _named(tmp_path, made_comparison(tmp_path, _LOSSES[:2], cases=1))
    _, *rows = verdict_rows(comparison_table(tmp_path, plan), _report(tmp_path, plan).analysis)
    assert re.fullmatch(r"[+-]0\.\d{4}", rows[1][2])


def test_an_estimate_per_fold_but_the_last(tmp_path: Path) -> None:
    ended: set[int] = set()

    def state(config: RunConfig) -> str | None:
        return "done" if config.fold in ended else None

    plan = made_comparison(tmp_path, _LOSSES, state, folds=(0, 1, 2))
    estimates = Estimates(Comparison(tmp_path, plan))
    shown = []
    for finished in ((), (0,), (0,), (0, 1), (0, 1, 2)):
        ended.update(finished)
        made_comparison(tmp_path, _LOSSES, state, folds=(0, 1, 2))
        shown.append(estimates.lines(run_states(tmp_path, plan)))
    assert [len(lines) for lines in shown] == [0, 1, 0, 1, 0]
    means = comparison_table(tmp_path, plan.model_copy(update={"runs": plan.runs[:6]})).rows["dice"]
    assert shown[3] == [
        "so far (2 of 3 folds x seeds, 24 cases), mean Dice: "
        + ", ".join(f"{loss} {mean:.4f}" for loss, mean in zip(_LOSSES, means, strict=True))
        + "; no verdict before the end"
    ]


def test_resuming_repeats_no_estimate(tmp_path: Path) -> None:
    plan = made_comparison(tmp_path, _LOSSES, lambda config: "done" if config.fold == 0 else None, folds=(0, 1))
    assert Estimates(Comparison(tmp_path, plan)).lines(run_states(tmp_path, plan)) == []


def test_without_a_terminal_a_line_per_run_that_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = made_comparison(tmp_path, _LOSSES, lambda config: None)
    display = Display(Console(file=io.StringIO()), log=tmp_path / "compare.log")
    waiting = run_states(tmp_path, plan)
    display.update(waiting)
    for epoch in range(4):
        display.update([replace(waiting[0], state="running", epoch=epoch), *waiting[1:]])
    assert capsys.readouterr().err == ""
    ended = [replace(waiting[0], state="done", epoch=4), replace(waiting[1], state="failed", error="it broke")]
    display.update([*ended, *waiting[2:]])
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "[1/3] dice fold 0 seed 0: done", "[2/3] focal fold 0 seed 0: failed: it broke",
    ]  # fmt: skip
    assert (tmp_path / "compare.log").read_text().count(" epoch ") == 3  # after the line on its start


def test_the_log_file_has_a_line_per_event_with_its_time(tmp_path: Path) -> None:
    plan = made_comparison(tmp_path, _LOSSES, lambda config: None)
    display = Display(log=tmp_path / "compare.log")
    display.update(run_states(tmp_path, plan))
    made_comparison(tmp_path, _LOSSES, lambda config: "done" if config.loss == "dice" else None)
    for run in plan.runs[:1]:
        display.shown[run.id] = ("running", 2)  # it was seen at work
    display.update(run_states(tmp_path, plan))
    display.message("a message")
    lines = (tmp_path / "compare.log").read_text().splitlines()
    assert [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", "", line) for line in lines] == [
        "[1/3] dice fold 0 seed 0: done, dice 0.846",
        "a message",
    ]
