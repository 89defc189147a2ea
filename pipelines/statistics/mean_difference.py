r"""Mean paired differences: intervals, tests, and the adjustment over several comparisons.

One estimand: the mean over patients of the difference of two losses. $d_i$ is a patient's difference (trainings
averaged), n the number of patients, $\bar d$, $s$ and $g$ the sample's mean, standard deviation and skewness.

**The statistic** is Student's t corrected for skewness (Johnson 1978; made monotone by Hall 1992): with
$t = \sqrt n\, \bar d / s$ and $a = g / \sqrt n$,

$$h = t + \frac a6 + \frac{a t^2}3 + \frac{a^2 t^3}{27}.$$

Under 20 patients the test takes a part of the skewness, $1/2 + n / 40$ of it: so few show it too roughly, and all of it
would cost more power than it saves false words (both by simulation).

**The test** is Westfall and Young's step-down max-T over joint sign flips: where no loss differs, a patient's
differences are as likely with all signs turned, all comparisons at once. All $2^{n-1}$ patterns are taken up to n = 14,
else 10,000 are drawn. Where the differences are jointly symmetric around 0 the family-wise error is at most the level,
at any n, however the comparisons depend on each other; the statistic makes it hold approximately where they are skewed.

**The interval** of the mean is, on each side, the wider one of Student's and of the inverse of h. Where it has to show
that a difference is small (equivalence, non-inferiority), the skewness is taken one and a half times: few cases show
too little of it, and what they do not show is what matters there.

**Several trainings** (a training is a fold with a seed; seeds are nested in folds): the variance of $\bar d$ is split,

$$v = v_\text{patient} + v_\text{retraining} + v_\text{fold}, \qquad
\bar d \pm \sqrt{t^2_{n-F} v_\text{patient} + t^2_{\nu_r} v_\text{retraining} + t^2_{\nu_f} v_\text{fold}}$$

(Howe 1974), with F folds and S seeds. The retraining's part is the variance between seeds within folds, F(S-1) degrees
of freedom. With several folds their means show what is left, F-1 degrees; with one seed that is retraining and fold in
one, and then the interval is never narrower than Student's over the fold means. So few degrees of freedom say hardly
anything, and so, as in a mixed model, these two parts are estimated from all L losses of the table together, with L-1
times as many degrees; where a comparison's own estimate is larger, that counts. A loss whose trainings vary far more
than the others' is not pooled: it, and what is compared with it, go by their own variance and degrees of freedom.

With several trainings a second p-value is the level at which that interval would end at 0 (without the correction for
skewness), Holm over the comparisons. With one fold and one seed nothing shows what retraining changes, and all is said
of these networks.

`p_adjusted` is the largest of all that apply: the step-down max-T p, Holm's p over trainings, and the level at which
the 95 % interval would end at 0. Not controlled: patients that are not independent, and training data that folds share.

Every function takes further axes in front, so that simulations run many tables at once.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtri, stdtr, stdtrit

from pipelines.statistics.scores import DIGITS, Floats
from pipelines.statistics.significance_tests import Indices, _unsorted, holm

#: The level of all tests.
ALPHA = 0.05
#: Sign patterns that are drawn where there are more.
FLIPS = 10_000
#: How many times the sample's skewness is taken where equivalence is shown: few cases show too little of it.
_CAUTION = 1.5
#: A loss whose trainings vary more than this quantile of what the others show is judged by its own variance.
_OUTLYING = 0.001


@dataclass(frozen=True)
class Parts:
    """The variance of a mean difference, and the degrees of freedom; each `[..., k]`.

    Attributes:
        patient: part of the patients.
        patient_freedom: its degrees of freedom.
        retraining: part of the seeds within folds; 0 with one seed.
        retraining_freedom: its degrees of freedom.
        fold: part of the folds beyond the other two; 0 with one fold.
        fold_freedom: its degrees of freedom.
        fold_total: the whole variance as the fold means show it; 0 with one fold, or several seeds.
    """

    patient: Floats
    patient_freedom: int
    retraining: Floats
    retraining_freedom: Floats
    fold: Floats
    fold_freedom: Floats
    fold_total: Floats


@dataclass(frozen=True)
class Inference:
    """What is known of each of k mean differences; arrays `[..., k]`.

    Attributes:
        mean: of the differences.
        low: end of the 95 % interval; NaN with one patient.
        high: the other end.
        p: of the comparison alone: sign flips; with several trainings the larger of that and the interval's.
        p_adjusted: family-wise; at most `ALPHA` only where the interval leaves out 0, too.
        p_trainings: of the interval over trainings, without adjustment; NaN with one training.
        skew: a, as the module says.
        parts: of the variance.
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
        """One-sided p-value of the true mean being at most `bound`; cautious, as the module says of equivalence."""
        return _one_sided(self.mean - bound, _CAUTION * self.skew, self.parts)

    def p_above(self, bound: float) -> Floats:
        """One-sided p-value of the true mean being at least `bound`; cautious as well."""
        return _one_sided(bound - self.mean, -_CAUTION * self.skew, self.parts)


