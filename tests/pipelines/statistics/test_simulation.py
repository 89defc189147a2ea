"""Small versions of `benchmarks/error_rate_simulations.py`: false verdicts, pairs, ranks, equivalence, and power."""

import numpy as np
import pytest
import scipy.stats

pytest.importorskip(
    "benchmarks.error_rate_simulations", reason="benchmarks/ is missing: these tests run in the checkout"
)

from benchmarks import error_rate_simulations as rates
from pipelines.statistics.mean_difference import infer
from pipelines.statistics.significance_tests import signed_rank

COUNT = 300
#: If 5 % of tables are wrong, a larger share among `COUNT` tables occurs once in a thousand times.
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
def test_false_verdicts_stay_at_five_per_cent(deviation: str, seeds: int, folds: int, comparisons: int) -> None:
    assert rates.false_verdicts(COUNT, deviation, comparisons, 20, seeds, folds).share <= MOST


@pytest.mark.parametrize(
    ("deviation", "metrics", "comparisons", "patients", "seeds", "folds", "count"),
    [
        ("normal", 3, 5, 20, 1, 1, COUNT),
        ("bounded", 2, 1, 50, 1, 1, COUNT),
        ("skewed", 3, 5, 50, 2, 5, 100),
        pytest.param("bounded", 6, 5, 50, 1, 1, 2000, marks=pytest.mark.slow),
        pytest.param("skewed", 3, 17, 50, 1, 1, 1000, marks=pytest.mark.slow),
        pytest.param("heavy-tailed", 3, 5, 20, 2, 5, 1000, marks=pytest.mark.slow),
    ],
)
def test_false_verdicts_over_several_metrics(
    deviation: str, metrics: int, comparisons: int, patients: int, seeds: int, folds: int, count: int
) -> None:
    together, alone = rates.false_verdicts_over_metrics(
        count, deviation, metrics, comparisons, patients, seeds, folds, flips=1999
    )
    assert together.share <= scipy.stats.binom.isf(0.001, count, 0.05) / count
    assert together.share < alone.share, "each metric alone has false verdicts of its own"


@pytest.mark.parametrize("deviation", ["heavy-tailed", "skewed", "exponential"])
@pytest.mark.parametrize("comparisons", [1, 17])
def test_false_verdicts_for_other_distributions(deviation: str, comparisons: int) -> None:
    assert rates.false_verdicts(COUNT, deviation, comparisons, 50, 1, 1).share <= MOST


def test_the_simulation_would_detect_a_wrong_adjustment() -> None:
    """Without adjustment, and with runs taken for patients, there are far too many false verdicts."""
    random = np.random.default_rng(1)
    unadjusted = as_one = 0
    for values, fold in rates.tables(random, rates.DEVIATIONS["normal"], COUNT, 6, 50, seeds=2, folds=1):
        found = rates.against_reference(values, fold)
        unadjusted += int((found.p.min(-1) <= 0.05).sum())
        one = rates.against_reference(values.mean(-1, keepdims=True), fold)
        as_one += int((one.p_adjusted.min(-1) <= 0.05).sum())
    assert unadjusted / COUNT > MOST and as_one / COUNT > 2 * MOST


def test_ranks_alone_would_be_wrong_about_the_mean() -> None:
    """With equal means and rare collapses, Wilcoxon's test rejects in more than a quarter of tables of 50 cases."""
    assert rates.rare_collapse(COUNT, 1, 50).share < 0.15
    random = np.random.default_rng(2)
    d = np.where(random.uniform(size=(COUNT, 50)) < 0.05, -0.19, 0.01) + random.normal(0, 0.01, (COUNT, 50))
    assert np.mean([signed_rank(row).p <= 0.05 for row in d]) > 0.25


@pytest.mark.parametrize(("seeds", "folds"), [(1, 1), (2, 1), (1, 5)])
def test_false_pairs_and_rank_sets(seeds: int, folds: int) -> None:
    wrong, covered = rates.false_pairs(200, "skewed", 6, 20, seeds, folds)
    most = scipy.stats.binom.isf(0.001, 200, 0.05) / 200
    assert wrong.share <= most and covered.share >= 1 - most
    assert covered.share == pytest.approx(1 - wrong.share), "a rank set fails exactly if a pair is falsely different"


def test_rank_sets_of_nearly_equal_losses_cover_the_true_ranks() -> None:
    """Percentiles of bootstrapped ranks cover the first of 18 losses in only 64 to 83 %."""
    one, every = rates.rank_coverage(60, 20)
    assert min(one.share, every.share) >= scipy.stats.binom.ppf(0.001, 60, 0.95) / 60


@pytest.mark.parametrize("deviation", ["normal", "exponential", "lognormal"])
def test_losses_that_differ_by_the_margin_are_rarely_equivalent(deviation: str) -> None:
    for n in (20, 50):
        equivalent, non_inferior = rates.false_equivalence(2000, deviation, n)
        most = scipy.stats.binom.isf(0.001, 2000, 0.05) / 2000
        assert equivalent.share <= most and non_inferior.share <= most


def test_differences_are_detected_as_often_as_by_holm_over_wilcoxon() -> None:
    for comparisons, patients in ((1, 8), (5, 20), (17, 20)):
        _, here, there = rates.power(200, comparisons, patients)
        assert here.share > there.share - 0.05 - 3 * np.sqrt(0.1 / 200)


@pytest.mark.parametrize(("seeds", "folds"), [(2, 1), (5, 1), (1, 5), (2, 5)])
def test_the_interval_over_runs_covers(seeds: int, folds: int) -> None:
    random = np.random.default_rng(10)
    hit = count = 0
    for values, fold in rates.tables(random, rates.DEVIATIONS["normal"], 400, 2, 20, seeds, folds, retraining=0.5):
        found = infer(values, np.array([1]), np.array([0]), fold, flips=20)
        hit += int(((found.low < 0) & (found.high > 0)).sum())
        count += len(values)
    assert hit / count >= scipy.stats.binom.ppf(0.001, count, 0.95) / count
