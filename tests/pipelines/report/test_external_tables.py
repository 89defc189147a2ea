"""Tables of one method each: MIST's, and those of `medloss evaluate`."""

import re
from pathlib import Path

import pandas as pd
import pytest
from cli_call import call_medloss
from made_predictions import CASES, made_folders

from pipelines.report.external_results import from_tables
from pipelines.statistics.scores import scores
from pipelines.utils import UserError

#: The layout of MIST's `mist_evaluate --metrics dice haus95 surf_dice` and its three lesion-wise metrics.
_METRICS = ("dice", "haus95", "surf_dice", "lesion_wise_dice", "lesion_wise_haus95", "lesion_wise_surf_dice")
MIST = (
    ",".join(["id", *(f"{class_name}_{metric}" for metric in _METRICS for class_name in ("tumor", "edema_core"))])
    + """
p_01,0.91,0.81,1.5,2.5,0.95,0.85,0.5,0.6,9.5,8.5,0.7,0.8
p_02,0.90,1.0,2.0,0.0,0.94,1.0,0.5,1.0,9.5,0.0,0.7,1.0
003,0.80,0.0,4.0,77.5,0.80,0.0,0.5,0.0,9.5,77.5,0.7,0.0
Mean,0.87,0.60,2.5,26.7,0.9,0.6,0.5,0.5,9.5,28.7,0.7,0.6
Std,0.05,0.4,1.1,35.9,0.07,0.4,0,0.4,0,34.7,0,0.4
25th Percentile,0.85,0.4,1.75,1.25,0.87,0.4,0.5,0.3,9.5,4.25,0.7,0.4
Median,0.90,0.81,2.0,2.5,0.94,0.85,0.5,0.6,9.5,8.5,0.7,0.8
75th Percentile,0.905,0.9,3.0,40.0,0.945,0.9,0.5,0.8,9.5,43.0,0.7,0.9
"""
)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _two(folder: Path, change: tuple[str, str] = ("0.91", "0.71")) -> dict[str, Path]:
    return {
        "dice": _write(folder / "dice" / "results.csv", MIST),
        "focal": _write(folder / "focal" / "results.csv", MIST.replace(*change)),
    }


def test_mists_tables(tmp_path: Path) -> None:
    found = from_tables(_two(tmp_path))
    table = found.collected.table
    assert (table.losses, table.classes, tuple(table.metrics)) == (
        ("dice", "focal"), ("edema_core", "tumor"), ("dice", "nsd", "lesion_dice", "hd95_mm", "lesion_hd95_mm"),
    )  # fmt: skip
    rows = table.frame.set_index(["loss", "case", "class"])
    assert len(rows) == 2 * 3 * 2, "rows of statistics are not cases"
    assert list(rows.loc[("dice", "p_01", "tumor"), list(table.metrics)]) == [0.91, 0.95, 0.5, 1.5, 9.5]
    assert list(rows.loc[("focal", "p_01", "tumor"), list(table.metrics)]) == [0.71, 0.95, 0.5, 1.5, 9.5]
    assert list(rows.loc[("focal", "003", "edema_core"), list(table.metrics)]) == [0.0, 0.0, 0.0, 77.5, 77.5]
    left_out = (
        "columns of results.csv that are left out: tumor_lesion_wise_surf_dice, edema_core_lesion_wise_surf_dice."
    )
    assert f"focal: {left_out}" in found.messages
    assert any(note.startswith("The metrics were computed by MIST") for note in found.collected.notes)


