"""Small versions of `benchmarks/statistics_error_rates.py`: false words, pairs, ranks and equivalences, and power."""

import numpy as np
import pytest
import scipy.stats

pytest.importorskip(
    "benchmarks.statistics_error_rates", reason="benchmarks/ is not here: these tests run in the checkout"
)

from benchmarks import statistics_error_rates as rates
from pipelines.statistics.mean_difference import infer
from pipelines.statistics.significance_tests import signed_rank

COUNT = 300
#: Of so many tables with a true share of 5 % more are wrong once in a thousand.
MOST = scipy.stats.binom.isf(0.001, COUNT, 0.05) / COUNT

DESIGNS = [
    (1, 1, 5),
    (1, 2, 1),
    (1, 2, 17),
    (1, 5, 5),
    (2, 1, 1),
    (2, 1, 17),
    (3, 1, 5),
    (5, 1, 17),
    (2, 5, 5),
    (3, 2, 1),
]


@pytest.mark.parametrize(("seeds", "folds", "comparisons"), DESIGNS)
@pytest.mark.parametrize("deviation", ["normal", "bounded"])
def test_false_words_stay_at_five_per_cent(deviation: str, seeds: int, folds: int, comparisons: int) -> None:
    assert rates.false_words(COUNT, deviation, comparisons, 20, seeds, folds).share <= MOST


@pytest.mark.parametrize("deviation", ["heavy-tailed", "skewed", "exponential"])
@pytest.mark.parametrize("comparisons", [1, 17])
def test_false_words_of_other_differences(deviation: str, comparisons: int) -> None:
    assert rates.false_words(COUNT, deviation, comparisons, 50, 1, 1).share <= MOST


def test_the_simulation_would_see_what_was_wrong() -> None:
    """Without adjustment, and with trainings taken for patients, there are far too many false words."""
    random = np.random.default_rng(1)
    unadjusted = as_one = 0
    for values, fold in rates.tables(random, rates.DEVIATIONS["normal"], COUNT, 6, 50, seeds=2, folds=1):
        found = rates.against_reference(values, fold)
        unadjusted += int((found.p.min(-1) <= 0.05).sum())
        one = rates.against_reference(values.mean(-1, keepdims=True), fold)
        as_one += int((one.p_adjusted.min(-1) <= 0.05).sum())
    assert unadjusted / COUNT > MOST and as_one / COUNT > 2 * MOST


def test_ranks_alone_would_be_wrong_about_the_mean() -> None:
    """Equal means, rare collapses: Wilcoxon's test finds a difference in more than a quarter of tables of 50 cases."""
    assert rates.rare_collapse(COUNT, 1, 50).share < 0.15
    random = np.random.default_rng(2)
    d = np.where(random.uniform(size=(COUNT, 50)) < 0.05, -0.19, 0.01) + random.normal(0, 0.01, (COUNT, 50))
    assert np.mean([signed_rank(own).p <= 0.05 for own in d]) > 0.25


@pytest.mark.parametrize(("seeds", "folds"), [(1, 1), (2, 1), (1, 5)])
def test_false_pairs_and_rank_sets(seeds: int, folds: int) -> None:
    wrong, covered = rates.false_pairs(200, "skewed", 6, 20, seeds, folds)
    most = scipy.stats.binom.isf(0.001, 200, 0.05) / 200
    assert wrong.share <= most and covered.share >= 1 - most
    assert covered.share == pytest.approx(1 - wrong.share), "a set of ranks is as narrow as the pairs let it be"


def test_rank_sets_of_near_equal_losses_have_the_truth() -> None:
    """Percentiles of bootstrapped ranks have the first of 18 in 64 to 83 %."""
    one, every = rates.rank_coverage(60, 20)
    assert min(one.share, every.share) >= scipy.stats.binom.ppf(0.001, 60, 0.95) / 60


@pytest.mark.parametrize("deviation", ["normal", "exponential", "lognormal"])
def test_equivalent_is_rarely_said_of_what_differs_by_the_margin(deviation: str) -> None:
    for n in (20, 50):
        equivalent, non_inferior = rates.false_equivalence(2000, deviation, n)
        most = scipy.stats.binom.isf(0.001, 2000, 0.05) / 2000
        assert equivalent.share <= most and non_inferior.share <= most


def test_differences_are_found_as_often_as_by_holm_over_wilcoxon() -> None:
    for comparisons, patients in ((1, 8), (5, 20), (17, 20)):
        _, here, there = rates.power(200, comparisons, patients)
        assert here.share > there.share - 0.05 - 3 * np.sqrt(0.1 / 200)


@pytest.mark.parametrize(("seeds", "folds"), [(2, 1), (5, 1), (1, 5), (2, 5)])
def test_the_interval_over_trainings_covers(seeds: int, folds: int) -> None:
    random = np.random.default_rng(10)
    hit = count = 0
    for values, fold in rates.tables(random, rates.DEVIATIONS["normal"], 400, 2, 20, seeds, folds, retraining=0.5):
        found = infer(values, np.array([1]), np.array([0]), fold, flips=20)
        hit += int(((found.low < 0) & (found.high > 0)).sum())
        count += len(values)
    assert hit / count >= scipy.stats.binom.ppf(0.001, count, 0.95) / count
