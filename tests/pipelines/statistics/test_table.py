"""Tables of results: what is refused, what counts as worst, what is left out, what is averaged."""

from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from class_metrics import case_metrics
from results_tables import long_table

from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.analysis import analyse
from pipelines.statistics.scores import Unlearned, misses, scores, unlearned
from pipelines.statistics.table import cases_by_class, check_table, in_report_order, with_failed_runs
from pipelines.statistics.verdict_text import gap_notes
from pipelines.utils import UserError

GOOD = "case,loss,dice\n1,a,0.5\n1,b,0.6\n2,a,0.7\n2,b,0.8\n"
NAN = float("nan")


def _frame(text: str) -> pd.DataFrame:
    return pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)


def test_reports_have_shares_before_distances() -> None:
    found = in_report_order(METRICS)
    default = [name for name, metric in found.items() if metric.default]
    assert default == ["dice", "iou", "nsd", "sensitivity", "specificity", "hd95_mm", "assd_mm"]
    assert found == METRICS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,loss\n1,a\n", "no column with a metric; expected at least one of dice, iou"),
        ("loss,dice\na,0.5\n", "no column case; got loss, dice"),
        (GOOD.replace("dice", "dcie"), "column dcie: unknown; .*did you mean dice"),
        ("case,loss,dice\n", "got 0 loss"),
        ("case,loss,dice\n1,a,0.5\n2,a,0.5\n", r"got 1 loss\(es\) \(a\); expected at least two"),
        (GOOD + "2,b,0.9\n", r"loss b, case 2: 1 repeated row\(s\); .*a column seed or fold"),
        (GOOD.replace("0.7", "70"), r"dice: got 70 \(case 2, loss a\); expected a number, 0 to 1 \(not percent\)"),
        (GOOD.replace("0.7", "-0.1"), "dice: got -0.1"),
        (GOOD.replace("0.7", "good"), r"dice: got good \(case 2, loss a\)"),
        (GOOD.replace("0.7", "inf"), "dice: got inf"),
        (GOOD.replace("dice", "hd95_mm").replace("0.7", "-3"), "hd95_mm: got -3 .*mm, 0 to 1e6 or inf"),
        (GOOD.replace("2,a", "2,"), "column loss: empty in row 3"),
        ("case,loss,dice,patient\n1,a,1,x\n1,b,1,y\n", "case 1: has 2 patients"),
        ("case,loss,dice,seed\n1,a,1,0\n1,b,1,0\n1,b,1,1\n", "loss a: no row for seed 1, which other losses have"),
    ],
)
def test_bad_tables_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        check_table(_frame(text), METRICS)
    assert "\n" not in str(raised.value)


def test_a_repeated_column() -> None:
    frame = long_table({"a": [0.5], "b": [0.6]})
    with pytest.raises(UserError, match="column dice: repeated"):
        check_table(pd.concat([frame, frame[["dice"]]], axis=1), METRICS)


def test_names_stay_text_and_rows_may_come_in_any_order() -> None:
    text = "loss,dice,case\nb,0.8,001\na,,1\na,0.7,001\nb,NaN,1\nb,na,2\na,0.1,2\n"
    found = scores(check_table(_frame(text), METRICS), "dice")
    assert found.patients == ("001", "1", "2")
    # nnU-Net writes NaN if neither reference nor prediction has the class; the other loss's empty cell is a failure.
    assert found.by_patient.tolist() == [[0.7, 0.0, 0.1], [0.8, 1.0, 0.0]]


