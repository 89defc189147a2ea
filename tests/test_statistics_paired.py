"""Differences from the reference: intervals, tests and words, by hand and by scipy."""

import numpy as np
import pytest
import scipy.stats
from results_tables import made_scores

from pipelines.comparison.statistics.difference import (
    difference_test,
    equivalence_p,
    mean_difference,
    retraining_share,
)
from pipelines.comparison.statistics.omnibus import all_pairs
from pipelines.comparison.statistics.paired import compare_with


def _word(differences: np.ndarray, margin: float | None = 0.01) -> str:
    return compare_with(made_scores(np.stack([np.full(len(differences), 0.5), 0.5 + differences])), "a", margin=margin)[
        0
    ].verdict


def test_the_interval_is_students() -> None:
    differences = np.random.default_rng(0).normal(0.02, 0.05, 18)
    found = mean_difference(differences[:, None])
    expected = scipy.stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.interval() == pytest.approx(tuple(expected))
    assert 2 * found.p_above(0.0) == pytest.approx(scipy.stats.ttest_1samp(differences, 0).pvalue)


def test_equivalence_is_two_one_sided_tests() -> None:
    differences = np.random.default_rng(1).normal(0.002, 0.01, 30)
    low = scipy.stats.ttest_1samp(differences, -0.01, alternative="greater").pvalue
    high = scipy.stats.ttest_1samp(differences, 0.01, alternative="less").pvalue
    found = mean_difference(differences[:, None])
    assert equivalence_p(found, 0.01) == pytest.approx(max(low, high))
    # 95 % inside the margin is 2.5 % on each side.
    low95, high95 = found.interval() or (0, 0)
    assert (equivalence_p(found, 0.01) < 0.025) == (low95 > -0.01 and high95 < 0.01)


def test_a_comparison_by_hand() -> None:
    random = np.random.default_rng(2)
    values = 0.8 + random.normal(0, 0.02, (4, 25)) + np.array([0, 0.001, 0.02, -0.03])[:, None]
    found = compare_with(made_scores(values), "b", margin=0.01)
    assert [own.loss for own in found] == ["a", "c", "d"]
    p = [scipy.stats.wilcoxon(values[i] - values[1]).pvalue for i in (0, 2, 3)]
    assert [own.p for own in found] == pytest.approx(p)
    ascending = np.argsort(p)
    adjusted = np.maximum.accumulate(np.sort(p) * [3, 2, 1]).clip(max=1)
    assert [found[i].p_holm for i in ascending] == pytest.approx(adjusted)
    assert found[1].difference == pytest.approx((values[2] - values[1]).mean())
    assert found[1].sd == pytest.approx((values[2] - values[1]).std(ddof=1))
    assert found[1].wins == (values[2] > values[1]).sum()
    assert [own.verdict for own in found] == ["undecided", "better", "worse"]


def test_a_distance_is_better_when_it_is_less() -> None:
    random = np.random.default_rng(3)
    values = 5 + random.normal(0, 0.3, (2, 20)) - np.array([0, 2])[:, None]
    found = compare_with(made_scores(values, "hd95_mm"), "a")[0]
    assert found.verdict == "better"
    assert found.difference == pytest.approx((values[1] - values[0]).mean())
    assert found.difference < 0
    assert found.interval == pytest.approx(tuple(scipy.stats.ttest_rel(*values[::-1]).confidence_interval()))
    assert found.effect > 0.9
    assert found.wins == 20


def test_words() -> None:
    noise = np.linspace(-1, 1, 30) + np.where(np.arange(30) % 2, 0.05, -0.05)
    assert _word(0.02 + 0.01 * noise) == "better"
    assert _word(-0.02 + 0.01 * noise) == "worse"
    assert _word(0.01 * noise) == "equivalent"
    assert _word(0.05 * noise) == "undecided"
    # Certain, and smaller than what matters.
    assert _word(0.004 + 0.003 * noise) == "equivalent"
    assert _word(0.004 + 0.003 * noise, margin=None) == "better"


