"""Classes of cases, empty in reference or prediction, that a comparison rests on."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.analysis import analyse
from pipelines.statistics.plain_summary import influence_notes, next_steps
from pipelines.statistics.results import Analysis
from pipelines.statistics.table import check_table


def _table(cases: int = 20, noise: float = 0.004) -> pd.DataFrame:
    """Dice and sensitivity of three equally good losses, for two classes."""
    random = np.random.default_rng(0)
    rows = [
        {"case": f"c{case:02d}", "class": name, "loss": loss, "dice": value, "sensitivity": value, "specificity": 0.99}
        for case in range(cases)
        for name in ("organ", "lesion")
        for loss, value in zip(("ref", "x", "y"), (0.8 + random.normal(0, noise, 3)).clip(0.1, 1), strict=True)
    ]
    return pd.DataFrame(rows)


def _set(frame: pd.DataFrame, case: str, loss: str, **values: float) -> None:
    frame.loc[(frame["case"] == case) & (frame["class"] == "lesion") & (frame["loss"] == loss), list(values)] = list(
        values.values()
    )


def _analysed(frame: pd.DataFrame, **options: Any) -> Analysis:
    return analyse(check_table(frame, METRICS), **({"reference": "ref", "bootstraps": 20} | options))


def test_a_class_of_a_case_that_decides_is_named() -> None:
    frame = _table()
    _set(frame, "c07", "x", dice=0.0, sensitivity=0.0)
    found = _analysed(frame)
    (one,) = found.influences
    assert (one.cases, one.classes, one.reference_empty, one.missed_by) == (("c07",), ("lesion",), False, ("x",))
    compared = {comparison.loss: comparison for comparison in found.primary.comparisons}["x"]
    assert one.difference == compared.difference
    # Without it: computed from the table without its rows.
    rest = frame[frame["case"] != "c07"]
    without = {comparison.loss: comparison for comparison in _analysed(rest).primary.comparisons}["x"]
    assert (one.difference_without, one.verdict_without) == (without.difference, without.verdict)
    assert (one.verdict, one.verdict_without) == ("undecided", "equivalent")
    (note,) = influence_notes(found)
    assert note == (
        f"One case: x found nothing of lesion in c07; without this case, the difference of x in Dice would be "
        f"{without.difference:+.4f} instead of {one.difference:+.4f}, and the verdict equivalent instead of undecided."
    )
    assert next_steps(found)[0] == note
    assert found.to_dict()["influences"][0]["cases"] == ["c07"]


def test_a_class_that_changes_nothing_is_not_named() -> None:
    frame = _table(cases=60, noise=0.05)
    assert _analysed(frame).influences == () and "influences" not in _analysed(frame).to_dict()
    _set(frame, "c07", "x", dice=0.0, sensitivity=0.0)
    _set(frame, "c07", "ref", dice=0.0, sensitivity=0.0)
    _set(frame, "c07", "y", dice=0.0, sensitivity=0.0)
    # All losses miss it alike.
    assert _analysed(frame).influences == ()
    # What a case changes in the comparison of losses that both found the class is no matter of its emptiness.
    far = _table(cases=30)
    _set(far, "c07", "y", dice=0.0, sensitivity=0.0)
    _set(far, "c07", "x", dice=0.3, sensitivity=0.3)
    assert [one.loss for one in _analysed(far).influences] == ["y"] and _analysed(far).influences[0].others == 0
    # A loss that misses a class everywhere rests on no single case.
    for case in frame["case"].unique():
        _set(frame, case, "x", dice=0.0, sensitivity=0.0)
    assert _analysed(frame).influences == ()


def test_losses_without_a_row_for_a_class_did_the_same() -> None:
    frame = pd.concat([_table(cases=30), _table(cases=30).query("`class` == 'organ'").assign(**{"class": "vessel"})])
    frame = frame.reset_index(drop=True)
    for loss in ("ref", "x"):  # and y missed the organ, for which these two have no row
        _set(frame, "c07", loss, dice=0.0, sensitivity=0.0)
    organ = (frame["case"] == "c07") & (frame["class"] == "organ")
    frame.loc[organ & (frame["loss"] == "y"), ["dice", "sensitivity"]] = 0.0
    frame = frame[~organ | (frame["loss"] == "y")]
    # What moves x is a class that both it and the reference found.
    frame.loc[(frame["case"] == "c07") & (frame["class"] == "vessel") & (frame["loss"] == "x"), "dice"] = 0.3
    assert [(one.loss, one.others) for one in _analysed(frame).influences] == [("y", 0)]
    # A loss that found the class differs from one without a row.
    frame.loc[(frame["case"] == "c07") & (frame["class"] == "lesion") & (frame["loss"] == "x"), "sensitivity"] = 0.1
    assert [(one.loss, one.others) for one in _analysed(frame).influences] == [("y", 1)]


def test_an_empty_reference_is_named_unless_such_cases_are_left_out() -> None:
    frame = _table()
    for loss, value in (("ref", 0.0), ("x", np.nan), ("y", np.nan)):  # the reference's loss has a false alarm
        _set(frame, "c03", loss, dice=value, sensitivity=np.nan)
    found = _analysed(frame)
    (one,) = found.influences
    assert (one.reference_empty, one.missed_by, one.others) == (True, (), 1)
    (note,) = influence_notes(found)
    assert note.startswith(
        "One case: the reference of c03 has nothing of lesion; without this case, the difference of "
    )
    assert note.endswith("; another loss would change, too.")
    assert _analysed(frame, empty="exclude").influences == ()


def test_an_empty_reference_is_not_blamed_in_a_metric_that_leaves_it_out() -> None:
    frame = _table()
    for loss, value in (("ref", 0.0), ("x", np.nan), ("y", np.nan)):
        _set(frame, "c03", loss, dice=value, sensitivity=np.nan)
    # What moves the sensitivity is the other class of this case, which is neither empty nor missed.
    frame.loc[(frame["case"] == "c03") & (frame["class"] == "organ") & (frame["loss"] == "ref"), "sensitivity"] = 0.1
    assert len(_analysed(frame, metric="dice").influences) == 1
    assert _analysed(frame, metric="sensitivity").influences == ()


def test_empty_references_that_matter_together() -> None:
    frame = _table(cases=60, noise=0.2)
    cases = [f"c{number:02d}" for number in range(6)]
    for case in cases:
        for loss, value in (("ref", 0.0), ("x", np.nan), ("y", 0.0)):
            _set(frame, case, loss, dice=value, sensitivity=np.nan)
    (one,) = _analysed(frame, margin=0.0).influences
    assert (one.cases, one.classes, one.loss) == (tuple(cases), ("lesion",), "x")
    assert influence_notes(_analysed(frame, margin=0.0))[0].startswith(
        "Empty references: those of c00, c01, c02, c03 and 2 more have nothing of lesion; without these cases, the "
        "difference of x in Dice would be "
    )


def test_a_table_without_classes_a_pair_and_several_metrics() -> None:
    frame = _table()
    frame = frame[frame["class"] == "organ"].drop(columns="class")
    frame.loc[(frame["case"] == "c07") & (frame["loss"] == "x"), ["dice", "sensitivity"]] = 0.0
    (note,) = influence_notes(_analysed(frame))
    assert note.startswith("One case: x found nothing of the foreground in c07; without this case, the difference")
    (one,) = _analysed(frame[frame["loss"] != "y"], reference=None).influences
    assert one.loss in ("x", "ref")
    assert _analysed(frame, reference=None).influences == ()  # of three losses without a reference, there is none
    several = _analysed(frame, further={"sensitivity": None})
    assert [one.metric for one in several.influences] == ["dice", "sensitivity"]
    assert all(one.verdict == one.verdict_without for one in several.influences)


@pytest.mark.parametrize("cases", [1, 3, 5])
def test_of_few_cases_none_stands_out(cases: int) -> None:
    for level in np.linspace(0.41, 0.83, 7):  # a case that differs from four that agree is at the bound, but for digits
        frame = _table(cases=cases, noise=0.0)
        frame.loc[frame["loss"] == "x", "dice"] = level
        _set(frame, "c00", "x", dice=0.0, sensitivity=0.0)
        assert _analysed(frame).influences == ()


def test_a_case_that_differs_where_seven_agree_is_named() -> None:
    frame = _table(cases=8, noise=0.001)
    _set(frame, "c00", "x", dice=0.0, sensitivity=0.0)
    assert [one.cases for one in _analysed(frame).influences] == [("c00",)]
    # One of eight cases that differ as much moves the mean, too, but not twice as much as an ordinary one.
    frame = _table(cases=8, noise=0.3)
    _set(frame, "c00", "x", dice=0.0, sensitivity=0.0)
    found = _analysed(frame)
    assert [one for one in found.influences if one.loss == "x"] == []
