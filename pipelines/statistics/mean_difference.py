"""Mean paired differences: intervals, tests, and the adjustment over several comparisons.

`docs/statistics.md` describes the method, and what it does not control. Every function accepts further leading axes, so
that simulations can process many tables at once.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, stdtr, stdtrit

from pipelines.statistics.scores import DIGITS, Floats
from pipelines.statistics.significance_tests import Indices, holm, unsorted

#: The level of all tests.
ALPHA = 0.05
#: Number of sign patterns that are drawn if there are more.
FLIPS = 10_000
#: Factor on the sample's skewness in tests of equivalence: a few cases underestimate it.
_CAUTION = 1.5
#: A loss is not pooled if its variance over runs has a smaller tail probability than this, given the other losses.
_OUTLYING = 0.001


@dataclass(frozen=True)
class Parts:
    """The components of the variance of mean differences, with their degrees of freedom; each `[..., k]`.

    Attributes:
        patient: variance over patients.
        retraining: variance over the seeds within folds; 0 with one seed.
        fold: variance over folds beyond the other two; 0 with one fold.
        fold_total: the whole variance as estimated from the fold means; 0 with one fold, or with several seeds.
        outlying: `[..., L]`, losses left out of the pool, since their runs vary far more than those of the others;
            `None` where nothing is pooled.
    """

    patient: Floats
    patient_freedom: int
    retraining: Floats
    retraining_freedom: Floats
    fold: Floats
    fold_freedom: Floats
    fold_total: Floats
    outlying: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Inference:
    """Intervals and p-values of k mean differences; arrays `[..., k]`.

    Attributes:
        low: lower end of the 95 % interval; NaN with one patient; `high`: upper end.
        p: unadjusted p-value: by sign flips; with several runs the larger of that and `p_trainings`.
        p_adjusted: family-wise p-value; at most `ALPHA` only if the interval excludes 0.
        p_trainings: unadjusted p-value of the interval over runs; NaN with one run.
        skew: the quantity a of `_statistic`.
    """

    mean: Floats
    low: Floats
    high: Floats
    p: Floats
    p_adjusted: Floats
    p_trainings: Floats
    skew: Floats
    parts: Parts

    def p_below(self, bound: float) -> Floats:
        """One-sided p-value of a true mean of at most `bound`, with the skewness that tests of equivalence use."""
        return _one_sided(self.mean - bound, _CAUTION * self.skew, self.parts)

    def p_above(self, bound: float) -> Floats:
        """One-sided p-value of a true mean of at least `bound`, with the skewness that tests of equivalence use."""
        return _one_sided(bound - self.mean, -_CAUTION * self.skew, self.parts)


def infer(
    values: Floats, first: Indices, second: Indices, folds: Indices, *, flips: int = FLIPS, seed: int = 0
) -> Inference:
    r"""Compare pairs of losses, all of them as one family.

    The interval of the mean $\bar d$ is, on each side, the wider one of Student's and of the inverse of the corrected
    statistic. With several runs its variance is split (Howe 1974), with F folds and S seeds:

    $$\bar d \pm \sqrt{t^2_{n-F} v_\text{patient} + t^2_{\nu_r} v_\text{retraining} + t^2_{\nu_f} v_\text{fold}}$$

    `p_adjusted` is the largest p-value that applies: the step-down max-T p, Holm's p over runs, and the level at which
    the 95 % interval would end at 0.

    Args:
        values: `[..., L, n, S]`, losses, patients and seeds; more is better. Seeds are nested in folds.
        first: `[k]`, index of the first loss of each pair.
        second: `[k]`, index of the loss that it is compared with.
        folds: `[n]`, the number of each patient's fold, from 0.
        flips: number of sign patterns that are drawn if there are more, with `seed`.
    """
    d = values[..., first, :, :] - values[..., second, :, :]
    by_patient = np.round(d.mean(-1), DIGITS)
    n, seeds = d.shape[-2:]
    mean = d.mean((-1, -2))
    if n < 2:
        none, one = np.full_like(mean, np.nan), np.ones_like(mean)
        nothing = np.zeros_like(mean)
        parts = Parts(nothing, 0, nothing, nothing, nothing, nothing, nothing)
        return Inference(mean, none, none, one, one, none, nothing, parts)
    single, stepped = sign_flip_p(by_patient, flips=flips, seed=seed)
    folds = folds if n > folds.max() + 1 else np.zeros_like(folds)
    parts = variance_parts(values, d, first, second, folds)
    skew = _skewness(by_patient) / sqrt(n)
    low = mean - _half(np.full_like(mean, ALPHA / 2), skew, parts)
    high = mean + _half(np.full_like(mean, ALPHA / 2), -skew, parts)
    p_interval = 2 * np.minimum(_one_sided(mean, skew, parts), _one_sided(-mean, -skew, parts))
    p_trainings = np.full_like(mean, np.nan)
    adjusted = np.maximum(stepped, np.minimum(p_interval, 1.0))
    if seeds > 1 or folds.max() > 0:
        p_trainings = np.minimum(2 * _one_sided(np.abs(mean), np.zeros_like(mean), parts), 1.0)
        single = np.maximum(single, p_trainings)
        adjusted = np.maximum(adjusted, holm(p_trainings))
    return Inference(mean, low, high, single, adjusted, p_trainings, skew, parts)


def sign_flip_p(differences: Floats, *, flips: int = FLIPS, seed: int = 0) -> tuple[Floats, Floats]:
    """Two-sided p-values of joint sign flips: unadjusted, and by step-down max-T over all comparisons.

    Args:
        differences: `[..., k, n]`, n at least 2; the p-values are `[..., k]`.
        flips: number of sign patterns that are drawn if there are more, with `seed`.
    """
    n = differences.shape[-1]
    signs = _signs(n, flips, seed)
    square = (differences**2).mean(-1)[..., None]
    first = differences @ signs / n
    third = (differences * differences * differences) @ signs / n
    statistic = _statistic(first, square, third, n)
    # Patterns with equal statistics in exact arithmetic may differ by rounding.
    seen = statistic[..., :1] * (1 - 1e-9)
    single = (statistic >= seen).mean(-1)
    order = np.argsort(seen[..., 0], axis=-1, kind="stable")
    largest = np.maximum.accumulate(np.take_along_axis(statistic, order[..., None], -2), axis=-2)
    p = (largest >= np.take_along_axis(seen, order[..., None], -2)).mean(-1)
    # From the largest statistic down no p-value is smaller than the one before.
    return single, unsorted(np.maximum.accumulate(p[..., ::-1], axis=-1)[..., ::-1], order)


def least_patients(level: float = ALPHA) -> int:
    """The smallest number of patients for which sign flips can reject: the smallest p-value is 2 / 2^n."""
    return next(n for n in range(1, 64) if 2.0 ** (1 - n) <= level * (1 + 1e-12))


@lru_cache(maxsize=16)
def _signs(n: int, flips: int, seed: int) -> Floats:
    """Sign patterns `[n, B]`, the first without flips; of two opposite patterns only one, as both have the same |h|."""
    if n <= 30 and 2 ** (n - 1) <= flips:
        bits = (np.arange(2 ** (n - 1)) >> np.arange(n)[:, None]) & 1
        return np.asarray(1.0 - 2.0 * bits)
    drawn = np.random.default_rng(seed).integers(0, 2, size=(n, flips)) * 2.0 - 1.0
    return np.concatenate([np.ones((n, 1)), drawn], axis=1)


def _statistic(first: Floats, square: Floats, third: Floats, n: int) -> Floats:
    """|h| of the first three moments around 0: Student's t corrected for skewness (Johnson 1978, Hall 1992).

    h = t + a / 6 + a t^2 / 3 + a^2 t^3 / 27, where a is the skewness over the root of n. With fewer than 20 patients
    only a part of the skewness is used, 1/2 + n / 40 of it: its estimate is then too rough (found by simulation).
    """
    # Differences that are all equal are treated as if they varied by a millionth.
    variance = np.maximum(square - first * first, 1e-12 * square)
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
    shift = first / deviation
    skewness = third / (deviation * deviation * deviation)
    most = (n - 2) / sqrt(n - 1)  # the largest skewness of a sample of n
    a = min(1.0, 0.5 + n / 40) * np.clip(skewness - shift * (3 + shift * shift), -most, most) / sqrt(n)
    t = shift * sqrt(n - 1)
    scaled = a * t
    return np.abs(t * (1 + scaled * (1 / 3 + scaled / 27)) + a / 6)


def _skewness(differences: Floats) -> Floats:
    centred = differences - differences.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1)
    known = variance > 1e-12 * (differences**2).mean(-1)
    return np.asarray(np.where(known, (centred**3).mean(-1) / np.where(known, variance, 1.0) ** 1.5, 0.0))


class _Variances(NamedTuple):
    """Estimates of the variance of the means of rows `[..., m, n, S]`, by source."""

    patient: Floats
    rest: Floats
    retraining: Floats
    fold: Floats


def _variances(rows: Floats, folds: Indices) -> _Variances:
    """Estimate them over patients (within folds, with the residual variance), residuals, seeds and folds."""
    n, seeds = rows.shape[-2:]
    count = int(folds.max()) + 1
    member = np.asarray(folds == np.arange(count)[:, None], float)
    share = member.sum(1) / n
    member /= member.sum(1, keepdims=True)
    by_run = np.einsum("fn,...ns->...fs", member, rows)
    by_patient, by_fold = rows.mean(-1), by_run.mean(-1)
    centred = by_patient - by_fold[..., folds]
    patient = (centred**2).sum(-1) / ((n - count) * n)
    nothing = np.zeros_like(patient)
    rest = retraining = fold = nothing
    if seeds > 1:
        left = rows - by_run[..., folds, :] - centred[..., None]
        rest = (left**2).sum((-1, -2)) / ((n - count) * (seeds - 1) * n * seeds)
        spread = ((by_run - by_fold[..., None]) ** 2).sum(-1)
        retraining = (share**2 * spread).sum(-1) / ((seeds - 1) * seeds)
    if count > 1:
        mean = (share * by_fold).sum(-1, keepdims=True)
        fold = (share**2 * (by_fold - mean) ** 2).sum(-1) * count / (count - 1)
    return _Variances(patient, rest, retraining, fold)


def variance_parts(values: Floats, d: Floats, first: Indices, second: Indices, folds: Indices) -> Parts:
    """Split the variance of mean differences into components.

    Those of retraining and folds are pooled over the losses, as in a mixed model; if the estimate from the comparison
    alone is larger, it is used instead. A loss whose runs vary far more than those of the others is not pooled.

    Args:
        values: `[..., L, n, S]`.
        d: the differences `[..., k, n, S]`, of the losses `first` and `second`.
        first: `[k]`.
        second: `[k]`.
        folds: `[n]`, the number of each patient's fold.
    """
    n, seeds = d.shape[-2:]
    count = int(folds.max()) + 1
    found = _variances(d, folds)
    patient = np.maximum(found.patient - found.rest, 0.0)
    nothing = np.zeros_like(patient)
    freedom = {"retraining": count * (seeds - 1), "fold": count - 1}
    retraining, fold_means, patient_pooled = found.retraining, found.fold, patient
    freedoms = {name: np.full_like(patient, max(number, 1)) for name, number in freedom.items()}
    outlying = None
    if (seeds > 1 or count > 1) and values.shape[-3] > 2:
        centred = _variances(values - np.median(values, axis=-3, keepdims=True), folds)
        kept = np.ones(centred.patient.shape, bool)
        for name, variances in (("retraining", centred.retraining), ("fold", centred.fold)):
            if freedom[name]:
                kept &= _not_outlying(variances, freedom[name])
        outlying = ~kept
        pooled, others = _pooled(values, kept, folds)
        both = kept[..., first] & kept[..., second] & (others[..., None] > 0)
        retraining = np.where(both, np.maximum(pooled.retraining[..., None], retraining), retraining)
        fold_means = np.where(both, np.maximum(pooled.fold[..., None], fold_means), fold_means)
        patient_pooled = np.where(both, np.maximum(pooled.patient - pooled.rest, 0.0)[..., None], patient_pooled)
        freedoms = {
            name: np.where(both, np.maximum(others, 1)[..., None] * numbers, numbers)
            for name, numbers in freedoms.items()
        }
    fold = np.maximum(fold_means - patient_pooled - retraining, 0.0) if count > 1 else nothing
    return Parts(
        patient=patient,
        patient_freedom=n - count,
        retraining=retraining,
        retraining_freedom=freedoms["retraining"],
        fold=fold,
        fold_freedom=freedoms["fold"],
        fold_total=fold_means if seeds == 1 and count > 1 else nothing,
        outlying=outlying,
    )


def _not_outlying(variances: Floats, freedom: int) -> NDArray[np.bool_]:
    """Whether the variance of each loss `[..., L]` is plausible, given the median over the losses."""
    scale = np.median(variances, axis=-1, keepdims=True) / chdtri(freedom, 0.5)
    return np.asarray(variances <= scale * chdtri(freedom, _OUTLYING))


def _pooled(values: Floats, kept: NDArray[np.bool_], folds: Indices) -> tuple[_Variances, NDArray[np.intp]]:
    """The variances of a difference of two losses, pooled over the kept losses; and the number of these, minus one."""
    others = kept.sum(-1) - 1
    weight = kept[..., None, None]
    centre = (values * weight).sum(-3, keepdims=True) / np.maximum(kept.sum(-1), 1)[..., None, None, None]
    variances = _variances(values - centre, folds)
    pooled = (2 * (variance * kept).sum(-1) / np.maximum(others, 1) for variance in variances)
    return _Variances(*pooled), others


def _half(tail: Floats, skew: Floats, parts: Parts) -> Floats:
    """The distance from the mean to the interval's lower end for a one-sided tail; with -skew, to the upper end."""
    q = -stdtrit(parts.patient_freedom, tail)
    known = np.abs(skew) > 1e-9
    a = np.where(known, skew, 1.0)
    corrected = np.where(known, 3 * (np.cbrt(1 + a * (q - a / 6)) - 1) / a, q)
    square = np.maximum(q, corrected) ** 2 * parts.patient
    if np.any(parts.retraining):
        square = square + stdtrit(parts.retraining_freedom, tail) ** 2 * parts.retraining
    if np.any(parts.fold_total) or np.any(parts.fold):
        over_folds = stdtrit(parts.fold_freedom, tail) ** 2
        square = np.maximum(square + over_folds * parts.fold, over_folds * parts.fold_total)
    return np.asarray(np.sqrt(square))


