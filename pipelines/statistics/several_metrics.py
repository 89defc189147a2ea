"""Several primary metrics: one family of tests over all of them, ranks per metric, and how far these agree."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
from scipy.stats import kendalltau

from pipelines.statistics.mean_difference import ALPHA, FLIPS, least_patients
from pipelines.statistics.paired import BETTER, VERDICTS, WORSE, Comparison, adjusted_pairs, word
from pipelines.statistics.results import Analysis, MetricAnalysis, Reach, SeveralMetrics, least_difference
from pipelines.statistics.scores import DIGITS, Floats
from pipelines.statistics.significance_tests import holm
from pipelines.statistics.verdict_text import verdict_sentence
from pipelines.utils.text import abbreviated


def as_family(analyses: Mapping[str, MetricAnalysis], signs: Mapping[str, int], non_inferior: bool) -> SeveralMetrics:
    """Adjust the p-values of several primary metrics over all of them, and decide their words again.

    Comparisons with the reference: the adjusted p is the larger one of that within the metric and Holm's over the
    unadjusted p-values of all comparisons in all metrics. Pairs: that within the metric, times the number of metrics.

    Args:
        analyses: metric -> its analysis as if it were the only one, in the order in which they were named.
        signs: metric -> 1, or -1 if less is better.
        non_inferior: whether non-inferiority is tested in place of equivalence.
    """
    found = [(name, comparison) for name, analysed in analyses.items() for comparison in analysed.comparisons]
    shape = (len(analyses), -1)
    alone = (np.array([comparison.p for _, comparison in found]).reshape(shape),
             np.array([comparison.p_adjusted for _, comparison in found]).reshape(shape))  # fmt: skip
    comparisons: dict[str, list[Comparison]] = {name: [] for name in analyses}
    for (name, comparison), p_adjusted in zip(found, over_metrics(*alone).ravel().tolist(), strict=True):
        verdict = comparison.verdict
        if analyses[name].patients >= least_patients():
            verdict = word(
                signs[name] * comparison.difference, p_adjusted, within=comparison.within_margin,
                p_non_inferior=comparison.p_non_inferior if non_inferior else None,
            )  # fmt: skip
        comparisons[name].append(replace(comparison, p_adjusted=p_adjusted, verdict=verdict))
    made = {}
    for name, analysed in analyses.items():
        pair = analysed.pair
        if pair is not None and analysed.patients >= least_patients():
            p_pair = min(1.0, pair.p_adjusted * len(analyses))
            verdict = word(signs[name] * pair.difference, p_pair, within=False, p_non_inferior=None)
            pair = replace(pair, p_adjusted=p_pair, verdict=verdict)
        means = {ranked.loss: ranked.mean for ranked in analysed.ranking}
        pairs = adjusted_pairs(analysed.omnibus, len(analyses), means, signs[name])
        made[name] = replace(
            analysed,
            comparisons=tuple(comparisons[name]),
            pair=pair,
            omnibus=pairs,
            ranking=tuple(replace(ranked, rank_set=pairs.rank_sets[ranked.loss]) for ranked in analysed.ranking),
            reach=_reach(analysed.reach, len(found) or len(analyses)),
        )
    ranks = {name: {ranked.loss: ranked.rank for ranked in analysed.ranking} for name, analysed in made.items()}
    losses = sorted(next(iter(ranks.values())))
    of_loss = {loss: tuple(of_metric[loss] for of_metric in ranks.values()) for loss in losses}
    means_of = {name: {ranked.loss: signs[name] * ranked.mean for ranked in analysed.ranking}
                for name, analysed in made.items()}  # fmt: skip
    return SeveralMetrics(
        analyses=made,
        tests=len(found),
        ranks=of_loss,
        mean_ranks={loss: float(np.mean(values)) for loss, values in of_loss.items()},
        tau={
            first: {second: _tau(means_of[first], means_of[second], losses) for second in made if second != first}
            for first in made
        },
    )


def over_metrics(p: Floats, p_adjusted: Floats) -> Floats:
    """Family-wise p-values over all comparisons in all metrics.

    Args:
        p: `[..., metrics, comparisons]`, without adjustment.
        p_adjusted: of the same shape, adjusted over the comparisons within each metric.
    """
    return np.maximum(p_adjusted, holm(p.reshape(*p.shape[:-2], -1)).reshape(p.shape))


def _reach(reach: Reach, tests: int) -> Reach:
    """What a comparison can detect if it is one of so many tests."""
    level = ALPHA / tests
    family = reach.difference_family
    if family is not None and reach.sd is not None:
        family = least_difference(reach.sd, reach.cases, level=level)
    return replace(reach, least_cases=least_patients(level), difference_family=family)


def _tau(first: Mapping[str, float], second: Mapping[str, float], losses: list[str]) -> float | None:
    """Kendall's tau-b between two rankings by mean; None if all losses of one of them are tied."""
    values = [np.round([of_metric[loss] for loss in losses], DIGITS) for of_metric in (first, second)]
    tau = float(kendalltau(*values).statistic)
    return None if np.isnan(tau) else round(tau, DIGITS)


