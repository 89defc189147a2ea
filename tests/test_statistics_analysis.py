"""Whole analyses: the sentence, the caveats, classes and secondary measures, JSON."""

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
from results_tables import long_table

from pipelines.comparison.statistics import NOT_CONTROLLED, Analysis, analyse, with_failed_runs
from pipelines.errors import UserError


def _frame(n: int, shifts: dict[str, float], spread: float = 0.01, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    patient = 0.6 + random.normal(0, 0.03, n)
    return long_table({loss: patient + shift + random.normal(0, spread, n) for loss, shift in shifts.items()})


def _analysed(frame: pd.DataFrame, reference: str | None = "ref") -> Analysis:
    return analyse(frame, reference=reference, bootstraps=200)


def _told(found: Analysis, words: str) -> bool:
    return any(words in caveat for caveat in found.caveats)


def test_the_sentence_names_what_is_better_by_how_much_and_on_what() -> None:
    found = _analysed(_frame(60, {"ref": 0, "good": 0.05, "poor": -0.05, "same": 0}, 0.004))
    words = {own.loss: own.verdict for own in found.primary.comparisons}
    assert words == {"good": "better", "same": "equivalent", "poor": "worse"}
    first = found.primary.comparisons[0]
    assert found.verdict.startswith(
        "On 60 patients, one training a loss: good was better than the reference ref in Dice"
    )
    assert f"by {first.difference:+.4f}" in found.verdict
    assert "same equivalent to it within 0.0100; poor worse." in found.verdict
    assert found.verdict.count(".") == found.verdict.count("0.") + 1  # one sentence


def test_several_better_ones_that_are_not_told_apart() -> None:
    found = _analysed(_frame(60, {"ref": 0, "one": 0.05, "two": 0.0501}))
    assert "and which of them is best is open" in found.verdict
    apart = _analysed(_frame(60, {"ref": 0, "one": 0.03, "two": 0.09}))
    assert "two was better" in apart.verdict and "so was one." in apart.verdict


def test_none_better() -> None:
    found = _analysed(_frame(30, {"ref": 0, "x": 0, "y": 0}, 0.08))
    assert "no loss was shown to be better than the reference ref in Dice; " in found.verdict
    assert "undecided" in found.verdict


@pytest.mark.parametrize(("n", "enough"), [(5, False), (6, True)])
def test_too_few_cases_to_tell(n: int, enough: bool) -> None:
    found = _analysed(_frame(n, {"ref": 0, "much": 0.15}))
    assert (found.primary.comparisons[0].verdict == "better") == enough
    assert found.verdict.startswith("Too few cases to tell: with 5 patients no difference") != enough
    assert _told(found, "Too few cases to tell") != enough
    assert (found.primary.reach.difference is None) != enough
    assert _told(found, "are few (under 50)")


def test_too_few_cases_for_all_pairs() -> None:
    found = _analysed(_frame(9, {"ref": 0} | {f"l{i}": i / 50 for i in range(5)}))
    assert found.primary.reach.least_cases_pairs == 10
    assert _told(found, "All 15 pairs together cannot be significant below 10 patients")
    assert found.primary.omnibus.groups == (found.primary.omnibus.losses,)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_cases(n: int) -> None:
    found = _analysed(_frame(n, {"ref": 0, "x": 0.1, "y": 0.2}))
    assert {own.verdict for own in found.primary.comparisons} == {"undecided"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_without_a_reference() -> None:
    found = _analysed(_frame(60, {"a": 0, "b": 0.05, "c": 0.0501}), None)
    assert found.primary.comparisons == ()
    assert "without a significant difference from" in found.verdict
    alone = _analysed(_frame(60, {"a": 0, "b": 0.1}), None)
    assert "b had the best mean Dice" in alone.verdict and "differed significantly from every other" in alone.verdict
    few = _analysed(_frame(4, {"a": 0, "b": 0.1}), None)
    assert few.verdict.startswith("Too few cases to tell")


def test_a_loss_that_fails_ranks_worst_and_is_told() -> None:
    frame = _frame(20, {"ref": 0, "best": 0.05}).assign(fold=0, seed=0)
    found = _analysed(with_failed_runs(frame, [("broken", 0, 0)]))
    assert found.primary.ranking[-1].loss == "broken"
    assert found.primary.ranking[-1].failed == 20
    assert next(own for own in found.primary.comparisons if own.loss == "broken").verdict == "worse"
    assert _told(found, "broken: 20 failed predictions, counted as the worst, 0.")
    gone = _analysed(frame.drop(index=[21]))
    assert _told(gone, "best: no result of 1 case (c001); counted as the worst, 0.")


def test_one_training_says_so_and_several_say_what_they_cover() -> None:
    frame = _frame(30, {"ref": 0, "x": 0.05})
    one = _analysed(frame)
    assert one.trainings == 1
    assert _told(one, "One training a loss")
    assert one.primary.bootstrap.losses["x"].retraining is None
    again = _frame(30, {"ref": 0, "x": 0.05}, seed=1)
    again["dice"] = frame["dice"] + np.random.default_rng(2).normal(0, 0.005, len(frame))
    two = _analysed(pd.concat([frame.assign(seed=0), again.assign(seed=1)]))
    assert two.trainings == 2
    assert not _told(two, "One training a loss")
    assert "2 trainings a loss" in two.verdict
    share = two.primary.bootstrap.losses["x"].retraining
    assert share is not None and 0 < share < 0.2


def test_classes_and_secondary_measures() -> None:
    frame = pd.concat(
        [
            _frame(30, {"ref": 0, "x": shift}, seed=seed).assign(**{"class": name})
            for seed, (name, shift) in enumerate([("left", 0.1), ("right", -0.1)])
        ]
    ).assign(hd95_mm=lambda own: 10 * (1 - own["dice"]))
    found = _analysed(frame)
    assert {name: own.comparisons[0].verdict for name, own in found.classes.items()} == {
        "left": "better",
        "right": "worse",
    }
    assert found.primary.primary and not found.classes["left"].primary and not found.secondary["hd95_mm"].primary
    distance = found.secondary["hd95_mm"]
    assert distance.comparisons[0].difference == pytest.approx(-10 * found.primary.comparisons[0].difference)
    assert distance.comparisons[0].p_equivalence is None  # the margin is of the primary measure
    assert _told(found, "secondary")
    assert analyse(frame, metric="hd95_mm", reference="ref", bootstraps=10).primary.metric == "hd95_mm"


def test_a_secondary_measure_without_a_value_is_left_out() -> None:
    found = _analysed(_frame(10, {"ref": 0, "x": 0.1}).assign(nsd=np.nan))
    assert found.secondary == {}


def test_it_is_json_and_the_same_each_time() -> None:
    frame = _frame(12, {"ref": 0, "x": 0.01, "y": 0.02}).assign(specificity=0.99)
    found = _analysed(frame)
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text) == found.to_dict()
    assert text == json.dumps(_analysed(frame).to_dict())
    assert found == _analysed(frame)
    assert found.scores["x"] == pytest.approx(frame[frame["loss"] == "x"]["dice"])
    with pytest.raises(FrozenInstanceError):
        found.verdict = "x"  # type: ignore[misc]


def test_few_and_many_losses() -> None:
    found = _analysed(_frame(60, {"ref": 0} | {f"l{i:02}": 0.02 + i / 1000 for i in range(16)}))
    assert "and 10 more" in found.verdict
    assert len(found.primary.omnibus.p_holm) == 17
    assert "and 10 more" in found.verdict and len(found.verdict) < 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": "rfe"}, "reference rfe: not in the table; its losses are ref, x; did you mean ref"),
        ({"metric": "nsd"}, "metric nsd: no such column; the table has dice"),
        ({"margin": -1}, "margin: got -1; expected 0 or more, in the unit of dice"),
        ({"margin": float("nan")}, "margin: got nan"),
        ({"bootstraps": 0}, "bootstraps: got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        analyse(_frame(10, {"ref": 0, "x": 0}), **({"reference": "ref"} | arguments))  # type: ignore[arg-type]


def test_a_measure_without_any_value_is_refused_as_the_primary_one() -> None:
    with pytest.raises(UserError, match="metric dice: no loss has a value of any case"):
        _analysed(_frame(5, {"ref": 0, "x": 0}).assign(dice=np.nan))


def test_what_no_table_can_tell_is_said() -> None:
    told = " ".join(NOT_CONTROLLED)
    for word in ("Folds share training data", "checkpoint", "best of many", "learning rate", "costs"):
        assert word in told