def infer(
    values: Floats, first: Indices, second: Indices, folds: Indices, *, flips: int = FLIPS, seed: int = 0
) -> Inference:
    """Compare pairs of losses; all of them are one family.

    Args:
        values: `[..., L, n, S]`, losses, patients and seeds; more is better.
        first: `[k]`, numbers of losses.
        second: `[k]`, numbers of the losses that they are compared with.
        folds: `[n]`, the number of each patient's fold, from 0; with seeds, of a fold of their own.
        flips: sign patterns that are drawn where there are more.
        seed: of the draws.
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
    """P-values of joint sign flips, two-sided: of each comparison alone, and step-down max-T over all.

    Args:
        differences: `[..., k, n]`, n at least 2.
        flips: sign patterns that are drawn where there are more.
        seed: of the draws.

    Returns:
        Both `[..., k]`.
    """
    n = differences.shape[-1]
    signs = _signs(n, flips, seed)
    square = (differences**2).mean(-1)[..., None]
    first = differences @ signs / n
    third = (differences * differences * differences) @ signs / n
    statistic = _statistic(first, square, third, n)
    # Patterns that give the same in exact arithmetic may differ by rounding.
    seen = statistic[..., :1] * (1 - 1e-9)
    single = (statistic >= seen).mean(-1)
    order = np.argsort(seen[..., 0], axis=-1, kind="stable")
    largest = np.maximum.accumulate(np.take_along_axis(statistic, order[..., None], -2), axis=-2)
    p = (largest >= np.take_along_axis(seen, order[..., None], -2)).mean(-1)
    # From the largest statistic down no p-value is smaller than the one before.
    return single, _unsorted(np.maximum.accumulate(p[..., ::-1], axis=-1)[..., ::-1], order)


def least_patients(level: float = ALPHA) -> int:
    """The smallest number of patients at which sign flips can reject: the least p-value is 2 / 2^n."""
    return next(n for n in range(1, 64) if 2.0 ** (1 - n) <= level * (1 + 1e-12))


@lru_cache(maxsize=16)
def _signs(n: int, flips: int, seed: int) -> Floats:
    """Patterns of signs `[n, B]`, the first without a flip; one of two opposite ones, which give the same |h|."""
    if n <= 30 and 2 ** (n - 1) <= flips:
        bits = (np.arange(2 ** (n - 1)) >> np.arange(n)[:, None]) & 1
        return np.asarray(1.0 - 2.0 * bits)
    drawn = np.random.default_rng(seed).integers(0, 2, size=(n, flips)) * 2.0 - 1.0
    return np.concatenate([np.ones((n, 1)), drawn], axis=1)


def _statistic(first: Floats, square: Floats, third: Floats, n: int) -> Floats:
    """|h| of the first three moments around 0."""
    # Of differences that are all the same: as if they varied by a millionth.
    variance = np.maximum(square - first * first, 1e-12 * square)
    deviation = np.sqrt(np.where(variance > 0, variance, 1.0))
    shift = first / deviation
    skewness = third / (deviation * deviation * deviation)
    most = (n - 2) / sqrt(n - 1)  # no sample has more
    a = min(1.0, 0.5 + n / 40) * np.clip(skewness - shift * (3 + shift * shift), -most, most) / sqrt(n)
    t = shift * sqrt(n - 1)
    scaled = a * t
    # h = t + a / 6 + a t^2 / 3 + a^2 t^3 / 27
    return np.abs(t * (1 + scaled * (1 / 3 + scaled / 27)) + a / 6)


def _skewness(differences: Floats) -> Floats:
    centred = differences - differences.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1)
    known = variance > 1e-12 * (differences**2).mean(-1)
    return np.asarray(np.where(known, (centred**3).mean(-1) / np.where(known, variance, 1.0) ** 1.5, 0.0))


class _Seen(NamedTuple):
    """What rows `[..., m, n, S]` show of the variance of their means."""

    patient: Floats
    rest: Floats
    retraining: Floats
    fold: Floats


def _seen(rows: Floats, folds: Indices) -> _Seen:
    """Estimates of the variance of the rows' means: by patients, by what is left, by seeds, and by folds.

    The first two are within folds, and each holds the third part's share of single predictions (`rest`).
    """
    n, seeds = rows.shape[-2:]
    count = int(folds.max()) + 1
    member = np.asarray(folds == np.arange(count)[:, None], float)
    share = member.sum(1) / n
    member /= member.sum(1, keepdims=True)
    trained = np.einsum("fn,...ns->...fs", member, rows)
    by_patient, by_fold = rows.mean(-1), trained.mean(-1)
    centred = by_patient - by_fold[..., folds]
    patient = (centred**2).sum(-1) / ((n - count) * n)
    nothing = np.zeros_like(patient)
    rest = retraining = fold = nothing
    if seeds > 1:
        left = rows - trained[..., folds, :] - centred[..., None]
        rest = (left**2).sum((-1, -2)) / ((n - count) * (seeds - 1) * n * seeds)
        spread = ((trained - by_fold[..., None]) ** 2).sum(-1)
        retraining = (share**2 * spread).sum(-1) / ((seeds - 1) * seeds)
    if count > 1:
        mean = (share * by_fold).sum(-1, keepdims=True)
        fold = (share**2 * (by_fold - mean) ** 2).sum(-1) * count / (count - 1)
    return _Seen(patient, rest, retraining, fold)


def variance_parts(values: Floats, d: Floats, first: Indices, second: Indices, folds: Indices) -> Parts:
    """Split the variance of mean differences, as the module says.

    Args:
        values: `[..., L, n, S]`.
        d: the differences `[..., k, n, S]`.
        first: `[k]`, numbers of losses.
        second: `[k]`, of those that they are compared with.
        folds: `[n]`.
    """
    n, seeds = d.shape[-2:]
    count = int(folds.max()) + 1
    own = _seen(d, folds)
    patient = np.maximum(own.patient - own.rest, 0.0)
    nothing = np.zeros_like(patient)
    freedom = {"retraining": count * (seeds - 1), "fold": count - 1}
    retraining, fold_seen, patient_seen = own.retraining, own.fold, patient
    freedoms = {name: np.full_like(patient, max(own_freedom, 1)) for name, own_freedom in freedom.items()}
    if (seeds > 1 or count > 1) and values.shape[-3] > 2:
        middle = _seen(values - np.median(values, axis=-3, keepdims=True), folds)
        kept = np.ones(middle.patient.shape, bool)
        for name, ones in (("retraining", middle.retraining), ("fold", middle.fold)):
            if freedom[name]:
                kept &= _alike(ones, freedom[name])
        pooled, others = _pooled(values, kept, folds)
        both = kept[..., first] & kept[..., second] & (others[..., None] > 0)
        retraining = np.where(both, np.maximum(pooled.retraining[..., None], retraining), retraining)
        fold_seen = np.where(both, np.maximum(pooled.fold[..., None], fold_seen), fold_seen)
        patient_seen = np.where(both, np.maximum(pooled.patient - pooled.rest, 0.0)[..., None], patient_seen)
        freedoms = {
            name: np.where(both, np.maximum(others, 1)[..., None] * ones, ones) for name, ones in freedoms.items()
        }
    fold = np.maximum(fold_seen - patient_seen - retraining, 0.0) if count > 1 else nothing
    return Parts(
        patient=patient,
        patient_freedom=n - count,
        retraining=retraining,
        retraining_freedom=freedoms["retraining"],
        fold=fold,
        fold_freedom=freedoms["fold"],
        fold_total=fold_seen if seeds == 1 and count > 1 else nothing,
    )


def _alike(variances: Floats, freedom: int) -> NDArray[np.bool_]:
    """Which losses' variances `[..., L]` are not far beyond what the middle one lets expect."""
    scale = np.median(variances, axis=-1, keepdims=True) / chdtri(freedom, 0.5)
    return np.asarray(variances <= scale * chdtri(freedom, _OUTLYING))