@pytest.mark.parametrize("option", ["--predictions", "--cases"])
def test_mists_tables_by_either_option(tmp_path: Path, option: str) -> None:
    words = [f"{name}={path}" for name, path in _two(tmp_path).items()]
    code, shown, err = call_medloss("report", option, *words, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    claims = pd.read_csv(tmp_path / "out" / "tables" / "claim_check.csv", dtype={"case_id": str})
    assert list(claims["case_id"]) == ["003", "p_01", "p_02"]
    assert list(claims["alg_focal"]) == pytest.approx([0.4, (0.71 + 0.81) / 2, 0.95])
    assert shown.splitlines()[-1] == f"report    {tmp_path / 'out' / 'report.html'}"


def test_a_case_missing_in_one_table_counts_as_the_worst(tmp_path: Path) -> None:
    named = _two(tmp_path)
    named["focal"].write_text("\n".join(line for line in MIST.splitlines() if not line.startswith("p_02")))
    dice = scores(from_tables(named).collected.table, "dice")
    assert dice.missing == {"focal": ("p_02",)}
    assert dice.by_patient[dice.losses.index("focal"), dice.patients.index("p_02")] == 0


def test_tables_of_evaluate(tmp_path: Path) -> None:
    made_folders(tmp_path)
    named = {}
    for name in ("near", "far"):
        named[name] = tmp_path / f"{name}.csv"
        assert call_medloss("evaluate", tmp_path / name, "--labels", tmp_path / "labels", "--out", named[name])[0] == 0
    frame = from_tables(named).collected.table.frame
    assert set(frame["case"]) == set(CASES)
    far = frame[frame["loss"] == "far"]
    pd.testing.assert_series_equal(
        far["hd95_mm"].reset_index(drop=True), pd.read_csv(named["far"])["hd95_mm"], check_exact=True
    )


EVALUATED = "case,class,dice\nx,1,0.5\ny,1,0.6\n"
BAD: list[tuple[str, str | bytes, str]] = [
    ("no table", b"\xff\xfe\x00", "cannot be read as a CSV table"),
    ("empty", "", "cannot be read as a CSV table"),
    (
        "other columns",
        "name,score\na,1\n",
        r"has the columns name, score; expected MIST's results.csv \(id, <class>_dice",
    ),
    ("no metric", "id,tumor_volume\na,1\n", "has the columns id, tumor_volume; expected MIST's results.csv"),
    ("a case twice", "id,tumor_dice\na,1\na,1\n", "case a appears twice; expected one row per case"),
    ("several losses", "case,loss,dice\na,x,1\n", "has a column loss, so it has several methods; pass it as --cases"),
    ("another kind", EVALUATED, "dice is a table of MIST, and others are not, which count empty classes differently"),
    ("other classes", MIST.replace("edema_core", "edema"), "dice and focal have different classes: edema, edema_core"),
    (
        "other cases",
        MIST.replace("p_0", "q_").replace("003", "q_3"),
        "dice and focal have no case in common: 003 and q_1, for example",
    ),
    ("percent", MIST.replace("0.91", "91"), r"dice: got 91 \(case p_01, loss focal\); expected a number, 0 to 1"),
    ("text", MIST.replace("0.91", "good"), r"dice: got good \(case p_01, loss focal\); expected a number"),
    ("no metric in common", "id,tumor_avg_surf,edema_core_avg_surf\np_01,1,1\n", "have no metric in common"),
]


@pytest.mark.parametrize(("content", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_table_that_cannot_be_used(tmp_path: Path, content: str | bytes, message: str) -> None:
    named = _two(tmp_path)
    named["focal"].write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as raised:
        from_tables(named)
    assert "\n" not in str(raised.value)


def test_a_single_table_of_mist_is_refused(tmp_path: Path) -> None:
    path = _two(tmp_path)["dice"]
    code, _, err = call_medloss("report", "--cases", path, "--out", tmp_path / "out")
    assert code == 2
    assert re.fullmatch("error: --cases: .*results.csv is MIST's table of one method; expected two or more, .*\n", err)


def test_tables_have_no_references(tmp_path: Path) -> None:
    words = [f"{name}={path}" for name, path in _two(tmp_path).items()]
    code, _, err = call_medloss("report", "--predictions", *words, "--labels", tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert err == (
        "error: --labels, --classes, --folds, --metrics, --tolerance, --connectivity, --overlap, --jobs and "
        "--cache-dir belong to folders of predictions, and tables were named\n"
    )
