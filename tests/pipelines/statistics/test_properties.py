"""Properties of an analysis that hold for any table."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from results_tables import long_table

from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.analysis import analyse
from pipelines.statistics.paired import BETTER, EQUIVALENT, UNDECIDED, WORSE
from pipelines.statistics.results import Analysis
from pipelines.statistics.significance_tests import case_ranks, friedman
from pipelines.statistics.table import check_table

LOSSES = "abcde"
#: Losses by cases, in thousandths up to 0.5, with many ties and some outliers.
TABLES = st.tuples(st.integers(2, 5), st.integers(2, 14)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.one_of(st.integers(380, 420), st.integers(0, 500)))
)


def _frame(values: NDArray[Any], metric: str = "dice", losses: str = LOSSES) -> pd.DataFrame:
    return long_table(dict(zip(losses, values, strict=False)), metric)


def _analysed(frame: pd.DataFrame, **arguments: Any) -> Analysis:
    return analyse(check_table(frame, METRICS), **({"reference": "a", "bootstraps": 40} | arguments))


def _verdicts(found: Analysis) -> dict[str, str]:
    return {compared.loss: compared.verdict for compared in found.primary.comparisons}


@given(TABLES, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(values: NDArray[Any], random: Any) -> None:
    frame = _frame(values / 1000)
    order = list(range(len(frame)))
    random.shuffle(order)
    assert _analysed(frame).to_dict() == _analysed(frame.iloc[order]).to_dict()


@given(TABLES)
def test_names_of_losses_change_nothing(values: NDArray[Any]) -> None:
    new = dict(zip(LOSSES, "zvbya", strict=True))
    one = _analysed(_frame(values / 1000))
    two = _analysed(_frame(values / 1000, losses="zvbya"), reference="z")
    assert {new[loss]: verdict for loss, verdict in _verdicts(one).items()} == _verdicts(two)
    mine, other = ({ranked.loss: ranked for ranked in found.primary.ranking} for found in (one, two))
    for loss, ranked in mine.items():
        same = other[new[loss]]
        assert (ranked.rank, ranked.mean, ranked.average_rank) == pytest.approx(
            (same.rank, same.mean, same.average_rank)
        )
        assert one.primary.bootstrap.losses[loss].p_first == pytest.approx(
            two.primary.bootstrap.losses[new[loss]].p_first
        )


@given(TABLES, st.randoms(use_true_random=False))
def test_names_of_cases_change_no_test(values: NDArray[Any], random: Any) -> None:
    order = list(range(values.shape[1]))
    random.shuffle(order)
    one, two = _analysed(_frame(values / 1000)), _analysed(_frame(values[:, order] / 1000))
    assert _verdicts(one) == _verdicts(two)
    assert [compared.p_adjusted for compared in one.primary.comparisons] == pytest.approx(
        [compared.p_adjusted for compared in two.primary.comparisons]
    )


@given(TABLES, st.integers(1, 500))
def test_a_constant_changes_no_verdict_and_no_rank(values: NDArray[Any], constant: int) -> None:
    one, two = _analysed(_frame(values / 1000)), _analysed(_frame(values / 1000 + constant / 1000))
    assert _verdicts(one) == _verdicts(two)
    assert [ranked.loss for ranked in one.primary.ranking] == [ranked.loss for ranked in two.primary.ranking]
    assert [compared.p for compared in one.primary.comparisons] == pytest.approx(
        [compared.p for compared in two.primary.comparisons]
    )
    for mine, other in zip(one.primary.omnibus.p_adjusted, two.primary.omnibus.p_adjusted, strict=True):
        assert mine == pytest.approx(other)
    assert one.primary.omnibus.friedman == two.primary.omnibus.friedman
    for loss, resampled in one.primary.bootstrap.losses.items():
        assert resampled.p_first == two.primary.bootstrap.losses[loss].p_first


@given(TABLES)
def test_a_copy_is_never_better(values: NDArray[Any]) -> None:
    values = np.concatenate([values[:1], values])
    found = _analysed(_frame(values / 1000, losses="axbcde"))
    assert _verdicts(found)["x"] in (EQUIVALENT, UNDECIDED)
    copy = next(compared for compared in found.primary.comparisons if compared.loss == "x")
    assert (copy.difference, copy.p, copy.effect) == (0, 1, 0)


@given(TABLES)
def test_a_monotone_transform_leaves_ranks(values: NDArray[Any]) -> None:
    one, two = (case_ranks(scores) for scores in (values / 1000, (values / 1000) ** 3))
    assert (one == two).all()
    assert friedman(one) == friedman(two)


@given(TABLES)
def test_a_smaller_distance_counts_like_a_larger_overlap(values: NDArray[Any]) -> None:
    one = _analysed(_frame(values / 1000))
    two = _analysed(_frame((500 - values) / 1000, "hd95_mm"), metric="hd95_mm")
    assert _verdicts(one) == _verdicts(two)
    assert [ranked.loss for ranked in one.primary.ranking] == [ranked.loss for ranked in two.primary.ranking]
    for mine, other in zip(one.primary.comparisons, two.primary.comparisons, strict=True):
        assert mine.difference == pytest.approx(-other.difference)
        assert mine.effect == other.effect


@given(TABLES)
def test_swapping_loss_and_reference_swaps_better_and_worse(values: NDArray[Any]) -> None:
    frame = _frame(values[:2] / 1000)
    swapped = {BETTER: WORSE, WORSE: BETTER}
    verdict = _verdicts(_analysed(frame))["b"]
    assert _verdicts(_analysed(frame, reference="b"))["a"] == swapped.get(verdict, verdict)


@given(TABLES)
def test_every_number_is_in_its_range(values: NDArray[Any]) -> None:
    found = _analysed(_frame(values / 1000))
    primary = found.primary
    assert sum(resampled.p_first for resampled in primary.bootstrap.losses.values()) == pytest.approx(1)
    k = len(primary.ranking)
    assert sum(ranked.rank for ranked in primary.ranking) == pytest.approx(k * (k + 1) / 2)
    for ranked in primary.ranking:
        assert 1 <= ranked.rank_set[0] <= ranked.rank <= ranked.rank_set[1] <= k
    assert -1 <= primary.bootstrap.tau_low <= 1 and -1 <= primary.bootstrap.tau <= 1
    for compared in primary.comparisons:
        assert compared.p <= compared.p_adjusted <= 1 and compared.p_wilcoxon <= compared.p_ranks <= 1
        assert compared.wins + compared.losses + compared.ties == primary.patients
        assert compared.interval is not None and compared.interval[0] <= compared.difference <= compared.interval[1]