def test_a_signed_error_is_read_and_not_compared() -> None:
    frame = long_table({"a": [0.9, 0.8], "b": [0.8, 0.7]}).assign(volume_difference=[-0.5, 0.1, 3.0, NAN])
    table = check_table(frame, METRICS)
    assert list(table.metrics) == ["dice"]
    assert table.frame["volume_difference"].tolist() == pytest.approx([-0.5, 0.1, 3.0, NAN], nan_ok=True)
    assert analyse(table, reference="a", bootstraps=20).secondary == {}
    with pytest.raises(UserError, match=r"volume_difference: got -1\.5 .*; expected a number, -1 or more, or"):
        check_table(frame.assign(volume_difference=-1.5), METRICS)
    # A volume of 2e6 voxels for one of a single voxel is no stand-in for a missing number, as such a distance is.
    volumes = check_table(frame.assign(volume_difference=2e6, absolute_volume_difference=2e6), METRICS)
    assert list(volumes.metrics) == ["dice", "absolute_volume_difference"]
    with pytest.raises(UserError, match=r"hd95_mm: got 2000000\.0 .*; expected a number, mm, 0 to 1e6 or inf"):
        check_table(frame.assign(hd95_mm=2e6), METRICS)
    with pytest.raises(UserError, match="no column with a metric"):
        check_table(frame.drop(columns="dice"), METRICS)


def test_a_failed_prediction_counts_as_worst() -> None:
    found = scores(check_table(long_table({"a": [0.9, NAN], "b": [0.8, 0.7]}), METRICS), "dice")
    assert found.by_patient.tolist() == [[0.9, 0.0], [0.8, 0.7]]
    assert found.failed == {"a": 1}
    assert found.missing == {}


@pytest.mark.parametrize("failed", [NAN, np.inf])
def test_a_failed_distance_counts_as_the_largest_in_the_table(failed: float) -> None:
    found = scores(check_table(long_table({"a": [2.0, failed], "b": [9.0, 3.0]}, "hd95_mm"), METRICS), "hd95_mm")
    assert found.by_patient.tolist() == [[2.0, 9.0], [9.0, 3.0]]
    assert found.failed == {"a": 1}


def test_a_case_without_a_row_counts_as_worst_and_is_named() -> None:
    frame = long_table({"a": [0.9, 0.9, 0.9], "b": [0.8, 0.7, 0.6]})
    found = scores(check_table(frame.drop(index=[1]), METRICS), "dice")
    assert found.by_patient[0].tolist() == [0.9, 0.0, 0.9]
    assert found.missing == {"a": ("c001",)}
    frame = long_table({"a": [2.0, 4.0], "b": [9.0, 3.0]}, "hd95_mm")
    found = scores(check_table(frame.drop(index=[1]), METRICS), "hd95_mm")
    assert found.by_patient.tolist() == [[2.0, 9.0], [9.0, 3.0]]  # a distance counts as the largest in the table


def _empty_reference(**others: Any) -> pd.DataFrame:
    """The second case has an empty reference; `a` finds nothing there, `b` something."""
    return long_table({"a": [0.9, NAN], "b": [0.8, 0.0]}).assign(**others)


def test_false_alarms_never_drop_out() -> None:
    table = check_table(_empty_reference(specificity=[1.0, 1.0, 1.0, 0.9]), METRICS)
    found = scores(table, "dice")
    assert found.by_patient.tolist() == [[0.9, 1.0], [0.8, 0.0]]
    assert (found.excluded, found.empty, found.failed) == ((), ("c001",), {})
    assert misses(table) == {"a": (0, 0), "b": (0, 1)}
    excluded = scores(table, "dice", empty="exclude")
    assert (excluded.patients, excluded.excluded) == (("c000",), ("c001",))
    worst = scores(table, "dice", empty="worst")
    assert worst.by_patient.tolist() == [[0.9, 0.0], [0.8, 0.0]] and worst.failed == {"a": 1}


def test_the_distance_of_a_rightly_empty_prediction_is_zero() -> None:
    frame = _empty_reference(specificity=[1.0, 1.0, 1.0, 0.9], hd95_mm=[1.0, NAN, 2.0, 77.0])
    assert scores(check_table(frame, METRICS), "hd95_mm").by_patient.tolist() == [[1.0, 0.0], [2.0, 77.0]]


