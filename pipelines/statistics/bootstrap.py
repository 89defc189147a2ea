r"""What another sample of patients would have shown: intervals of single means, and how stable first place is.

Each replicate draws n patients with replacement, the same for all losses, averages, and ranks the losses by their
means. With S seeds it draws, in each fold, S of those as well, for all its patients and losses at once. A draw of S
from S has $(S-1)/S$ of the seeds' variance, half of it with two: so before, each value's distance from its patient's
mean over seeds is stretched by $\sqrt{S / (S-1)}$.

Intervals of means are percentiles, taken further out by as much as t's quantile is beyond the normal's and a sample's
spread below the population's (the expanded percentile interval, Hesterberg 2015), so that they cover at few cases. Of
ranks no percentiles are given: they cover badly (`omnibus` has sets of ranks that hold).

Not controlled: the loss that is first in the sample tends to be first in its resamples; P(rank 1) is how stable the
ranking is against the choice of patients, not the chance of being the best loss. With one seed retraining is not in
it, and what the folds' training data change never is.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit
from scipy.stats import rankdata

from pipelines.statistics.mean_difference import retraining_share
from pipelines.statistics.scores import DIGITS, Floats, Scores

#: Replicates at a time, for memory. A part of the result: the draws depend on it.
_CHUNK = 1000


@dataclass(frozen=True)
class Resampled:
    """One loss under the bootstrap.

    Attributes:
        mean_interval: 95 %, of the mean; none with one patient.
        p_first: the share of replicates in which it is first; ties share one.
        retraining: the share of this loss's variance between seeds, within patients; none with one seed.
    """

    mean_interval: tuple[float, float] | None
    p_first: float
    retraining: float | None


@dataclass(frozen=True)
class Bootstrap:
    """The ranking under the bootstrap.

    Attributes:
        losses: by name.
        tau: mean of Kendall's tau-b between a replicate's ranking by means and the observed one; 1: always the same.
        tau_low: its 2.5th percentile.
    """

    losses: dict[str, Resampled]
    tau: float
    tau_low: float


def bootstrap(scores: Scores, *, bootstraps: int = 10_000, seed: int = 0) -> Bootstrap:
    """Resample patients, and seeds where there are several.

    Args:
        scores: of one measure.
        bootstraps: how many replicates.
        seed: of the draws; the same gives the same.
    """
    gains = scores.metric.sign * scores.values
    means = resampled_means(gains, scores.folds, bootstraps=bootstraps, seed=seed)
    ranks = np.asarray(rankdata(-np.round(means, DIGITS), axis=1))
    observed = np.round(gains.mean((1, 2)), DIGITS)
    first = ranks == ranks.min(1, keepdims=True)
    p_first = (first / first.sum(1, keepdims=True)).mean(0)
    taus = _kendall(-ranks, observed)
    tail = _tail(len(scores.patients))
    quantiles = None if tail is None else [100 * tail, 100 * (1 - tail)]
    natural = means * scores.metric.sign
    losses = {
        loss: Resampled(
            mean_interval=None if quantiles is None else _pair(np.percentile(natural[:, i], quantiles)),
            p_first=float(p_first[i]),
            retraining=retraining_share(scores.values[i]),
        )
        for i, loss in enumerate(scores.losses)
    }
    return Bootstrap(losses, float(taus.mean()), float(np.percentile(taus, 2.5)))


def resampled_means(values: Floats, folds: NDArray[np.intp], *, bootstraps: int, seed: int) -> Floats:
    """Means over resampled patients and seeds `[bootstraps, L]`.

    Args:
        values: `[L, n, S]`.
        folds: `[n]`, the number of each patient's fold.
        bootstraps: how many.
        seed: of the draws.
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
    """How often each of n was drawn, divided by n: `[size, n]`."""
    draws = random.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    return np.bincount(draws.ravel(), minlength=size * n).reshape(size, n) / n


def _tail(n: int) -> float | None:
    return None if n < 2 else float(ndtr(-sqrt(n / (n - 1)) * stdtrit(n - 1, 0.975)))


def _pair(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = values.tolist()
    return low, high


def _kendall(replicates: Floats, observed: Floats) -> Floats:
    """Kendall's tau-b of each replicate `[B, L]` with the observed values `[L]`; 1 where both are all ties."""
    i, j = np.triu_indices(len(observed), 1)
    seen = np.sign(observed[i] - observed[j])
    drawn = np.sign(replicates[:, i] - replicates[:, j])
    scale = np.sqrt((seen != 0).sum() * (drawn != 0).sum(1))
    agreement = drawn @ seen
    # Where one has no order there is nothing to agree with; where neither has, they are the same.
    both_flat = (seen == 0).all() & (drawn == 0).all(1)
    return np.where(both_flat, 1.0, agreement / np.where(scale > 0, scale, 1.0))