def _one_sided(distance: Floats, skew: Floats, parts: Parts) -> Floats:
    """The tail for which the interval's lower end lies `distance` below the mean; at least 0.5 if that is negative."""
    spread = parts.patient + parts.retraining + parts.fold + parts.fold_total
    if not (np.any(parts.retraining) or np.any(parts.fold) or np.any(parts.fold_total)):
        t = distance / np.sqrt(np.where(spread > 0, spread, 1.0))
        h = t + skew / 6 + skew * t**2 / 3 + skew**2 * t**3 / 27
        tail = stdtr(parts.patient_freedom, -np.where(t > 0, np.maximum(np.minimum(t, h), 0.0), t))
    else:
        low, high = np.full_like(distance, -70.0), np.full_like(distance, np.log(0.5))
        for _ in range(36):
            middle = (low + high) / 2
            inside = _half(np.exp(middle), skew, parts) < distance
            low, high = np.where(inside, low, middle), np.where(inside, middle, high)
        tail = np.where(distance > 0, np.exp(high), 0.5)
    # Without any variance the mean is exact.
    exact = np.where(distance > 0, 0.0, np.where(distance < 0, 1.0, 0.5))
    return np.asarray(np.where(spread > 0, tail, exact))


def retraining_share(values: Floats) -> float | None:
    """The share of the variance of single values `[n, S]` between seeds, within patients; `None` with one seed."""
    n, seeds = values.shape
    if n < 2 or seeds < 2:
        return None
    within = float(values.var(1, ddof=1).mean())
    between = max(float(values.mean(1).var(ddof=1)) - within / seeds, 0.0)
    return within / (within + between) if within + between > 0 else 0.0
