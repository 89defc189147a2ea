"""Detectable differences, compared with simulated comparisons and with known figures."""

import numpy as np
import pytest

from pipelines.statistics.mean_difference import infer, least_patients
from pipelines.statistics.results import cases_needed, least_difference, power


@pytest.mark.parametrize(("n", "comparisons"), [(7, 1), (8, 1), (8, 5), (10, 17), (20, 1), (20, 17), (52, 1), (52, 17)])
def test_the_least_difference_is_found_four_times_in_five(n: int, comparisons: int) -> None:
    difference = least_difference(2.0, n, comparisons=comparisons)
    assert difference is not None
    random = np.random.default_rng([n, comparisons])
    found = count = 0
    for _ in range(6):
        values = random.normal(0, np.sqrt(2), (100, comparisons + 1, n, 1))
        values[:, 1] += difference
        others = np.arange(1, comparisons + 1)
        compared = infer(values, others, np.zeros_like(others), np.zeros(n, np.intp), flips=300)
        found += int(((compared.p_adjusted[:, 0] <= 0.05) & (compared.mean[:, 0] > 0)).sum())
        count += 100
    assert found / count == pytest.approx(0.8, abs=0.07)


def test_too_few_cases_detect_nothing() -> None:
    assert least_patients() == 6
    assert least_difference(1.0, 5) is None and power(9.0, 1.0, 5) == 0
    assert least_difference(1.0, 6, comparisons=153) is not None


def test_the_figures_of_the_hippocampus() -> None:
    """The difference of two networks had a standard deviation of 1.8 Dice points over cases."""
    assert least_difference(1.8, 52) == pytest.approx(0.7, abs=0.04)
    assert least_difference(1.8, 260) == pytest.approx(0.3, abs=0.03)


def test_power_of_nothing_is_half_the_level_and_cases_needed_is_the_inverse() -> None:
    assert power(0.0, 1.0, 40) == pytest.approx(0.025, abs=0.001)  # in one of two directions
    needed = cases_needed(0.7, 1.8)
    assert power(0.7, 1.8, needed) >= 0.8 > power(0.7, 1.8, needed - 1)
    assert power(0.7, 1.8, needed, comparisons=17) < 0.8
    assert least_difference(0.0, 30) == 0
