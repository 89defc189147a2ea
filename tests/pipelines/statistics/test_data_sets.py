"""Several data sets: random effects against worked examples and a plain loop, ranks, missing losses, error rates."""

from math import log

import numpy as np
import pytest
import scipy.stats

from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.data_sets import DataSetResult, analyse_data_sets, kendalls_w, random_effects
from pipelines.statistics.significance_tests import friedman

#: The BCG trials that metafor's documentation analyses: cases and others, vaccinated and not.
_BCG = [
    (4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761),
    (180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232), (17, 1699, 65, 1600),
    (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825),
]  # fmt: skip


def _log_ratios() -> tuple[np.ndarray, np.ndarray]:
    y = [log((a / (a + b)) / (c / (c + d))) for a, b, c, d in _BCG]
    v = [1 / a - 1 / (a + b) + 1 / c - 1 / (c + d) for a, b, c, d in _BCG]
    return np.array(y), np.array(v)


def test_metafors_example() -> None:
    """rma(yi, vi, data=dat, method="PM") of metafor: tau^2 0.3181, Q 152.233 with 12 degrees of freedom."""
    y, v = _log_ratios()
    weights = 1 / v
    assert (weights * (y - (weights * y).sum() / weights.sum()) ** 2).sum() == pytest.approx(152.233, abs=5e-4)
    found = random_effects(y, v)
    assert found.tau**2 == pytest.approx(0.3181, abs=5e-5)
    # With REML's tau^2 of 0.3132 metafor gives -0.7145; the mean hardly depends on it.
    assert found.mean == pytest.approx(-0.715, abs=1e-3)
    assert found.i2 == pytest.approx(0.923, abs=1e-3)


def _by_hand(y: np.ndarray, v: np.ndarray) -> tuple[float, float, float, float]:
    """tau^2 by a search over a grid, and mean, interval: each sum as a loop."""

    def pool(tau2: float) -> tuple[float, float, float]:
        top = bottom = 0.0
        for effect, variance in zip(y, v, strict=True):
            top += effect / (variance + tau2)
            bottom += 1 / (variance + tau2)
        q = 0.0
        for effect, variance in zip(y, v, strict=True):
            q += (effect - top / bottom) ** 2 / (variance + tau2)
        return top / bottom, bottom, q

    k, low, high = len(y), 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if pool(middle)[2] > k - 1 else (low, middle)
    tau2 = high if high > 1e-12 else 0.0
    mean, bottom, q = pool(tau2)
    half = scipy.stats.t.ppf(0.975, k - 1) * (max(1.0, q / (k - 1)) / bottom) ** 0.5
    return tau2, mean, mean - half, mean + half


@pytest.mark.parametrize("k", [2, 3, 5, 12])
@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_as_a_plain_loop_has_it(k: int, tau: float) -> None:
    random = np.random.default_rng(k)
    v = random.uniform(0.01, 0.2, k)
    y = random.normal(0.3, np.sqrt(v + tau**2))
    tau2, mean, low, high = _by_hand(y, v)
    found = random_effects(y, v)
    assert found.interval is not None
    assert (found.tau**2, found.mean, *found.interval) == pytest.approx((tau2, mean, low, high), abs=1e-9)
    assert (found.p <= 0.05) == (not low <= 0 <= high)
    if k == 2:
        assert found.prediction is None
    else:
        reach = scipy.stats.t.ppf(0.975, k - 2) * (tau2 + ((high - mean) / scipy.stats.t.ppf(0.975, k - 1)) ** 2) ** 0.5
        assert found.prediction == pytest.approx((mean - reach, mean + reach), abs=1e-9)


def test_alike_data_sets_do_not_shorten_the_interval() -> None:
    """Hartung and Knapp's own interval of equal effects has the length 0."""
    found = random_effects(np.full(3, 0.2), np.full(3, 0.03))
    assert found.interval is not None and found.tau == 0
    half = scipy.stats.t.ppf(0.975, 2) * 0.1
    assert found.interval == pytest.approx((0.2 - half, 0.2 + half))
    one = random_effects(np.array([0.2]), np.array([0.03]))
    assert (one.mean, one.interval, one.p) == (0.2, None, 1.0)
    exact = random_effects(np.array([0.1, 0.1]), np.zeros(2))
    assert exact.mean == pytest.approx(0.1) and np.isfinite(exact.p)


