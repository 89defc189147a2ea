"""The verdict in one sentence, and what the analysis does not cover."""

from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.paired import BETTER, EQUIVALENT, NON_INFERIOR, UNDECIDED, WORSE, Comparison
from pipelines.statistics.results import Analysis, MetricAnalysis
from pipelines.statistics.scores import Scores
from pipelines.statistics.table import CaseTable, MetricInfo

# The verdict in one sentence, from the numbers alone.


def verdict_sentence(analysis: Analysis) -> str:
    """What the comparison shows, with how many cases and trainings it does."""
    primary, reference = analysis.primary, analysis.reference
    metric = analysis.metric
    cases = counted(primary.patients, analysis.unit)
    start = f"On {cases}, {trainings(analysis)} per loss"
    needed = primary.reach.least_cases
    if primary.patients < needed:
        among = "pairs" if reference is None else f"comparisons with {reference}"
        return (
            f"Too few cases to tell: with {cases} no difference, however large, could be significant among the {among} "
            f"(at least {needed} are needed); {_best(primary, metric)}."
        )
    if reference is None:
        return f"{start}: {_leader(primary, metric)}."
    words: dict[str, list[Comparison]] = {}
    for comparison in primary.comparisons:
        words.setdefault(comparison.words, []).append(comparison)
    within = metric.shown(analysis.margin)
    rest = [
        _clause(words, f"{BETTER}, within the margin", f"better, by less than the margin of {within}"),
        _clause(words, EQUIVALENT, f"equivalent to it within {within}"),
        _clause(words, NON_INFERIOR, f"non-inferior to it within {within}"),
        _clause(words, f"{WORSE}, within the margin", f"worse, by less than the margin of {within}"),
        _clause(words, WORSE, "worse"),
        _clause(words, UNDECIDED, "undecided"),
    ]
    if BETTER in words:
        first, *others = words[BETTER]
        if others:
            were = "was" if len(others) == 1 else "were"
            rest.insert(0, f"so {were} {_names(others)}{_apart(primary, first, others)}")
        head = f"{first.loss} was better than the reference {reference} in {metric.label}, by {_size(first, metric)}"
    else:
        relevant = " by more than the margin" if f"{BETTER}, within the margin" in words else ""
        head = f"no loss was shown to be better than the reference {reference} in {metric.label}{relevant}"
    return f"{start}: {'; '.join([head, *filter(None, rest)])}."


def trainings(analysis: Analysis) -> str:
    """How many trainings there are per loss: `one training`, `10 trainings (5 folds x 2 seeds)`."""
    if analysis.trainings == 1:
        return "one training"
    of = f" ({counted(analysis.folds, 'fold')} x {counted(analysis.seeds, 'seed')})" if analysis.folds > 1 else ""
    return f"{analysis.trainings} trainings{of}"


