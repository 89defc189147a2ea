"""The verdict in one sentence, and what the analysis does not cover."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.paired import BETTER, EQUIVALENT, NON_INFERIOR, UNDECIDED, WORSE, Comparison
from pipelines.statistics.plain_summary import best_mean, influence_notes, unlearned_notes
from pipelines.statistics.results import Analysis, MetricAnalysis
from pipelines.statistics.scores import Scores
from pipelines.statistics.table import CaseTable
from pipelines.utils.text import counted, in_words

if TYPE_CHECKING:
    from pipelines.evaluation.metrics.base import Metric

# The verdict in one sentence, from the numbers alone.


def verdict_sentence(analysis: Analysis) -> str:
    """What the comparison shows, and on how many cases and runs."""
    primary, reference = analysis.primary, analysis.reference
    metric = analysis.metric
    cases = counted(primary.patients, analysis.unit)
    start = f"On {cases}, {_runs(analysis)} per loss"
    needed = primary.reach.least_cases
    if primary.patients < needed:
        among = "pairs" if reference is None else f"comparisons with {reference}"
        return (
            f"Too few cases to tell: with {cases} no difference, however large, could be significant in the {among} "
            f"(at least {needed} are needed); {best_mean(analysis)}."
        )
    if reference is None:
        return f"{start}: {_leader(analysis)}."
    groups: dict[str, list[Comparison]] = {}
    for comparison in primary.comparisons:
        groups.setdefault(comparison.words, []).append(comparison)
    within = metric.shown(analysis.margin)
    texts = {
        f"{BETTER}, within the margin": f"better, by less than the margin of {within}",
        EQUIVALENT: f"equivalent to it within {within}",
        NON_INFERIOR: f"non-inferior to it within {within}",
        f"{WORSE}, within the margin": f"worse, by less than the margin of {within}",
        WORSE: "worse",
    }
    clauses = [f"{_names(groups[w])} {_were(groups[w])} {text}" for w, text in texts.items() if w in groups]
    if UNDECIDED in groups:
        clauses.append(f"{_names(groups[UNDECIDED])} remained undecided")
    if BETTER in groups:
        first, *others = groups[BETTER]
        if others:
            clauses.insert(0, f"so {_were(others)} {_names(others)}{_ties_at_the_top(primary, first, others)}")
        head = f"{first.loss} was better than the reference {reference} in {metric.label}, by {_size(first, metric)}"
    else:
        relevant = " by more than the margin" if f"{BETTER}, within the margin" in groups else ""
        head = f"no loss was shown to be better than the reference {reference} in {metric.label}{relevant}"
    return f"{start}: {'; '.join([head, *clauses])}."


def _runs(analysis: Analysis) -> str:
    """The number of runs per loss: `one run`, `10 runs (5 folds x 2 seeds)`."""
    if analysis.trainings == 1:
        return "one run"
    of = f" ({counted(analysis.folds, 'fold')} x {counted(analysis.seeds, 'seed')})" if analysis.folds > 1 else ""
    return f"{analysis.trainings} runs{of}"


def _leader(analysis: Analysis) -> str:
    best, second = analysis.primary.ranking[:2]
    if best.rank == second.rank:
        return best_mean(analysis)
    if (pair := analysis.primary.pair) is not None:
        certain = (
            "and was significantly better than" if pair.verdict == BETTER else "without a significant difference from"
        )
        return f"{best_mean(analysis)}, {certain} {analysis.base}: {_size(pair, analysis.metric)}"
    alike = _alike(analysis.primary, best.loss, analysis.primary.omnibus.losses)
    if not alike:
        return f"{best_mean(analysis)}, and was significantly better than every other loss"
    return f"{best_mean(analysis)}, without a significant difference from {in_words(alike)}"


def _alike(primary: MetricAnalysis, loss: str, others: Iterable[str]) -> list[str]:
    """Those of the others without a significant difference from the loss."""
    pairs = primary.omnibus
    p = dict(zip(pairs.losses, pairs.p_adjusted[pairs.losses.index(loss)], strict=True))
    return [other for other in others if p[other] > ALPHA and other != loss]


def _size(comparison: Comparison, metric: "Metric") -> str:
    size = metric.shown(comparison.difference, signed=True)
    p = "< 0.0001" if comparison.p_adjusted < 1e-4 else f"= {comparison.p_adjusted:.2g}"
    if comparison.interval is None:
        return f"{size} (adjusted p {p})"
    low, high = (metric.shown(bound, signed=True) for bound in comparison.interval)
    return f"{size} on average (95 % interval {low} to {high}, adjusted p {p})"


def _ties_at_the_top(primary: MetricAnalysis, first: Comparison, others: list[Comparison]) -> str:
    """The better losses without a significant difference from the first, whose first place may be chance."""
    alike = _alike(primary, first.loss, [other.loss for other in others])
    if not alike:
        return ""
    if len(alike) == len(others):
        return ", and which of them is best remains open"
    return f" (no significant difference from {in_words(alike) if len(alike) < 4 else f'{len(alike)} of them'})"


def _were(comparisons: list[Comparison]) -> str:
    return "was" if len(comparisons) == 1 else "were"


def _names(comparisons: list[Comparison]) -> str:
    return in_words([comparison.loss for comparison in comparisons])


# What an analysis does not cover, in words.

#: Below this number of patients, intervals and p-values are rough.
FEW = 50
#: What no comparison of losses controls, whatever the table.
NOT_CONTROLLED = (
    "Folds share training data, so the networks of different folds are not independent; the tests treat patients and "
    "runs as independent.",
    "A checkpoint that was selected on the reported cases scores too well; the tests cannot see how it was selected.",
    "The best of many losses, selected and evaluated on the same cases, looks better than it is: expect it to do less "
    "well on new cases.",
    "Training all losses with the same learning rate and schedule is a confounder: a loss may do better with settings "
    "tuned for it.",
    "The verdict ignores what a loss costs; time and memory are shown next to the score if they were recorded.",
    "The patients of one data set represent patients like them; another scanner or hospital is another question.",
)


def caveats(table: CaseTable, scores: Scores, analysis: Analysis) -> tuple[str, ...]:
    """The caveats of this analysis, the most serious first."""
    notes = [*_size_caveats(analysis), *gap_notes(analysis), *_run_caveats(scores, analysis)]
    primary, unit = analysis.primary, analysis.unit
    alike = [compared.loss for compared in primary.comparisons if compared.verdict in (EQUIVALENT, NON_INFERIOR)]
    if alike:
        notes.append(
            f"{in_words(alike)}: {'non-inferior' if analysis.non_inferior else 'equivalent'} on average. What none of "
            f"{counted(primary.patients, unit)} showed, such as a collapse, may still happen in up to "
            f"{primary.comparisons[0].unseen:.0%} of {unit}s (3/n)."
        )
    notes += [
        f"{compared.loss}: the mean and the ranks point in opposite directions (a few large differences one way, many "
        "small ones the other way); the verdict is about the mean."
        for compared in primary.comparisons
        if min(compared.p_adjusted, compared.p_ranks) <= ALPHA
        and compared.effect * analysis.metric.sign * compared.difference < 0
    ]
    if unit == "case":
        notes.append(
            (
                f"{counted(primary.patients, unit)}, each from a different patient according to the manifest or table"
                if table.patients_named
                else "Patients are not named, so every case counts as independent"
            )
            + "; a patient with several cases would be given too much weight."
        )
    if analysis.folds > 1:
        notes.append("The cases are from several folds, whose networks share training data: they are not independent.")
    if len(table.losses) > 2:
        notes.append("The best of several losses, selected and evaluated on the same cases, looks better than it is.")
    if analysis.secondary or analysis.classes:
        notes.append(
            "Other metrics and individual classes are secondary: p is adjusted for the losses within each of them, not "
            "across them, so some small p-values there are due to chance. The equivalence margin applies to the "
            f"primary metric{'s' if analysis.several else ''} alone."
        )
    return tuple(notes)


def empty_notes(analysis: Analysis) -> list[str]:
    """How cases count whose reference is empty for a class; false alarms and complete misses, per loss."""
    primary, notes = analysis.primary, []
    metric = analysis.metric
    if primary.empty and metric.empty_reference == "option":
        alarm = f"{metric.lower:g}" if metric.higher_is_better else f"the {_noun(metric)} in the table"
        rule = {
            "one": f"an empty prediction counts as {f'{metric.best:g} {metric.unit}'.rstrip()} there, and a false "
            f"alarm as {alarm}",
            "exclude": f"these are left out for all losses, so false alarms there do not affect the {metric.label}",
            "worst": "an empty prediction counts as the worst there",
        }[analysis.empty]
        notes.append(
            f"The reference of {counted(len(primary.empty), 'case')} ({in_words(list(primary.empty))}) contains no "
            f"voxel of a class: {rule} (--empty {analysis.empty})."
        )
    alarms = [f"{ranked.loss} {ranked.false_alarms}" for ranked in primary.ranking if ranked.false_alarms]
    missed = [f"{ranked.loss} {ranked.missed}" for ranked in primary.ranking if ranked.missed]
    if alarms:
        notes.append(f"False alarms (a class is predicted that the reference does not contain): {in_words(alarms)}.")
    if missed:
        notes.append(f"Complete misses (nothing is found of a class that the reference contains): {in_words(missed)}.")
    return notes


def gap_notes(analysis: Analysis) -> list[str]:
    """Missing and failed results and how they count; the notes of `empty_notes`; excluded cases; cases per class."""
    primary = analysis.primary
    metric = analysis.metric
    worst = f"the largest {_noun(metric)} in the table, which may understate it"
    if metric.higher_is_better or metric.bounded:
        worst = f"{metric.worst(metric.upper):g}"
    by_name = sorted(primary.ranking, key=lambda ranked: ranked.loss)
    notes = [
        f"{ranked.loss}: no result for {counted(len(ranked.lacking), 'case')} ({in_words(list(ranked.lacking))}); "
        f"counted as the worst, {worst}."
        for ranked in by_name
        if ranked.lacking
    ]
    notes += [
        f"{ranked.loss}: {counted(ranked.failed, 'failed prediction')}, counted as the worst, {worst}."
        for ranked in by_name
        if ranked.failed
    ]
    notes += empty_notes(analysis)
    others = [case for case in primary.excluded if case not in primary.empty or metric.empty_reference == "left out"]
    if others:
        notes.append(
            f"Left out for all losses, entirely or for one class: {counted(len(others), 'case')} ({in_words(others)}). "
            f"{metric.label} is undefined there, or no loss has a value."
        )
    if analysis.class_cases:
        numbers = ", ".join(f"{name}: {count}" for name, count in analysis.class_cases.items())
        notes.append(
            f"Not every case has every class (cases per class: {numbers}). The score of a case is the mean over the "
            "classes that it has."
        )
    return notes


def closing_notes(analysis: Analysis) -> tuple[str, ...]:
    """What `compare` and `report` print below the verdict."""
    return (
        *interval_notes(analysis), *gap_notes(analysis), *unlearned_notes(analysis), *influence_notes(analysis),
    )  # fmt: skip


def _noun(metric: "Metric") -> str:
    return "distance" if metric.unit == "mm" else "value"


def _size_caveats(analysis: Analysis) -> list[str]:
    n, least, unit = analysis.primary.patients, analysis.primary.reach.least_cases, analysis.unit
    notes = []
    if n < least:
        notes.append(
            f"Too few cases to tell: no difference can be significant below {least} {unit}s, and there are only {n}. "
            "Every verdict is therefore undecided."
        )
    if n < FEW:
        skewed = ", and with skewed differences the rate of false verdicts may exceed 5 %" if n < 20 else ""
        notes.append(
            f"Only {counted(n, unit)} (fewer than {FEW}): intervals and p-values are rough, "
            f"{'' if skewed else 'and '}small differences go undetected{skewed}."
        )
    return notes


def interval_notes(analysis: Analysis) -> tuple[str, ...]:
    """A sentence on the intervals that do not use the pooled variance between runs; else none."""
    apart = [one for one in analysis.primary.contrasts if one.variance is not None and one.variance.outlying]
    if not apart:
        return ()
    variance = apart[0].variance
    assert variance is not None
    # The same for all of them.
    known = [freedom for freedom in (variance.retraining_freedom, variance.fold_freedom) if freedom is not None]
    numbers = [f"{number:g}" for number in known]
    freedom = f"{in_words(numbers)} degrees of freedom"
    if len(numbers) == 2:
        freedom = f"{numbers[0]} degrees of freedom between seeds, {numbers[1]} between folds"
    uses = f"a variance between {analysis.trainings} runs that is estimated separately ({freedom})"
    since = "differ from run to run far more than those of the other losses"
    if analysis.reference in variance.outlying:  # it is a part of every comparison
        return (f"Every interval uses {uses}, since the scores of the reference {analysis.reference} {since}.",)
    names = in_words([one.loss for one in apart])
    if len(apart) == 1:
        return (f"The interval of {names} uses {uses}, since its scores {since}.",)
    return (f"The intervals of {names} each use {uses}, since their scores {since}.",)


def _run_caveats(scores: Scores, analysis: Analysis) -> list[str]:
    if analysis.trainings == 1:
        return [
            "One run per loss: intervals, tests and ranks do not cover what another seed would change. They describe "
            "these networks, and the losses only as far as retraining changes little."
        ]
    apart = dict.fromkeys(
        loss for compared in analysis.primary.contrasts if compared.variance for loss in compared.variance.outlying
    )
    # Without a reference the pairs may leave out losses that are not listed here.
    pooled = "" if len(scores.losses) < 3 else f"pooled over {'all' if analysis.reference else 'the'} losses"
    same = "for all"
    if apart and analysis.reference not in apart:  # with it every interval is one of its own
        whose = "whose variance is" if len(apart) == 1 else "whose variances are"
        pooled += f" but {in_words(list(apart))}, {whose} estimated separately"
        same = "for the others"
    notes = []
    if analysis.folds > 1 and analysis.seeds == 1:
        notes.append(
            f"One seed in each of {analysis.folds} folds: the effect of retraining is estimated from the differences "
            f"between the folds' means{f', {pooled}' if pooled else ''}; more seeds would estimate it better."
        )
    elif analysis.seeds < 5 and analysis.folds * (analysis.seeds - 1) < 4:
        notes.append(
            f"{analysis.trainings} runs per loss show little of the effect of retraining. "
            + (f"It is {pooled}, as if it were the same {same}, and the" if pooled else "The")
            + " intervals are wide because of it."
        )
    if not scores.balanced:
        notes.append(
            f"Not every {analysis.unit} has all runs: the mean of the available ones replaces the missing ones, which "
            "understates the effect of retraining."
        )
    return notes
