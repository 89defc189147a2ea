"""The bootstrap over patients and seeds: intervals of the means, and the stability of first place."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit
from scipy.stats import rankdata

from pipelines.statistics.mean_difference import retraining_share
from pipelines.statistics.scores import DIGITS, Floats, Scores

#: Replicates at a time, to save memory. The draws, and so the results, depend on it.
_CHUNK = 1000


@dataclass(frozen=True)
class Resampled:
    """One loss under the bootstrap.

    Attributes:
        mean_interval: 95 % interval of the mean; `None` with one patient.
        p_first: the share of replicates in which the loss is first; tied losses share a replicate.
        retraining: the share of this loss's variance that lies between seeds, within patients; `None` with one seed.
        p_ranks: the share of replicates in which the loss has each rank, from 1 to the number of losses; tied losses
            share their ranks.
    """

    mean_interval: tuple[float, float] | None
    p_first: float
    retraining: float | None
    p_ranks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bootstrap:
    """The ranking under the bootstrap.

    Attributes:
        losses: the results per loss.
        tau: Kendall's tau-b between a replicate's ranking by means and the observed one, mean over the replicates; 1 if
            they always agree.
        tau_low: its 2.5th percentile.
    """

    losses: dict[str, Resampled]
    tau: float
    tau_low: float


def bootstrap(scores: Scores, *, bootstraps: int = 10_000, seed: int = 0) -> Bootstrap:
    """Resample patients, and seeds if there are several, and rank the losses by mean.

    The intervals of the means are expanded percentile intervals (Hesterberg 2015), which also cover with few cases: the
    percentiles are moved outwards to make up for the difference between the t and the normal quantile, and for the
    sample's smaller spread. There are no such intervals of ranks, since these cover badly.

    Not controlled: the loss that is first in the sample tends to be first in its resamples. P(rank 1) shows how stable
    the ranking is against the choice of patients, not the probability of being the best loss.
    """
    gains = scores.metric.sign * scores.values
    means = resampled_means(gains, scores.folds, bootstraps=bootstraps, seed=seed)
    ranks = np.asarray(rankdata(-np.round(means, DIGITS), axis=1))
    observed = np.round(gains.mean((1, 2)), DIGITS)
    first = ranks == ranks.min(1, keepdims=True)
    p_first = (first / first.sum(1, keepdims=True)).mean(0)
    p_ranks = _rank_shares(np.round(means, DIGITS))
    taus = _kendall(-ranks, observed)
    intervals: list[tuple[float, float] | None] = [None] * len(scores.losses)
    if (n := len(scores.patients)) > 1:
        tail = float(ndtr(-sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975)))
        natural = means * scores.metric.sign
        intervals = list(map(tuple, np.percentile(natural, [100 * tail, 100 * (1 - tail)], axis=0).T.tolist()))
    losses = {
        loss: Resampled(intervals[i], float(p_first[i]), retraining_share(scores.values[i]), tuple(p_ranks[i].tolist()))
        for i, loss in enumerate(scores.losses)
    }
    return Bootstrap(losses, float(taus.mean()), float(np.percentile(taus, 2.5)))


def _rank_shares(means: Floats) -> Floats:
    """The share of replicates `[B, L]`, higher is better, in which each loss has each rank: `[L, L]`."""
    low, high = (np.asarray(rankdata(-means, method, axis=1)) for method in ("min", "max"))
    share = 1 / (high - low + 1)
    return np.stack(
        [(share * ((low <= rank) & (rank <= high))).mean(0) for rank in range(1, means.shape[1] + 1)], axis=1
    )


def resampled_means(values: Floats, folds: NDArray[np.intp], *, bootstraps: int, seed: int) -> Floats:
    r"""Means over resampled patients and seeds `[bootstraps, L]`.

    Each replicate draws n patients with replacement, the same for all losses; with S seeds also S seeds in each fold,
    the same for all patients and losses of the fold. A draw of S from S has only $(S-1)/S$ of the variance over seeds:
    each value's deviation from the patient's mean over seeds is scaled by $\sqrt{S / (S-1)}$.

    Args:
        values: `[L, n, S]`.
        folds: `[n]`, the number of each patient's fold.
        bootstraps: number of replicates.
        seed: seed of the draws.
    """
    losses, n, seeds = values.shape
    if seeds > 1:
        centre = values.mean(-1, keepdims=True)
        values = centre + (values - centre) * sqrt(seeds / (seeds - 1))
    columns = values.transpose(1, 0, 2).reshape(n, -1)
    # With one seed there is nothing to draw within folds.
    parts = [folds == fold for fold in np.unique(folds)] if seeds > 1 else [np.ones(n, bool)]
    random = np.random.default_rng(seed)
    drawn = []
    for start in range(0, bootstraps, _CHUNK):
        size = min(_CHUNK, bootstraps - start)
        patients = _drawn(random, size, n)
        total = np.zeros((size, losses))
        for part in parts:
            sums = (patients[:, part] @ columns[part]).reshape(size, losses, seeds)
            total += np.einsum("bls,bs->bl", sums, _drawn(random, size, seeds)) if seeds > 1 else sums[..., 0]
        drawn.append(total)
    return np.concatenate(drawn)


def _drawn(random: np.random.Generator, size: int, n: int) -> Floats:
    """How often each of n items was drawn, divided by n: `[size, n]`."""
    draws = random.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    return np.bincount(draws.ravel(), minlength=size * n).reshape(size, n) / n


def _kendall(replicates: Floats, observed: Floats) -> Floats:
    """Kendall's tau-b of each replicate `[B, L]` with the observed values `[L]`; 1 if both consist of ties only."""
    i, j = np.triu_indices(len(observed), 1)
    seen = np.sign(observed[i] - observed[j])
    drawn = np.sign(replicates[:, i] - replicates[:, j])
    scale = np.sqrt((seen != 0).sum() * (drawn != 0).sum(1))
    agreement = drawn @ seen
    # If only one of the two consists of ties, tau is 0; if both do, they agree.
    both_flat = (seen == 0).all() & (drawn == 0).all(1)
    return np.where(both_flat, 1.0, agreement / np.where(scale > 0, scale, 1.0))
