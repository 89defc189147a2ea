"""Tests and intervals of mean differences: by enumeration, by hand and by scipy."""

import itertools

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from pipelines.statistics import mean_difference
from pipelines.statistics.mean_difference import Inference, infer, least_patients, retraining_share, sign_flip_p

Floats = NDArray[np.float64]


def _of(differences: Floats, folds: NDArray[np.intp] | None = None) -> Inference:
    """One comparison, of `[n]` or `[n, S]` differences."""
    d = differences if differences.ndim == 2 else differences[:, None]
    folds = np.zeros(len(d), np.intp) if folds is None else folds
    return infer(np.stack([np.zeros_like(d), d]), np.array([1]), np.array([0]), folds)


def _h(d: Floats, part: float = 1.0) -> float:
    t = scipy.stats.ttest_1samp(d, 0).statistic
    a = part * scipy.stats.skew(d) / np.sqrt(len(d))
    return float(t + a / 6 + a * t**2 / 3 + a**2 * t**3 / 27)


@pytest.mark.parametrize("n", [4, 7, 9])
def test_sign_flips_are_the_count_of_all_signs(n: int) -> None:
    """Step-down max-T by hand: the largest statistic among those that are not yet rejected."""
    random = np.random.default_rng(n)
    d = random.normal(0.4, 1, (3, n)) + random.normal(size=n)
    patterns = np.array(list(itertools.product([1, -1], repeat=n)))
    flipped = np.array([[abs(_h(row * signs, 0.5 + n / 40)) for signs in patterns] for row in d])
    seen = flipped[:, :1]
    single, stepped = sign_flip_p(d)
    assert single == pytest.approx((flipped >= seen - 1e-9).mean(1))
    order = np.argsort(-seen[:, 0])
    expected, worst = np.empty(3), 0.0
    for place, index in enumerate(order):
        worst = max(worst, float((flipped[order[place:]].max(0) >= seen[index] - 1e-9).mean()))
        expected[index] = worst
    assert stepped == pytest.approx(expected)


def test_drawn_sign_flips_agree_with_all_of_them() -> None:
    d = np.random.default_rng(1).normal(0.5, 1, (4, 13))
    exact, drawn = sign_flip_p(d), sign_flip_p(d, flips=4000)
    assert 2**12 > 4000
    assert drawn[1] == pytest.approx(exact[1], abs=4 * np.sqrt(0.25 / 4000))
    assert sign_flip_p(d, flips=4000)[0].tolist() == drawn[0].tolist()
    assert sign_flip_p(d, flips=4000, seed=1)[0].tolist() != drawn[0].tolist()


def test_eight_cases_are_enough_for_seventeen_comparisons() -> None:
    """Holm over Wilcoxon's tests needs ten; joint sign flips do not."""
    assert least_patients() == 6
    d = np.linspace(0.2, 0.3, 8) + np.random.default_rng(2).normal(0, 0.01, (17, 8))
    assert sign_flip_p(d)[1] == pytest.approx(np.full(17, 2 / 2**8))


def test_zeros_and_constants() -> None:
    assert [p.tolist() for p in sign_flip_p(np.zeros((2, 8)))] == [[1, 1], [1, 1]]
    assert sign_flip_p(np.full((1, 8), 0.3))[0].tolist() == [2 / 2**8]
    same = _of(np.full(8, 0.3))
    assert (same.low[0], same.high[0]) == pytest.approx((0.3, 0.3))
    assert same.p_adjusted[0] == 2 / 2**8
    assert (same.p_below(0.2)[0], same.p_below(0.4)[0], same.p_above(0.4)[0]) == (0, 1, 0)


@pytest.mark.parametrize("n", [8, 30])
def test_the_interval_is_the_wider_of_students_and_the_inverse_of_h(n: int) -> None:
    d = np.random.default_rng(n).exponential(size=n) - 0.2
    found = _of(d)
    low, high = scipy.stats.ttest_1samp(d, 0).confidence_interval(0.95)
    quantile = scipy.stats.t.ppf(0.975, n - 1)
    # Where h of the shifted differences is the quantile, by a root's search.
    corrected = [
        scipy.optimize.brentq(lambda mean, end=end: _h(d - mean) - end, d.mean() - 60, d.mean() + 60)
        for end in (quantile, -quantile)
    ]
    assert found.low[0] == pytest.approx(min(low, corrected[0]), abs=1e-6)
    assert found.high[0] == pytest.approx(max(high, corrected[1]), abs=1e-6)
    assert corrected[1] > high, "skewed to the right: the mean may be larger"


