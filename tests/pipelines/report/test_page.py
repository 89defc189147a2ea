"""The content of the page: first screen, points that name their cases, the table of cases, and few or many of all."""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_comparison import made_comparison
from made_pictures import pictured_comparison
from matplotlib.figure import Figure
from page_reader import read_page
from results_tables import long_table
from tiny import tiny_manifest

from pipelines.evaluation.metrics import METRICS
from pipelines.report.collect import Collected, Cost, Curve, from_folder
from pipelines.report.first_screen import first_facts
from pipelines.report.hardest_cases import case_rows, shown_losses
from pipelines.report.plots.base import MOST_POINTS, drawn
from pipelines.report.plots.critical_difference import draw_critical
from pipelines.report.plots.differences import draw_differences
from pipelines.report.plots.forest import draw_forest
from pipelines.report.plots.significance import draw_significance
from pipelines.report.write import every_plot, write_report
from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.plan import DEFAULT_REFERENCE
from pipelines.statistics.analysis import analyse
from pipelines.statistics.results import Analysis
from pipelines.statistics.table import check_table


def _scores(losses: int, cases: int, *, step: float = 0.02, noise: float = 0.005, seed: int = 3) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    hard = random.normal(0.8, 0.05, cases)
    names = [f"loss_{number:02d}" for number in range(losses)]
    return {name: np.clip(hard - step * i + random.normal(0, noise, cases), 0, 1) for i, name in enumerate(names)}


def _collected(values: dict[str, Any], **about: Any) -> Collected:
    return Collected("made.csv", check_table(long_table(values), METRICS), (), **about)


def _analysed(values: dict[str, Any], reference: str | None = "loss_00", **options: Any) -> Analysis:
    return analyse(check_table(long_table(values), METRICS), reference=reference, bootstraps=200, **options)


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def _section(html: str, name: str) -> str:
    start = html.index(f'<section id="{name}"')
    return html[start : html.index("</section>", start)]


def _titles(html: str) -> list[str]:
    return [unescape(title) for title in re.findall(r"<title>(.*?)</title>", html)]


def _facts(analysis: Analysis, collected: Collected) -> dict[str, str]:
    return {heading: " ".join(sentences) for heading, sentences in first_facts(analysis, collected)}


# The first screen.


def test_the_first_screen_has_costs_and_misses() -> None:
    values = _scores(3, 30)
    values["loss_02"][:4] = 0.0
    costs = {loss: Cost(epoch_s=2.0 + i, peak_mb=300.0, seconds=60.0, runs=1) for i, loss in enumerate(values)}
    facts = _facts(_analysed(values), _collected(values, costs=costs))
    assert (
        facts["Complete misses"]
        == "loss_02 4; none with the other 2 losses. Each is a class of a case of which nothing was found."
    )
    assert "loss_00: 2.0 s per epoch, 300 MB." in facts["Cost"]
    assert (
        "2.0 s to 4.0 s per epoch." in facts["Cost"]
        and "3 runs took 3 min 0 s added up: less on the clock where" in facts["Cost"]
    )
    assert facts["On what"].startswith("30 cases, 1 run per loss.")
    plain = _scores(3, 30)
    facts = _facts(_analysed(plain), _collected(plain))
    assert facts["Complete misses"] == "No loss missed a class completely."
    assert facts["Cost"] == "Not recorded: the table has scores only."


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        # Six epochs of 10 s, of which the third and the last validate for 5 s: 70 s per run.
        ([0.0, 0.0, 70.0], "added up, 2 min 20 s on the clock: up to 2 at a time."),
        ([0.0, 70.0, 140.0], "added up, one run at a time."),
        # Each is interrupted for 500 s after 45 s: 0 to 75, 545 to 570, 575 to 600, 1000 to 1045, and 1545 to 1570.
        ([0.0, 30.0, 1000.0], "added up, 3 min 15 s on the clock: up to 2 at a time."),
        ([0.0, 0.0, float("nan")], "added up: less on the clock where several ran at a time."),
    ],
)
def test_the_first_screen_has_the_time_on_the_clock(begun: list[float], expected: str) -> None:
    values = _scores(3, 30)
    costs = {loss: Cost(epoch_s=10.0, peak_mb=300.0, seconds=70.0, runs=1) for loss in values}

    def curve(loss: str, start: float, failed: bool = False) -> Curve:
        rows = []
        for number in range(1, 7):
            start += 10 + 5 * (number % 3 == 0)
            validated = 5.0 if number % 3 == 0 else float("nan")
            pause = 500 * (number > 4 and begun[-1] == 1000.0)
            # Clocks are rounded.
            rows.append({"epoch": number, "epoch_s": 10.001, "val_s": validated, "time": start + pause})
        return Curve(loss, 0, 0, failed, tuple(rows))

    curves = [curve(loss, start) for loss, start in zip(values, begun, strict=True)]
    # Neither failed runs nor those of losses that are not compared count.
    curves += [curve("loss_00", 5000.0, failed=True), curve("another", 6000.0)]
    facts = _facts(_analysed(values), _collected(values, costs=costs, curves=tuple(curves)))
    assert f"3 runs took 3 min 30 s {expected}" in facts["Cost"]
    # Of one run an `epochs.csv` from elsewhere, or none: a damaged one is to be removed.
    for epochs in (({"epoch": 1.0, "time": 0.0},), ()):
        partial = (replace(curves[0], epochs=epochs), *curves[1:])
        facts = _facts(_analysed(values), _collected(values, costs=costs, curves=partial))
        assert "added up: less on the clock" in facts["Cost"]