def test_a_method_with_false_alarms_on_all_healthy_patients_is_not_better() -> None:
    """12 patients with the lesion, 8 without; `b` is better by 0.01 on the former, and finds a lesion in everyone."""
    lesion = np.linspace(0.7, 0.9, 12)
    frame = long_table({"a": [*lesion, *[NAN] * 8], "b": [*(lesion + 0.01), *[0.0] * 8], "c": [*lesion, *[NAN] * 8]})
    frame["specificity"] = np.where(frame["dice"] == 0, 0.9, 1.0)
    for losses in ("ab", "abc"):
        found = analyse(check_table(frame[frame["loss"].isin(list(losses))], METRICS), reference="a", bootstraps=20)
        compared = next(compared for compared in found.primary.comparisons if compared.loss == "b")
        assert compared.verdict == "worse" and compared.difference < -0.3
        assert next(ranked for ranked in found.primary.ranking if ranked.loss == "b").false_alarms == 8
        caveats = " ".join(found.caveats)
        assert "The reference of 8 cases" in caveats and "(--empty one)" in caveats
        assert "False alarms (a class is predicted that the reference does not contain): b 8." in caveats
    left_out = analyse(check_table(frame, METRICS), reference="a", empty="exclude", bootstraps=20)
    assert left_out.primary.patients == 12 and "(--empty exclude)" in " ".join(left_out.caveats)


@pytest.mark.parametrize(("others", "value"), [("0", 1.0), ("nan", 1.0), ("0.3", 0.0)])
def test_nnunets_nan_is_a_rightly_empty_prediction_unless_another_loss_overlaps(others: str, value: float) -> None:
    frame = long_table({"a": ["0.9", "nan"], "b": ["0.8", others], "c": ["0.5", "NaN"]})
    found = scores(check_table(frame, METRICS), "dice")
    assert found.by_patient[0].tolist() == [0.9, value]
    assert found.by_patient[2].tolist() == [0.5, value]


def test_a_false_alarm_is_recognised_by_the_missing_sensitivity() -> None:
    frame = long_table({"a": [0.9, 0.0], "b": [0.8, 0.0]}).assign(sensitivity=[0.9, NAN, 0.8, NAN])
    table = check_table(frame, METRICS)
    assert misses(table) == {"a": (0, 1), "b": (0, 1)}
    missed = long_table({"a": [0.9, 0.0], "b": [0.8, 0.1]}).assign(sensitivity=[0.9, 0.0, 0.8, 0.1])
    assert misses(check_table(missed, METRICS)) == {"a": (1, 0), "b": (0, 0)}


def test_specificity_of_an_empty_reference() -> None:
    specificity = scores(check_table(_empty_reference(specificity=[1.0, 1.0, 1.0, 0.9]), METRICS), "specificity")
    assert specificity.by_patient.tolist() == [[1.0, 1.0], [1.0, 0.9]]


def test_without_specificity_an_empty_cell_is_a_failure() -> None:
    found = scores(check_table(_empty_reference(), METRICS), "dice")
    assert found.by_patient.tolist() == [[0.9, 0.0], [0.8, 0.0]]


def test_a_failure_has_no_metric_at_all_not_even_specificity() -> None:
    found = scores(check_table(_empty_reference(specificity=[1.0, NAN, 1.0, 0.9]), METRICS), "dice")
    assert found.failed == {"a": 1}
    assert found.excluded == ()


def test_the_distance_of_an_empty_prediction_is_a_failure_if_the_reference_is_not_empty() -> None:
    frame = long_table({"a": [0.9, 0.0], "b": [0.8, 0.7]}).assign(specificity=1.0, hd95_mm=[1.0, NAN, 2.0, 3.0])
    assert scores(check_table(frame, METRICS), "hd95_mm").by_patient.tolist() == [[1.0, 3.0], [2.0, 3.0]]


def test_sensitivity_of_an_empty_reference_is_left_out() -> None:
    frame = long_table({"a": [0.9, 0.0], "b": [0.8, 0.0]}).assign(sensitivity=[0.9, NAN, 0.8, NAN])
    assert scores(check_table(frame, METRICS), "sensitivity").excluded == ("c001",)


