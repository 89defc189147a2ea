"""Several data sets together: consensus of ranks, and differences from the reference as random effects.

The unit is the data set: many cases of one say how a loss does there, not how it does elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit
from scipy.stats import rankdata

from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.paired import BETTER, UNDECIDED, WORSE
from pipelines.statistics.results import Analysis
from pipelines.statistics.scores import DIGITS, Floats
from pipelines.statistics.significance_tests import Friedman, friedman, holm

if TYPE_CHECKING:
    from pipelines.evaluation.metrics.base import Metric

#: Below this number of data sets, the spread between data sets is hardly known.
FEW = 5
#: Smallest variance of a mean difference, squared units: no difference is known exactly.
_FLOOR = 1e-12


@dataclass(frozen=True)
class DataSetResult:
    """One data set's results.

    Attributes:
        name: its name; unique.
        unit: `case` or `patient`.
        patients: number of these.
        trainings: number of runs per loss.
        means: loss -> mean of the metric.
        differences: loss -> mean of loss minus reference, and its variance; empty without the reference.
        verdict: the sentence of its own analysis.
    """

    name: str
    unit: str
    patients: int
    trainings: int
    means: dict[str, float]
    differences: dict[str, tuple[float, float]]
    verdict: str


@dataclass(frozen=True)
class Pooled:
    """A mean over data sets, as random effects.

    Attributes:
        data_sets: number of data sets k.
        mean: mean difference over data sets like these.
        interval: 95 % interval of the mean; `None` with one data set.
        prediction: 95 % interval of the difference in another data set; `None` with fewer than three.
        tau: standard deviation of the true differences between data sets.
        i2: share of the differences' variance that lies between data sets, and not within them.
        p: p-value of the mean; 1 with one data set.
    """

    data_sets: int
    mean: float
    interval: tuple[float, float] | None
    prediction: tuple[float, float] | None
    tau: float
    i2: float
    p: float


@dataclass(frozen=True)
class Together:
    """A loss over all data sets.

    Attributes:
        loss: the loss.
        ranks: data set -> its rank there among the losses that all data sets have; empty for other losses.
        mean_rank: mean over data sets; `None` for a loss that some data set lacks.
        pooled: its difference from the reference; `None` for the reference, and if there is none.
        p_adjusted: p-value of `pooled`, adjusted over the losses (Holm).
        verdict: `better` or `worse`, if the adjusted p is at most 0.05; else `undecided`; empty for the reference.
    """

    loss: str
    ranks: dict[str, float]
    mean_rank: float | None
    pooled: Pooled | None
    p_adjusted: float | None
    verdict: str


@dataclass(frozen=True)
class DataSetsAnalysis:
    """Losses over several data sets.

    Attributes:
        metric: the metric's column.
        reference: the reference loss; `None`: there is none.
        data_sets: the data sets.
        losses: best mean rank first, then those that some data set lacks.
        lacking: loss -> the data sets without it.
        agreement: Kendall's W of the ranks, 0 to 1; `None` with fewer than two losses in all data sets.
        friedman: Friedman's test with the data sets as blocks; `None` with fewer than two losses in all data sets.
        verdict: one sentence.
        caveats: what it does not cover.
    """

    metric: str
    reference: str | None
    data_sets: tuple[DataSetResult, ...]
    losses: tuple[Together, ...]
    lacking: dict[str, tuple[str, ...]]
    agreement: float | None
    friedman: Friedman | None
    verdict: str
    caveats: tuple[str, ...]


def result_of(name: str, analysis: Analysis) -> DataSetResult:
    """What of an analysis counts over data sets."""
    primary = analysis.primary
    differences = {}
    for compared in primary.comparisons:
        parts = compared.variance
        if parts is not None:
            variance = parts.patient + (parts.retraining or 0.0) + (parts.fold or 0.0)
            differences[compared.loss] = (compared.difference, variance)
    means = {ranked.loss: ranked.mean for ranked in primary.ranking}
    return DataSetResult(
        name, analysis.unit, primary.patients, analysis.trainings, means, differences, analysis.verdict
    )


def random_effects(effects: Floats, variances: Floats) -> Pooled:
    r"""Pool differences of k data sets.

    Each is $y_i \sim N(\theta_i, v_i)$ with $\theta_i \sim N(\mu, \tau^2)$. $\tau^2$ is Paule and Mandel's (1982): the
    one at which $\sum_i w_i (y_i - \hat\mu)^2 = k - 1$, with $w_i = 1 / (v_i + \tau^2)$, and 0 if that sum is smaller
    already. The interval is Hartung and Knapp's (2001), with their factor at least 1, so that it is not shorter than
    that of Student's t (Roever et al. 2015):

    $$\hat\mu \pm t_{k-1} \sqrt{\max(1, q) / \sum_i w_i}, \quad q = \sum_i w_i (y_i - \hat\mu)^2 / (k - 1)$$

    Another data set's difference lies in $\hat\mu \pm t_{k-2} \sqrt{\tau^2 + \max(1, q) / \sum_i w_i}$ (Higgins 2009).

    Args:
        effects: `[k]`.
        variances: `[k]`, of each effect within its data set.
    """
    k = len(effects)
    variances = np.maximum(variances, _FLOOR)
    tau2 = 0.0
    if k > 1 and _q(0.0, effects, variances) > k - 1:
        high = float(np.var(effects)) + float(variances.max())
        while _q(high, effects, variances) > k - 1:
            high *= 2
        tau2 = float(brentq(lambda t: _q(t, effects, variances) - (k - 1), 0.0, high, xtol=1e-14))
    weights = 1 / (variances + tau2)
    mean = float((weights * effects).sum() / weights.sum())
    if k == 1:
        return Pooled(1, mean, None, None, 0.0, 0.0, 1.0)
    factor = max(1.0, _q(tau2, effects, variances) / (k - 1))
    error = sqrt(factor / weights.sum())
    half = -float(stdtrit(k - 1, ALPHA / 2)) * error
    prediction = None
    if k > 2:
        reach = -float(stdtrit(k - 2, ALPHA / 2)) * sqrt(tau2 + error**2)
        prediction = (mean - reach, mean + reach)
    fixed = 1 / variances
    typical = (k - 1) * fixed.sum() / (fixed.sum() ** 2 - (fixed**2).sum())  # Higgins and Thompson 2002
    p = 2 * float(stdtr(k - 1, -abs(mean) / error))
    return Pooled(k, mean, (mean - half, mean + half), prediction, sqrt(tau2), tau2 / (tau2 + typical), p)


def _q(tau2: float, effects: Floats, variances: Floats) -> float:
    weights = 1 / (variances + tau2)
    mean = (weights * effects).sum() / weights.sum()
    return float((weights * (effects - mean) ** 2).sum())


def kendalls_w(ranks: Floats) -> float:
    r"""Kendall's W of ranks `[L, n]` by n data sets, corrected for ties; 1: all rank alike.

    $$W = \frac{12 \sum_j (R_j - \bar R)^2}{n^2 (L^3 - L) - n \sum_i T_i}, \quad T_i = \sum_\text{ties} (t^3 - t)$$
    """
    size, n = ranks.shape
    sums = ranks.sum(1)
    ties = sum(float((counts**3 - counts).sum()) for column in ranks.T
               for counts in [np.unique(column, return_counts=True)[1].astype(float)])  # fmt: skip
    whole = n**2 * (size**3 - size) - n * ties
    return 12 * float(((sums - sums.mean()) ** 2).sum()) / whole if whole > 0 else 0.0


def analyse_data_sets(results: Sequence[DataSetResult], metric: "Metric", reference: str | None) -> DataSetsAnalysis:
    """Put data sets together; each has at least one loss.

    A loss that a data set lacks has no rank, since ranks among different losses mean different things; its difference
    from the reference is that over the data sets which have both.

    Args:
        results: one per data set, two or more.
        metric: the metric of all results.
        reference: the loss that the differences are from; `None`: only ranks.
    """
    every = list(dict.fromkeys(loss for result in results for loss in result.means))
    common = [loss for loss in every if all(loss in result.means for result in results)]
    ranks = np.empty((len(common), len(results)))
    for column, result in enumerate(results):
        means = np.round([result.means[loss] for loss in common], DIGITS)
        ranks[:, column] = rankdata(-metric.sign * means)
    pooled: dict[str, Pooled] = {}
    for loss in every:
        known = [result.differences[loss] for result in results if loss in result.differences]
        if loss != reference and known:
            effects, variances = np.array(known, float).T
            pooled[loss] = random_effects(effects, variances)
    several = [loss for loss, entry in pooled.items() if entry.data_sets > 1]
    adjusted = dict(zip(several, holm(np.array([pooled[loss].p for loss in several])), strict=True)) if several else {}
    losses = []
    for loss in every:
        in_all = loss in common
        place = common.index(loss) if in_all else 0
        p = float(adjusted[loss]) if loss in adjusted else None
        verdict = ""
        if loss in pooled:
            verdict = UNDECIDED
            if p is not None and p <= ALPHA:
                verdict = BETTER if metric.sign * pooled[loss].mean > 0 else WORSE
        names = [result.name for result in results]
        losses.append(
            Together(
                loss,
                dict(zip(names, ranks[place].tolist(), strict=True)) if in_all else {},
                float(ranks[place].mean()) if in_all else None,
                pooled.get(loss),
                p,
                verdict,
            )
        )
    losses.sort(key=lambda one: (one.mean_rank is None, one.mean_rank or 0.0, one.loss))
    enough = len(common) > 1
    lacking = {loss: tuple(result.name for result in results if loss not in result.means)
               for loss in every if loss not in common}  # fmt: skip
    found = DataSetsAnalysis(
        metric=metric.name,
        reference=reference,
        data_sets=tuple(results),
        losses=tuple(losses),
        lacking=lacking,
        agreement=kendalls_w(ranks) if enough else None,
        friedman=friedman(ranks) if enough else None,
        verdict=_verdict(losses, len(results), metric, reference),
        caveats=(),
    )
    return _with_caveats(found, metric)


def _verdict(losses: Sequence[Together], data_sets: int, metric: "Metric", reference: str | None) -> str:
    start = f"Over {data_sets} data sets"
    ranked = [one for one in losses if one.mean_rank is not None]
    best = [one.loss for one in ranked if one.mean_rank == ranked[0].mean_rank]
    first = "no loss is in all of them, so there is no consensus of ranks"
    if best:
        had = "had" if len(best) == 1 else "share"
        first = (
            f"{_listed(best)} {had} the best mean rank in {metric.label}, {ranked[0].mean_rank:.1f} of {len(ranked)}"
        )
    if reference is None:
        return f"{start}: {first}."
    texts = []
    for word in (BETTER, WORSE):
        names = [_with_size(one, metric) if word == BETTER else one.loss for one in losses if one.verdict == word]
        if names:
            texts.append(f"{_listed(names)} {'was' if len(names) == 1 else 'were'} {word}")
        elif word == BETTER:
            texts.append(f"no loss was shown to be better than the reference {reference} in {metric.label}")
    if any(one.verdict == BETTER for one in losses):
        texts[0] += f" than the reference {reference} in {metric.label}"
    undecided = sum(one.verdict == UNDECIDED for one in losses)
    if undecided:
        texts.append(f"{undecided} remained undecided")
    return f"{start}: {'; '.join([*texts, first])}."


def _with_size(one: Together, metric: "Metric") -> str:
    assert one.pooled is not None and one.pooled.interval is not None
    low, high = (metric.shown(end, signed=True) for end in one.pooled.interval)
    return f"{one.loss} (by {metric.shown(one.pooled.mean, signed=True)}, 95 % interval {low} to {high})"


def _listed(names: Sequence[str], most: int = 6) -> str:
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def _with_caveats(found: DataSetsAnalysis, metric: "Metric") -> DataSetsAnalysis:
    from dataclasses import replace

    k, notes = len(found.data_sets), []
    if found.reference is not None:
        without = [result.name for result in found.data_sets if found.reference not in result.means]
        if without:
            notes.append(f"Without the reference, and so without differences: {_listed(without)}.")
        if k < FEW:
            notes.append(
                f"Only {k} data sets (fewer than {FEW}): how much the differences vary between data sets is hardly "
                f"known. The intervals are wide (Student's t, degrees of freedom: {k - 1}), and still rough; a loss "
                "that does better in all of them may remain undecided."
            )
        notes.append(
            "The mean is that over data sets like these, if they were drawn from all that matter; available data "
            "sets are no such sample. The prediction interval says what another such data set may show."
        )
    else:
        notes.append("No reference loss was named (--reference), so there are ranks, and no differences.")
    for loss, names in found.lacking.items():
        over = next(one.pooled.data_sets for one in found.losses if one.loss == loss and one.pooled) if any(
            one.loss == loss and one.pooled for one in found.losses) else 0  # fmt: skip
        share = f"; its difference is over {over} of {k}" if over else ""
        notes.append(f"{loss}: not in {_listed(names)}, so it has no consensus rank{share}.")
    single = [result.name for result in found.data_sets if result.trainings == 1]
    if single:
        notes.append(
            f"One run per loss in {_listed(single)}: what another seed would change there counts as a difference "
            "between data sets."
        )
    if metric.unit:
        notes.append(
            f"Differences in {metric.unit} depend on the size of the structures, which differs between data sets."
        )
    return replace(found, caveats=tuple(notes))


def stored_metrics(content: Mapping[str, Any]) -> dict[str, Any]:
    """Metric -> its analysis over all classes in a report's `analysis.json`, primary metrics first.

    Raises:
        KeyError, TypeError: it has another form.
    """
    primary, several = content["primary"], content.get("several")
    further = {} if several is None else several["analyses"]
    return {primary["metric"]: primary, **further, **content["secondary"]}


def from_stored(name: str, content: Mapping[str, object], metric: str) -> DataSetResult:
    """The result of one metric from a report's `analysis.json`.

    Raises:
        KeyError, TypeError, ValueError: it has another form, or no such metric.
    """
    stored: dict[str, Any] = dict(content)
    of_metric = stored_metrics(stored)[metric]
    differences = {}
    for compared in of_metric["comparisons"]:
        if compared["variance"] is not None:
            parts = compared["variance"]
            variance = sum(float(parts[part] or 0.0) for part in ("patient", "retraining", "fold"))
            differences[str(compared["loss"])] = (float(compared["difference"]), variance)
    means = {str(ranked["loss"]): float(ranked["mean"]) for ranked in of_metric["ranking"]}
    return DataSetResult(
        name, str(stored["unit"]), int(of_metric["patients"]), int(stored["trainings"]), means, differences,
        "" if metric in stored["secondary"] else str(stored["verdict"]),
    )  # fmt: skip
