"""The answer in plain words, against the numbers of the analysis."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from results_tables import long_table

from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.analysis import analyse
from pipelines.statistics.paired import VarianceParts
from pipelines.statistics.plain_summary import next_steps, runs_share, summary, sureness, unlearned_notes
from pipelines.statistics.results import Analysis, cases_needed
from pipelines.statistics.scores import Unlearned
from pipelines.statistics.table import check_table
from pipelines.statistics.verdict_text import interval_notes


def _analysed(gains: dict[str, float], n: int = 60, noise: float = 0.004, **options: Any) -> Analysis:
    random = np.random.default_rng(0)
    hard = random.normal(0.7, 0.05, n)
    values = {loss: hard + gain + random.normal(0, noise, n) for loss, gain in gains.items()}
    options = {"reference": "ref", "bootstraps": 50} | options
    return analyse(check_table(long_table(values), METRICS), **options)


@pytest.mark.parametrize(
    ("gains", "options", "first", "second"),
    [
        ({"ref": 0, "good": 0.05}, {}, "good scored better than the reference ref: its mean Dice over 60 cases",
         "to be chance (p <"),
        ({"ref": 0, "a": 0.05, "b": 0.04}, {}, "; so did b.", "(adjusted p < 0.0001, over all 2 comparisons)"),
        ({"ref": 0, "more": 0.005}, {}, "more scored better", "smaller than the margin of 0.0100, so it is too small"),
        ({"ref": 0, "poor": -0.05}, {}, "No loss was shown to be better than the reference ref on 60 cases",
         "The other loss, poor, is worse."),
        ({"ref": 0, "same": 0, "poor": -0.05, "bad": -0.1}, {}, "give no reason to replace it",
         "Of the 3 others, 1 is equivalent to it within 0.0100 and 2 are worse."),
        ({"ref": 0, "poor": -0.05, "bad": -0.1}, {}, "give no reason to replace it", "Both others are worse."),
        ({"ref": 0, "x": 0.1}, {"n": 5}, "With only 5 cases, no difference between losses can be shown; x had the best",
         "can be significant below 6 cases."),
        ({"a": 0, "b": 0.05}, {"reference": None}, "b scored better than a: its mean Dice over 60 cases",
         "unlikely to be chance (p <"),
        ({"a": 0, "b": 0.05, "c": 0.0501}, {"reference": None}, "but was not significantly better than",
         "Which of these 2 losses is best remains open"),
        ({"a": 0, "b": 0.05, "c": 0.1}, {"reference": None}, "c had the best mean Dice",
         "(adjusted p at most < 0.0001, over all pairs); with one run per loss"),
    ],
)  # fmt: skip
def test_two_sentences(gains: dict[str, float], options: dict[str, Any], first: str, second: str) -> None:
    found = _analysed(gains, **options)
    answer, certainty = summary(found)
    assert found.summary == (answer, certainty)
    assert first in answer and second in certainty
    assert answer.endswith(".") and certainty.endswith(".")
    assert f"{found.primary.patients} cases" in answer


@pytest.mark.parametrize(
    ("gains", "noise", "first"),
    [
        ({"ref": 0, "top": 0.02, "poor": -0.05}, 0.05, "; top had the best mean Dice, {top}, which may be chance."),
        ({"ref": 0, "same": 0.001}, 0.004, "; same had the best mean Dice, {same}, and is equivalent to it."),
        ({"ref": 0, "poor": -0.05}, 0.004, "; it also had the best mean Dice, {ref}."),
        ({"ref": 0, "twin": 0, "low": -0.1}, 0, "; ref and twin share the best mean Dice, {ref}, which may be chance."),
    ],
)
def test_the_best_mean_is_named_where_none_is_better(gains: dict[str, float], noise: float, first: str) -> None:
    found = _analysed(gains, noise=noise)
    means = {ranked.loss: f"{ranked.mean:.4f}" for ranked in found.primary.ranking}
    assert found.summary[0].endswith(first.format(**means))


def test_the_interval_is_that_of_the_comparison() -> None:
    found = _analysed({"ref": 0, "good": 0.05})
    compared = found.primary.comparisons[0]
    assert compared.interval is not None
    low, high = compared.interval
    assert (
        f"is {compared.difference:.4f} higher (95 % interval of the difference {low:+.4f} to {high:+.4f})"
        in (found.summary[0])
    )


def test_a_distance_is_lower() -> None:
    values = {"ref": np.arange(5.0, 25), "good": np.arange(3.0, 23) + 0.1 * np.random.default_rng(0).random(20)}
    table = check_table(long_table(values, "hd95_mm"), METRICS)
    found = analyse(table, metric="hd95_mm", reference="ref", margin=0.5, bootstraps=50)
    assert (
        "good scored better than the reference ref: its mean HD95 over 20 cases, " in found.summary[0]
        and " mm lower" in found.summary[0]
    )


def test_the_number_of_cases_that_would_be_needed() -> None:
    found = _analysed({"ref": 0, "a": 0.004, "b": -0.004}, n=12, noise=0.02)
    undecided = found.primary.comparisons[0]
    assert undecided.verdict == "undecided" and undecided.sd is not None
    needed = cases_needed(undecided.difference, undecided.sd, comparisons=2)
    steps = " ".join(next_steps(found))
    assert f"difference as large as that of {undecided.loss} ({undecided.difference:+.4f}) with 80 % power, about "
    assert f"about {needed:,} are needed" in steps
    assert found.primary.reach.sd is not None
    assert f"about {cases_needed(0.01, found.primary.reach.sd, comparisons=2):,} cases detect" in steps
    assert "A second seed" in steps
    # Equal scores have no difference to detect, and take no time to say so.
    assert "more than 100,000 are needed" in " ".join(
        next_steps(_analysed({"ref": 0, "a": 0.0}, noise=0.0, margin=0.0))
    )


def test_the_number_of_cases_where_several_metrics_are_one_family() -> None:
    random = np.random.default_rng(0)
    hard = random.normal(0.7, 0.05, 20)
    gains = {"ref": 0.0, "a": 0.004, "b": -0.004}
    frame = long_table({loss: hard + gain + random.normal(0, 0.02, 20) for loss, gain in gains.items()})
    found = analyse(check_table(frame.assign(iou=frame["dice"]), METRICS), reference="ref", bootstraps=20,
                    further={"iou": None})  # fmt: skip
    undecided = found.primary.comparisons[0]
    assert undecided.verdict == "undecided" and undecided.sd is not None
    # By Holm's correction over all four tests, as the difference that these cases can detect.
    needed = cases_needed(undecided.difference, undecided.sd, level=0.05 / 4)
    assert needed > cases_needed(undecided.difference, undecided.sd, comparisons=4)
    assert f"about {needed:,} are needed" in " ".join(next_steps(found))


def test_more_seeds_or_more_cases() -> None:
    def steps(run_noise: float, case_noise: float) -> str:
        random = np.random.default_rng(1)
        frames = []
        for seed in range(3):
            hard = np.random.default_rng(2).normal(0.7, 0.05, 30)
            values = {
                loss: hard + random.normal(0, run_noise) + np.random.default_rng(place).normal(0, case_noise, 30)
                for place, loss in enumerate(("ref", "x", "y"))
            }
            frames.append(long_table({loss: of_loss.clip(0, 1) for loss, of_loss in values.items()}, seed=seed))
        found = analyse(check_table(pd.concat(frames), METRICS), reference="ref", bootstraps=50)
        assert "With 3 runs per loss, the intervals allow for what another training may change." in sureness(found)
        return " ".join(next_steps(found))

    assert "More runs (--seeds, --folds): " in steps(0.05, 0.01)
    assert "More cases: " in steps(0.001, 0.1)


def _some_runs_collapsed(nothing: set[int], reference: str = "ref", noise: float = 0.05) -> Analysis:
    """Three folds of 20 cases; `fell` found nothing in some, and the differences of `noisy` vary by case."""
    random = np.random.default_rng(4)
    hard = random.normal(0.7, 0.03, 60)
    fold = np.arange(60) // 20
    values = {
        "ref": hard,
        "noisy": hard + random.normal(0, noise, 60),
        "fell": np.where(np.isin(fold, list(nothing)), 0.0, hard + random.normal(0, 0.005, 60)),
    }
    table = long_table(values)
    return analyse(check_table(table.assign(fold=np.tile(fold, 3)), METRICS), reference=reference, bootstraps=50)


def test_each_undecided_loss_by_its_own_variance() -> None:
    steps = " ".join(next_steps(_some_runs_collapsed({1})))
    assert (
        "More runs (--seeds, --folds): fell remained undecided, and most of the variance of its difference lies "
        "between runs." in steps
    )
    assert (
        "More cases: noisy remained undecided, and most of the variance of its difference lies between cases." in steps
    )


@pytest.mark.parametrize(
    ("nothing", "expected"),
    [
        (
            {1},
            "fell fold 1: the foreground was found in none of the 20 cases that have it; at least one other loss found "
            "it there.",
        ),
        (
            {1, 2},
            "fell fold 1 and fold 2: the foreground was found in none of the 40 cases that have it; at least one other",
        ),
        (
            {0, 1, 2},
            "fell: the foreground was found in none of the 60 cases that have it, in any of the 3 runs whose cases "
            "have it; at least one other loss found it there.",
        ),
    ],
)
def test_runs_that_did_not_find_a_class_are_named(nothing: set[int], expected: str) -> None:
    found = _some_runs_collapsed(nothing)
    assert " ".join(next_steps(found)).startswith(expected)
    assert unlearned_notes(found)[0] in next_steps(found)
    assert found.to_dict()["unlearned"][0]["every"] is (len(nothing) == 3)
    assert unlearned_notes(_some_runs_collapsed(set())) == ()


@pytest.mark.parametrize(
    ("runs", "by_others", "expected"),
    [
        (1, None, "b fold 0: lesion was found in none of the 4 cases that have it."),
        (2, None, "b: lesion was found in none of the 4 cases that have it, in any of the 2 runs whose cases have it."),
        (
            1,
            False,
            "b fold 0: lesion was found in none of the 4 cases that have it; no other loss found it there.",
        ),
    ],
)
def test_a_class_that_was_not_found(runs: int, by_others: bool | None, expected: str) -> None:
    one = Unlearned("b", "lesion", tuple((str(fold), None) for fold in range(runs)), True, 4, by_others)
    analysis = replace(_analysed({"ref": 0, "a": 0.01}), unlearned=(one,))
    assert unlearned_notes(analysis) == (expected,)


def test_an_interval_that_does_not_use_the_pooled_variance_says_so() -> None:
    assert interval_notes(_some_runs_collapsed({1})) == (
        "The interval of fell uses a variance between 3 runs that is estimated separately (2 degrees of freedom), "
        "since its scores differ from run to run far more than those of the other losses.",
    )
    (caveat,) = (text for text in _some_runs_collapsed({1}).caveats if text.startswith("One seed in each of 3 folds"))
    assert "pooled over all losses but fell, whose variance is estimated separately;" in caveat
    alike = _some_runs_collapsed(set(), noise=0.005)
    assert interval_notes(alike) == ()
    (caveat,) = (text for text in alike.caveats if text.startswith("One seed in each of 3 folds"))
    assert "pooled over all losses;" in caveat
    both = replace(found := _some_runs_collapsed({1}), primary=replace(found.primary, comparisons=tuple(
        replace(one, variance=replace(one.variance, outlying=(one.loss,))) for one in found.primary.comparisons
        if one.variance is not None)))  # fmt: skip
    (note,) = interval_notes(both)
    assert note.startswith("The intervals of noisy and fell each use a variance between 3 runs that is estimated")
    # The reference is a part of every comparison.
    (note,) = interval_notes(_some_runs_collapsed({1}, reference="fell"))
    assert note.startswith("Every interval uses a variance") and "the scores of the reference fell differ" in note


def test_the_share_of_runs() -> None:
    (found,) = _analysed({"ref": 0, "a": 0.01}).primary.comparisons
    assert runs_share(found) is None
    parts = VarianceParts(3.0, 10, 0.5, 4.0, 0.5, 2.0)
    assert runs_share(replace(found, variance=parts)) == pytest.approx(0.25)


def test_how_sure() -> None:
    assert "about 5 % over all 2 comparisons together." in sureness(_analysed({"ref": 0, "a": 0.1, "b": 0.2}))
    assert "may be higher with so few cases" in sureness(_analysed({"ref": 0, "a": 0.1}, n=10))
    assert sureness(_analysed({"ref": 0, "a": 0.1}, n=3)) == "Not at all: 3 cases cannot show a difference."
