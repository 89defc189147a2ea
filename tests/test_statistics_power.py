"""What so many cases can show, against simulated tests of scipy's, and against the figures of the design."""

import numpy as np
import pytest
import scipy.stats

from pipelines.comparison.statistics.power import cases_needed, least_cases, least_difference, power


@pytest.mark.parametrize(("comparisons", "cases"), [(1, 6), (14, 10), (16, 10), (105, 13), (136, 13)])
def test_least_cases_is_where_scipy_first_rejects(comparisons: int, cases: int) -> None:
    assert least_cases(comparisons) == cases
    for n, rejects in ((cases - 1, False), (cases, True)):
        assert (scipy.stats.wilcoxon(np.arange(1.0, n + 1)).pvalue * comparisons <= 0.05) == rejects


@pytest.mark.parametrize("n", [6, 8, 12, 20, 52, 150])
@pytest.mark.parametrize("comparisons", [1, 10])
def test_the_least_difference_is_found_four_times_in_five(n: int, comparisons: int) -> None:
    difference = least_difference(2.0, n, comparisons=comparisons)
    if n < least_cases(comparisons):
        assert difference is None
        return
    assert difference is not None
    samples = np.random.default_rng(n).normal(difference, 2.0, (1000, n))
    p = np.array([scipy.stats.wilcoxon(sample).pvalue for sample in samples])
    assert (p <= 0.05 / comparisons).mean() == pytest.approx(0.8, abs=0.05)


def test_heavy_tails_are_on_the_safe_side() -> None:
    difference = least_difference(np.sqrt(2.0), 40)  # the standard deviation of t with 4 degrees of freedom
    assert difference is not None
    samples = np.random.default_rng(0).standard_t(4, (1000, 40)) + difference
    assert np.mean([scipy.stats.wilcoxon(sample).pvalue <= 0.05 for sample in samples]) > 0.8


def test_the_figures_of_the_hippocampus() -> None:
    """Two networks' difference had a standard deviation of 1.8 Dice points."""
    assert least_difference(1.8, 52) == pytest.approx(0.7, abs=0.04)
    assert least_difference(1.8, 260) == pytest.approx(0.3, abs=0.03)


def test_power_of_nothing_is_half_the_level_and_cases_needed_is_the_inverse() -> None:
    assert power(0.0, 1.0, 40) == pytest.approx(0.025, abs=0.001)  # in one of two directions
    assert power(0.0, 1.0, 5) == 0
    needed = cases_needed(0.7, 1.8)
    assert power(0.7, 1.8, needed) >= 0.8 > power(0.7, 1.8, needed - 1)
    assert least_difference(0.0, 30) == 0