def _pooled(values: Floats, kept: NDArray[np.bool_], folds: Indices) -> tuple[_Seen, NDArray[np.intp]]:
    """What the kept losses show of the variance of a difference of two; and how many they are, less one."""
    others = kept.sum(-1) - 1
    weight = kept[..., None, None]
    centre = (values * weight).sum(-3, keepdims=True) / np.maximum(kept.sum(-1), 1)[..., None, None, None]
    seen = _seen(values - centre, folds)
    total = (2 * (ones * kept).sum(-1) / np.maximum(others, 1) for ones in seen)
    return _Seen(*total), others


def _half(tail: Floats, skew: Floats, parts: Parts) -> Floats:
    """How far the lower end of the interval with this one-sided tail is below the mean; with -skew, the upper end."""
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
    """The tail at which the interval's lower end lies `distance` below the mean; 0.5 and more where it is above."""
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
    # Where nothing varies, a mean is what it is.
    exact = np.where(distance > 0, 0.0, np.where(distance < 0, 1.0, 0.5))
    return np.asarray(np.where(spread > 0, tail, exact))


def retraining_share(values: Floats) -> float | None:
    """The share of the variance of single values `[n, S]` that lies between seeds, within patients; none with one."""
    n, seeds = values.shape
    if n < 2 or seeds < 2:
        return None
    within = float(values.var(1, ddof=1).mean())
    between = max(float(values.mean(1).var(ddof=1)) - within / seeds, 0.0)
    return within / (within + between) if within + between > 0 else 0.0