def test_three_identical_cases_are_no_evidence() -> None:
    assert _word(np.zeros(3)) == "undecided"
    assert _word(np.zeros(6)) == "equivalent"
    assert _word(np.full(5, 0.3)) == "undecided"
    assert _word(np.full(6, 0.3)) == "better"


def test_a_mean_against_its_ranks_is_undecided() -> None:
    differences = np.array([0.002] * 30 + [-0.9] * 2) + np.linspace(0, 1e-4, 32)
    found = compare_with(made_scores(np.stack([np.full(32, 0.95), 0.95 + differences])), "a")[0]
    assert found.p_holm < 0.05
    assert found.effect > 0 > found.difference
    assert found.verdict == "undecided"


def test_one_patient_has_no_interval() -> None:
    found = compare_with(made_scores(np.array([[0.5], [0.9]])), "a", margin=0.01)[0]
    assert (found.interval, found.sd, found.p, found.verdict) == (None, None, 1.0, "undecided")


def test_several_trainings_the_error_is_that_of_two_crossed_samples() -> None:
    """Mean squares by hand: n = 3 patients, S = 2 seeds."""
    d = np.array([[1.0, 3.0], [2.0, 4.0], [4.0, 4.0]])
    found = mean_difference(d)
    patients = 2 * np.var([2, 3, 4], ddof=1)
    seeds = 3 * np.var([7 / 3, 11 / 3], ddof=1)
    residual = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    rest = (residual**2).sum() / 2
    assert found.error == pytest.approx(np.sqrt((patients + seeds - rest) / 6))
    freedom = (patients + seeds - rest) ** 2 / (patients**2 / 2 + seeds**2 / 1 + rest**2 / 2)
    assert found.freedom == pytest.approx(freedom)
    half = np.sqrt(
        (scipy.stats.t.ppf(0.975, 2) ** 2 * (patients - rest) + scipy.stats.t.ppf(0.975, 1) ** 2 * seeds) / 6
    )
    assert found.interval() == pytest.approx((3 - half, 3 + half))


def test_seeds_that_repeat_each_other_change_nothing() -> None:
    d = np.random.default_rng(5).normal(0.3, 1, (20, 1))
    one, three = difference_test(d), difference_test(np.repeat(d, 3, 1))
    assert three.mean.interval() == pytest.approx(one.mean.interval(), rel=0.02)
    assert three.rank == one.rank
    assert retraining_share(np.repeat(d, 3, 1)) == pytest.approx(0)


def test_a_shift_that_is_one_trainings_luck_is_not_better() -> None:
    random = np.random.default_rng(6)
    noise = random.normal(0, 0.005, (2, 40, 2))
    noise[1, :, 0] += 0.05  # the first training of `b` is better, the second is not
    found = compare_with(made_scores(0.8 + noise), "a")[0]
    assert found.p_wilcoxon < 1e-6
    assert found.p > 0.2
    assert found.verdict == "undecided"
    assert found.retraining is not None and found.retraining > 0.9
    assert all_pairs(made_scores(0.8 + noise)).p[0][1] == found.p


def test_two_trainings_and_an_interval_around_nothing_are_undecided() -> None:
    """Two seeds say too little of seeds, however small the p-value."""
    random = np.random.default_rng(0)
    values = 0.8 + random.normal(0, 0.01, (2, 30, 2))
    values[1] += np.array([0.005, 0.008])
    found = compare_with(made_scores(values), "a")[0]
    assert found.p_holm < 0.01
    assert found.interval is not None and found.interval[0] < 0 < found.interval[1]
    assert found.verdict == "undecided"


def test_retraining_share_is_the_variance_component() -> None:
    random = np.random.default_rng(7)
    values = random.normal(0, 3, (4000, 1)) + random.normal(0, 1, (4000, 4))
    assert retraining_share(values) == pytest.approx(0.1, abs=0.01)
    assert retraining_share(values[:, :1]) is None