def several_verdict(analysis: Analysis) -> str:
    """What the comparison shows in each primary metric, and how far the metrics agree: a sentence per metric."""
    several = analysis.several
    assert several is not None
    runs = "one run" if analysis.trainings == 1 else f"{analysis.trainings} runs"
    over = f", compared with {analysis.reference} (Holm over all {several.tests} comparisons)" if several.tests else ""
    unit = analysis.unit if analysis.primary.patients == 1 else f"{analysis.unit}s"
    labels = {name: analysis.metrics[name].label for name in several.analyses}
    sentences = [f"On {analysis.primary.patients} {unit}, {runs} per loss, by {len(labels)} primary metrics{over}:"]
    for name, analysed in several.analyses.items():
        cases = "" if analysed.patients == analysis.primary.patients else f" (on {analysed.patients} {analysis.unit}s)"
        sentences.append(f"{labels[name]}{cases}: {_finding(analysis, analysed)}")
    return " ".join([*sentences, agreement(analysis)])


def _finding(analysis: Analysis, analysed: MetricAnalysis) -> str:
    """What one of several metrics shows, as a sentence without its subject."""
    metric, least = analysis.metrics[analysed.metric], analysed.reach.least_cases
    if analysed.patients < least:
        return f"too few cases to tell (at least {least} are needed)."
    if not analysed.comparisons:
        sentence = verdict_sentence(replace(analysis, primary=analysed, several=None))
        return sentence.partition(" per loss: ")[2] or sentence
    groups: dict[str, list[str]] = {}
    for compared in analysed.comparisons:
        size = f" ({metric.shown(compared.difference, signed=True)})" if compared.verdict in (BETTER, WORSE) else ""
        groups.setdefault(compared.words, []).append(f"{compared.loss}{size}")
    order = sorted(groups, key=lambda words: VERDICTS.index(words.partition(",")[0]))
    return "; ".join(f"{words}: {abbreviated(groups[words], 6)}" for words in order) + "."


def several_margin(analysis: Analysis, name: str) -> float | None:
    """The margin of a primary metric; None: equivalence is not tested."""
    return analysis.margin if name == analysis.primary.metric else analysis.further[name]


def agreement(analysis: Analysis) -> str:
    """How far the rankings by the primary metrics agree, as a sentence."""
    several = analysis.several
    assert several is not None
    found = {
        (first, second): tau
        for first, second in combinations(several.analyses, 2)
        if (tau := several.tau[first][second]) is not None
    }
    if not found:
        return "The agreement of their rankings is undefined, since the losses are tied."
    taus = sorted(found.values())
    size = f"{taus[0]:.2f}" if len(taus) == 1 else f"{taus[0]:.2f} to {taus[-1]:.2f}"
    text = f"The metrics rank the losses with a Kendall's tau-b of {size} (1: alike, -1: in opposite order)"
    firsts = {name: min(analysed.ranking, key=lambda ranked: (ranked.rank, ranked.loss)).loss
              for name, analysed in several.analyses.items()}  # fmt: skip
    if len(set(firsts.values())) == 1:
        return f"{text}; {next(iter(firsts.values()))} is first in all of them."
    named = ", ".join(f"{loss} by {analysis.metrics[name].label}" for name, loss in firsts.items())
    return f"{text}; first is {named}."


def several_caveats(analysis: Analysis) -> tuple[str, ...]:
    """What a reader of several primary metrics has to know."""
    several = analysis.several
    assert several is not None
    notes = []
    without = [analysis.metrics[name].label for name in several.analyses if several_margin(analysis, name) is None]
    if without and analysis.reference is not None:
        notes.append(f"No margin was named for {', '.join(without)} (--margin NAME=VALUE): equivalence is not tested.")
    if several.tests > ALPHA * (FLIPS + 1):
        notes.append(
            f"No loss can be shown to be better or worse: {several.tests} comparisons are too many for "
            f"{FLIPS:,} sign patterns. Name fewer primary metrics (--metric)."
        )
    notes.append(
        "The losses are listed by the first primary metric. A loss that is better in one metric and undecided in "
        "another has not been shown to be equal there."
    )
    split = [
        compared.loss
        for compared in analysis.primary.comparisons
        if {BETTER, WORSE} <= {
            other.verdict for analysed in several.analyses.values() for other in analysed.comparisons
            if other.loss == compared.loss
        }
    ]  # fmt: skip
    if split:
        notes.append(f"Better in one primary metric and worse in another: {', '.join(split)}.")
    return tuple(notes)
