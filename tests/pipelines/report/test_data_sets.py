"""The report over several data sets: folders of comparisons and reports, tasks of one table, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_call import call_medloss
from made_comparison import made_comparison
from page_reader import read_page
from results_tables import long_table

REFERENCE = "dice+binary_cross_entropy"


def _report(folder: Path, name: str, gains: dict[str, float], metric: str = "dice", reference: str = "ref") -> Path:
    """A folder of a report on a table of 12 cases."""
    random = np.random.default_rng(len(name))
    ease = random.normal(0.7, 0.05, 12)
    values = {loss: ease + gain + random.normal(0, 0.002, 12) for loss, gain in gains.items()}
    table = long_table(values)
    table["case"] = name + table["case"]
    table["iou"] = table["dice"] / (2 - table["dice"])
    table.to_csv(folder / f"{name}.csv", index=False)
    out = folder / name
    code, _, err = call_medloss(
        "report", "--cases", folder / f"{name}.csv", "--reference", reference, "--metric", metric, "--out", out
    )
    assert (code, err) == (0, "")
    return out


def test_folders_of_reports(tmp_path: Path) -> None:
    folders = [
        _report(tmp_path, "liver", {"ref": 0, "a": 0.03, "b": -0.02}),
        _report(tmp_path, "heart", {"ref": 0, "a": 0.031, "b": -0.021}),
        _report(tmp_path, "lungs<br>", {"ref": 0, "a": 0.029, "c": 0.01}),
    ]
    out = tmp_path / "all"
    code, shown, err = call_medloss("report", *folders, "--out", out)
    assert (code, err) == (0, "")
    assert shown.startswith("Over 3 data sets: a (by +0.0")
    assert "b: not in lungs<br>.csv, so it has no consensus rank; its difference is over 2 of 3." in shown
    stored = json.loads((out / "analysis.json").read_text())
    assert [one["loss"] for one in stored["losses"]][:2] == ["a", "ref"]
    assert stored["data_sets"][0]["means"]["a"] == pytest.approx(
        json.loads((folders[0] / "analysis.json").read_text())["primary"]["ranking"][0]["mean"]
    )
    text = read_page(out / "report.html", script=False).text
    assert "Which loss is best over 3 data sets?" in text and "lungs<br>.csv" in text
    assert "lungs<br>" not in (out / "report.html").read_text()
    table = pd.read_csv(out / "tables" / "data_sets.csv")
    assert len(table) == 4 * 3 and table["mean"].notna().sum() == 9
    for name in ("heat_map", "ranks", "pooled"):
        assert (out / "plots" / f"{name}.png").stat().st_size > 1000
        assert (out / "plots" / f"{name}.svg").is_file()


def test_another_metric_and_another_reference(tmp_path: Path) -> None:
    folders = [_report(tmp_path, name, {"ref": 0, "a": 0.03, "b": -0.02}) for name in ("liver", "heart")]
    code, _, err = call_medloss("report", *folders, "--metric", "iou", "--out", tmp_path / "iou")
    assert (code, err) == (0, "")
    stored = json.loads((tmp_path / "iou" / "analysis.json").read_text())
    liver = json.loads((folders[0] / "analysis.json").read_text())["secondary"]["iou"]
    difference = next(compared for compared in liver["comparisons"] if compared["loss"] == "a")["difference"]
    assert stored["data_sets"][0]["differences"]["a"][0] == difference
    # Compared again, from the stored scores of one run per loss.
    code, _, err = call_medloss("report", *folders, "--reference", "a", "--out", tmp_path / "a")
    assert (code, err) == (0, "")
    stored = json.loads((tmp_path / "a" / "analysis.json").read_text())
    liver = json.loads((folders[0] / "analysis.json").read_text())["primary"]
    difference = next(compared for compared in liver["comparisons"] if compared["loss"] == "a")["difference"]
    assert stored["data_sets"][0]["differences"]["ref"][0] == pytest.approx(-difference)
    # Ranks alone.
    code, shown, err = call_medloss("report", *folders, "--reference", "none", "--out", tmp_path / "none")
    assert (code, err) == (0, "")
    assert shown.startswith("Over 2 data sets: a had the best mean rank in Dice, 1.0 of 3.")
    assert not (tmp_path / "none" / "plots" / "pooled.png").exists()


def test_a_further_primary_metric(tmp_path: Path) -> None:
    gains = {"ref": 0, "a": 0.03, "b": -0.02}
    folders = [_report(tmp_path, name, gains, metric="dice,iou") for name in ("liver", "heart")]
    code, _, err = call_medloss("report", *folders, "--metric", "iou", "--out", tmp_path / "iou")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "iou" / "analysis.json").read_text())["data_sets"][0]
    liver = json.loads((folders[0] / "analysis.json").read_text())
    of_iou = liver["several"]["analyses"]["iou"]
    assert "iou" not in liver["secondary"]
    compared = next(compared for compared in of_iou["comparisons"] if compared["loss"] == "a")
    assert found["differences"]["a"][0] == compared["difference"]
    assert found["means"] == {ranked["loss"]: ranked["mean"] for ranked in of_iou["ranking"]}
    # What is refused names it among the metrics that the report has.
    code, _, err = call_medloss("report", *folders, "--metric", "nsd", "--out", tmp_path / "nsd")
    assert code == 2 and "its report has dice, iou, compared with ref; expected nsd" in err


def test_comparisons_next_to_a_report(tmp_path: Path) -> None:
    made_comparison(tmp_path / "made", [REFERENCE, "dice", "focal"], seeds=(0, 1))
    other = _report(tmp_path, "other", {REFERENCE: 0, "dice": 0.01, "tversky": 0.02}, reference=REFERENCE)
    code, shown, err = call_medloss("report", tmp_path / "made", other, "--out", tmp_path / "all")
    assert (code, err) == (0, "")
    stored = json.loads((tmp_path / "all" / "analysis.json").read_text())
    assert [result["trainings"] for result in stored["data_sets"]] == [2, 1]
    assert stored["lacking"] == {"focal": ["other.csv"], "tversky": ["made data"]}
    alone = json.loads(_made_report(tmp_path).read_text())["primary"]["comparisons"]
    expected = next(compared for compared in alone if compared["loss"] == "dice")
    difference, variance = stored["data_sets"][0]["differences"]["dice"]
    assert difference == pytest.approx(expected["difference"])
    parts = expected["variance"]
    assert variance == pytest.approx(parts["patient"] + parts["retraining"])
    assert "One run per loss in other.csv" in shown
    # A report without the reference has its differences from another loss: they do not count.
    third = _report(tmp_path, "third", {"tversky": 0, "dice": 0.05}, reference="tversky")
    code, shown, err = call_medloss(
        "report", tmp_path / "made", other, third, "--reference", REFERENCE, "--out", tmp_path / "three"
    )
    assert (code, err) == (0, "")
    stored = json.loads((tmp_path / "three" / "analysis.json").read_text())
    assert [len(result["differences"]) for result in stored["data_sets"]] == [2, 2, 0]
    assert "Without the reference, and so without differences: third.csv." in shown


def _made_report(tmp_path: Path) -> Path:
    assert call_medloss("report", tmp_path / "made", "--out", tmp_path / "alone")[0] == 0
    return tmp_path / "alone" / "analysis.json"


def test_tasks_of_one_table(tmp_path: Path) -> None:
    """challengeR's table of several tasks, whose cases have the same names."""
    random = np.random.default_rng(0)
    rows = [(task, method, case, round(0.7 + gain + random.normal(0, 0.01), 4))
            for task in ("t1", "t2", "t3") for method, gain in (("A1", 0.0), ("A2", 0.1), ("A3", -0.1))
            for case in range(8)]  # fmt: skip
    path = tmp_path / "data_matrix.csv"
    pd.DataFrame(rows, columns=["task", "alg_name", "case", "value"]).to_csv(path)
    code, shown, err = call_medloss("report", "--cases", path, "--reference", "A1", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert shown.startswith("data_matrix.csv: 72 rows, 8 cases, 3 methods; value read as Dice; loss = alg_name")
    assert "Over 3 data sets: A2 (by +0." in shown
    stored = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert [result["name"] for result in stored["data_sets"]] == ["t1", "t2", "t3"]
    assert [one["loss"] for one in stored["losses"]] == ["A2", "A1", "A3"]
    code, _, err = call_medloss("report", "--cases", path, "--margin", "0.1", "--out", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1) and err.startswith("error: --margin: goes with one data set")


def test_what_is_refused(tmp_path: Path) -> None:
    first = _report(tmp_path, "liver", {"ref": 0, "a": 0.03})
    second = _report(tmp_path, "heart", {"ref": 0, "a": 0.03})
    by_iou = _report(tmp_path, "lungs", {"ref": 0, "a": 0.03}, metric="iou")
    by_a = _report(tmp_path, "brain", {"ref": 0, "a": 0.03}, reference="a")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "analysis.json").write_bytes((first / "analysis.json").read_bytes())
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "analysis.json").write_text('{"title": "x"}')
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "out")
    for arguments, message in (
        ([first, second], "--out: got none"),
        ([first, second, *out, "--cases", tmp_path / "liver.csv"], "pass either the folders of several data sets, or"),
        ([first, second, *out, "--empty", "worst"], "--empty: goes with one data set"),
        ([first, second, *out, "--jobs", "2"], "--jobs: goes with one data set"),
        ([first, tmp_path / "empty", *out], "has neither plan.json nor analysis.json; expected the folder of a comp"),
        ([first, tmp_path / "damaged", *out], "analysis.json: cannot be read"),
        ([first, tmp_path / "copy", *out], "are of the same cases of liver.csv; expected different data sets"),
        ([first, by_iou, *out], "--metric: got none, and the primary metrics differ (liver.csv dice, lungs.csv iou)"),
        ([first, by_a, *out], "--reference: got none, and the references differ (ref, a)"),
        ([first, second, *out, "--reference", "b"], "--reference: got b, which no data set has; expected none or one"),
        ([first, second, *out, "--metric", "nsd"], "its report has dice, iou, compared with ref; expected nsd"),
    ):
        code, shown, err = call_medloss("report", *arguments)
        assert (code, shown, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: ") and message in err
    assert not (tmp_path / "out").exists()