def test_the_metrics_of_empty_masks_are_recognised() -> None:
    """End to end: the rows come from the metrics themselves."""
    torch = pytest.importorskip("torch")
    empty, full = torch.zeros(4, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, 4, dtype=torch.uint8)
    full[1:3, 1:3, 1:3] = 1
    pairs = {"a": [(full, full), (empty, empty), (empty, full)], "b": [(full, full), (full, empty), (full, full)]}
    rows = [
        {"loss": loss, "case": str(case)} | case_metrics(prediction, reference, 2, (1.0, 2.0, 3.0))[0]
        for loss, masks in pairs.items()
        for case, (prediction, reference) in enumerate(masks)
    ]
    found = scores(check_table(pd.DataFrame(rows), METRICS), "dice")
    assert found.patients == ("0", "1", "2")
    assert found.by_patient.tolist() == [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    assert misses(check_table(pd.DataFrame(rows), METRICS)) == {"a": (1, 0), "b": (0, 1)}
    distance = scores(check_table(pd.DataFrame(rows), METRICS), "hd95_mm")
    assert distance.by_patient[0, 1] == 0 < distance.by_patient[1, 1]
    assert scores(check_table(pd.DataFrame(rows), METRICS), "specificity").patients == ("0", "1", "2")


def test_folds_seeds_classes_and_cases_are_averaged_never_counted() -> None:
    rows = [
        {"loss": loss, "case": case, "patient": case[0], "class": kind, "fold": fold, "seed": seed}
        for loss in "ab"
        for case in ("p1", "p2", "q1")
        for kind in ("left", "right")
        for fold in (0, 1)
        for seed in (0, 1)
    ]
    frame = pd.DataFrame(rows)
    frame["dice"] = np.random.default_rng(0).uniform(size=len(frame)).round(3)
    table = check_table(frame, METRICS)
    found = scores(table, "dice")
    assert found.patients == ("p", "q")
    assert found.values.shape == (2, 2, 4)  # each case is in both folds: every fold with every seed is a run
    assert found.folds.tolist() == [0, 0]
    by_case = frame.groupby(["loss", "fold", "seed", "case"])["dice"].mean()
    for i, loss in enumerate("ab"):
        for run, (fold, seed) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            cases = by_case[loss][fold][seed]
            assert found.values[i, :, run] == pytest.approx([(cases["p1"] + cases["p2"]) / 2, cases["q1"]])
    left = frame[(frame["class"] == "left") & (frame["loss"] == "a") & (frame["case"] == "q1")]["dice"].mean()
    assert scores(table, "dice", "left").by_patient[0, 1] == pytest.approx(left)


def _partly_annotated() -> pd.DataFrame:
    """Case 1 annotates both classes, the others one of them."""
    rows = [("1", "liver", 0.9, 0.8), ("1", "tumour", 0.5, 0.6), ("2", "liver", 0.7, 0.8), ("3", "tumour", 0.3, 0.2)]
    frame = pd.DataFrame(rows, columns=["case", "class", "a", "b"])
    return frame.melt(["case", "class"], var_name="loss", value_name="dice")


def test_a_class_that_a_case_does_not_annotate_is_not_missing() -> None:
    table = check_table(_partly_annotated(), METRICS)
    found = scores(table, "dice")
    assert found.patients == ("1", "2", "3")
    np.testing.assert_allclose(found.by_patient, [[0.7, 0.7, 0.3], [0.7, 0.8, 0.2]])
    assert (found.missing, found.failed, found.excluded, found.balanced) == ({}, {}, (), True)
    assert scores(table, "dice", "tumour").by_patient.tolist() == [[0.5, 0.3], [0.6, 0.2]]
    assert cases_by_class(table) == {"liver": 2, "tumour": 2}
    analysis = analyse(table, reference="a")
    assert analysis.to_dict()["class_cases"] == {"liver": 2, "tumour": 2}
    assert analysis.classes["liver"].patients == 2
    note = (
        "Not every case has every class (cases per class: liver: 2, tumour: 2). The score of a case is the mean over "
        "the classes that it has."
    )
    assert note in gap_notes(analysis) and note in analysis.caveats


def test_a_class_that_only_one_loss_lacks_counts_as_worst() -> None:
    frame = _partly_annotated()
    lacking = (frame["loss"] == "a") & (frame["case"] == "3")
    found = scores(check_table(frame[~lacking], METRICS), "dice")
    np.testing.assert_allclose(found.by_patient, [[0.7, 0.7, 0.0], [0.7, 0.8, 0.2]])
    assert found.missing == {"a": ("3",)}
    # Of a case with another class, too.
    lacking = (frame["loss"] == "b") & (frame["case"] == "1") & (frame["class"] == "tumour")
    found = scores(check_table(frame[~lacking], METRICS), "dice")
    np.testing.assert_allclose(found.by_patient, [[0.7, 0.7, 0.3], [0.4, 0.8, 0.2]])
    assert found.missing == {"b": ("1",)}


def test_a_failed_run_lacks_what_its_cases_annotate() -> None:
    frame = _partly_annotated().assign(fold=0, seed=0)
    other = frame[frame["loss"] == "a"].assign(loss="c")
    ended = pd.concat([frame, other[other["case"] == "none"]])
    table = check_table(with_failed_runs(ended, [("c", 0, 0)]), METRICS)
    assert scores(table, "dice").by_patient[2].tolist() == [0, 0, 0]
    assert len(table.frame) == 12
    assert cases_by_class(table) == {"liver": 2, "tumour": 2}


def test_nothing_is_noted_if_all_cases_have_all_classes() -> None:
    frame = pd.concat([long_table({"a": [0.9, 0.8], "b": [0.7, 0.8]}).assign(**{"class": name}) for name in ("x", "y")])
    table = check_table(frame, METRICS)
    assert cases_by_class(table) == {}
    assert "class_cases" not in analyse(table, reference="a").to_dict()


def test_a_patient_and_a_case_of_the_same_name_are_two() -> None:
    frame = long_table({"a": [0.1, 0.2], "b": [0.3, 0.4]}).assign(case=["1", "2"] * 2, patient=["2", None] * 2)
    assert scores(check_table(frame, METRICS), "dice").values.shape == (2, 2, 1)


def test_seeds_of_folds_need_not_be_the_same() -> None:
    frame = long_table({"a": [0.1, 0.2], "b": [0.3, 0.4]}).assign(seed=[7, 8] * 2, fold=[0, 1] * 2)
    found = scores(check_table(frame, METRICS), "dice")
    assert found.values.tolist() == [[[0.1], [0.2]], [[0.3], [0.4]]]
    assert found.balanced and found.folds.tolist() == [0, 1]
    more = pd.concat([frame, frame.iloc[[0, 2]].assign(seed=9, dice=[0.5, 0.7])])
    found = scores(check_table(more, METRICS), "dice")
    assert found.values.tolist() == [[[0.1, 0.5], [0.2, 0.2]], [[0.3, 0.7], [0.4, 0.4]]]
    assert not found.balanced


def test_failed_runs_rank_worst_in_the_cases_of_their_fold() -> None:
    frame = long_table({"a": [0.5, 0.5], "b": [0.6, 0.6]}).assign(fold=[0, 1, 0, 1], seed=3)
    frame = frame[~((frame["loss"] == "b") & (frame["fold"] == 1))]
    found = scores(check_table(with_failed_runs(frame, [("b", 1, 3), ("c", 0, 3), ("c", 1, 3)]), METRICS), "dice")
    assert found.by_patient.tolist() == [[0.5, 0.5], [0.6, 0.0], [0.0, 0.0]]
    assert found.failed == {"b": 1, "c": 2}


def test_missing_rows_of_a_repeated_fold() -> None:
    """12 cases in folds 0 and 1; `b` has no rows for six of them in fold 1."""
    frame = pd.concat([long_table({"a": [0.8] * 12, "b": [0.8] * 12}).assign(fold=fold) for fold in (0, 1)])
    lacks = (frame["loss"] == "b") & (frame["fold"] == 1) & (frame["case"] >= "c006")
    found = scores(check_table(frame[~lacks], METRICS), "dice")
    assert found.missing == {"b": tuple(f"c{number:03d}" for number in range(6, 12))}
    assert found.by_patient[1].tolist() == [0.8] * 6 + [0.4] * 6


def _three_folds(**zero: tuple[str, list[int]]) -> pd.DataFrame:
    """Losses a and b, three folds of four cases, classes organ and lesion; zero: loss -> class and cases without it."""
    rows = []
    for loss in ("a", "b"):
        name, cases = zero.get(loss, ("", []))
        for case in range(12):
            for of_class in ("organ", "lesion"):
                dice = 0.0 if of_class == name and case in cases else 0.8
                keys = {"loss": loss, "case": f"c{case:02d}", "class": of_class, "fold": case // 4, "seed": 0}
                rows.append(keys | {"dice": dice, "sensitivity": dice})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ([4, 5, 6, 7], [Unlearned("b", "lesion", (("1", "0"),), False, 4, True)]),
        ([4, 5, 6], []),  # found in the fourth
        (range(4, 12), [Unlearned("b", "lesion", (("1", "0"), ("2", "0")), False, 8, True)]),
        (range(12), [Unlearned("b", "lesion", (("0", "0"), ("1", "0"), ("2", "0")), True, 12, True)]),
    ],
)
def test_runs_that_found_a_class_nowhere(cases: Any, expected: list[Unlearned]) -> None:
    assert list(unlearned(check_table(_three_folds(b=("lesion", list(cases))), METRICS))) == expected


