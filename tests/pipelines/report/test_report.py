"""The report of a table and of a comparison's folder: page, plots and tables."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from cli_call import call_medloss
from made_comparison import made_comparison
from page_reader import read_page
from PIL import Image
from results_tables import long_table

from pipelines.comparison import compare
from pipelines.comparison.execution import Comparison
from pipelines.evaluation.metrics import METRICS
from pipelines.report.collect import Collected, Cost, from_csv, from_folder, select
from pipelines.report.page import _pairs
from pipelines.report.plots.forest import forest_limits
from pipelines.report.plots.training import draw_cost, unbeaten
from pipelines.report.write import write_report
from pipelines.runs.comparison_folder import require_plan, run_folder
from pipelines.runs.plan import DEFAULT_REFERENCE, PlannedRun
from pipelines.statistics.analysis import analyse
from pipelines.statistics.table import check_table
from pipelines.statistics.verdict_text import NOT_CONTROLLED
from pipelines.training.run_config import RunConfig

_HOSTILE = '<script>alert("x")</script>'


def _values(losses: int, cases: int, step: float = 0.02) -> dict[str, Any]:
    random = np.random.default_rng(3)
    hard = random.normal(0.85, 0.03, cases)
    names = [DEFAULT_REFERENCE, *(f"loss_{number:02d}" for number in range(1, losses))]
    return {name: np.clip(hard - step * i + random.normal(0, 0.005, cases), 0, 1) for i, name in enumerate(names)}


def _csv(folder: Path, table: pd.DataFrame) -> Path:
    path = folder / "results.csv"
    table.to_csv(path, index=False)
    return path


def test_pairs_have_both_p_values() -> None:
    random = np.random.default_rng(0)
    table = long_table({loss: 0.8 + 0.02 * random.standard_normal(14) for loss in "abcd"})
    analysis = analyse(check_table(table, METRICS), reference=None)
    pairs, omnibus = pd.DataFrame(_pairs(analysis.primary)), analysis.primary.omnibus
    for name, expected in (("p", omnibus.p), ("p_adjusted", omnibus.p_adjusted)):
        assert list(pairs[name]) == [expected[i][j] for i in range(4) for j in range(4) if i < j]
    assert (pairs["p"] < pairs["p_adjusted"]).any()


def test_of_a_table(tmp_path: Path) -> None:
    table = long_table(_values(4, 14))
    table["hd95_mm"] = 20 * (1 - table["dice"])
    out = tmp_path / "new" / "report"
    code, shown, err = call_medloss("report", "--cases", _csv(tmp_path, table), "--out", out)
    assert (code, err) == (0, "")
    analysis = analyse(check_table(table, METRICS), reference=DEFAULT_REFERENCE)
    assert shown.splitlines() == [analysis.verdict, f"report    {out / 'report.html'}"]
    assert "Scores per case" in read_page(out / "report.html").text

    page = read_page(out / "report.html")
    order = [*analysis.summary, "How sure", "Complete misses", "Cost", "What could change the answer",
             "Comparison with the reference", analysis.verdict, *analysis.caveats, "Ranking",
             "Paired differences per case", "Scores per case", "Critical-difference", "All pairs",
             "Stability of the ranks", "Cases, the hardest first", "Other metrics (secondary)", "For a paper",
             "What was run", *NOT_CONTROLLED]  # fmt: skip
    places = [page.text.rindex(piece) if piece in NOT_CONTROLLED else page.text.index(piece) for piece in order[:1]]
    for piece in order[1:]:
        places.append(page.text.index(piece, places[-1]))
    assert places == sorted(places)
    assert "Learning curves" not in page.text and "Time and score" not in page.text and "s/epoch" not in page.text
    for ranked in analysis.primary.ranking:
        assert ranked.loss in page.text
        assert f"{ranked.mean:.4f}" in page.text

    ranking = pd.read_csv(out / "tables" / "ranking.csv")
    assert list(ranking["loss"]) == [ranked.loss for ranked in analysis.primary.ranking]
    np.testing.assert_allclose(ranking["mean"], [ranked.mean for ranked in analysis.primary.ranking])
    resampled = [analysis.primary.bootstrap.losses[loss] for loss in ranking["loss"]]
    np.testing.assert_allclose(ranking[["mean_low", "mean_high"]], [one.mean_interval for one in resampled])
    np.testing.assert_allclose(ranking["p_first"], [one.p_first for one in resampled])
    compared = pd.read_csv(out / "tables" / "comparisons.csv")
    assert list(compared["verdict"]) == [one.verdict for one in analysis.primary.comparisons]
    np.testing.assert_allclose(compared["p_adjusted"], [one.p_adjusted for one in analysis.primary.comparisons])
    np.testing.assert_allclose(
        compared[["difference_low", "difference_high"]], [one.interval for one in analysis.primary.comparisons]
    )
    pairs = pd.read_csv(out / "tables" / "pairs.csv")
    omnibus = analysis.primary.omnibus
    assert len(pairs) == 6
    for row in pairs.itertuples():
        assert row.p_adjusted == pytest.approx(
            omnibus.p_adjusted[omnibus.losses.index(row.loss)][omnibus.losses.index(row.other)]
        )
    secondary = pd.read_csv(out / "tables" / "secondary.csv")
    assert set(secondary["metric"]) == {"hd95_mm"} and list(secondary["loss"]) == list(ranking["loss"])

    claims = pd.read_csv(out / "tables" / "claim_check.csv")
    assert list(claims.columns) == ["case_id", *(f"alg_{loss}" for loss in sorted(table["loss"].unique()))]
    for loss, rows in table.groupby("loss"):
        np.testing.assert_allclose(claims.set_index("case_id")[f"alg_{loss}"][rows["case"]], rows["dice"], atol=1e-9)
    stored = json.loads((out / "analysis.json").read_text())
    assert stored["verdict"] == analysis.verdict and stored["primary"] == analysis.to_dict()["primary"]

    for name in ("boxes", "differences", "forest", "significance", "critical_difference", "ranks"):
        assert ElementTree.parse(out / "plots" / f"{name}.svg").getroot().tag.endswith("svg")
        with Image.open(out / "plots" / f"{name}.png") as picture:
            assert picture.width > 600
    assert not list(out.rglob("*.partial"))


def test_what_is_missing_is_named_on_the_terminal_too(tmp_path: Path) -> None:
    table = long_table(_values(3, 14))
    of_first = table["loss"] == "loss_01"
    table.loc[of_first & (table["case"] == "c000"), "dice"] = np.nan
    table = table[~(of_first & table["case"].isin(["c003", "c005"]))]
    code, shown, err = call_medloss("report", "--cases", _csv(tmp_path, table), "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    notes = shown.splitlines()[1:-1]
    assert notes[:2] == [
        "loss_01: no result for 2 cases (c003 and c005); counted as the worst, 0.",
        "loss_01: 1 failed prediction, counted as the worst, 0.",
    ]
    page = read_page(tmp_path / "out" / "report.html").text
    assert all(note in page for note in notes)

    losses = ["dice", DEFAULT_REFERENCE, "tversky"]
    made_comparison(tmp_path / "made", losses, lambda c: None if c.loss == "tversky" else "done")
    code, shown, err = call_medloss("report", tmp_path / "made")
    assert (code, err) == (0, "")
    assert shown.startswith("The comparison is not finished: 2 of 3 runs have ended.\nNot compared")


def test_of_a_folder(tmp_path: Path) -> None:
    losses = ["focal", DEFAULT_REFERENCE, "tversky", "combo"]
    made_comparison(
        tmp_path, losses, lambda c: "failed" if (c.loss, c.fold) == ("combo", 1) else "done", folds=(0, 1), seeds=(0, 1)
    )
    code, shown, err = call_medloss("report", tmp_path)
    assert (code, err) == (0, "")
    assert f"focal was better than the reference {DEFAULT_REFERENCE} in Dice" in shown
    out = tmp_path / "report"
    page = read_page(out / "report.html")
    for piece in ("Learning curves", "Time and score", "s/epoch", "Individual classes (secondary)", "organ", "shell",
                  "the loss is nan in epoch 3, case <c1>", "ab" * 32, "made data", "version of torch 2.13.0",
                  "folds 0, 1", "24 cases", "4 runs (2 folds x 2 seeds) per loss"):  # fmt: skip
        assert piece in page.text, piece
    assert "not finished" not in page.text
    costs = pd.read_csv(out / "tables" / "costs.csv").set_index("loss")
    assert costs.loc["tversky"].to_dict() == {"epoch_s": 4.0, "peak_mb": 303.0, "seconds": 36.0, "runs": 4}
    assert costs.loc["combo", "runs"] == 2
    # Its first fold went well, its second counts as the worst: half of its cases are 0 with both seeds.
    claims = pd.read_csv(out / "tables" / "claim_check.csv").set_index("case_id")
    assert (claims.loc[[f"f1c{i:02d}" for i in range(12)], "alg_combo"] == 0).all()
    assert (claims.loc[[f"f0c{i:02d}" for i in range(12)], "alg_combo"] > 0.5).all()
    failures = pd.read_csv(out / "tables" / "failures.csv")
    assert failures[["loss", "fold", "seed"]].to_numpy().tolist() == [["combo", 1, 0], ["combo", 1, 1]]
    curves = pd.read_csv(out / "tables" / "learning_curves.csv")
    assert len(curves) == 14 * 3 + 2 * 2
    assert {path.stem for path in (out / "plots").glob("*.png")} == {
        "boxes", "differences", "forest", "significance", "critical_difference", "ranks", "learning_curves",
        "time_and_score",
    }  # fmt: skip


def test_machines_and_commits_are_listed(tmp_path: Path) -> None:
    losses = ["focal", "dice", "tversky", "combo"]
    plan = made_comparison(tmp_path, losses)

    def facts() -> dict[str, str]:
        return dict(from_folder(tmp_path).facts)

    assert "machine" not in facts()  # earlier versions did not record the machine
    mine = {"processor": "Abacus 2", "cores": "1", "memory": "8 GiB", "system": "Linux"}
    for number, run in enumerate(plan.runs):
        run_dir = run_folder(tmp_path, run)
        result = run_dir.result
        assert result is not None
        theirs = mine | {"cores": "16", "gpu": "H100"} if number == 3 else mine
        result["versions"]["medloss commit"] = "c0ffee" if number else "0ff1ce, changed since"
        run_dir.write_result(result | {"machine": theirs})
        if number == 2:
            assert facts()["machine"] == "Abacus 2, 1 core, 8 GiB, Linux (3 runs); not recorded (1 run)"
    machines = "Abacus 2, 1 core, 8 GiB, Linux (3 runs); Abacus 2, 16 cores, 8 GiB, H100, Linux (1 run)"
    assert facts()["2 machines"] == machines
    assert facts()["medloss commit"] == "0ff1ce, changed since; c0ffee"


def test_partly_finished(tmp_path: Path) -> None:
    losses = ["focal", "dice", "tversky"]
    done = {("focal", 0), ("dice", 0), ("focal", 1)}
    plan = made_comparison(tmp_path, losses, lambda c: "done" if (c.loss, c.fold) in done else None, folds=(0, 1))
    collected = from_folder(tmp_path)
    assert collected.table.losses == ("dice", "focal")
    assert collected.table.frame["case"].nunique() == 12  # the first fold only: dice has not finished the second
    path, analysis = write_report(collected, tmp_path / "report", bootstraps=100)
    assert analysis.reference is None
    page = read_page(path)
    for piece in (
        "3 of 6 runs have ended",
        "too few of their runs have ended: tversky.",
        "Left out, since not all losses have ended there: fold 1 seed 0.",
        f"The default reference, {DEFAULT_REFERENCE}, is not among the losses",
    ):
        assert piece in page.text, piece
    assert "Comparison with the reference" not in page.text
    assert "Difference between the two losses" in page.text

    unfinished = tmp_path / "young"
    made_comparison(unfinished, losses, lambda c: "done" if c.loss == "dice" else None)
    code, shown, err = call_medloss("report", unfinished)
    assert (code, shown, err.count("\n")) == (2, "", 1)
    assert "1 of 3 runs are finished, of 1 loss(es); expected at least two losses" in err
    assert require_plan(tmp_path) == plan


def test_a_loss_that_always_failed_ranks_last(tmp_path: Path) -> None:
    losses = ["tversky", DEFAULT_REFERENCE, "dice"]
    made_comparison(tmp_path, losses, lambda c: "failed" if c.loss == "tversky" else "done")
    path, analysis = write_report(from_folder(tmp_path), tmp_path / "report", bootstraps=100)
    last = analysis.primary.ranking[-1]
    assert (last.loss, last.mean, last.failed) == ("tversky", 0.0, 24)
    assert analysis.primary.comparisons[-1].verdict == "worse"
    assert "the loss is nan in epoch 3, case <c1>" in read_page(path).text


def test_which_runs_are_compared() -> None:
    def chosen(*ended: tuple[str, int]) -> tuple[list[str], list[int], list[str]]:
        runs = [
            PlannedRun(id=f"{loss}{fold}", config=RunConfig(manifest="phantom", loss=loss, fold=fold))
            for fold in (0, 1)
            for loss in ("dice", "focal", "tversky")
        ]
        found = select(runs, {f"{loss}{fold}" for loss, fold in ended})
        return sorted({run.config.loss for run in found.runs}), [b[0] for b in found.blocks], list(found.left_out)

    everything = [(loss, fold) for loss in ("dice", "focal", "tversky") for fold in (0, 1)]
    assert chosen(*everything) == (["dice", "focal", "tversky"], [0, 1], [])
    assert chosen(*everything[:-1]) == (["dice", "focal", "tversky"], [0], [])
    # Without a common block, the least advanced loss is left out.
    assert chosen(("dice", 0), ("dice", 1), ("focal", 0), ("tversky", 1)) == (["dice", "focal"], [0], ["tversky"])
    assert chosen() == ([], [], ["dice", "focal", "tversky"])


def test_names_are_text(tmp_path: Path) -> None:
    values = _values(2, 8)
    other = next(name for name in values if name != DEFAULT_REFERENCE)
    hostile = f"{_HOSTILE} $\\frac$ {'long' * 40}"
    names = {
        other: values[other],
        hostile: values[other] - 0.1,
        "损失": values[other] - 0.2,
        "$\\frac$": values[other] - 0.3,
    }
    table = pd.concat([
        long_table({DEFAULT_REFERENCE: values[DEFAULT_REFERENCE]} | names, **{"class": name})
        for name in ("<img src=x onerror=alert(1)>{{ 7 * 7 }}", "b&w")
    ])  # fmt: skip
    path = tmp_path / "<b>results.csv"
    table.to_csv(path, index=False)
    code, _, err = call_medloss("report", "--cases", path, "--out", tmp_path / "report")
    assert (code, err) == (0, "")
    page = read_page(tmp_path / "report" / "report.html")
    assert "img" not in page.tags
    assert _HOSTILE in page.text and "<img src=x onerror=alert(1)>{{ 7 * 7 }}" in page.text and "b&w" in page.text
    assert "损失" in page.text and "$\\frac$" in page.text and "<b>results.csv" in page.text
    assert f"alg_{_HOSTILE}" in (tmp_path / "report" / "tables" / "claim_check.csv").read_text().replace('""', '"')


@pytest.mark.parametrize(("losses", "cases"), [(2, 1), (2, 3), (17, 5)])
def test_too_few_cases_are_noted(tmp_path: Path, losses: int, cases: int) -> None:
    collected = from_csv(_csv(tmp_path, long_table(_values(losses, cases))))
    path, analysis = write_report(collected, tmp_path / "report", bootstraps=200)
    assert "Too few cases to tell" in analysis.verdict
    page = read_page(path)
    assert analysis.verdict in page.text
    assert "Detectable difference" not in page.text  # nothing is detectable
    assert "better" not in {one.verdict for one in analysis.primary.comparisons}
    assert not any(word in page.text for word in ("nan", "None", "inf "))


def test_flat_and_failed_results(tmp_path: Path) -> None:
    """Equal losses; a loss that always failed; a distance as the primary metric."""
    values = {"a": [0.5] * 6, "b": [0.5] * 6, "c": [np.nan] * 6}
    path, analysis = write_report(
        from_csv(_csv(tmp_path, long_table(values))), tmp_path / "report", reference="a", bootstraps=200
    )
    page = read_page(path)
    assert [ranked.failed for ranked in analysis.primary.ranking] == [0, 0, 6]
    assert "failed or missing" in page.text
    table = long_table({"a": np.arange(1.0, 13), "b": np.arange(3.0, 15)}, "hd95_mm")
    path, analysis = write_report(
        from_csv(_csv(tmp_path, table)),
        tmp_path / "report",
        metric="hd95_mm",
        reference="a",
        margin=0.5,
        bootstraps=200,
    )
    assert analysis.primary.comparisons[0].verdict == "worse"
    assert "+2.00 mm" in read_page(path).text
    assert not (tmp_path / "report" / "tables" / "secondary.csv").exists()


def test_files_of_an_older_report_are_removed(tmp_path: Path) -> None:
    collected = from_csv(_csv(tmp_path, long_table(_values(2, 6))))
    write_report(collected, tmp_path / "r", bootstraps=10)
    for name in ("mine.png", "first.png"):
        (tmp_path / "r" / "plots" / name).touch()
    before = (tmp_path / "r" / "plots" / "boxes.svg").read_bytes()
    write_report(collected, tmp_path / "r", bootstraps=10)
    assert (tmp_path / "r" / "plots" / "boxes.svg").read_bytes() == before  # the same numbers, the same bytes
    write_report(
        from_csv(_csv(tmp_path, long_table({"a": [0.1, 0.2], "b": [0.2, 0.4]}))), tmp_path / "r", bootstraps=10
    )
    assert {path.name for path in (tmp_path / "r" / "plots").glob("*.png")} == {
        "boxes.png", "differences.png", "forest.png", "mine.png"
    }  # fmt: skip
    assert not (tmp_path / "r" / "tables" / "comparisons.csv").exists()


def test_time_and_score_is_no_ranking_within_chance() -> None:
    random = np.random.default_rng(0)
    means = {"slow": 0.9, "mid": 0.898, "fast": 0.5, "bad": 0.4, "late": 0.8}
    table = check_table(long_table({loss: mean + random.normal(0, 0.02, 20) for loss, mean in means.items()}), METRICS)
    analysis = analyse(table, reference="mid", bootstraps=10)
    times = {"slow": 9.0, "mid": 9.9, "fast": 1.0, "bad": 2.0, "late": 8.5}
    costs = {loss: Cost(epoch_s=time, peak_mb=None, seconds=None, runs=1) for loss, time in times.items()}
    # The mean of mid is lower, and its time longer, but neither by more than chance; late is beaten, though faster.
    assert sorted(unbeaten(analysis, costs)) == ["fast", "mid", "slow"]
    assert unbeaten(analysis, {"bad": costs["bad"]}) == ["bad"]
    collected = Collected("made.csv", table, (), costs=costs)
    axes = draw_cost(analysis, collected).axes[0]
    # Points and intervals alone: no line joins two losses.
    assert all(len(set(line.get_xdata())) == 1 for line in axes.lines)
    bold = {text.get_text() for text in axes.texts if text.get_weight() == "bold"}
    assert bold == {"fast", "mid", "slow"}


def test_one_wide_interval_does_not_hide_the_others() -> None:
    values = _values(5, 20)
    values["loss_04"] = np.where(np.arange(20) < 10, 0.0, 0.95)
    compared = analyse(
        check_table(long_table(values), METRICS), reference=DEFAULT_REFERENCE, bootstraps=10
    ).primary.comparisons
    low, high = forest_limits(compared, 0.01)
    wide = next(one for one in compared if one.loss == "loss_04")
    assert wide.interval is not None and wide.difference < low  # in the strip at the edge
    for one in compared:
        if one is not wide:
            assert one.interval is not None and low < one.interval[0] < one.interval[1] < high
    low, high = forest_limits([wide], 0.0)
    assert low < wide.interval[0] < wide.interval[1] < high


def test_bad_input(tmp_path: Path) -> None:
    csv = _csv(tmp_path, long_table(_values(2, 3)))
    (tmp_path / "file").touch()
    (tmp_path / "text.csv").write_text("case,loss,dice\na,x,87\na,y,300\n")
    damaged = tmp_path / "damaged"
    plan = made_comparison(damaged, ["dice", "focal"])
    (run_folder(damaged, plan.runs[0]).path / "result.json").write_text('{"state": "do')
    cases = tmp_path / "cases"
    plan = made_comparison(cases, ["dice", "focal"])
    (run_folder(cases, plan.runs[0]).path / "cases.csv").write_text("a,b\n1,2\n")
    (tmp_path / "disjoint.csv").write_text("case,loss,dice\na,x,0.5\nb,x,0.5\nc,y,0.5\n")
    (tmp_path / "far.csv").write_text("case,loss,hd95_mm\na,x,1e300\na,y,3\n")
    no_cases = tmp_path / "no cases"
    plan = made_comparison(no_cases, ["dice", "focal"])
    (run_folder(no_cases, plan.runs[1]).path / "cases.csv").unlink()
    for arguments, message in (
        ([], "the FOLDER of a comparison, --cases FILE.csv, or --predictions"),
        ([tmp_path, "--cases", csv], "pass one of the three"),
        (["--cases", csv], "--out: got none"),
        (["--cases", csv, "--out", tmp_path / "file"], "is not a folder"),
        (["--cases", csv, "--out", tmp_path / "file" / "in"], "--out: "),
        (["--cases", tmp_path / "none.csv", "--out", tmp_path / "r"], "none.csv: no such file"),
        (["--cases", tmp_path / "text.csv", "--out", tmp_path / "r"], "expected a number, 0 to 1 (not percent)"),
        (["--cases", tmp_path / "disjoint.csv", "--out", tmp_path / "r"], "x and y have no case in common"),
        (["--cases", tmp_path / "far.csv", "--out", tmp_path / "r"], "expected a number, mm, 0 to 1e6 or inf"),
        (["--cases", csv, "--out", tmp_path / "r", "--metric", "iou"], "metric iou: no such column"),
        (["--cases", csv, "--out", tmp_path / "r", "--reference", "loss_1"], "did you mean loss_01?"),
        (["--cases", csv, "--out", tmp_path / "r", "--margin", "-1"], "margin: got -1.0"),
        ([tmp_path / "nowhere"], "holds no comparison"),
        ([damaged], "result.json is damaged"),
        ([cases], "cases.csv is damaged"),
        ([no_cases], "cases.csv: no such file"),
    ):
        code, shown, err = call_medloss("report", *arguments)
        assert (code, shown, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: ") and message in err
    assert not (tmp_path / "r").exists()


def test_compare_survives_a_report_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = made_comparison(tmp_path, ["dice", "focal"])
    report = compare._report(Comparison(tmp_path, plan))
    assert report is not None and report.page == tmp_path / "report" / "report.html"
    assert capsys.readouterr().err == ""
    (run_folder(tmp_path, plan.runs[0]).path / "cases.csv").write_text("case,dice\na,b\n")
    assert compare._report(Comparison(tmp_path, plan)) is None
    err = capsys.readouterr().err
    assert err.startswith("warning: no report was written: ") and err.count("\n") == 1
    alone = made_comparison(tmp_path / "alone", ["dice", "focal"], lambda c: "done" if c.loss == "dice" else "failed")
    assert compare._report(Comparison(tmp_path / "alone", alone)) is None
    assert not (tmp_path / "alone" / "report").exists()


def test_a_table_keeps_the_types(tmp_path: Path) -> None:
    """Names of cases that are numbers with leading zeros are kept."""
    path = tmp_path / "t.csv"
    path.write_text("case,loss,dice\n007,a,0.5\n010,a,0.7\n007,b,0.6\n010,b,0.4\n")
    collected: Collected = from_csv(path)
    write_report(collected, tmp_path / "r", bootstraps=10)
    assert (tmp_path / "r" / "tables" / "claim_check.csv").read_text().splitlines()[1].startswith("007,0.5,0.6")
