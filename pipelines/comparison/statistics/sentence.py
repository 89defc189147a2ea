"""The verdict in one sentence, from the numbers alone."""

from pipelines.comparison.statistics.inference import ALPHA
from pipelines.comparison.statistics.metrics import MetricInfo
from pipelines.comparison.statistics.paired import BETTER, EQUIVALENT, NON_INFERIOR, UNDECIDED, WORSE, Comparison
from pipelines.comparison.statistics.results import Analysis, MetricAnalysis


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