def test_a_class_that_no_other_loss_found() -> None:
    def by_others(frame: pd.DataFrame) -> dict[str, bool | None]:
        return {one.loss: one.by_others for one in unlearned(check_table(frame, METRICS))}

    nowhere = _three_folds(a=("lesion", [4, 5, 6, 7]), b=("lesion", [4, 5, 6, 7]))
    assert by_others(nowhere) == {"a": False, "b": False}
    # The other loss found it in one case of the run, or in other runs only.
    assert by_others(_three_folds(a=("lesion", [4, 5, 6]), b=("lesion", [4, 5, 6, 7]))) == {"b": True}
    nowhere.loc[(nowhere["loss"] == "a") & (nowhere["fold"] == 1), ["dice", "sensitivity"]] = NAN  # failed
    assert by_others(nowhere) == {"b": None}


def test_runs_whose_cases_do_not_have_the_class_are_not_counted() -> None:
    frame = _three_folds(b=("lesion", list(range(12))))
    frame = frame[(frame["class"] == "organ") | (frame["fold"] > 0)]
    (found,) = unlearned(check_table(frame, METRICS))
    assert (found.runs, found.every, found.cases) == ((("1", "0"), ("2", "0")), True, 8)


def test_one_case_with_the_class_or_a_failed_run_does_not_show_that_it_was_not_learned() -> None:
    frame = _three_folds(b=("lesion", [4]))
    others = (frame["class"] == "lesion") & frame["case"].isin(["c05", "c06", "c07"])
    assert unlearned(check_table(frame[~others], METRICS)) == ()
    absent = frame.copy()
    absent.loc[others, "dice"] = 0.0  # false alarms, since no loss has a sensitivity there
    absent.loc[others, "sensitivity"] = NAN
    assert unlearned(check_table(absent, METRICS)) == ()
    failed = _three_folds()
    failed.loc[(failed["loss"] == "b") & (failed["fold"] == 1), ["dice", "sensitivity"]] = NAN
    assert unlearned(check_table(failed, METRICS)) == ()
