"""The bootstrap over patients and seeds, compared with loops, formulas and scipy; and coverage by simulation."""

import numpy as np
import pytest
import scipy.stats
from results_tables import made_scores

from pipelines.statistics import bootstrap as module
from pipelines.statistics.bootstrap import bootstrap, resampled_means

_ONE_FOLD = np.zeros(15, np.intp)


def test_it_resamples_patients_the_same_for_all_losses() -> None:
    values = np.random.default_rng(0).uniform(size=(3, 15, 1))
    values[2] = values[0] + 0.5
    means = resampled_means(values, _ONE_FOLD, bootstraps=20_000, seed=1)
    assert means[:, 2] - means[:, 0] == pytest.approx(np.full(20_000, 0.5))
    assert means.mean(0) == pytest.approx(values.mean((1, 2)), abs=0.003)
    assert means.std(0) == pytest.approx(values.std(1)[:, 0] / np.sqrt(15), rel=0.03)
    random = np.random.default_rng(2)
    loop = [values[0, random.integers(15, size=15), 0].mean() for _ in range(5000)]
    assert np.percentile(means[:, 0], [5, 50, 95]) == pytest.approx(np.percentile(loop, [5, 50, 95]), abs=0.006)


def test_the_same_seed_gives_the_same() -> None:
    found = made_scores(np.random.default_rng(3).uniform(size=(4, 10)))
    assert bootstrap(found, bootstraps=1500, seed=4) == bootstrap(found, bootstraps=1500, seed=4)
    assert bootstrap(found, bootstraps=1500, seed=4) != bootstrap(found, bootstraps=1500, seed=5)


def test_ranks_first_and_tau() -> None:
    noise = np.random.default_rng(5).normal(0, 0.001, (1, 30))
    clear = bootstrap(made_scores(np.array([[0.9], [0.7], [0.8]]) + noise), bootstraps=500)
    assert [resampled.p_first for resampled in clear.losses.values()] == [1, 0, 0]
    assert (clear.tau, clear.tau_low) == (1, 1)
    distance = bootstrap(made_scores(np.array([[0.9], [0.7], [0.8]]) + noise, "hd95_mm"), bootstraps=500)
    assert [resampled.p_first for resampled in distance.losses.values()] == [0, 1, 0]
    low, high = distance.losses["a"].mean_interval or (0, 0)
    assert low < 0.9 < high


def test_shares_of_ranks() -> None:
    noise = np.random.default_rng(5).normal(0, 0.001, (1, 30))
    clear = bootstrap(made_scores(np.array([[0.9], [0.7], [0.8]]) + noise), bootstraps=500)
    assert [resampled.p_ranks for resampled in clear.losses.values()] == [(1, 0, 0), (0, 0, 1), (0, 1, 0)]
    close = bootstrap(made_scores(np.random.default_rng(7).uniform(size=(5, 12))), bootstraps=500)
    shares = np.array([resampled.p_ranks for resampled in close.losses.values()])
    assert shares.sum(0) == pytest.approx(1) and shares.sum(1) == pytest.approx(1)
    assert shares[:, 0] == pytest.approx([resampled.p_first for resampled in close.losses.values()])
    assert ((shares > 0) & (shares < 1)).any()
    copies = bootstrap(made_scores(np.tile(np.random.default_rng(8).uniform(size=9), (3, 1))), bootstraps=50)
    for resampled in copies.losses.values():
        assert resampled.p_ranks == pytest.approx((1 / 3,) * 3)


def test_copies_share_the_first_place() -> None:
    values = np.random.default_rng(6).uniform(size=(3, 21))
    values[1] = values[0]
    values[2] -= 2
    found = bootstrap(made_scores(values), bootstraps=300)
    assert [resampled.p_first for resampled in found.losses.values()] == [0.5, 0.5, 0]


def test_tau_is_scipys() -> None:
    random = np.random.default_rng(7)
    observed, replicates = random.integers(0, 4, 6).astype(float), random.integers(0, 4, (40, 6)).astype(float)
    expected = [scipy.stats.kendalltau(observed, replicate).statistic for replicate in replicates]
    assert module._kendall(replicates, observed) == pytest.approx(np.nan_to_num(expected))
    assert module._kendall(np.zeros((1, 3)), np.zeros(3)).tolist() == [1]


def test_one_patient_has_no_interval() -> None:
    resampled = bootstrap(made_scores(np.array([[0.5], [0.6]])), bootstraps=10).losses["b"]
    assert (resampled.mean_interval, resampled.p_first) == (None, 1)


@pytest.mark.parametrize("seeds", [2, 3])
def test_the_variance_of_retraining_is_included(seeds: int) -> None:
    """If only seeds vary, the replicates' variance is that of a mean over seeds, not (S-1)/S of it."""
    by_seed = np.random.default_rng(8).normal(size=seeds)
    values = np.broadcast_to(by_seed, (1, 50, seeds))
    means = resampled_means(values, np.zeros(50, np.intp), bootstraps=20_000, seed=0)
    assert means.var() == pytest.approx(by_seed.var(ddof=1) / seeds, rel=0.05)


def test_seeds_are_drawn_separately_in_each_fold() -> None:
    """Two folds with independent seeds: half of the variance."""
    folds = np.repeat([0, 1], 25)
    by_run = np.random.default_rng(8).normal(size=(2, 3))
    means = resampled_means(by_run[folds][None], folds, bootstraps=20_000, seed=0)
    centred = by_run - by_run.mean(1, keepdims=True)
    between = (by_run.mean(1)[0] - by_run.mean(1)[1]) ** 2 / 4 / 50
    assert means.var() == pytest.approx((centred**2).sum() / 2 / 3 / 4 + between, rel=0.05)


@pytest.mark.parametrize("n", [6, 12])
def test_intervals_of_means_cover(n: int) -> None:
    """They cover in 95 % of 400 samples, within three standard errors; plain percentiles cover too rarely."""
    random = np.random.default_rng(9)
    hit = plain = 0
    for _ in range(40):
        made = made_scores(random.normal(0.5, 0.05, (10, n)))
        for resampled in bootstrap(made, bootstraps=600).losses.values():
            low, high = resampled.mean_interval or (0, 0)
            hit += low < 0.5 < high
        lows, highs = np.percentile(
            resampled_means(made.values, made.folds, bootstraps=600, seed=0), [2.5, 97.5], axis=0
        )
        plain += int(((lows < 0.5) & (highs > 0.5)).sum())
    least = 400 * 0.95 - 3 * np.sqrt(400 * 0.95 * 0.05)
    assert plain < least <= hit
