"""Every loss against the one reference loss, patient by patient: a difference, an interval, a test, and one word.

- *equivalent*: the 95 % interval of the mean difference lies inside the margin, on both sides. That is two one-sided
  tests at 2.5 % each, stricter than the usual 5 % (a 90 % interval), so that the interval that is shown decides. It
  goes first: a difference shown to be smaller than what matters is not *better*, however certain.
- *better*, *worse*: Holm's p over all comparisons with the reference is at most 0.05, and the mean difference has the
  sign of the ranks'. So the chance of any such word where no loss differs is at most 5 %. With several trainings the
  interval, which covers retraining, has to leave out 0 as well.
- *undecided*: all else. Also everything, where there are too few patients for any test to reject (`least_cases`): a
  narrow interval of three cases is no evidence.

Not controlled: *equivalent* is held at 2.5 % a comparison, not over all of them (`p_equivalence_holm` is). Metrics
and classes are families of their own: Holm goes over the losses within one. With one training a loss, everything is
said of these networks; see `difference`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.comparison.statistics.difference import (
    DifferenceTest,
    difference_test,
    equivalence_p,
    retraining_share,
)
from pipelines.comparison.statistics.holm import holm
from pipelines.comparison.statistics.metrics import Metric
from pipelines.comparison.statistics.power import least_cases
from pipelines.comparison.statistics.scores import DIGITS, Floats, Scores

#: The level of all tests.
ALPHA = 0.05
BETTER, WORSE, EQUIVALENT, UNDECIDED = VERDICTS = ("better", "worse", "equivalent", "undecided")


@dataclass(frozen=True)
class Comparison:
    """One loss against the reference.

    Attributes:
        loss: the loss.
        difference: mean of loss minus reference, in the measure's unit; of a distance, less is better.
        interval: 95 %, of the mean; none with one patient.
        sd: standard deviation of the patients' differences (seeds averaged); none with one patient.
        wins: patients of whom the loss is better than the reference.
        losses: patients of whom it is worse.
        ties: the others.
        w_plus: the sum of ranks for the loss.
        w_minus: the sum of ranks for the reference.
        exact: whether Wilcoxon's distribution was computed exactly.
        effect: the matched-pairs rank-biserial correlation, 1: better of every patient, -1: worse of every one.
        p_wilcoxon: of Wilcoxon's signed-rank test, two-sided.
        p: that; with several seeds the larger of it and the mean's, over patients and seeds.
        p_holm: p, Holm over the comparisons.
        p_equivalence: of two one-sided t-tests against the margin; none without a margin. With one training it is at
            most 0.025 where the interval lies inside.
        p_equivalence_holm: that, Holm over the comparisons.
        retraining: the share of the differences' variance between seeds, within patients; none with one seed.
        verdict: one of `VERDICTS`.
    """

    loss: str
    difference: float
    interval: tuple[float, float] | None
    sd: float | None
    wins: int
    losses: int
    ties: int
    w_plus: float
    w_minus: float
    exact: bool
    effect: float
    p_wilcoxon: float
    p: float
    p_holm: float
    p_equivalence: float | None
    p_equivalence_holm: float | None
    retraining: float | None
    verdict: str


def compare_with(scores: Scores, reference: str, *, margin: float | None = None) -> tuple[Comparison, ...]:
    """Compare every loss with the reference.

    Args:
        scores: of one measure.
        reference: one of its losses.
        margin: differences up to it do not matter, in the measure's unit; `None`: no word *equivalent*.

    Returns:
        One a loss, without the reference's own, in the order of `scores.losses`.
    """
    base = scores.values[scores.losses.index(reference)]
    others = [loss for loss in scores.losses if loss != reference]
    gains = [scores.metric.sign * (scores.values[scores.losses.index(loss)] - base) for loss in others]
    tests = [difference_test(gain) for gain in gains]
    adjusted = holm(np.array([test.p for test in tests]))
    same = [None if margin is None else equivalence_p(test.mean, margin) for test in tests]
    same_adjusted: Sequence[float | None] = same if margin is None else holm(np.array(same, float)).tolist()
    enough = len(scores.patients) >= least_cases(len(others))
    return tuple(
        _comparison(scores.metric, loss, gain, test, float(p), (alike, alike_adjusted), _word(test, p, margin, enough))
        for loss, gain, test, p, alike, alike_adjusted in zip(
            others, gains, tests, adjusted, same, same_adjusted, strict=True
        )
    )


def _word(test: DifferenceTest, p_holm: float, margin: float | None, enough: bool) -> str:
    interval = test.mean.interval()
    if not enough or interval is None:
        return UNDECIDED
    if margin is not None and -margin < interval[0] and interval[1] < margin:
        return EQUIVALENT
    retrained = len(test.mean.parts) > 1
    clear = interval[0] > 0 or interval[1] < 0
    if p_holm <= ALPHA and test.rank.effect * test.mean.mean > 0 and (clear or not retrained):
        return BETTER if test.mean.mean > 0 else WORSE
    return UNDECIDED


def _comparison(
    metric: Metric,
    loss: str,
    gain: Floats,
    test: DifferenceTest,
    p_holm: float,
    alike: tuple[float | None, float | None],
    verdict: str,
) -> Comparison:
    by_patient = np.round(gain.mean(1), DIGITS)
    interval = test.mean.interval()
    if interval is not None and metric.sign < 0:
        interval = -interval[1], -interval[0]
    return Comparison(
        loss=loss,
        difference=metric.sign * test.mean.mean,
        interval=interval,
        sd=float(by_patient.std(ddof=1)) if len(by_patient) > 1 else None,
        wins=int((by_patient > 0).sum()),
        losses=int((by_patient < 0).sum()),
        ties=int((by_patient == 0).sum()),
        w_plus=test.rank.positive,
        w_minus=test.rank.negative,
        exact=test.rank.exact,
        effect=test.rank.effect,
        p_wilcoxon=test.rank.p,
        p=test.p,
        p_holm=p_holm,
        p_equivalence=alike[0],
        p_equivalence_holm=alike[1],
        retraining=retraining_share(gain),
        verdict=verdict,
    )