def test_the_first_screen_names_each_primary_metric() -> None:
    table = long_table(_scores(3, 30))
    table["nsd"] = table["dice"] ** 2
    checked = check_table(table, METRICS)
    found = analyse(checked, reference="loss_00", further={"nsd": None}, bootstraps=20)
    assert found.several is not None
    dice, nsd = (found.several.analyses[name].reach.difference_family for name in ("dice", "nsd"))
    facts = _facts(found, Collected("made.csv", checked, ()))
    expected = f"Most losses have to differ by {dice:.4f} in Dice and {nsd:.4f} in NSD to be found with 80 % power"
    assert expected in facts["On what"]


def test_false_alarms_are_next_to_the_complete_misses() -> None:
    values = _scores(3, 30)
    assert "False alarms" not in _facts(_analysed(values), _collected(values))  # every reference has the class
    for loss, there in (("loss_00", [np.nan, np.nan]), ("loss_01", [0.0, 0.0]), ("loss_02", [0.0, np.nan])):
        values[loss][:2] = there
    table = check_table(long_table(values, specificity=0.99), METRICS)
    facts = first_facts(analyse(table, reference="loss_00", bootstraps=20), Collected("made.csv", table, ()))
    place = [heading for heading, _ in facts].index("Complete misses")
    assert facts[place + 1] == (
        "False alarms",
        ("loss_01 2 and loss_02 1; none with the other loss. Each is a class of a case that was predicted although the "
         "reference has none of it.",),
    )  # fmt: skip
    values |= {loss: np.append([np.nan, np.nan], values[loss][2:]) for loss in values}
    table = check_table(long_table(values, specificity=0.99), METRICS)
    facts = first_facts(analyse(table, reference="loss_00", bootstraps=20), Collected("made.csv", table, ()))
    assert dict(facts)["False alarms"] == ("No loss predicted a class where the reference has none of it.",)


def test_the_table_of_a_failed_loss_counts_its_predictions() -> None:
    values = _scores(3, 10)
    values["loss_01"][:2] = np.nan
    facts = _facts(_analysed(values), _collected(values))
    assert "Failed or missing predictions: loss_01 2; none with the other 2 losses." in facts["Complete misses"]


# Plots.


