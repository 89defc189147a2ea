"""Whole analyses: the verdict, the caveats, classes and secondary metrics, JSON."""

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
from results_tables import long_table

from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.analysis import analyse
from pipelines.statistics.results import Analysis
from pipelines.statistics.table import check_table, with_failed_runs
from pipelines.statistics.verdict_text import NOT_CONTROLLED
from pipelines.utils import UserError


def _frame(n: int, shifts: dict[str, float], spread: float = 0.01, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    patient = 0.6 + random.normal(0, 0.03, n)
    return long_table({loss: patient + shift + random.normal(0, spread, n) for loss, shift in shifts.items()})


def _analysed(frame: pd.DataFrame, reference: str | None = "ref") -> Analysis:
    return analyse(check_table(frame, METRICS), reference=reference, bootstraps=200)


def _has_caveat(found: Analysis, text: str) -> bool:
    return any(text in caveat for caveat in found.caveats)


def test_the_verdict_names_the_better_loss_its_difference_and_the_cases() -> None:
    found = _analysed(_frame(60, {"ref": 0, "good": 0.05, "poor": -0.05, "same": 0}, 0.004))
    words = {compared.loss: compared.verdict for compared in found.primary.comparisons}
    assert words == {"good": "better", "same": "equivalent", "poor": "worse"}
    first = found.primary.comparisons[0]
    assert found.verdict.startswith("On 60 cases, one run per loss: good was better than the reference ref in Dice")
    assert f"by {first.difference:+.4f}" in found.verdict
    assert "same was equivalent to it within 0.0100; poor was worse." in found.verdict
    assert found.verdict.count(".") == found.verdict.count("0.") + 1  # one sentence
    assert _has_caveat(
        found, "same: equivalent on average. What none of 60 cases showed, such as a collapse, may still "
    )
    assert _has_caveat(found, "in up to 5% of cases (3/n)")


def test_a_significant_small_difference_is_within_the_margin() -> None:
    found = _analysed(_frame(60, {"ref": 0, "more": 0.005, "less": -0.005, "much": 0.05}, 0.004))
    assert {compared.loss: compared.words for compared in found.primary.comparisons} == {
        "much": "better", "more": "better, within the margin", "less": "worse, within the margin",
    }  # fmt: skip
    assert "more was better, by less than the margin of 0.0100; less was worse, by less than the" in found.verdict
    alone = _analysed(_frame(60, {"ref": 0, "more": 0.005}, 0.004))
    assert "no loss was shown to be better than the reference ref in Dice by more than the margin" in alone.verdict
    table = check_table(_frame(60, {"ref": 0, "same": 0}, 0.004), METRICS)
    asked = analyse(table, reference="ref", non_inferior=True, bootstraps=20)
    assert "same was non-inferior to it within 0.0100" in asked.verdict and asked.non_inferior


def test_the_unit_is_the_patient_if_patients_are_named() -> None:
    frame = _frame(30, {"ref": 0, "x": 0.05})
    assert _analysed(frame).unit == "case" and _has_caveat(_analysed(frame), "every case counts as independent")
    named = _analysed(frame.assign(patient=frame["case"]))
    assert named.unit == "case" and not _has_caveat(named, "Patients are not named")
    assert _has_caveat(
        named, "30 cases, each from a different patient according to the manifest or table; a patient with"
    )
    partly = _analysed(frame.assign(patient=frame["case"].where(frame["case"] != frame["case"].iloc[0])))
    assert partly.unit == "case" and _has_caveat(partly, "Patients are not named")
    found = _analysed(frame.assign(patient="p" + frame["case"].str[1:-1]))
    assert (found.unit, found.primary.patients) == ("patient", 3)
    assert found.verdict.startswith("Too few cases to tell: with 3 patients no difference")
    assert not _has_caveat(found, "every case counts as independent")


def test_runs_are_folds_times_seeds() -> None:
    rows = pd.concat([_frame(40, {"ref": 0, "x": 0.05}, seed=seed).assign(seed=seed) for seed in (0, 1)])
    found = _analysed(rows.assign(fold=[number % 5 for number in range(len(rows))]))
    assert (found.trainings, found.folds, found.seeds) == (10, 5, 2)
    assert "10 runs (5 folds x 2 seeds) per loss" in found.verdict
    variance = found.primary.comparisons[0].variance
    assert variance is not None and (variance.retraining_freedom, variance.fold_freedom) == (5, 4)
    assert found.primary.reach.difference is None, "it depends on the variance over runs"
    one_seed = _analysed(rows[rows["seed"] == 0].assign(fold=[number % 2 for number in range(80)]))
    assert (one_seed.trainings, one_seed.folds, one_seed.seeds) == (2, 2, 1)
    assert _has_caveat(one_seed, "One seed in each of 2 folds")


def test_several_better_losses_without_a_significant_difference() -> None:
    found = _analysed(_frame(60, {"ref": 0, "one": 0.05, "two": 0.0501}))
    assert "and which of them is best remains open" in found.verdict
    apart = _analysed(_frame(60, {"ref": 0, "one": 0.03, "two": 0.09}))
    assert "two was better" in apart.verdict and "so was one." in apart.verdict


def test_none_better() -> None:
    found = _analysed(_frame(30, {"ref": 0, "x": 0, "y": 0}, 0.08))
    assert "no loss was shown to be better than the reference ref in Dice; " in found.verdict
    assert found.verdict.endswith("remained undecided.")


@pytest.mark.parametrize(("n", "enough"), [(5, False), (6, True)])
def test_too_few_cases_to_tell(n: int, enough: bool) -> None:
    found = _analysed(_frame(n, {"ref": 0, "much": 0.15}))
    assert (found.primary.comparisons[0].verdict == "better") == enough
    assert found.verdict.startswith("Too few cases to tell: with 5 cases no difference") != enough
    assert _has_caveat(found, "Too few cases to tell") != enough
    assert (found.primary.reach.difference is None) != enough
    assert _has_caveat(found, f"Only {n} cases (fewer than 50): intervals and p-values are rough")


def test_few_cases_can_show_differences_between_many_losses() -> None:
    """Holm over Wilcoxon's tests of 15 pairs needs 10 cases."""
    frame = _frame(8, {"ref": 0} | {f"l{i}": i / 20 for i in range(1, 5)}, 0.002)
    found = _analysed(frame)
    assert {compared.verdict for compared in found.primary.comparisons} == {"better"}
    assert found.primary.omnibus.groups == ()
    assert _has_caveat(found, "with skewed differences the rate of false verdicts may exceed 5 %")
    few = _analysed(frame[frame["case"] < "c005"])
    assert few.primary.omnibus.groups == (few.primary.omnibus.losses,)


def test_two_losses_without_a_reference_are_compared() -> None:
    frame = _frame(60, {"a": 0, "b": 0.1})
    found = _analysed(frame, None)
    pair, omnibus = found.primary.pair, found.primary.omnibus
    assert pair is not None and pair.interval is not None
    assert (pair.loss, found.base, pair.verdict, found.primary.comparisons) == ("b", "a", "better", ())
    as_reference = _analysed(frame, "a").primary.comparisons[0]
    assert (pair.difference, pair.interval, pair.p) == (
        as_reference.difference, as_reference.interval, as_reference.p
    )  # fmt: skip
    assert pair.p_adjusted == omnibus.p_adjusted[0][1] == omnibus.p_adjusted[1][0]
    assert pair.p_equivalence is None  # no margin was named
    assert f"was significantly better than a: {pair.difference:+.4f} on average" in found.verdict
    assert found.summary[0].startswith("b scored better than a: its mean Dice over ")
    assert f", is {pair.difference:.4f} higher (95 % interval of the difference" in found.summary[0]
    alike = _analysed(_frame(60, {"a": 0, "b": 0.0}, 0.05), None)
    assert alike.primary.pair is not None and alike.primary.pair.verdict == "undecided"
    assert "without a significant difference from" in alike.verdict
    assert "This does not show that they are equal" in alike.summary[1]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_cases(n: int) -> None:
    found = _analysed(_frame(n, {"ref": 0, "x": 0.1, "y": 0.2}))
    assert {compared.verdict for compared in found.primary.comparisons} == {"undecided"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_without_a_reference() -> None:
    found = _analysed(_frame(60, {"a": 0, "b": 0.05, "c": 0.0501}), None)
    assert found.primary.comparisons == ()
    assert "without a significant difference from" in found.verdict
    first = _analysed(_frame(60, {"a": 0, "b": 0.1, "c": 0.05}), None)
    assert "b had the best mean Dice" in first.verdict and "significantly better than every other loss" in first.verdict
    assert first.primary.pair is None and first.base is None
    tied = _frame(20, {"a": 0.1, "c": 0})
    tied = pd.concat([tied, tied[tied["loss"] == "a"].assign(loss="b")])
    assert "a and b share the best mean Dice" in _analysed(tied, None).verdict
    few = _analysed(_frame(4, {"a": 0, "b": 0.1}), None)
    assert few.verdict.startswith("Too few cases to tell")


def test_a_loss_that_fails_ranks_worst_and_is_reported() -> None:
    frame = _frame(20, {"ref": 0, "best": 0.05}).assign(fold=0, seed=0)
    found = _analysed(with_failed_runs(frame, [("broken", 0, 0)]))
    assert found.primary.ranking[-1].loss == "broken"
    assert found.primary.ranking[-1].failed == 20
    assert next(compared for compared in found.primary.comparisons if compared.loss == "broken").verdict == "worse"
    assert _has_caveat(found, "broken: 20 failed predictions, counted as the worst, 0.")
    gone = _analysed(frame.drop(index=[21]))
    assert _has_caveat(gone, "best: no result for 1 case (c001); counted as the worst, 0.")


def test_the_caveats_and_the_verdict_name_the_number_of_runs() -> None:
    frame = _frame(30, {"ref": 0, "x": 0.05})
    one = _analysed(frame)
    assert one.trainings == 1
    assert _has_caveat(one, "One run per loss")
    assert one.primary.bootstrap.losses["x"].retraining is None
    again = _frame(30, {"ref": 0, "x": 0.05}, seed=1)
    again["dice"] = frame["dice"] + np.random.default_rng(2).normal(0, 0.005, len(frame))
    two = _analysed(pd.concat([frame.assign(seed=0), again.assign(seed=1)]))
    assert two.trainings == 2
    assert not _has_caveat(two, "One run per loss")
    assert "2 runs per loss" in two.verdict
    share = two.primary.bootstrap.losses["x"].retraining
    assert share is not None and 0 < share < 0.2


def test_classes_and_secondary_metrics() -> None:
    frame = pd.concat(
        [
            _frame(30, {"ref": 0, "x": shift}, seed=seed).assign(**{"class": name})
            for seed, (name, shift) in enumerate([("left", 0.1), ("right", -0.1)])
        ]
    ).assign(hd95_mm=lambda rows: 10 * (1 - rows["dice"]))
    found = _analysed(frame)
    assert {name: compared.comparisons[0].verdict for name, compared in found.classes.items()} == {
        "left": "better",
        "right": "worse",
    }
    assert found.primary.primary and not found.classes["left"].primary and not found.secondary["hd95_mm"].primary
    distance = found.secondary["hd95_mm"]
    assert distance.comparisons[0].difference == pytest.approx(-10 * found.primary.comparisons[0].difference)
    assert distance.comparisons[0].p_equivalence is None  # the margin applies to the primary metric
    assert _has_caveat(found, "secondary")
    assert (
        analyse(check_table(frame, METRICS), metric="hd95_mm", reference="ref", bootstraps=10).primary.metric
        == "hd95_mm"
    )


def test_a_secondary_metric_without_a_value_is_left_out() -> None:
    found = _analysed(_frame(10, {"ref": 0, "x": 0.1}).assign(nsd=np.nan))
    assert found.secondary == {}


def test_an_analysis_is_json_and_reproducible() -> None:
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
    assert len(found.primary.omnibus.p_adjusted) == 17
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
        analyse(check_table(_frame(10, {"ref": 0, "x": 0}), METRICS), **({"reference": "ref"} | arguments))  # type: ignore[arg-type]


def test_a_primary_metric_without_any_value_is_refused() -> None:
    with pytest.raises(UserError, match="metric dice: no loss has a value for any case"):
        _analysed(_frame(5, {"ref": 0, "x": 0}).assign(dice=np.nan))


def test_what_no_comparison_controls_is_listed() -> None:
    text = " ".join(NOT_CONTROLLED)
    for word in ("Folds share training data", "checkpoint", "best of many", "learning rate", "costs"):
        assert word in text