def counted(number: int, noun: str) -> str:
    """A number with its noun, which an s makes several."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(names: list[str], at_most: int = 6) -> str:
    """Names in a row; of many the first."""
    if len(names) > at_most:
        return f"{', '.join(names[: at_most - 1])} and {len(names) - at_most + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _best(primary: MetricAnalysis, metric: MetricInfo) -> str:
    """The best mean, and whose it is: of all that share it."""
    first = primary.ranking[0]
    tied = [ranked.loss for ranked in primary.ranking if ranked.rank == first.rank]
    share = f"{listed(tied)} share" if len(tied) > 1 else f"{first.loss} had"
    return f"{share} the best mean {metric.label}, {metric.shown(first.mean)}"


def _leader(primary: MetricAnalysis, metric: MetricInfo) -> str:
    best = primary.ranking[0]
    if sum(ranked.rank == best.rank for ranked in primary.ranking) > 1:
        return _best(primary, metric)
    matrix = primary.omnibus
    row = matrix.p_adjusted[matrix.losses.index(best.loss)]
    alike = [name for name, p in zip(matrix.losses, row, strict=True) if p > ALPHA and name != best.loss]
    if not alike:
        return f"{_best(primary, metric)}, and was significantly better than every other loss"
    return f"{_best(primary, metric)}, without a significant difference from {listed(alike)}"


def _size(comparison: Comparison, metric: MetricInfo) -> str:
    size = metric.shown(comparison.difference, signed=True)
    p = "< 0.0001" if comparison.p_adjusted < 1e-4 else f"= {comparison.p_adjusted:.2g}"
    if comparison.interval is None:
        return f"{size} (adjusted p {p})"
    low, high = (metric.shown(bound, signed=True) for bound in comparison.interval)
    return f"{size} on average (95 % interval {low} to {high}, adjusted p {p})"


def _apart(primary: MetricAnalysis, first: Comparison, others: list[Comparison]) -> str:
    """Whether the first is shown to differ from the other better ones: being first among them is often chance."""
    matrix = primary.omnibus
    row = matrix.p_adjusted[matrix.losses.index(first.loss)]
    alike = [other.loss for other in others if row[matrix.losses.index(other.loss)] > ALPHA]
    if not alike:
        return ""
    if len(alike) == len(others):
        return ", and which of them is best is open"
    return f" (no significant difference from {listed(alike) if len(alike) < 4 else f'{len(alike)} of them'})"


def _clause(words: dict[str, list[Comparison]], word: str, text: str) -> str:
    return f"{_names(words[word])} {text}" if word in words else ""


def _names(comparisons: list[Comparison]) -> str:
    return listed([comparison.loss for comparison in comparisons])


# What an analysis does not cover, in words.

#: Below so many patients intervals and p-values are shaky.
FEW = 50
#: What no table can tell, of any comparison.
NOT_CONTROLLED = (
    "Folds share training data, so the networks of different folds are not independent; the tests take patients, and "
    "trainings, as independent.",
    "A checkpoint chosen by the reported cases makes its score too good; the tests do not see how it was chosen.",
    "The best of many losses, chosen and measured on the same cases, looks better than it is: expect less on new ones.",
    "One learning rate and schedule for all losses is a confound: a loss may do better with settings of its own.",
    "Nothing here says what a loss costs; time and memory stand beside the score.",
    "Patients of one data set stand for patients like them: another scanner or hospital is another question.",
)


def caveats(table: CaseTable, scores: Scores, analysis: Analysis) -> tuple[str, ...]:
    """The caveats of this analysis, the gravest first."""
    return (
        *_of_size(analysis),
        *gap_notes(analysis),
        *_of_trainings(scores, analysis),
        *_of_words(analysis),
        *_of_columns(table, analysis),
    )


def empty_notes(analysis: Analysis) -> list[str]:
    """What counts where the reference has nothing of a class; false alarms, and complete misses, per loss."""
    primary, notes = analysis.primary, []
    metric = analysis.metric
    if primary.empty and metric.empty_reference == "option":
        alarm = f"{metric.lower:g}" if metric.higher_is_better else f"the {_noun(metric)} measured"
        what = {
            "one": f"an empty prediction counts {f'{metric.best:g} {metric.unit}'.rstrip()} there, and a false alarm "
            f"{alarm}",
            "exclude": f"left out for all losses alike, so false alarms there are not in the {metric.label}",
            "worst": "an empty prediction counts as the worst there",
        }[analysis.empty]
        notes.append(
            f"The reference of {counted(len(primary.empty), 'case')} ({listed(list(primary.empty))}) has nothing of a "
            f"class: {what} (--empty {analysis.empty})."
        )
    alarms = [f"{ranked.loss} {ranked.false_alarms}" for ranked in primary.ranking if ranked.false_alarms]
    missed = [f"{ranked.loss} {ranked.missed}" for ranked in primary.ranking if ranked.missed]
    if alarms:
        notes.append(f"False alarms (something found of a class that is not there): {listed(alarms)}.")
    if missed:
        notes.append(f"Complete misses (nothing found of a class that is there): {listed(missed)}.")
    return notes


def gap_notes(analysis: Analysis) -> list[str]:
    """What has no result and how it counts, per loss; what `empty_notes` says; and the cases that are left out."""
    primary = analysis.primary
    metric = analysis.metric
    worst = f"the largest {_noun(metric)} in the table, which may understate it"
    if metric.higher_is_better or metric.bounded:
        worst = f"{metric.worst(metric.upper):g}"
    ranking = sorted(primary.ranking, key=lambda ranked: ranked.loss)
    notes = [
        f"{ranked.loss}: no result of {counted(len(ranked.lacking), 'case')} ({listed(list(ranked.lacking))}); counted "
        f"as the worst, {worst}."
        for ranked in ranking
        if ranked.lacking
    ]
    notes += [
        f"{ranked.loss}: {counted(ranked.failed, 'failed prediction')}, counted as the worst, {worst}."
        for ranked in ranking
        if ranked.failed
    ]
    notes += empty_notes(analysis)
    others = [case for case in primary.excluded if case not in primary.empty or metric.empty_reference == "left out"]
    if others:
        notes.append(
            f"{counted(len(others), 'case')} ({listed(others)}) left out, or a class of theirs, for all losses alike: "
            f"{metric.label} has no meaning there, or no loss has a value."
        )
    return notes


def _noun(metric: MetricInfo) -> str:
    return "distance" if metric.unit == "mm" else "value"


def _of_size(analysis: Analysis) -> list[str]:
    primary, unit = analysis.primary, analysis.unit
    n, least = primary.patients, primary.reach.least_cases
    notes = []
    if n < least:
        notes.append(
            f"Too few cases to tell: no difference can be significant below {least} {unit}s, and there are {n}. Every "
            "verdict is therefore undecided."
        )
    if n < FEW:
        skewed = ", and skewed differences make false words more likely than 5 %" if n < 20 else ""
        notes.append(
            f"{counted(n, unit)} are few (under {FEW}): intervals and p-values are rough, small differences go "
            f"unseen{skewed}."
        )
    return notes


def _of_trainings(scores: Scores, analysis: Analysis) -> list[str]:
    if analysis.trainings == 1:
        return [
            "One training per loss: intervals, tests and ranks do not cover what another seed would change; they are "
            "about these networks, and about the losses only as far as retraining changes little."
        ]
    notes = []
    if analysis.folds > 1 and analysis.seeds == 1:
        notes.append(
            f"One seed in each of {analysis.folds} folds: what retraining changes is estimated from how the folds' "
            "means differ, over all losses together; more seeds would show it better."
        )
    elif analysis.seeds < 5 and analysis.folds * (analysis.seeds - 1) < 4:
        notes.append(
            f"{analysis.trainings} trainings per loss show little of what retraining changes; it is estimated over all "
            "losses together, as if it changed all alike, and the intervals are wide for it."
        )
    if not scores.balanced:
        notes.append(
            f"Not every {analysis.unit} has all trainings: the mean of those it has stands for the others, which "
            "understates what retraining changes."
        )
    return notes


def _of_words(analysis: Analysis) -> list[str]:
    primary, unit = analysis.primary, analysis.unit
    sign = analysis.metric.sign
    notes = []
    alike = [own.loss for own in primary.comparisons if own.verdict in (EQUIVALENT, NON_INFERIOR)]
    if alike:
        n = primary.patients
        notes.append(
            f"{listed(alike)}: {'non-inferior' if analysis.non_inferior else 'equivalent'} on average. What none of "
            f"{counted(n, unit)} showed, a collapse for example, may still happen in up to {min(1.0, 3 / n):.0%} of "
            f"{unit}s (3/n)."
        )
    notes += [
        f"{own.loss}: the mean and the ranks point opposite ways (few large differences one way, many small ones the "
        "other); the word is about the mean."
        for own in primary.comparisons
        if min(own.p_adjusted, own.p_ranks) <= ALPHA and own.effect * sign * own.difference < 0
    ]
    return notes


def _of_columns(table: CaseTable, analysis: Analysis) -> list[str]:
    notes = []
    if analysis.unit == "case":
        notes.append(
            "No patient is known by another name than its case: every case counts as independent; several of one "
            "patient would count too much."
        )
    if analysis.folds > 1:
        notes.append("The cases are from several folds, whose networks share training data: they are not independent.")
    if len(table.losses) > 2:
        notes.append("The best of several, chosen and measured on the same cases, looks better than it is.")
    if analysis.secondary or analysis.classes:
        notes.append(
            "Other measures and single classes are secondary: p is adjusted for the losses within each, not for all of "
            "them, so some small p-values there are chance. The margin of equivalence is of the primary measure alone."
        )
    return notes