def test_far_losses_lie_in_a_strip_with_their_values() -> None:
    values = _scores(5, 30, step=0.002)
    values["loss_04"] = values["loss_04"] - 0.4
    analysis = _analysed(values)
    far = next(one for one in analysis.primary.comparisons if one.loss == "loss_04")
    figure = draw_forest(analysis, _collected(values))
    low, high = figure.axes[0].get_xlim()
    assert high - low < 0.2 and low > far.difference  # the scale is that of the others
    shown = f"{far.difference:+.4f}".replace("-", "−")
    texts = _texts(figure)
    assert texts.count(shown) == 1  # in the strip
    assert sum(shown in text for text in texts) == 2  # and with its interval at the right
    assert sum("undecided" in text or "equivalent" in text or "worse" in text for text in texts) == 4
    near = _scores(5, 30, step=0.002)
    assert len(_texts(draw_forest(_analysed(near), _collected(near)))) == 4


@pytest.mark.parametrize("draw", [draw_forest, draw_significance])
def test_no_p_value_near_one_is_drawn(draw: Any) -> None:
    values = _scores(4, 12, step=0.0, noise=0.03)
    values["loss_03"] = values["loss_03"] - 0.3
    for text in _texts(draw(_analysed(values), _collected(values))):
        assert ".99" not in text and text != "1"


def test_pairs_without_a_significant_one_are_a_sentence(tmp_path: Path) -> None:
    values = _scores(4, 12, step=0.0, noise=0.03)
    collected = _collected(values)
    path, analysis = write_report(collected, tmp_path / "r", reference="loss_00", bootstraps=50)
    least = min(p for row, of_row in enumerate(analysis.primary.omnibus.p_adjusted) for p in of_row[:row])
    assert f"No pair of losses differs significantly (smallest adjusted p: {least:.2g})." in read_page(path).text
    assert "significance" not in every_plot(analysis, collected)


def test_demsars_diagram_has_names_ranks_and_groups() -> None:
    values = _scores(5, 30, step=0.0, noise=0.02)
    values["loss_04"] = values["loss_04"] - 0.2
    analysis = _analysed(values)
    omnibus = analysis.primary.omnibus
    figure = draw_critical(analysis, _collected(values))
    texts = _texts(figure)
    for loss, rank in zip(omnibus.losses, omnibus.average_ranks, strict=True):
        (shown,) = [text for text in texts if loss in text]
        assert f"{rank:.2f}" in shown and ("(reference)" in shown) == (loss == "loss_00")
    bars = [line for line in figure.axes[0].lines if line.get_linewidth() == 3.5]
    ranks = dict(zip(omnibus.losses, omnibus.average_ranks, strict=True))
    expected = sorted((min(ranks[one] for one in group), max(ranks[one] for one in group)) for group in omnibus.groups)
    assert sorted(tuple(np.asarray(bar.get_xdata(), float)) for bar in bars) == expected


def test_differences_name_every_case_and_mark_those_beyond() -> None:
    values = _scores(3, 60)
    values["loss_01"][7] = 0.0
    analysis = _analysed(values)
    plot = drawn("differences", lambda: draw_differences(analysis, _collected(values)))
    titles = _titles(plot.svg)
    for loss in ("loss_01", "loss_02"):
        cases = [title.split(":")[0] for title in titles if title.endswith(f"({loss})")]
        assert sorted(cases) == sorted(analysis.patients)
    difference = analysis.scores["loss_01"][7] - analysis.scores["loss_00"][7]
    assert f"c007: {difference:+.4f} (loss_01)" in titles
    low = draw_differences(analysis, _collected(values)).axes[0].get_xlim()[0]
    assert low > difference


def test_two_losses_have_a_line_per_case() -> None:
    values = _scores(2, 25, step=0.0, noise=0.02)
    analysis = _analysed(values)
    figure = draw_differences(analysis, _collected(values))
    left = figure.axes[0]
    assert sum(len(line.get_xdata()) == 2 for line in left.lines) == 25 + 1  # and the means
    titles = _titles(drawn("differences", lambda: draw_differences(analysis, _collected(values))).svg)
    assert sorted({title.split(":")[0] for title in titles}) == sorted(analysis.patients)
    assert len(titles) == 3 * 25


