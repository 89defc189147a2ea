"""`--subgroups`: the table of groups, the section of the page, and groups that are named before training."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cli_call import call_medloss
from made_comparison import made_comparison
from page_reader import read_page
from results_tables import long_table

from pipelines.data.manifest import load_manifest
from pipelines.report.collect import from_folder
from pipelines.report.subgroups import groups_to_keep, read_groups
from pipelines.report.write import write_report
from pipelines.runs.comparison_folder import SUBGROUPS, keep_groups, refuse_foreign
from pipelines.utils import UserError


def _table(folder: Path, patients: bool = False) -> Path:
    random = np.random.default_rng(0)
    ease = random.normal(0.8, 0.05, 40)
    low = np.where(np.arange(40) % 2 == 0, -0.04, 0.0)  # on the first scanner
    table = long_table({"a": ease, "b": ease + low + random.normal(0, 0.005, 40)})
    if patients:
        table["patient"] = [f"p{int(case[1:]) // 2:03d}" for case in table["case"]]
    path = folder / "results.csv"
    table.to_csv(path, index=False)
    return path


def _groups(folder: Path, text: str | None = None) -> Path:
    rows = [f"c{i:03d};{'north' if i % 2 == 0 else 'south'};{'f' if i < 20 else 'm'};{20 + i}" for i in range(40)]
    path = folder / "groups.csv"
    path.write_text("ID;scanner;sex;age\n" + "\n".join(rows) + "\n" if text is None else text)
    return path


def test_the_section_of_the_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("report", "--cases", _table(tmp_path), "--reference", "a", "--out", out)
    code, shown, err = call_medloss(*arguments, "--subgroups", _groups(tmp_path))
    assert (code, err) == (0, "")
    assert re.search(r"scanner: the difference from the reference varies between the groups for b \(adjusted p", shown)
    assert "sex: no difference from the reference was shown to vary between the groups" in shown
    text = read_page(out / "report.html").text
    assert "Differences by group" in text and "p adjusted over all 2 losses and variables by Holm" in text
    assert "Columns of groups.csv that are left out: age (40 values)." in text
    table = pd.read_csv(out / "tables" / "subgroups.csv")
    assert list(table["group"]) == ["north", "south", "f", "m"] and list(table["patients"]) == [20] * 4
    assert table["difference"].iloc[0] == pytest.approx(-0.04, abs=0.004)
    stored = json.loads((out / "analysis.json").read_text())["subgroups"]
    assert stored[0]["variable"] == "scanner"
    assert stored[0]["interactions"][0]["groups"][1]["difference"] == pytest.approx(table["difference"].iloc[1])
    # Without groups the section and its files are gone.
    assert call_medloss(*arguments)[0] == 0
    assert not (out / "tables" / "subgroups.csv").exists() and not (out / "plots" / "subgroups.svg").exists()
    assert "subgroups" not in json.loads((out / "analysis.json").read_text())


def test_the_patient_is_the_unit(tmp_path: Path) -> None:
    """The scanner differs between the cases of a patient, so it is no variable; the sex does not."""
    out = tmp_path / "out"
    arguments = ("report", "--cases", _table(tmp_path, patients=True), "--reference", "a", "--out", out)
    code, _, err = call_medloss(*arguments, "--subgroups", _groups(tmp_path))
    assert (code, err) == (0, "")
    table = pd.read_csv(out / "tables" / "subgroups.csv")
    assert list(zip(table["group"], table["patients"], strict=True)) == [("f", 10), ("m", 10)]
    left_out = "age (40 values), scanner (a patient, such as p000, has cases of several groups)"
    assert left_out in read_page(out / "report.html").text
    # A row per patient.
    rows = [f"p{i:03d},{'x' if i < 8 else 'y'}" for i in range(19)]
    by_patient = _groups(tmp_path, "patient,centre\n" + "\n".join(rows) + "\n")
    code, _, err = call_medloss(*arguments, "--subgroups", by_patient)
    assert (code, err) == (0, "")
    table = pd.read_csv(out / "tables" / "subgroups.csv")
    assert list(zip(table["group"], table["patients"], strict=True)) == [("x", 8), ("y", 11)]
    assert "groups.csv: centre is not given for 1 patient (p019)." in read_page(out / "report.html").text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name_of,scanner\na,x\n", "no column case or patient; got name_of, scanner; expected one row per case"),
        ("case,scanner\nc000,x\nc000,y\n", "c000 appears twice; expected one row per case"),
        ("case,scanner\nc000,x\nc001,x\n", r"no column with 2 to 12 values; got scanner \(1 value\)"),
        ("case,scanner\nq0,x\nq1,y\n", "has none of the cases; got q0, for example; expected c000"),
    ],
)
def test_a_table_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    arguments = ("report", "--cases", _table(tmp_path), "--reference", "a", "--out", tmp_path / "out")
    code, _, err = call_medloss(*arguments, "--subgroups", _groups(tmp_path, text))
    assert code == 2 and err.count("\n") == 1
    assert re.search(message, err), err


def test_groups_need_a_reference(tmp_path: Path) -> None:
    arguments = ("report", "--cases", _table(tmp_path), "--reference", "none", "--out", tmp_path / "out")
    code, _, err = call_medloss(*arguments, "--subgroups", _groups(tmp_path))
    assert (code, err.count("\n")) == (2, 1)
    assert "--subgroups: got no reference loss" in err


def test_groups_named_before_training_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    made_comparison(folder, ["dice+binary_cross_entropy", "dice"], cases=24)
    cases = sorted(set(from_folder(folder).table.frame["case"]))
    rows = "".join(f"{case},{'x' if i % 2 else 'y'}\n" for i, case in enumerate(cases))
    (folder / SUBGROUPS).write_text(f"case,scanner\n{rows}")
    _, analysis = write_report(from_folder(folder), tmp_path / "report", bootstraps=10)
    assert [of.variable for of in analysis.subgroups] == ["scanner"]
    assert [group.patients for group in analysis.subgroups[0].interactions[0].groups] == [12, 12]


def test_the_folder_keeps_one_table(tmp_path: Path) -> None:
    manifest, folder = load_manifest("phantom"), tmp_path / "comparison"
    names = [case.id for case in manifest.cases]
    table = tmp_path / "table.csv"
    table.write_text("case,scanner\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)))
    content = groups_to_keep(table, folder, manifest)
    assert not folder.exists()
    folder.mkdir()
    keep_groups(folder, content)
    assert read_groups(folder / SUBGROUPS).variables["scanner"][names[1]] == "1"
    refuse_foreign(folder)  # an interrupted command of an earlier version left no plan next to it
    keep_groups(folder, groups_to_keep(table, folder, manifest))
    table.write_text(table.read_text().replace(",0\n", ",2\n"))
    with pytest.raises(UserError, match=r"was named before, and .*table\.csv differs"):
        groups_to_keep(table, folder, manifest)
    table.write_text("case,scanner\nq1,x\nq2,y\n")
    with pytest.raises(UserError, match="has no case of 'phantom'; got q1, for example; expected"):
        groups_to_keep(table, tmp_path / "other", manifest)
