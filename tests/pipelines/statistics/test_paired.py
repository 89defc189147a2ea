"""Differences from the reference: verdicts and numbers, computed by hand and with scipy."""

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray
from results_tables import made_scores

from pipelines.statistics.paired import Comparison, all_pairs, compare_with
from pipelines.statistics.significance_tests import holm


def _compared(differences: NDArray[np.float64], margin: float | None = 0.01, non_inferior: bool = False) -> Comparison:
    values = np.stack([np.full(len(differences), 0.5), 0.5 + differences])
    return compare_with(made_scores(values), "a", margin=margin, non_inferior=non_inferior)[0]


def test_a_comparison_by_hand() -> None:
    random = np.random.default_rng(2)
    values = 0.8 + random.normal(0, 0.02, (4, 25)) + np.array([0, 0.001, 0.02, -0.03])[:, None]
    found = compare_with(made_scores(values), "b", margin=0.01)
    assert [compared.loss for compared in found] == ["a", "c", "d"]
    p = [scipy.stats.wilcoxon(values[i] - values[1]).pvalue for i in (0, 2, 3)]
    assert [compared.p_wilcoxon for compared in found] == pytest.approx(p)
    assert [compared.p_ranks for compared in found] == pytest.approx(holm(np.array(p)))
    assert found[1].difference == pytest.approx((values[2] - values[1]).mean())
    assert found[1].sd == pytest.approx((values[2] - values[1]).std(ddof=1))
    assert found[1].wins == (values[2] > values[1]).sum()
    assert found[1].unseen == pytest.approx(3 / 25)
    assert [compared.verdict for compared in found] == ["undecided", "better", "worse"]
    assert all_pairs(made_scores(values)).p[0][-1] <= 0.001


def test_a_distance_is_better_when_it_is_less() -> None:
    random = np.random.default_rng(3)
    values = 5 + random.normal(0, 0.3, (2, 20)) - np.array([0, 2])[:, None]
    found = compare_with(made_scores(values, "hd95_mm"), "a")[0]
    assert found.verdict == "better"
    assert found.difference == pytest.approx((values[1] - values[0]).mean())
    assert found.interval is not None and found.interval[0] < found.difference < found.interval[1] < 0
    low, high = scipy.stats.ttest_rel(*values[::-1]).confidence_interval()
    assert found.interval[0] <= low + 1e-9 and high - 1e-9 <= found.interval[1]
    assert found.effect > 0.9
    assert found.wins == 20


def test_verdicts() -> None:
    noise = np.linspace(-1, 1, 30) + np.where(np.arange(30) % 2, 0.05, -0.05)
    assert _compared(0.02 + 0.01 * noise).words == "better"
    assert _compared(-0.02 + 0.01 * noise).words == "worse"
    assert _compared(0.01 * noise).words == "equivalent"
    assert _compared(0.05 * noise).words == "undecided"
    # Significant, but too small to matter.
    small = _compared(-0.004 + 0.003 * noise)
    assert (small.words, small.verdict, small.within_margin) == ("worse, within the margin", "worse", True)
    assert _compared(0.004 + 0.003 * noise).words == "better, within the margin"
    assert _compared(0.004 + 0.003 * noise, margin=None).words == "better"


def test_non_inferiority_replaces_equivalence_on_request() -> None:
    noise = np.linspace(-1, 1, 30) + np.where(np.arange(30) % 2, 0.05, -0.05)
    above = 0.005 + 0.025 * noise  # its interval goes beyond the margin at the upper end alone
    assert _compared(above).words == "undecided"
    assert _compared(above, non_inferior=True).words == "non-inferior"
    assert _compared(0.01 * noise, non_inferior=True).words == "non-inferior"
    assert _compared(-0.004 + 0.003 * noise, non_inferior=True).words == "worse, within the margin"
    assert _compared(-0.005 + 0.025 * noise, non_inferior=True).words == "undecided"
    p = _compared(above).p_non_inferior
    assert p is not None and p < 0.025 < (_compared(above).p_equivalence or 0)


def test_three_identical_cases_are_no_evidence() -> None:
    assert _compared(np.zeros(3)).verdict == "undecided"
    assert _compared(np.zeros(6)).verdict == "equivalent"
    assert _compared(np.full(5, 0.3)).verdict == "undecided"
    assert _compared(np.full(6, 0.3)).verdict == "better"


def test_verdicts_are_about_the_mean_and_not_the_ranks() -> None:
    """Slightly better on nearly all patients, but equal on average, since a few collapse."""
    differences = np.array([0.01] * 38 + [-0.19] * 2) + np.linspace(-1e-3, 1e-3, 40)
    found = _compared(differences)
    assert found.p_ranks < 1e-4 and found.effect > 0.8
    assert found.p_adjusted > 0.5 and found.verdict == "undecided"


def test_one_patient_has_no_interval() -> None:
    found = compare_with(made_scores(np.array([[0.5], [0.9]])), "a", margin=0.01)[0]
    assert (found.interval, found.sd, found.p, found.variance) == (None, None, 1.0, None)
    assert (found.verdict, found.unseen) == ("undecided", 1.0)


def test_a_shift_in_one_of_two_runs_is_not_better() -> None:
    random = np.random.default_rng(6)
    noise = random.normal(0, 0.005, (2, 40, 2))
    noise[1, :, 0] += 0.05  # the first run of `b` is better, the second is not
    found = compare_with(made_scores(0.8 + noise), "a")[0]
    assert found.p_wilcoxon < 1e-6
    assert found.p > 0.2 and found.p_trainings == found.p
    assert found.verdict == "undecided"
    assert found.retraining is not None and found.retraining > 0.9
    assert all_pairs(made_scores(0.8 + noise)).p[0][1] == found.p


def test_a_shift_in_one_of_two_folds_is_not_better() -> None:
    """With one seed, the effect of retraining shows in the differences between the folds' means."""
    random = np.random.default_rng(7)
    folds = np.arange(60) % 2
    noise = random.normal(0, 0.005, (2, 60))
    noise[1] += np.where(folds == 0, 0.05, 0.0)
    assert compare_with(made_scores(0.8 + noise), "a")[0].verdict == "better"  # as if it were one run
    found = compare_with(made_scores(0.8 + noise, folds=folds), "a")[0]
    assert found.verdict == "undecided" and found.p_trainings is not None and found.p_trainings > 0.2
    assert found.variance is not None
    assert (found.variance.retraining, found.variance.fold_freedom) == (None, 1)
    assert found.variance.fold is not None and found.variance.fold > 10 * found.variance.patient