def test_names_in_points_are_text() -> None:
    values = _scores(3, 5)
    table = long_table(values).replace({"case": {"c001": '<script>"&'}})
    analysis = analyse(check_table(table, METRICS), reference="loss_00", bootstraps=10)
    plot = drawn("differences", lambda: draw_differences(analysis, _collected(values)))
    assert "<script" not in plot.svg
    assert any(title.startswith('<script>"&: ') for title in _titles(plot.svg))


def test_points_lead_to_pictures(tmp_path: Path) -> None:
    losses = [DEFAULT_REFERENCE, "dice", "focal"]
    manifest = tiny_manifest(tmp_path, cases=9)
    pictured_comparison(tmp_path / "c", losses, manifest, tmp_path / "data")
    collected = from_folder(tmp_path / "c")
    path, analysis = write_report(collected, tmp_path / "r", bootstraps=50)
    html = path.read_text()
    page = read_page(path)  # every link leads somewhere
    pictures = page.ids
    chosen = {
        row[1]: row for row in re.findall(r'<a href="#(overlay_\w+)">(.*?)</a>', _section(html, "boxes"), re.DOTALL)
    }
    assert chosen
    for point, (target, _) in chosen.items():
        (title,) = _titles(point)
        case, loss = title.split(":")[0], title.rsplit("(", 1)[1].rstrip(")")
        assert target in pictures
        png = html[html.index(f'id="{target}"') :]
        assert case in png[: png.index("</figure>")]
        assert loss in png[: png.index("</figure>")]
    # In the table of cases, too.
    linked = re.findall(r'<a href="#(overlay_\w+)">(\w+)</a>', _section(html, "hardest"))
    assert linked and {case for _, case in linked} <= set(analysis.patients)


# The table of cases.


def test_the_hardest_case_comes_first() -> None:
    values = {"a": [0.9, 0.2, 0.5], "b": [0.8, 0.4, 0.6], "c": [0.7, 0.3, 0.55]}
    rows = case_rows(_analysed(values, "a"), {(0, 1): "overlay_a"})
    assert [row.case for row in rows] == ["c001", "c002", "c000"]
    assert (rows[0].worst, rows[0].best, rows[0].reference) == ((0.2, "a"), (0.4, "b"), 0.2)
    assert [row.link for row in rows] == ["overlay_a", None, None]
    assert rows[0].scores == tuple(
        values[ranked.loss][1] for ranked in _analysed(values, "a").primary.ranking
    )  # fmt: skip
    distance = long_table({"a": [1.0, 9.0], "b": [2.0, 8.0]}, "hd95_mm")
    found = analyse(check_table(distance, METRICS), metric="hd95_mm", reference="a", bootstraps=10)
    assert [row.case for row in case_rows(found, {})] == ["c001", "c000"]
    assert case_rows(found, {})[0].worst == (9.0, "a")
    assert shown_losses(_analysed(_scores(9, 5))) == ()


# Two losses without a reference, and many or few of all.


def test_two_losses_without_a_reference_have_difference_interval_and_forest(tmp_path: Path) -> None:
    values = _scores(2, 30)
    path, analysis = write_report(_collected(values), tmp_path / "r", reference="none", bootstraps=50)
    pair = analysis.primary.pair
    assert pair is not None and pair.interval is not None
    page, html = read_page(path), path.read_text()
    assert "Difference between the two losses" in page.text
    low, high = pair.interval
    assert f"(95 % interval of the difference {low:+.4f} to {high:+.4f})" in page.text
    assert "differences" in page.ids and "forest" in page.ids
    assert _texts(draw_forest(analysis, _collected(values)))[0].startswith(f" {pair.difference:+.4f} [")
    assert "in 100.0 % of the bootstrap replicates" in page.text
    for name in ("critical_difference", "significance", "ranks"):
        assert f'<section id="{name}"' not in html
    assert "compared with" in (path.parent / "paper" / "table.md").read_text()


