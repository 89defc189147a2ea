"""The comparison's table, against one computed by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.plan import Plan, make_plan
from pipelines.runs.summary import (
    Table,
    best_mean,
    best_run,
    case_table,
    comparison_table,
    formatted_rows,
    with_empty,
    write_table,
)
from pipelines.training.run_config import RunConfig

_NAN = math.nan


def _plan(losses: list[str], folds: list[int], seeds: list[int]) -> Plan:
    configs = [RunConfig(manifest="phantom", loss=loss) for loss in losses]
    return make_plan(configs, folds, seeds, "phantom", "0" * 64)


def _finish(folder: Path, plan: Plan, run_id: str, dice: dict[tuple[str, str], float], epoch_s: float) -> None:
    """A done run with a Dice for each case and class; the other metrics follow from it."""
    run_dir = run_folder(folder, next(run for run in plan.runs if run.id == run_id))
    run_dir.write_cases(
        [
            {
                "case": case, "patient": f"p-{case}", "class": name, "dice": value,
                "iou": value / 4, "sensitivity": value / 2, "specificity": 1.0, "hd95_mm": 10 * value,
                "assd_mm": 3 * value, "nsd": 1 - value,
            }
            for (case, name), value in dice.items()
        ]
    )  # fmt: skip
    run_dir.write_result({"state": "done", "error": None, "metrics": {"dice": 0.0}, "epoch_s": epoch_s})


@pytest.fixture
def compared(tmp_path: Path) -> tuple[Path, Plan]:
    plan = _plan(["focal", "dice", "tversky", "combo"], [0, 1], [0, 1])
    # Fold 0 holds the cases a and b, fold 1 case c. Class `lesion` is empty in a with seed 1, in b always.
    _finish(tmp_path, plan, "dice-fold0-seed0", {
        ("a", "organ"): 0.8, ("a", "lesion"): 0.4, ("b", "organ"): 0.6, ("b", "lesion"): _NAN,
    }, epoch_s=1.0)  # fmt: skip
    _finish(tmp_path, plan, "dice-fold0-seed1", {
        ("a", "organ"): 0.6, ("a", "lesion"): _NAN, ("b", "organ"): 0.8, ("b", "lesion"): _NAN,
    }, epoch_s=3.0)  # fmt: skip
    _finish(tmp_path, plan, "dice-fold1-seed0", {("c", "organ"): 1.0, ("c", "lesion"): 0.0}, epoch_s=2.0)
    _finish(tmp_path, plan, "dice-fold1-seed1", {("c", "organ"): 1.0, ("c", "lesion"): 0.2}, epoch_s=8.0)
    # Of focal one run is done, one failed, two have not begun.
    _finish(tmp_path, plan, "focal-fold0-seed0", {
        ("a", "organ"): 0.9, ("a", "lesion"): 0.9, ("b", "organ"): 0.7, ("b", "lesion"): _NAN,
    }, epoch_s=0.5)  # fmt: skip
    for run in plan.runs:
        if run.config.loss == "tversky" or run.id == "focal-fold1-seed0":
            run_folder(tmp_path, run).write_result({"state": "failed", "error": "the loss is nan"})
    return tmp_path, plan


def test_seeds_then_classes_then_cases_are_averaged(compared: tuple[Path, Plan]) -> None:
    table = comparison_table(*compared)
    rows = table.rows.set_index("loss")
    # Where the label has nothing of a class, the rightly empty prediction counts 1, or 0 mm.
    # dice: a = ((0.8 + 0.6) / 2 + (0.4 + 1) / 2) / 2 = 0.7; b = (0.7 + 1) / 2 = 0.85; c = (1 + 0.1) / 2 = 0.55.
    assert rows.loc["dice", "dice"] == pytest.approx((0.7 + 0.85 + 0.55) / 3)
    assert rows.loc["dice", "sensitivity"] == pytest.approx((0.55 + 0.7 + 0.55) / 6)
    assert rows.loc["dice", "specificity"] == 1.0
    assert rows.loc["dice", "hd95_mm"] == pytest.approx(10 * (0.45 + 0.35 + 0.55) / 3)
    iou = ((0.175 + 0.55) / 2 + (0.175 + 1) / 2 + (0.25 + 0.025) / 2) / 3
    nsd = ((0.3 + 0.8) / 2 + (0.3 + 1) / 2 + (0.0 + 0.9) / 2) / 3
    assert rows.loc["dice", ["iou", "assd_mm", "nsd"]].tolist() == pytest.approx([iou, 1.35, nsd])
    assert rows.loc["dice", "epoch_s"] == 2.5
    assert rows.loc["focal", "dice"] == pytest.approx((0.9 + (0.7 + 1) / 2) / 2)
    assert rows["runs"].to_dict() == {"focal": "1/4", "dice": "4/4", "tversky": "0/4", "combo": "0/4"}
    assert list(table.rows["loss"]) == ["dice", "focal", "tversky", "combo"]  # then those on fewer cases, and without
    assert best_mean(compared[1], table) == ("dice", rows.loc["dice", "dice"])
    assert (best_run(*compared, table) or compared[1].runs[0]).config.loss == "dice"
    assert rows.loc[["tversky", "combo"], "dice"].isna().all()
    assert table.failed == {"tversky"}
    assert (table.cases, table.seeds) == (3, 2)
    assert table.partial == ("focal",)
    assert table.caveat == (
        "means over 3 cases and 2 seeds: small differences may be chance; focal: not all runs are finished, "
        "so on fewer cases or seeds than the others"
    )


def test_of_a_distance_the_shortest_is_the_best() -> None:
    rows = pd.DataFrame({"loss": ["focal", "dice", "tversky"], "hd95_mm": [4.0, 2.5, _NAN]})
    plan = _plan(list(rows["loss"]), [0], [0]).model_copy(update={"metric": "hd95_mm"})
    assert best_mean(plan, Table(rows, frozenset(), cases=2, seeds=1)) == ("dice", 2.5)


def test_failed_and_not_begun_are_told_apart(compared: tuple[Path, Plan]) -> None:
    rows = formatted_rows(comparison_table(*compared))
    assert rows == [
        ["loss", "Dice", "NSD", "sensitivity", "specificity", "HD95 (mm)", "s/epoch", "runs"],
        ["dice", "0.7000", "0.5500", "0.3000", "1.0000", "4.50", "2.5", "4/4"],
        ["focal", "0.8750", "0.3750", "0.4000", "1.0000", "6.25", "0.5", "1/4"],
        ["tversky", "failed", "-", "-", "-", "-", "-", "0/4"],
        ["combo", "-", "-", "-", "-", "-", "-", "0/4"],
    ]


def test_files(compared: tuple[Path, Plan]) -> None:
    folder, plan = compared
    csv, markdown = write_table(folder, comparison_table(folder, plan))
    assert [csv, markdown] == [folder / "table.csv", folder / "table.md"]
    read = pd.read_csv(csv)
    assert list(read.columns) == [
        "loss", "dice", "iou", "sensitivity", "specificity", "hd95_mm", "assd_mm", "nsd", "epoch_s", "runs",
        "trained_as", "stood_still",
    ]  # fmt: skip
    assert read["dice"].tolist()[:2] == pytest.approx([0.7, 0.875])
    assert read["dice"].isna().tolist() == [False, False, True, True]
    assert markdown.read_text().splitlines() == [
        "| loss | Dice | NSD | sensitivity | specificity | HD95 (mm) | s/epoch | runs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| dice | 0.7000 | 0.5500 | 0.3000 | 1.0000 | 4.50 | 2.5 | 4/4 |",
        "| focal | 0.8750 | 0.3750 | 0.4000 | 1.0000 | 6.25 | 0.5 | 1/4 |",
        "| tversky | failed | - | - | - | - | - | 0/4 |",
        "| combo | - | - | - | - | - | - | 0/4 |",
        "",
        comparison_table(folder, plan).caveat,
    ]


def test_case_table_holds_every_finished_runs_cases(compared: tuple[Path, Plan]) -> None:
    cases = case_table(*compared)
    assert len(cases) == 4 + 4 + 2 + 2 + 4
    assert list(cases.columns) == [
        "case", "patient", "class", "dice", "iou", "sensitivity", "specificity", "hd95_mm", "assd_mm", "nsd",
        "loss", "fold", "seed",
    ]  # fmt: skip
    row = cases.query("loss == 'dice' and seed == 1 and case == 'c' and `class` == 'lesion'")
    assert row[["fold", "patient", "dice", "hd95_mm"]].to_numpy().tolist() == [[1, "p-c", 0.2, 2.0]]
    assert cases["dice"].isna().sum() == 4


def test_a_measure_that_no_case_has(tmp_path: Path) -> None:
    plan = _plan(["dice", "focal"], [0], [0])
    _finish(tmp_path, plan, "dice-fold0-seed0", {("a", "organ"): _NAN}, epoch_s=1.0)
    table = comparison_table(tmp_path, plan)
    assert table.failed == frozenset()
    assert formatted_rows(table)[1] == ["dice", "1.0000", "1.0000", "-", "1.0000", "0.00", "1.0", "1/1"]
    assert table.caveat == "means over one case and one seed: small differences may be chance"


def test_a_run_of_an_earlier_version_lacks_a_measure(tmp_path: Path) -> None:
    plan = _plan(["dice", "focal"], [0], [0])
    for run_id in ("dice-fold0-seed0", "focal-fold0-seed0"):
        _finish(tmp_path, plan, run_id, {("a", "organ"): 0.5}, epoch_s=1.0)
    cases = tmp_path / "runs" / "dice-fold0-seed0" / "cases.csv"
    assert cases.is_file()
    cases.write_text("case,patient,class,dice,sensitivity,specificity,hd95_mm\na,p-a,organ,0.6,0.3,1.0,6.0\n")
    rows = formatted_rows(comparison_table(tmp_path, plan))
    assert rows[1:] == [
        ["dice", "0.6000", "-", "0.3000", "1.0000", "6.00", "1.0", "1/1"],
        ["focal", "0.5000", "0.5000", "0.2500", "1.0000", "5.00", "1.0", "1/1"],
    ]


def test_nothing_finished_yet(tmp_path: Path) -> None:
    plan = _plan(["dice", "focal"], [0], [0])
    table = comparison_table(tmp_path, plan)
    assert case_table(tmp_path, plan).empty
    assert (table.cases, table.failed) == (0, frozenset())
    assert [row[1] for row in formatted_rows(table)] == ["Dice", "-", "-"]


@pytest.mark.parametrize(("empty", "dice"), [("one", (1.0, 0.0)), ("exclude", (_NAN, _NAN)), ("worst", (0.0, 0.0))])
def test_a_false_alarm_never_looks_better_than_a_rightly_empty_prediction(
    empty: str, dice: tuple[float, float]
) -> None:
    rightly = {"dice": _NAN, "iou": _NAN, "nsd": _NAN, "sensitivity": _NAN, "specificity": 1.0, "hd95_mm": _NAN,
               "assd_mm": _NAN}  # fmt: skip
    alarm = rightly | {"dice": 0.0, "iou": 0.0, "nsd": 0.0, "specificity": 0.9, "hd95_mm": 9.0, "assd_mm": 9.0}
    found = with_empty(pd.DataFrame([rightly, alarm]), empty)
    np.testing.assert_array_equal(found["dice"], dice)
    assert found["specificity"].tolist() == [1.0, 0.9]
    np.testing.assert_array_equal(
        found["hd95_mm"], {"one": [0.0, 9.0], "exclude": [_NAN, _NAN], "worst": [9.0, 9.0]}[empty]
    )
