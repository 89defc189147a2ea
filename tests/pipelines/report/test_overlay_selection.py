"""Selection of the cases: worst, median and best, with ties, failures and several runs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results_tables import long_table

from pipelines.evaluation.metrics import METRICS
from pipelines.report.collect import PredictedCase
from pipelines.report.overlay_selection import Choice, case_scores, choose, most_different
from pipelines.statistics.analysis import analyse
from pipelines.statistics.table import check_table


def _predicted(loss: str, cases: list[str], fold: str = "all", seed: str = "all") -> list[PredictedCase]:
    return [PredictedCase(loss, case, Path(f"{loss}/{case}"), Path(case), None, fold, seed) for case in cases]


def _chosen(choices: list[Choice]) -> dict[str, str]:
    return {choice.which: choice.predicted.case for choice in choices}


def test_worst_median_and_best() -> None:
    values = {"a": [0.5, 0.9, 0.1, 0.7, 0.3], "b": [0.5, 0.5, 0.5, 0.5, 0.5]}
    table = check_table(long_table(values), METRICS)
    cases = [f"c{i:03d}" for i in range(5)]
    found = choose(table, "dice", _predicted("a", cases) + _predicted("b", cases))
    assert _chosen(found["a"]) == {"worst": "c002", "median": "c000", "best": "c001"}
    # Among equals the first counts as the worse; the three are different cases.
    assert _chosen(found["b"]) == {"worst": "c000", "median": "c002", "best": "c004"}
    assert [choice.score for choice in found["a"]] == [0.1, 0.5, 0.9]
    even = choose(table, "dice", _predicted("a", cases[:4]))["a"]
    assert _chosen(even) == {"worst": "c002", "median": "c000", "best": "c001"}  # 0.1, 0.5 | 0.7, 0.9
    assert _chosen(choose(table, "dice", _predicted("a", cases[1:3]))["a"]) == {"worst": "c002", "best": "c001"}
    assert _chosen(choose(table, "dice", _predicted("a", cases[:1]))["a"]) == {"only": "c000"}
    assert choose(table, "dice", []) == {}


def test_the_largest_distance_is_the_worst() -> None:
    table = check_table(long_table({"a": [4.0, 2.0, 9.0], "b": [1.0, 1.0, 1.0]}, "hd95_mm"), METRICS)
    found = choose(table, "hd95_mm", _predicted("a", ["c000", "c001", "c002"]))
    assert _chosen(found["a"]) == {"worst": "c002", "median": "c000", "best": "c001"}
    assert found["a"][0].metrics == {"hd95_mm": 9.0}


def test_scores_are_those_of_the_statistics() -> None:
    random = np.random.default_rng(0)
    rows = pd.concat([
        long_table({loss: random.uniform(0, 1, 7) for loss in "ab"}, seed=seed, specificity=0.9, **{"class": name})
        for name in ("organ", "shell") for seed in (0, 1)
    ], ignore_index=True)  # fmt: skip
    rows.loc[(rows["case"] == "c003") & (rows["class"] == "shell"), "dice"] = np.nan  # both empty
    rows.loc[(rows["case"] == "c005"), ["dice", "specificity"]] = np.nan  # without any value
    rows = rows[~((rows["loss"] == "b") & (rows["case"] == "c006"))]  # missing: the worst
    table = check_table(rows, METRICS)
    analysis = analyse(table, reference=None, bootstraps=10)
    found = case_scores(table, "dice")
    for loss in "ab":
        assert found[loss] == dict(zip(analysis.patients, analysis.scores[loss], strict=True))
    assert "c005" not in found["a"] and found["b"]["c006"] == 0
    # Two cases of one patient are not averaged.
    both = check_table(rows.assign(patient=rows["case"].replace({"c001": "c000"})), METRICS)
    assert case_scores(both, "dice") == found


def test_a_choice_has_the_classes_of_its_run() -> None:
    rows = pd.concat([
        long_table({"a": [0.4 + seed / 10 + place], "b": [0.5]}, seed=seed, specificity=0.9, **{"class": name})
        for place, name in ((0.0, "organ"), (0.2, "shell")) for seed in (0, 1, 2)
    ], ignore_index=True)  # fmt: skip
    predictions = [one for seed in "012" for loss in "ab" for one in _predicted(loss, ["c000"], seed=seed)]
    found = choose(check_table(rows, METRICS), "dice", predictions)["a"][0]
    assert found.predicted.seed == "1" and found.classes == pytest.approx({"organ": 0.5, "shell": 0.7})
    rows.loc[rows["class"] == "shell", "dice"] = np.nan  # nobody has it
    assert choose(check_table(rows, METRICS), "dice", predictions, "exclude")["a"][0].classes["shell"] is None
    single = rows[rows["class"] == "organ"]
    assert choose(check_table(single, METRICS), "dice", predictions)["a"][0].classes == {}


def test_failed_runs_and_several_seeds() -> None:
    """The score of a case is the mean over its runs, where a failed run counts as 0; an existing one is drawn."""
    one = long_table({"a": [0.8, 0.6, 0.4], "b": [0.5, 0.5, 0.5]}, seed=0)
    two = long_table({"a": [0.7, 0.9, np.nan], "b": [np.nan, np.nan, np.nan]}, seed=1)
    three = long_table({"a": [0.9, 0.72, np.nan], "b": [np.nan, np.nan, np.nan]}, seed=2)
    table = check_table(pd.concat([one, two, three], ignore_index=True), METRICS)
    cases = ["c000", "c001", "c002"]
    predictions = [p for seed in ("0", "1", "2") for p in _predicted("a", cases, seed=seed)]
    predictions += _predicted("b", cases, seed="0")
    found = choose(table, "dice", predictions)
    assert _chosen(found["a"]) == {"worst": "c002", "median": "c001", "best": "c000"}
    assert [choice.score for choice in found["a"]] == pytest.approx([0.4 / 3, 0.74, 0.8])
    # The run closest to the mean.
    assert [choice.predicted.seed for choice in found["a"]] == ["0", "2", "0"]
    assert found["a"][1].metrics == {"dice": pytest.approx(0.72)} and found["a"][1].runs == 3
    assert [choice.predicted.seed for choice in found["b"]] == ["0", "0", "0"]
    assert found["b"][0].runs == 1 and found["b"][0].score == pytest.approx(0.5 / 3)


def test_the_case_on_which_the_losses_differ_most() -> None:
    table = check_table(long_table({"a": [0.9, 0.8, 0.9], "b": [0.8, 0.2, 0.9], "c": [0.7, 0.8, 0.1]}), METRICS)
    cases = ["c000", "c001", "c002"]
    predictions = [p for loss in "abc" for p in _predicted(loss, cases)]
    assert {choice.predicted.case for choice in most_different(table, "dice", predictions)} == {"c002"}
    assert [choice.predicted.loss for choice in most_different(table, "dice", predictions)] == ["a", "b", "c"]
    # If one loss has no prediction for that case, another case is selected.
    fewer = [p for p in predictions if (p.loss, p.case) != ("c", "c002")]
    assert {choice.predicted.case for choice in most_different(table, "dice", fewer)} == {"c001"}
    equal = check_table(long_table({"a": [0.5, 0.5], "b": [0.5, 0.5]}), METRICS)
    assert most_different(equal, "dice", _predicted("a", cases[:2]) + _predicted("b", cases[:2])) == []
    assert most_different(table, "dice", _predicted("a", cases)) == []
    tied = check_table(long_table({"a": [0.5, 0.7], "b": [0.7, 0.5]}), METRICS)
    found = most_different(tied, "dice", _predicted("a", cases[:2]) + _predicted("b", cases[:2]))
    assert {choice.predicted.case for choice in found} == {"c000"}
