"""Result tables as people have them: what is recognised, what was made of it, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cli_call import call_medloss

from pipelines.report.collect import check_results, from_csv
from pipelines.report.external_results import from_tables
from pipelines.report.result_tables import read_columns, read_results
from pipelines.statistics.scores import misses, scores
from pipelines.utils import UserError

#: What every table below says: Dice of two methods on three cases.
EXPECTED = {"unet": [0.91, 0.8, 0.055], "dyn": [0.9, 0.82, 0.5]}
#: What people write, what was made of it, and the options that it needs.
READABLE: list[tuple[str, str, str | None, dict[str, Any]]] = [
    (
        "our own",
        "case,loss,dice\na,unet,0.91\nb,unet,0.8\nc,unet,0.055\na,dyn,0.9\nb,dyn,0.82\nc,dyn,0.5\n",
        None,
        {},
    ),
    (
        "wide",
        "case,unet,dyn\na,0.91,0.9\nb,0.8,0.82\nc,0.055,0.5\n",
        "t.csv: 3 rows, 3 cases, 2 methods; a column per method (unet, dyn), its values read as Dice.",
        {},
    ),
    (
        "claim_check.csv",
        "case_id,alg_unet,alg_dyn\na,0.91,0.9\nb,0.8,0.82\nc,0.055,0.5\n",
        "t.csv: 3 rows, 3 cases, 2 methods; a column per method (unet, dyn), its values read as Dice; case = case_id.",
        {},
    ),
    (
        "semicolons, decimal commas, a byte order mark, from Excel",
        "\ufeffFall-ID;Alter;Modell;Dice\na;61;unet;0,91\nb;58;unet;0,8\nc;;unet;0,055\na;61;dyn;,9\nb;58;dyn;0,82\n"
        "c;;dyn;0,5\n",
        "t.csv: 6 rows, 3 cases, 2 methods; separated by semicolons; decimal commas; case = Fall-ID, loss = Modell, "
        "dice = Dice; left out: Alter.",
        {"columns": {"Fall-ID": "case", "modell": "loss"}},
    ),
    (
        "the separator in the first line",
        "sep=;\nID;Method;DSC\na;unet;0,91\nb;unet;0,8\nc;unet;0,055\na;dyn;0,9\nb;dyn;0,82\nc;dyn;0,5\n",
        "t.csv: 6 rows, 3 cases, 2 methods; separated by semicolons; decimal commas; case = ID, loss = Method, dice = "
        "DSC.",
        {},
    ),
    (
        "tabs, percent, row names of R without a heading",
        "Case\tmodel\tDice_Score\n1\ta\tunet\t91\n2\tb\tunet\t80\n3\tc\tunet\t5.5\n4\ta\tdyn\t90\n5\tb\tdyn\t82\n"
        "6\tc\tdyn\t50\n",
        "t.csv: 6 rows, 3 cases, 2 methods; separated by tabs; percent; case = Case, loss = model, dice = Dice_Score; "
        "left out: a column without a name.",
        {},
    ),
    (
        "percent in the heading, so that 0.4 is less than one",
        "case,loss,Dice (%)\na,unet,91\nb,unet,80\nc,unet,5.5\na,dyn,90\nb,dyn,82\nc,dyn,50\nd,unet,0.4\nd,dyn,0.4\n",
        "t.csv: 8 rows, 4 cases, 2 methods; percent; dice = Dice (%).",
        {},
    ),
    (
        "percent in the cells, an index of pandas",
        ",image,network,dsc\n0,a,unet,91%\n1,b,unet,80 %\n2,c,unet,5.5%\n3,a,dyn,90%\n4,b,dyn,82%\n5,c,dyn,50%\n",
        "t.csv: 6 rows, 3 cases, 2 methods; percent; case = image, loss = network, dice = dsc; left out: a column "
        "without a name.",
        {},
    ),
    (
        "an index of pandas that is the case",
        ",unet,dyn\na,0.91,0.9\nb,0.8,0.82\nc,0.055,0.5\n",
        "t.csv: 3 rows, 3 cases, 2 methods; a column per method (unet, dyn), its values read as Dice; case = the "
        "column without a name.",
        {},
    ),
    (
        "wide, with a word and an age",
        "case,centre,unet,dyn,comment\na,x,0.91,0.9,\nb,x,0.8,0.82,good\nc,y,0.055,0.5,\n",
        "t.csv: 3 rows, 3 cases, 2 methods; a column per method (unet, dyn), its values read as Dice; left out: "
        "centre, comment.",
        {},
    ),
    (
        "wide, with columns of numbers that are no methods",
        "case,unet,dyn,Age,dose\na,0.91,0.9,61,60\nb,0.8,0.82,50,60\nc,0.055,0.5,40,54\n",
        "t.csv: 3 rows, 3 cases, 2 methods; a column per method (unet, dyn), its values read as Dice; left out: Age "
        "(no method), dose.",
        {"columns": {"dose": "ignore"}},
    ),
    (
        "wide, with several metrics",
        "case,unet_dice,unet_HD95,dyn_dice,dyn_HD95\na,0.91,3,0.9,4\nb,0.8,2.5,0.82,4\nc,0.055,70,0.5,12\n",
        "t.csv: 3 rows, 3 cases, 2 methods; a column per method (unet, dyn), its values read as Dice, HD95.",
        {},
    ),
    (
        "wide, in percent, its metric by option",
        "case;unet;dyn\na;91;90\nb;80;82\nc;5,5;50\n",
        "t.csv: 3 rows, 3 cases, 2 methods; separated by semicolons; a column per method (unet, dyn), its values read "
        "as Dice; decimal commas; percent.",
        {"metric": "dice"},
    ),
    (
        "challengeR",
        '"","task","alg_name","value","case"\n"1","t","unet",0.91,"a"\n"2","t","unet",0.8,"b"\n"3","t","unet",0.055,"c"'
        '\n"4","t","dyn",0.9,"a"\n"5","t","dyn",0.82,"b"\n"6","t","dyn",0.5,"c"\n',
        "t.csv: 6 rows, 3 cases, 2 methods; value read as Dice; loss = alg_name; left out: a column without a name.",
        {},
    ),
    (
        "challengeR, tasks that are classes",
        "task,algorithm,case,value\nliver,unet,a,0.92\nliver,unet,b,0.8\nliver,unet,c,0.11\nliver,dyn,a,0.9\n"
        "liver,dyn,b,0.82\nliver,dyn,c,1\nspleen,unet,a,0.9\nspleen,unet,b,0.8\nspleen,unet,c,0\nspleen,dyn,a,0.9\n"
        "spleen,dyn,b,0.82\nspleen,dyn,c,0\n",
        "t.csv: 12 rows, 3 cases, 2 methods; value read as Dice; loss = algorithm, class = task.",
        {"columns": {"task": "class"}},
    ),
]


@pytest.mark.parametrize(("content", "description", "options"), [row[1:] for row in READABLE],
                         ids=[row[0] for row in READABLE])  # fmt: skip
def test_a_table_that_can_be_read(
    tmp_path: Path, content: str, description: str | None, options: dict[str, Any]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content, encoding="utf-8")
    found = read_results(path, **options)
    assert found.description == description
    dice = scores(check_results(path, found), "dice")
    values = {loss: list(dice.by_patient[i][:3]) for i, loss in enumerate(dice.losses)}
    assert values == {loss: pytest.approx(expected) for loss, expected in EXPECTED.items()}
    assert dice.patients[:3] == ("a", "b", "c")


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("case,loss,class,dice\na,x,Rüssel,0.5\na,y,Rüssel,0.6\n", encoding=encoding)
    found = from_csv(path)
    assert found.table.classes == ("Rüssel",)
    name = {"utf-16": "UTF-16", "cp1252": "Windows-1252"}[encoding]
    assert found.notes == (f"t.csv: 2 rows, 1 case, 2 methods; {name}.",)


def test_missing_cells_count_as_failures(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("case,loss,DSC,HD95\na,x,N/A,-\nb,x,0.5,3\na,y,0.4,12.5\nb,y,0.6,inf\n")
    found = from_csv(path)
    assert found.notes == (
        "t.csv: 4 rows, 2 cases, 2 methods; 2 cells such as N/A read as missing; dice = DSC, hd95_mm = HD95.",
    )
    assert scores(found.table, "dice").by_patient.tolist() == [[0.0, 0.5], [0.4, 0.6]]
    assert scores(found.table, "hd95_mm").by_patient.tolist() == [[12.5, 3.0], [12.5, 12.5]]


NAMES = [
    ("Dice", "dice"), ("DSC", "dice"), ("dice_score", "dice"), ("Dice Similarity Coefficient", "dice"),
    ("Jaccard", "iou"), ("IoU", "iou"), ("hd95", "hd95_mm"), ("HD95 (mm)", "hd95_mm"), ("hd95_mm", "hd95_mm"),
    ("Hausdorff Distance 95", "hd95_mm"), ("95HD [mm]", "hd95_mm"), ("95% HD", "hd95_mm"), ("ASSD", "assd_mm"),
    ("Surface Dice", "nsd"), ("NSD", "nsd"), ("lesion_wise_dice", "lesion_dice"), ("Lesion F1", "lesion_f1"),
    ("Recall", "sensitivity"), ("clDice", "cldice"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "metric"), NAMES)
def test_names_of_metrics(tmp_path: Path, name: str, metric: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"case,loss,{name}\na,x,0.5\na,y,0.25\n")
    assert list(read_results(path).frame.columns) == ["case", "loss", metric]


def test_the_metric_of_a_wide_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("case,unet_hd95,dyn_hd95\na,3.5,4\n")
    assert list(read_results(path).frame["hd95_mm"]) == ["3.5", "4"]
    path.write_text("case,log_cosh_dice,focal_dice\na,0.5,0.25\n")  # two losses
    assert list(read_results(path, metric="nsd").frame["nsd"]) == ["0.5", "0.25"]
    assert list(read_results(path).frame["loss"]) == ["log_cosh_dice", "focal_dice"]


def test_a_distance_in_voxels_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("case,loss,dice,HD95 (voxels)\na,x,0.5,4\na,y,0.6,5\n")
    found = read_results(path)
    assert list(found.frame.columns) == ["case", "loss", "dice"]
    assert found.description is not None and "left out: HD95 (voxels) (in voxels, not mm)." in found.description


REFUSED: list[tuple[str, str, str, dict[str, Any]]] = [
    ("empty", "", "it is empty", {}),
    ("one column", "case\na\n", "it has one column, case", {}),
    (
        "decimal commas between commas",
        "case,loss,dice\na,x,0,91\na,y,0,8\n",
        "row 2 has 4 cells, and the header 3; if numbers have decimal commas, separate columns by semicolons or tabs",
        {},
    ),
    (
        "decimal commas and points",
        "case;loss;dice\na;x;0,91\na;y;0.8\n",
        "got 0,91 and 0.8; expected decimal commas or decimal points in all numbers",
        {},
    ),
    ("two separators", "case,a;b\nx,1;2\n", "may be separated by semicolons or commas", {}),
    (
        "percent and fractions",
        "case,loss,dice\na,x,91\nb,x,88\na,y,0.8\nb,y,0.7\n",
        r"dice: got 91 \(case a, loss x\) and 0.8 \(case a, loss y\); expected all as numbers from 0 to 1, or all in "
        r"percent: then name the column Dice \(%\)",
        {},
    ),
    (
        "some cells with %",
        "case,loss,dice\na,x,91%\na,y,0.8\n",
        r"got 91% \(case a, loss x\) and 0.8 \(case a, loss y\)",
        {},
    ),
    (
        "values above 1 of no metric",
        "case,unet,dyn\na,91,90\nb,88,5\n",
        r"got values above 1, such as 91 \(case a, column unet\), of a metric without a name; expected --metric dice",
        {},
    ),
    (
        "a column that is no method",
        "case,unet,dyn,dose\na,0.9,0.8,60\nb,0.9,0.8,54\n",
        r"got 60 \(case a, column dose\) and 0.9 \(case a, column unet\); .*; leave out a column that is no method by "
        "--columns ignore=COLUMN",
        {},
    ),
    ("a case twice", "case,unet,dyn\na,0.9,0.8\na,0.9,0.8\n", r"loss unet, case a: 2 repeated row\(s\)", {}),
    (
        "a case twice, and a column that may explain it",
        "case,loss,part,dice\na,x,1,0.9\na,y,1,0.8\na,x,2,0.7\na,y,2,0.6\n",
        r"repeated row\(s\); expected one row each, or a column seed or fold; left out were part: see --columns",
        {},
    ),
    ("two candidates", "case,loss,Dice,DSC\na,x,0.9,0.9\n", "Dice and DSC may both be the column dice; name one", {}),
    (
        "two methods' columns",
        "case,model,team,dice\na,x,u,0.9\n",
        "model and team may both be the column loss; name",
        {},
    ),
    (
        "a metric or a method",
        "case,dice,focal\na,0.9,0.8\n",
        "dice may be a metric of one method or the name of a method, as focal may; if each column is a method, name "
        "them alg_dice, alg_focal",
        {},
    ),
    ("one method", "case,dice,iou\na,0.9,0.8\n", "no column loss, so it has one method; expected two or more", {}),
    ("no method", "case,unet\na,0.9\n", "no column loss; got case, unet; expected case, loss and a metric, or", {}),
    ("no case", "loss,dice\nx,0.9\n", "no column case; got loss, dice; .* name them by --columns case=COLUMN", {}),
    ("no metric", "case,loss,score\na,x,0.9\n", "no column with a metric; .*; got case, loss, score: name it", {}),
    ("no such column", "a,b,dice\n1,x,0.9\n", "--columns: no column ID; got a, b, dice", {"columns": {"ID": "case"}}),
    ("no such metric", "case,a,b\nx,0.1,0.2\n", "--metric: no metric 'dise'", {"metric": "dise"}),
    (
        "tasks",
        "task,alg_name,case,value\nt1,x,1,0.5\nt1,y,1,0.5\nt2,x,1,0.4\nt2,y,1,0.4\n",
        r"got 2 tasks \(t1, t2\); expected one: keep the rows of one, or, if they are classes of the same cases, pass "
        "--columns class=task",
        {},
    ),
]


@pytest.mark.parametrize(("content", "message", "options"), [row[1:] for row in REFUSED],
                         ids=[row[0] for row in REFUSED])  # fmt: skip
def test_a_table_that_is_refused(tmp_path: Path, content: str, message: str, options: dict[str, Any]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        from_csv(path, **options)
    assert "\n" not in str(raised.value)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        from_csv(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot be read"):
        from_csv(tmp_path)
    for content in (b"\xff\xfe\x00case", b"case,\x00loss", b"\x81\x8d"):
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as a CSV table: it is no text"):
            from_csv(tmp_path / "x.csv")


def test_columns_as_an_option() -> None:
    found = read_columns("case=ID, loss = method,DSC=my dice,ignore=a,ignore=b")
    assert found == {"ID": "case", "method": "loss", "my dice": "dice", "a": "ignore", "b": "ignore"}
    for text, message in (
        ("case", "got 'case'; expected pairs such as case=ID"),
        ("size=b", "got 'size'; expected one of loss, case"),
        ("dice=a,dsc=b", "dice is named twice"),
        ("dice=a,case=a", "a is named twice"),
    ):
        with pytest.raises(UserError, match=message):
            read_columns(text)


def test_the_line_is_on_terminal_and_page(tmp_path: Path) -> None:
    path = tmp_path / "ergebnis.csv"
    rows = [f"{case};{loss};{80 + 3 * number + 2 * place}" for place, loss in enumerate(("x", "y"))
            for number, case in enumerate("abc")]  # fmt: skip
    path.write_text("Fall;Methode;DSC\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    columns = ("--columns", "case=Fall,loss=Methode")
    code, shown, err = call_medloss("report", "--cases", path, *columns, "--reference", "x", "--out", out)
    assert (code, err) == (0, "")
    line = (
        "ergebnis.csv: 6 rows, 3 cases, 2 methods; separated by semicolons; percent; case = Fall, loss = Methode, dice"
    )
    assert shown.startswith(line)
    assert json.loads((out / "analysis.json").read_text())["notes"][0].startswith(line)
    claims = pd.read_csv(out / "tables" / "claim_check.csv")
    assert list(claims["alg_y"]) == pytest.approx([0.82, 0.85, 0.88])
    # The table of claims is read as it was written.
    again = tmp_path / "again"
    code, shown, err = call_medloss("report", "--cases", out / "tables" / "claim_check.csv", "--out", again)
    assert (code, err) == (0, "") and "a column per method (x, y), its values read as Dice" in shown
    assert (again / "tables" / "claim_check.csv").read_text() == (out / "tables" / "claim_check.csv").read_text()
    code, _, err = call_medloss("report", tmp_path, "--columns", "case=a")
    assert (code, err) == (2, "error: --columns belongs to --cases; pass that, too\n")


# nnU-Net's summary.json.

_COUNTS = [  # TP, FP, FN, TN of two classes in three cases: seen, missed, absent, and a false alarm
    [(90, 10, 10, 890), (0, 0, 20, 980)],
    [(80, 10, 30, 880), (0, 0, 0, 1000)],
    [(50, 0, 50, 900), (0, 5, 0, 995)],
]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")


def _version_2(shift: int = 0) -> dict[str, Any]:
    """As nnU-Net 2 writes it."""
    cases = []
    for number, of_case in enumerate(_COUNTS):
        metrics = {}
        for label, (tp, fp, fn, tn) in zip(("1", "(1, 2)"), of_case, strict=True):
            tp, fn = (tp - shift, fn + shift) if tp > shift else (tp, fn)
            metrics[label] = {
                "Dice": _ratio(2 * tp, 2 * tp + fp + fn), "FN": fn, "FP": fp, "IoU": _ratio(tp, tp + fp + fn), "TN": tn,
                "TP": tp, "n_pred": tp + fp, "n_ref": tp + fn,
            }  # fmt: skip
        file = f"/data/case_{number:03d}.nii.gz"
        cases.append({"metrics": metrics, "prediction_file": f"/out{file}", "reference_file": f"/gt{file}"})
    mean = {"Dice": 0.5}
    return {"foreground_mean": mean, "mean": {"1": mean, "(1, 2)": mean}, "metric_per_case": cases}


def _version_1() -> dict[str, Any]:
    """As nnU-Net 1 writes it, with the background, and a distance as by its advanced metrics."""
    every = []
    for number, of_case in enumerate(_COUNTS):
        entry: dict[str, Any] = {}
        for label, (tp, fp, fn, tn) in zip(("0", "1", "2"), [(1000, 0, 0, 0), *of_case], strict=True):
            distance = 2.5 + number if tp else float("nan")
            entry[label] = {
                "Accuracy": (tp + tn) / 1000, "Dice": _ratio(2 * tp, 2 * tp + fp + fn),
                "False Discovery Rate": _ratio(fp, tp + fp), "False Negative Rate": _ratio(fn, tp + fn),
                "False Omission Rate": _ratio(fn, tn + fn), "False Positive Rate": _ratio(fp, fp + tn),
                "Hausdorff Distance 95": distance, "Jaccard": _ratio(tp, tp + fp + fn),
                "Negative Predictive Value": _ratio(tn, tn + fn), "Precision": _ratio(tp, tp + fp),
                "Recall": _ratio(tp, tp + fn), "Total Positives Reference": tp + fn, "Total Positives Test": tp + fp,
                "True Negative Rate": _ratio(tn, tn + fp),
            }  # fmt: skip
        entry |= {"reference": f"/gt/case_{number:03d}.nii.gz", "test": f"/out/validation_raw/case_{number:03d}.nii.gz"}
        every.append(entry)
    header = {"author": "Fabian", "description": "", "id": "0123456789ab", "name": "n", "task": "Task004"}
    return header | {"results": {"all": every, "mean": {"1": {"Dice": 0.5}}}, "timestamp": "2021-01-01"}


def _summaries(folder: Path, **contents: Any) -> dict[str, Path]:
    named = {}
    for name, content in contents.items():
        named[name] = folder / name / "summary.json"
        named[name].parent.mkdir()
        named[name].write_text(json.dumps(content))
    return named


def test_summaries_of_version_2(tmp_path: Path) -> None:
    found = from_tables(_summaries(tmp_path, stock=_version_2(), other=_version_2(shift=5)))
    table = found.collected.table
    assert table.classes == ("1", "1+2")
    rows = table.frame.set_index(["loss", "case", "class"])
    metrics = ["dice", "iou", "sensitivity", "specificity"]
    assert list(rows.loc[("stock", "case_000", "1"), metrics]) == pytest.approx([0.9, 90 / 110, 0.9, 890 / 900])
    assert list(rows.loc[("other", "case_000", "1"), metrics]) == pytest.approx([170 / 195, 85 / 110, 0.85, 890 / 900])
    dice = scores(table, "dice", "1+2")
    # A miss; rightly empty; a false alarm.
    assert dice.by_patient[dice.losses.index("stock")].tolist() == [0.0, 1.0, 0.0]
    assert dice.empty == ("case_001", "case_002")
    assert misses(table)["stock"] == (1, 1)
    assert "stock: summary.json of nnU-Net, version 2: 3 cases, classes 1, 1+2." in found.messages


def test_summaries_of_version_1(tmp_path: Path) -> None:
    found = from_tables(_summaries(tmp_path, stock=_version_1(), other=_version_1()))
    table = found.collected.table
    assert table.classes == ("1", "2"), "the background is no class"
    assert tuple(table.metrics) == ("dice", "iou", "sensitivity", "specificity", "hd95_mm")
    rows = table.frame.set_index(["loss", "case", "class"])
    assert list(rows.loc[("stock", "case_001", "1"), list(table.metrics)]) == pytest.approx(
        [0.8, 80 / 120, 80 / 110, 880 / 890, 3.5]
    )
    distance = scores(table, "hd95_mm", "2")
    assert distance.empty == ("case_001", "case_002")
    assert misses(table)["other"] == (1, 1)
    assert any("version 1: 3 cases, classes 1, 2, without the background, 0." in line for line in found.messages)
    assert any("the percentile of both directions together" in line for line in found.messages)


def test_summaries_on_the_command_line(tmp_path: Path) -> None:
    named = _summaries(tmp_path, stock=_version_2(), other=_version_2(shift=5))
    words = [f"{name}={path}" for name, path in named.items()]
    code, shown, err = call_medloss("report", "--cases", *words, "--reference", "stock", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert shown.startswith("stock: summary.json of nnU-Net, version 2: 3 cases")
    code, _, err = call_medloss("report", "--cases", named["stock"], "--out", tmp_path / "out")
    assert code == 2 and "summary.json is of one method; expected two or more, with names: --cases NAME=" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"results": {"mean": {}}}, "has no cases with metrics; expected nnU-Net's summary.json, of version 1"),
        ({"metric_per_case": [{"metrics": {"1": {"Dice": "good"}}, "reference_file": "a"}]}, "has no cases"),
        ({"metric_per_case": [{"metrics": {"1": {"Dice": 1}}}]}, "has no cases"),
        ({"metric_per_case": _version_2()["metric_per_case"] * 2}, "case case_000 appears twice"),
    ],
)
def test_a_summary_that_cannot_be_used(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        from_tables(_summaries(tmp_path, stock=content, other=_version_2()))
    assert "\n" not in str(raised.value)


def test_tables_of_one_method_with_other_names(tmp_path: Path) -> None:
    named = {}
    for name, value in (("x", "0,5"), ("y", "0,75")):
        named[name] = tmp_path / f"{name}.csv"
        named[name].write_text(f"ID;Organ;DSC\n1;liver;{value}\n2;liver;0,5\n")
    found = from_tables(named)
    assert scores(found.collected.table, "dice").by_patient.tolist() == [[0.5, 0.5], [0.75, 0.5]]
    assert found.messages[0] == (
        "x: x.csv: 2 rows, 2 cases; separated by semicolons; decimal commas; case = ID, class = Organ, dice = DSC."
    )