@pytest.mark.parametrize(("seeds", "folds"), [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_p_values_are_the_level_at_which_the_interval_ends_at_the_bound(seeds: int, folds: int) -> None:
    random = np.random.default_rng(3)
    d = random.exponential(size=(24, seeds)) + random.normal(0, 0.3, (24, 1))
    found = _of(d, np.arange(24) % folds)
    cautious = 1.5 * found.skew
    for tail in (0.2, 0.025, 0.001):
        level = np.array([tail])
        low = found.mean - mean_difference._half(level, cautious, found.parts)
        high = found.mean + mean_difference._half(level, -cautious, found.parts)
        assert found.p_below(float(low[0])) == pytest.approx(level, rel=1e-4)
        assert found.p_above(float(high[0])) == pytest.approx(level, rel=1e-4)


def test_a_significant_difference_has_an_interval_without_zero() -> None:
    random = np.random.default_rng(4)
    for _ in range(200):
        found = _of(random.exponential(size=8) - 0.35)
        if found.p_adjusted[0] <= 0.05:
            assert found.low[0] > 0 or found.high[0] < 0


def test_the_variance_of_two_seeds_by_hand() -> None:
    """Mean squares: n = 3 patients, S = 2 seeds."""
    d = np.array([[1.0, 3.0], [2.0, 4.0], [4.0, 4.0]])
    parts = _of(d).parts
    patients = 2 * np.var([2, 3, 4], ddof=1)
    seeds = 3 * np.var([7 / 3, 11 / 3], ddof=1)
    residual = d - d.mean(1, keepdims=True) - d.mean(0) + d.mean()
    rest = (residual**2).sum() / 2
    assert parts.patient[0] == pytest.approx((patients - rest) / 6)
    assert parts.retraining[0] == pytest.approx(seeds / 6)
    assert (parts.patient_freedom, parts.retraining_freedom[0], parts.fold[0]) == (2, 1, 0)


def test_seeds_are_nested_in_folds_and_losses_share_the_estimate() -> None:
    values = np.random.default_rng(5).normal(size=(6, 40, 3))
    folds = np.arange(40) % 4
    found = infer(values, np.arange(1, 6), np.zeros(5, int), folds)
    assert found.parts.patient_freedom == 36
    assert found.parts.retraining_freedom.tolist() == [5 * 4 * 2] * 5
    assert found.parts.fold_freedom.tolist() == [5 * 3] * 5
    pooled = found.parts.retraining.min()
    alone = [infer(values[[0, i]], np.array([1]), np.array([0]), folds).parts.retraining[0] for i in range(1, 6)]
    assert found.parts.retraining == pytest.approx(np.maximum(alone, pooled))
    assert min(alone) < pooled < max(alone)
    two = infer(values[:2], np.array([1]), np.array([0]), folds)
    assert (two.parts.retraining_freedom[0], two.parts.fold_freedom[0]) == (4 * 2, 3)
    means = (values[1] - values[0]).reshape(10, 4, 3).mean(0)
    assert two.parts.retraining[0] == pytest.approx(means.var(1, ddof=1).sum() / 3 / 16)


def test_one_seed_in_folds_is_no_narrower_than_students_over_the_folds() -> None:
    d = np.random.default_rng(6).normal(size=40) + np.repeat([-0.5, 0.0, 0.5, 1.0], 10)
    found = _of(d, np.repeat(np.arange(4), 10))
    expected = scipy.stats.ttest_1samp(d.reshape(4, 10).mean(1), 0)
    low, high = expected.confidence_interval(0.95)
    assert found.low[0] <= low + 1e-9 and high - 1e-9 <= found.high[0]
    assert found.p_trainings[0] >= expected.pvalue - 1e-9
    assert found.p[0] >= found.p_trainings[0]


def test_a_loss_whose_runs_vary_far_more_is_not_pooled() -> None:
    random = np.random.default_rng(7)
    values = (
        random.normal(0, 0.1, (8, 50, 1)) + 0.05 * random.normal(size=(8, 1, 3)) + random.normal(0, 0.02, (8, 50, 3))
    )
    values[4] += np.array([-3.0, 0.0, 3.0])
    found = infer(values, np.arange(1, 8), np.zeros(7, int), np.zeros(50, np.intp))
    assert found.parts.retraining_freedom.tolist() == [6 * 2.0] * 3 + [2.0] + [6 * 2.0] * 3
    assert found.parts.retraining[3] > 100 * found.parts.retraining[0]
    calm = infer(np.delete(values, 4, 0), np.arange(1, 7), np.zeros(6, int), np.zeros(50, np.intp))
    assert found.parts.retraining[0] == pytest.approx(calm.parts.retraining[0])


def test_many_tables_at_once_give_the_results_of_each() -> None:
    random = np.random.default_rng(8)
    folds = np.arange(20) % 2
    values = random.normal(size=(3, 5, 20, 2))
    first, second = np.triu_indices(5, 1)
    together = infer(values, first, second, folds, flips=200)
    for number, one in enumerate(values):
        alone = infer(one, first, second, folds, flips=200)
        for name in ("mean", "low", "high", "p", "p_adjusted", "p_trainings"):
            assert getattr(together, name)[number] == pytest.approx(getattr(alone, name))


def test_as_many_folds_as_patients_show_nothing_of_retraining() -> None:
    d = np.random.default_rng(9).normal(0.5, 1, 10)
    found, plain = _of(d, np.arange(10)), _of(d)
    assert found.low == pytest.approx(plain.low) and np.isnan(found.p_trainings).all()


def test_retraining_share_is_the_variance_component() -> None:
    random = np.random.default_rng(7)
    values = random.normal(0, 3, (4000, 1)) + random.normal(0, 1, (4000, 4))
    assert retraining_share(values) == pytest.approx(0.1, abs=0.01)
    assert retraining_share(values[:, :1]) is None