@pytest.mark.parametrize("reference", ["loss_00", "none"])
@pytest.mark.parametrize(("losses", "cases"), [(2, 3), (2, 1000), (40, 3), (3, 1)])
def test_few_and_many(tmp_path: Path, losses: int, cases: int, reference: str) -> None:
    path, analysis = write_report(
        _collected(_scores(losses, cases)), tmp_path / "r", reference=reference, bootstraps=20
    )
    page = read_page(path)
    assert all(sentence in page.text for sentence in analysis.summary)
    assert len(re.findall(r"<tr><th scope", _section(path.read_text(), "hardest"))) == cases
    assert not re.search(r"\b(nan|inf)\b", page.text)
    if cases < 6:
        assert f"With only {cases} case" in page.text and "Not at all" in page.text


@pytest.mark.slow
def test_forty_losses_and_a_thousand_cases(tmp_path: Path) -> None:
    collected = _collected(_scores(40, 1000, step=0.003, noise=0.03))
    path, analysis = write_report(collected, tmp_path / "r", reference="loss_00", bootstraps=1000)
    html = path.read_text()
    assert len(html) < 8e6
    for plot in ("boxes", "differences"):
        titles = _titles(_section(html, plot))
        assert 0.5 * MOST_POINTS < len(titles) <= 1.01 * MOST_POINTS
        for loss, scores in analysis.scores.items():
            of_loss = [title for title in titles if title.endswith(f"({loss})")]
            worst = analysis.patients[int(np.argmin(scores))]
            assert plot == "differences" or any(title.startswith(f"{worst}:") for title in of_loss)


def test_a_comparison_names_its_runs_on_the_first_screen(tmp_path: Path) -> None:
    made_comparison(tmp_path, ["focal", DEFAULT_REFERENCE, "dice"], folds=(0, 1), seeds=(0, 1))
    path, _ = write_report(from_folder(tmp_path), tmp_path / "report", bootstraps=50)
    page = read_page(path)
    assert "24 cases, 4 runs per loss." in page.text
    assert (
        "With 4 runs (2 folds x 2 seeds) per loss, the intervals allow for what another training may change."
        in page.text
    )


def test_a_wide_interval_of_its_own_variance_is_explained_below_the_plot(tmp_path: Path) -> None:
    losses = ["dice", DEFAULT_REFERENCE, "focal"]
    plan = made_comparison(tmp_path, losses, folds=(0, 1, 2))
    run = next(run for run in plan.runs if (run.config.loss, run.config.fold) == ("focal", 1))
    nothing = dict.fromkeys(("dice", "iou", "sensitivity", "nsd"), 0.0)
    rows = run_folder(tmp_path, run).cases
    run_folder(tmp_path, run).write_cases([row | (nothing if row["class"] == "shell" else {}) for row in rows])
    path, _ = write_report(from_folder(tmp_path), tmp_path / "report", bootstraps=50)
    html = path.read_text(encoding="utf-8")
    assert "The interval of focal uses a variance between 3 runs that is estimated separately (2" in _section(
        html, "forest"
    )
    assert "focal fold 1 seed 0: shell was found in none of the 12 cases that have it" in read_page(path).text
    assert (
        pd.read_csv(tmp_path / "report" / "tables" / "comparisons.csv")
        .set_index("loss")
        .loc["focal", "variance_outlying"]
        == "focal"
    )


def test_secondary_results_have_no_colours_of_verdicts(tmp_path: Path) -> None:
    made_comparison(tmp_path, ["focal", DEFAULT_REFERENCE, "dice"])
    path, analysis = write_report(from_folder(tmp_path), tmp_path / "report", bootstraps=50)
    html = path.read_text(encoding="utf-8")
    assert {one.verdict for one in analysis.secondary["specificity"].comparisons} and analysis.classes
    for name in ("classes", "secondary"):
        assert "worse, p " in _section(html, name) and 'class="word' not in _section(html, name)
    assert 'class="word' in _section(html, "ranking")


def test_more_epochs_come_first_where_losses_were_still_improving() -> None:
    values = _scores(3, 30)
    collected = replace(_collected(values), improving={"loss_01": 0.05, "loss_02": 0.03})
    changes = _facts(_analysed(values), collected)["What could change the answer"]
    assert changes.startswith("More epochs: loss_01 and loss_02 were still improving at the end")
    assert "More epochs" not in _facts(_analysed(values), _collected(values))["What could change the answer"]