def test_kendalls_w() -> None:
    ranks = np.array([[1, 1, 1], [2, 2, 2], [3, 3, 3.0]])
    assert kendalls_w(ranks) == pytest.approx(1.0)
    assert kendalls_w(np.array([[1, 2, 3], [2, 3, 1], [3, 1, 2.0]])) == pytest.approx(0.0)
    # W = chi^2 / (n (L - 1)), with ties, too.
    tied = np.array([[1.5, 1, 2], [1.5, 2.5, 1], [3, 2.5, 3], [4, 4, 4.0]])
    assert kendalls_w(tied) == pytest.approx(friedman(tied).chi2 / (3 * 3))


def _result(name: str, means: dict[str, float], variance: float = 1e-4, reference: str = "ref") -> DataSetResult:
    differences = {loss: (mean - means[reference], variance) for loss, mean in means.items()
                   if loss != reference} if reference in means else {}  # fmt: skip
    return DataSetResult(name, "case", 50, 1, means, differences, "")


def test_ranks_differences_and_missing_losses() -> None:
    results = [
        _result("liver", {"ref": 0.80, "a": 0.84, "b": 0.70, "c": 0.9}, 1e-6),
        _result("heart", {"ref": 0.90, "a": 0.94, "b": 0.85, "c": 0.9}, 1e-6),
        _result("brain", {"ref": 0.70, "a": 0.74, "b": 0.72}, 1e-6),
        _result("lung", {"a": 0.75, "b": 0.75}),
    ]
    found = analyse_data_sets(results, METRICS["dice"], "ref")
    losses = {one.loss: one for one in found.losses}
    # Only a and b are in all four.
    assert losses["a"].ranks == {"liver": 1.0, "heart": 1.0, "brain": 1.0, "lung": 1.5}
    assert (losses["a"].mean_rank, losses["b"].mean_rank) == (1.125, 1.875)
    assert losses["c"].mean_rank is None and losses["ref"].mean_rank is None
    assert found.lacking == {"ref": ("lung",), "c": ("brain", "lung")}
    assert [losses[name].pooled and losses[name].pooled.data_sets for name in ("a", "b", "c", "ref")] == [3, 3, 2, None]
    assert losses["a"].pooled is not None
    assert losses["a"].pooled.mean == pytest.approx(0.04, abs=1e-6)
    assert losses["a"].verdict == "better" and losses["b"].verdict == "undecided"
    assert found.verdict.startswith("Over 4 data sets: a (by +0.0400, 95 % interval ")
    assert "than the reference ref in Dice; 2 remained undecided; a had the best mean rank in Dice, 1.1 of 2" in (
        found.verdict
    )
    text = " ".join(found.caveats)
    assert "Without the reference, and so without differences: lung." in text
    assert "c: not in brain and lung, so it has no consensus rank; its difference is over 2 of 4." in text
    assert "Only 4 data sets (fewer than 5)" in text


def test_less_is_better_for_distances() -> None:
    results = [_result(str(i), {"ref": 5.0 + i, "a": 3.0 + i, "b": 7.0 + i}, 0.01) for i in range(6)]
    found = analyse_data_sets(results, METRICS["hd95_mm"], "ref")
    assert {one.loss: one.verdict for one in found.losses} == {"a": "better", "ref": "", "b": "worse"}
    assert [one.mean_rank for one in found.losses] == [1, 2, 3]
    assert found.agreement == pytest.approx(1.0)
    assert any(note.startswith("Differences in mm depend on the size") for note in found.caveats)


def test_without_reference_there_are_ranks_alone() -> None:
    results = [_result(name, {"a": 0.8, "b": 0.7}, reference="none") for name in "xy"]
    found = analyse_data_sets(results, METRICS["dice"], None)
    assert found.verdict == "Over 2 data sets: a had the best mean rank in Dice, 1.0 of 2."
    assert [one.pooled for one in found.losses] == [None, None]
    assert found.caveats[0] == "No reference loss was named (--reference), so there are ranks, and no differences."


@pytest.mark.slow
@pytest.mark.parametrize("k", [2, 3, 5, 10])
@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_the_interval_covers(k: int, tau: float) -> None:
    """At least 95 % of intervals cover the mean over data sets, with unequal sizes of data sets."""
    random = np.random.default_rng(10 * k + int(10 * tau))
    count, covered = 1500, 0
    for _ in range(count):
        v = random.uniform(0.02, 0.5, k)
        found = random_effects(random.normal(0, np.sqrt(v + tau**2)), v)
        assert found.interval is not None
        covered += found.interval[0] <= 0 <= found.interval[1]
    assert covered / count >= scipy.stats.binom.ppf(0.001, count, 0.94) / count
