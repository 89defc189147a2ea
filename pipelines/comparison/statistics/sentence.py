"""The verdict in one sentence, from the numbers alone."""

from pipelines.comparison.statistics.metrics import METRICS, Metric
from pipelines.comparison.statistics.paired import ALPHA, BETTER, EQUIVALENT, UNDECIDED, WORSE, Comparison
from pipelines.comparison.statistics.results import MetricAnalysis


def verdict_sentence(analysis: MetricAnalysis, reference: str | None, trainings: int, margin: float) -> str:
    """What the comparison says, with how many cases and trainings it says it.

    Args:
        analysis: of the primary measure.
        reference: the loss compared with, if any.
        trainings: seeds.
        margin: of equivalence.
    """
    metric = METRICS[analysis.metric]
    told = "one training" if trainings == 1 else f"{trainings} trainings"
    patients = f"{analysis.patients} patient{'' if analysis.patients == 1 else 's'}"
    start = f"On {patients}, {told} a loss"
    needed = analysis.reach.least_cases_pairs if reference is None else analysis.reach.least_cases or 0
    if analysis.patients < needed:
        best = analysis.ranking[0]
        among = "pairs" if reference is None else f"comparisons with {reference}"
        return (
            f"Too few cases to tell: with {patients} no difference, however large, could be significant among the "
            f"{among} (at least {needed} are needed); the highest-ranked here is {best.loss}, mean {metric.label} "
            f"{metric.shown(best.mean)}."
        )
    if reference is None:
        return f"{start}: {_leader(analysis, metric)}."
    words = {
        word: [comparison for comparison in analysis.comparisons if comparison.verdict == word]
        for word in (BETTER, EQUIVALENT, UNDECIDED, WORSE)
    }
    rest = [
        f"{_names(words[EQUIVALENT])} equivalent to it within {metric.shown(margin)}" if words[EQUIVALENT] else "",
        f"{_names(words[WORSE])} worse" if words[WORSE] else "",
        f"{_names(words[UNDECIDED])} undecided" if words[UNDECIDED] else "",
    ]
    if words[BETTER]:
        first, *others = words[BETTER]
        rest.insert(0, f"so {_were(others)} {_names(others)}{_apart(analysis, first, others)}" if others else "")
        told = f"{first.loss} was better than the reference {reference} in {metric.label}, by {_size(first, metric)}"
    else:
        told = f"no loss was shown to be better than the reference {reference} in {metric.label}"
    return f"{start}: {'; '.join([told, *filter(None, rest)])}."


def _leader(analysis: MetricAnalysis, metric: Metric) -> str:
    best = analysis.ranking[0]
    matrix = analysis.omnibus
    row = matrix.p_holm[matrix.losses.index(best.loss)]
    alike = [name for name, p in zip(matrix.losses, row, strict=True) if p > ALPHA and name != best.loss]
    told = f"{best.loss} had the best mean {metric.label}, {metric.shown(best.mean)}"
    if not alike:
        return f"{told}, and differed significantly from every other loss"
    return f"{told}, without a significant difference from {_list(alike)}"


def _size(comparison: Comparison, metric: Metric) -> str:
    told = metric.shown(comparison.difference, signed=True)
    p = "< 0.0001" if comparison.p_holm < 1e-4 else f"= {comparison.p_holm:.2g}"
    if comparison.interval is None:
        return f"{told} (Holm's p {p})"
    low, high = (metric.shown(bound, signed=True) for bound in comparison.interval)
    return f"{told} (95 % interval {low} to {high}, Holm's p {p})"


def _apart(analysis: MetricAnalysis, first: Comparison, others: list[Comparison]) -> str:
    """Whether the first is shown to differ from the other better ones: being first among them is often chance."""
    matrix = analysis.omnibus
    row = matrix.p_holm[matrix.losses.index(first.loss)]
    alike = [own.loss for own in others if row[matrix.losses.index(own.loss)] > ALPHA]
    if not alike:
        return ""
    if len(alike) == len(others):
        return ", and which of them is best is open"
    return f" ({_list(alike) if len(alike) < 4 else f'{len(alike)} of them'} not told apart from it)"


def _were(comparisons: list[Comparison]) -> str:
    return "was" if len(comparisons) == 1 else "were"


def _names(comparisons: list[Comparison]) -> str:
    return _list([comparison.loss for comparison in comparisons])


def _list(names: list[str], at_most: int = 6) -> str:
    if len(names) > at_most:
        return f"{', '.join(names[: at_most - 1])} and {len(names) - at_most + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
