"""What an analysis does not cover, in words."""

from pipelines.comparison.statistics.metrics import METRICS
from pipelines.comparison.statistics.paired import ALPHA, UNDECIDED
from pipelines.comparison.statistics.results import MetricAnalysis
from pipelines.comparison.statistics.scores import Scores
from pipelines.comparison.statistics.table import CaseTable

#: Below so many patients intervals and p-values are shaky.
FEW = 50
#: What no table can tell, of any comparison.
NOT_CONTROLLED = (
    "Folds share training data, so the networks of different folds are not independent; the tests take patients as "
    "independent.",
    "A checkpoint chosen by the reported cases makes its score too good; the tests do not see how it was chosen.",
    "The best of many losses, chosen and measured on the same cases, looks better than it is: expect less on new ones.",
    "One learning rate and schedule for all losses is a confound: a loss may do better with settings of its own.",
    "Nothing here says what a loss costs; time and memory stand beside the score.",
    "Patients of one data set stand for patients like them: another scanner or hospital is another question.",
)


def caveats(
    table: CaseTable,
    scores: Scores,
    primary: MetricAnalysis,
    classes: dict[str, MetricAnalysis],
    secondary: dict[str, MetricAnalysis],
) -> tuple[str, ...]:
    """The caveats of this analysis, the gravest first."""
    return (
        *_of_size(primary),
        *_of_trainings(scores),
        *_of_gaps(scores),
        *_of_disagreement(primary),
        *_of_columns(table, classes, secondary),
    )


def _of_size(primary: MetricAnalysis) -> list[str]:
    told = []
    n, reach = primary.patients, primary.reach
    if reach.least_cases is not None and n < reach.least_cases:
        told.append(
            f"Too few cases to tell: {_count(len(primary.comparisons), 'comparison')} with the reference cannot be "
            f"significant below {reach.least_cases} patients, and there are {n}. Every verdict is therefore undecided."
        )
    if n < reach.least_cases_pairs:
        pairs = len(primary.ranking) * (len(primary.ranking) - 1) // 2
        told.append(
            f"All {_count(pairs, 'pair')} together cannot be significant below {reach.least_cases_pairs} patients."
        )
    if n < FEW:
        told.append(
            f"{n} patients are few (under {FEW}): intervals and p-values are rough, small differences go unseen."
        )
    return told


def _of_trainings(scores: Scores) -> list[str]:
    seeds = scores.values.shape[-1]
    if seeds == 1:
        return [
            "One training a loss: intervals, tests and ranks do not cover what another seed would change; they speak "
            "of these networks, and of the losses only as far as retraining changes little."
        ]
    told = []
    if seeds < 5:
        told.append(f"{seeds} trainings a loss say little of how much seeds differ: the intervals are wide for it.")
    if not scores.balanced:
        told.append(
            "Not every patient has all seeds: the mean of those it has stands for the others, which understates what "
            "retraining changes."
        )
    return told


def _of_gaps(scores: Scores) -> list[str]:
    worst = "0" if scores.metric.higher_is_better else "the largest distance in the table, which may understate it"
    told = [
        f"{loss}: no result of {_count(len(cases), 'case')} ({_some(cases)}); counted as the worst, {worst}."
        for loss, cases in scores.lacking.items()
    ]
    told += [
        f"{loss}: {_count(count, 'failed prediction')}, counted as the worst, {worst}."
        for loss, count in scores.failed.items()
    ]
    if scores.excluded:
        told.append(
            f"{_count(len(scores.excluded), 'case')} ({_some(scores.excluded)}) left out, or a class of theirs, for "
            f"all losses alike: {scores.metric.label} has no meaning where reference and prediction are empty. False "
            "alarms there are not in it; specificity shows them."
        )
    return told


def _of_disagreement(primary: MetricAnalysis) -> list[str]:
    sign = METRICS[primary.metric].sign
    return [
        f"{own.loss}: the mean and the ranks disagree on its direction against the reference (few large differences "
        "one way, many small ones the other): undecided."
        for own in primary.comparisons
        if own.p_holm <= ALPHA and own.effect * sign * own.difference <= 0 and own.verdict == UNDECIDED
    ]


def _of_columns(
    table: CaseTable, classes: dict[str, MetricAnalysis], secondary: dict[str, MetricAnalysis]
) -> list[str]:
    told = []
    if "patient" not in table.given:
        told.append(
            "No column patient: every case counts as a patient of its own; several of one would count too much."
        )
    if table.frame["fold"].nunique() > 1:
        told.append("The cases are from several folds, whose networks share training data: they are not independent.")
    if len(table.losses) > 2:
        told.append("The best of several, chosen and measured on the same cases, looks better than it is.")
    if secondary or classes:
        told.append(
            "Other measures and single classes are secondary: Holm goes over the losses within each, not over all of "
            "them, so some small p-values there are chance. The margin of equivalence is of the primary measure alone."
        )
    return told


def _some(names: tuple[str, ...], at_most: int = 5) -> str:
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(names[:at_most]) + more


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
