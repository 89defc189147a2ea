"""The answer in plain words: two sentences, how sure they are, and what could change them."""

from dataclasses import replace
from typing import TYPE_CHECKING

from pipelines.statistics.influence import Influence
from pipelines.statistics.mean_difference import ALPHA
from pipelines.statistics.paired import BETTER, EQUIVALENT, NON_INFERIOR, UNDECIDED, WORSE, Comparison
from pipelines.statistics.results import Analysis, cases_needed
from pipelines.statistics.scores import Unlearned
from pipelines.utils.text import counted, in_words

if TYPE_CHECKING:
    from pipelines.evaluation.metrics.base import Metric

#: Differences of less than this share of their standard deviation would need over 200,000 cases, which nobody has.
_LEAST_EFFECT = 0.01


def summary(analysis: Analysis) -> tuple[str, str]:
    """Two sentences for everybody: which loss, by how much, on how many cases; and how sure that is."""
    answer, certainty = _of_primary(analysis)
    return answer + _elsewhere(analysis), certainty


def _of_primary(analysis: Analysis) -> tuple[str, str]:
    """The two sentences by the primary metric, the first of several."""
    primary = analysis.primary
    if primary.patients < primary.reach.least_cases:
        return (
            f"With only {counted(primary.patients, analysis.unit)}, no difference between losses can be shown; "
            f"{best_mean(analysis)}, which may be chance.",
            f"No difference, however large, can be significant below {primary.reach.least_cases} {analysis.unit}s.",
        )
    if analysis.base is None:
        return _of_many(analysis)
    better = [compared for compared in primary.contrasts if compared.verdict == BETTER]
    if better:
        # Those whose advantage may matter come first; both lists are in the order of the ranking.
        better.sort(key=lambda compared: compared.within_margin)
        return _of_better(analysis, better)
    if analysis.reference is None:
        return _of_undecided_pair(analysis, primary.contrasts[0])
    if analysis.several is not None:
        return (
            f"In {analysis.metric.label}, the first of {len(analysis.several.analyses)} primary metrics, no loss was "
            f"shown to be better than the reference {analysis.reference} on {_cases(analysis)}; {_first(analysis)}.",
            f"In {analysis.metric.label}: {_counts(analysis)}",
        )
    return (
        f"No loss was shown to be better than the reference {analysis.reference} on {_cases(analysis)}, so these "
        f"results give no reason to replace it; {_first(analysis)}.",
        _counts(analysis),
    )


def _first(analysis: Analysis) -> str:
    """Which loss had the best mean, where none was shown to be better than the reference."""
    primary = analysis.primary
    first = [ranked.loss for ranked in primary.ranking if ranked.rank == primary.ranking[0].rank]
    if first == [analysis.reference]:
        mean = analysis.metric.shown(primary.ranking[0].mean)
        return f"it also had the best mean {analysis.metric.label}, {mean}"
    endings = {EQUIVALENT: ", and is equivalent to it", NON_INFERIOR: ", and is not worse"}
    words = [compared.verdict for compared in primary.comparisons if compared.loss == first[0]]
    if len(first) > 1 or words[0] not in endings:
        return f"{best_mean(analysis)}, which may be chance"
    return f"{best_mean(analysis)}{endings[words[0]]}"


def _elsewhere(analysis: Analysis) -> str:
    """What holds in each further primary metric, as one more sentence; empty with one metric."""
    if analysis.several is None:
        return ""
    texts = []
    for name, of_metric in analysis.several.analyses.items():
        if name == analysis.primary.metric:
            continue
        label = analysis.metrics[name].label
        if analysis.base is None:
            as_primary = replace(analysis, primary=of_metric)
            texts.append(f"in {label}, {best_mean(as_primary)}")
            continue
        better = [one.loss for one in of_metric.contrasts if one.verdict == BETTER]
        than = f" than {of_metric.pair_base}" if analysis.reference is None else ""
        if of_metric.patients < of_metric.reach.least_cases:
            texts.append(f"in {label} there are too few {analysis.unit}s")
        elif better:
            texts.append(f"in {label}, {in_words(better, 3)} {'was' if len(better) == 1 else 'were'} better{than}")
        else:
            texts.append(f"in {label}, no loss was shown to be better")
    text = "; ".join(texts)
    return f" {text[0].upper()}{text[1:]}."


def _tests(analysis: Analysis) -> int:
    """The size of the family that p-values are adjusted over."""
    count = len(analysis.primary.contrasts)
    return count if analysis.several is None else max(analysis.several.tests, count * len(analysis.several.analyses))


def _cases(analysis: Analysis) -> str:
    return counted(analysis.primary.patients, analysis.unit)


def best_mean(analysis: Analysis) -> str:
    """The best mean, and all losses that share it, as a clause."""
    first = analysis.primary.ranking[0]
    tied = [ranked.loss for ranked in analysis.primary.ranking if ranked.rank == first.rank]
    subject = f"{in_words(tied)} share" if len(tied) > 1 else f"{first.loss} had"
    return f"{subject} the best mean {analysis.metric.label}, {analysis.metric.shown(first.mean)}"


def _of_better(analysis: Analysis, better: list[Comparison]) -> tuple[str, str]:
    metric, (first, *others) = analysis.metric, better
    base = f"the reference {analysis.base}" if analysis.reference else str(analysis.base)
    also = f"; so did {in_words([other.loss for other in others], 3)}" if others else ""
    mean = next(ranked.mean for ranked in analysis.primary.ranking if ranked.loss == first.loss)
    answer = f"{first.loss} scored better than {base}: its mean {metric.label} over {_cases(analysis)}, "
    answer += f"{metric.shown(mean)}, is {_size(first, metric)}{also}."
    if first.within_margin:
        return answer, (
            f"The difference is unlikely to be chance ({_p(analysis, first)}), but smaller than the margin of "
            f"{metric.shown(analysis.margin)}, so it is too small to matter."
        )
    limit = "with one run per loss, another seed could change it"
    if analysis.trainings > 1:
        limit = f"{_runs(analysis)} per loss show only in part what another training would change"
    return answer, f"A difference of this size is unlikely to be chance ({_p(analysis, first)}), but {limit}."


def _of_undecided_pair(analysis: Analysis, pair: Comparison) -> tuple[str, str]:
    metric = analysis.metric
    means = {ranked.loss: metric.shown(ranked.mean) for ranked in analysis.primary.ranking}
    low, high = pair.interval or (pair.difference, pair.difference)
    return (
        f"{pair.loss} and {analysis.base} did not differ significantly on {_cases(analysis)}: their mean "
        f"{metric.label} was {means[pair.loss]} and {means[str(analysis.base)]}, which is {_size(pair, metric)}.",
        f"This does not show that they are equal: true differences from {metric.shown(low, signed=True)} to "
        f"{metric.shown(high, signed=True)} agree with these {analysis.unit}s.",
    )


def _of_many(analysis: Analysis) -> tuple[str, str]:
    pairs, first = analysis.primary.omnibus, analysis.primary.ranking[0].loss
    p = dict(zip(pairs.losses, pairs.p_adjusted[pairs.losses.index(first)], strict=True))
    alike = [loss for loss in pairs.losses if loss != first and p[loss] > ALPHA]
    start = f"{best_mean(analysis)}, on {_cases(analysis)}"
    if alike:
        return (
            f"{start}, but was not significantly better than {in_words(alike, 4)}.",
            f"Which of these {counted(len(alike) + 1, 'loss')} is best remains open; no reference was named to compare "
            "them with.",
        )
    largest = _number(max(value for loss, value in p.items() if loss != first))
    limit = "; with one run per loss, another seed could change them" if analysis.trainings == 1 else ""
    return (
        f"{start}, and was significantly better than every other loss.",
        f"Such differences are unlikely to be chance (adjusted p at most {largest}, over all pairs){limit}.",
    )


def _counts(analysis: Analysis) -> str:
    """How many of the other losses are equivalent, worse and undecided."""
    verdicts = [compared.verdict for compared in analysis.primary.comparisons]
    texts = {
        EQUIVALENT: f"equivalent to it within {analysis.metric.shown(analysis.margin)}",
        NON_INFERIOR: f"not worse than it by more than {analysis.metric.shown(analysis.margin)}",
        WORSE: "worse",
        UNDECIDED: "undecided, which does not mean equal",
    }
    counts = [(verdicts.count(verdict), text) for verdict, text in texts.items() if verdict in verdicts]
    if len(verdicts) == 1:
        return f"The other loss, {analysis.primary.comparisons[0].loss}, is {counts[0][1]}."
    if len(counts) == 1:
        return f"{'Both' if counts[0][0] == 2 else f'All {counts[0][0]}'} others are {counts[0][1]}."
    clauses = [f"{count} {'is' if count == 1 else 'are'} {text}" for count, text in counts]
    return f"Of the {len(verdicts)} others, {', '.join(clauses[:-1])} and {clauses[-1]}."


def _size(compared: Comparison, metric: "Metric") -> str:
    """`0.0103 higher (95 % interval of the difference +0.0053 to +0.0153)`."""
    direction = "higher" if compared.difference > 0 else "lower"
    text = f"{metric.shown(abs(compared.difference))} {direction}"
    if compared.interval is None:
        return text
    low, high = (metric.shown(bound, signed=True) for bound in compared.interval)
    return f"{text} (95 % interval of the difference {low} to {high})"


def _p(analysis: Analysis, compared: Comparison) -> str:
    tests = _tests(analysis)
    over = f", over all {tests} comparisons" if tests > 1 else ""
    return f"{'adjusted ' if over else ''}p {_number(compared.p_adjusted, equals=True)}{over}"


def _number(p: float, *, equals: bool = False) -> str:
    return "< 0.0001" if p < 1e-4 else f"{'= ' if equals else ''}{p:.2g}"


def _runs(analysis: Analysis) -> str:
    of = f" ({counted(analysis.folds, 'fold')} x {counted(analysis.seeds, 'seed')})" if analysis.folds > 1 else ""
    return "one run" if analysis.trainings == 1 else f"{analysis.trainings} runs{of}"


def sureness(analysis: Analysis) -> str:
    """How sure the words of the comparison are."""
    primary = analysis.primary
    if primary.patients < primary.reach.least_cases:
        return f"Not at all: {_cases(analysis)} cannot show a difference."
    size = len(primary.omnibus.losses)
    compared = len(primary.comparisons) or size * (size - 1) // 2
    if analysis.several is not None:
        compared *= len(analysis.several.analyses)
    over = f" over all {compared} comparisons together" if compared > 1 else ""
    more = "" if primary.patients > 20 else f", and may be higher with so few {analysis.unit}s"
    words = "“better” or “worse”" if primary.contrasts else "significant difference"
    runs = "One run per loss: another seed may change the scores, and the intervals do not allow for that."
    if analysis.trainings > 1:
        runs = f"With {_runs(analysis)} per loss, the intervals allow for what another training may change."
    return f"The chance of a false {words} is about 5 %{over}{more}. {runs}"


def next_steps(analysis: Analysis) -> tuple[str, ...]:
    """What could change the answer, one sentence each, with the number of cases that would be needed."""
    primary, metric, unit = analysis.primary, analysis.metric, analysis.unit
    if primary.patients < primary.reach.least_cases:
        return (f"More cases: at least {primary.reach.least_cases} {unit}s before any difference can be significant.",)
    steps = [*unlearned_notes(analysis), *influence_notes(analysis)]
    of = "" if analysis.several is None else f" in {metric.label}"
    undecided = [compared for compared in primary.contrasts if compared.verdict == UNDECIDED]
    if analysis.trainings == 1:
        steps.append("A second seed: nothing here shows what another training of the same loss would change.")
        for compared in undecided[:1]:
            needed = _needed(analysis, compared.difference, compared.sd)
            step = f"More {unit}s: to detect a difference as large as that of {compared.loss} "
            step += f"({metric.shown(compared.difference, signed=True)}{of}) with 80 % power, "
            steps.append(step + (f"about {needed:,} are needed" if needed else "more than 100,000 are needed") + ".")
        detectable, sd = primary.reach.difference_family, primary.reach.sd
        if analysis.reference and detectable is not None and sd and 0 < analysis.margin < detectable:
            needed = _needed(analysis, analysis.margin, sd)
            if needed:
                steps.append(
                    f"For most losses, whose scores vary from {unit} to {unit} by another amount, about {needed:,} "
                    f"{unit}s detect a difference as small as the margin, {metric.shown(analysis.margin)}{of}."
                )
    elif undecided:
        between_runs = [compared.loss for compared in undecided if (runs_share(compared) or 0.0) > 0.5]
        between_cases = [compared.loss for compared in undecided if compared.loss not in between_runs]
        for more, between, names in (
            ("runs (--seeds, --folds)", "runs", between_runs),
            (f"{unit}s", f"{unit}s", between_cases),
        ):
            if names:
                differences = "its difference" if len(names) == 1 else "each of their differences"
                steps.append(
                    f"More {more}: {in_words(names, 3)} remained undecided{of}, and most of the variance of "
                    f"{differences} lies between {between}."
                )
    steps.append("Other data, or other settings such as a learning rate per loss: the answer is about these.")
    return tuple(steps)


#: Sentences on runs that did not find a class, and on cases that a comparison rests on.
_MOST_NAMED = 3


def unlearned_notes(analysis: Analysis) -> tuple[str, ...]:
    """Which runs found a class in none of their cases, one sentence per loss and class."""
    found = analysis.unlearned
    notes = [_unlearned(one) for one in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        more = counted(len(found) - _MOST_NAMED, "further pair")
        notes.append(f"Runs that did not find a class, of {more} of loss and class: unlearned in analysis.json.")
    return tuple(notes)


def _unlearned(found: Unlearned) -> str:
    what = "the foreground" if found.class_name is None else found.class_name
    start = found.loss
    if len(found.runs) == 1 or not found.every:
        runs = [
            " ".join(f"{name} {value}" for name, value in zip(("fold", "seed"), run, strict=True) if value is not None)
            for run in found.runs
        ]
        start = f"{found.loss} {in_words(runs, 5)}".rstrip()
    many = f", in any of the {len(found.runs)} runs whose cases have it" if found.every and len(found.runs) > 1 else ""
    others = "" if found.by_others is None else "; at least one other loss found it there"
    if found.by_others is False:
        others = "; no other loss found it there"
    return f"{start}: {what} was found in none of the {found.cases} cases that have it{many}{others}."


def influence_notes(analysis: Analysis) -> tuple[str, ...]:
    """Which cases with an empty class the differences rest on, one sentence each."""
    found = analysis.influences
    notes = [_influence(analysis, one) for one in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        notes.append(f"More such cases: {len(found) - _MOST_NAMED}, under influences in analysis.json.")
    return tuple(notes)


def _influence(analysis: Analysis, found: Influence) -> str:
    metric, cases = analysis.metrics[found.metric], list(found.cases)
    what = in_words(list(found.classes), 3) if found.classes else "the foreground"
    if len(cases) > 1:
        why = f"Empty references: those of {in_words(cases, 5)} have nothing of {what}; without these cases"
    elif found.reference_empty:
        why = f"One case: the reference of {cases[0]} has nothing of {what}; without this case"
    else:
        why = f"One case: {in_words(list(found.missed_by), 3)} found nothing of {what} in {cases[0]}; without this case"
    before, after = (metric.shown(value, signed=True) for value in (found.difference, found.difference_without))
    change = f"the difference of {found.loss} in {metric.label} would be {after} instead of {before}"
    if found.verdict_without != found.verdict:
        change += f", and the verdict {found.verdict_without} instead of {found.verdict}"
    others = "" if not found.others else f"; {'another loss' if found.others == 1 else f'{found.others} other losses'}"
    others += " would change, too" if found.others else ""
    return f"{why}, {change}{others}."


def _needed(analysis: Analysis, difference: float, sd: float | None) -> int | None:
    """The number of cases that detect a difference; `None` if it is extremely large."""
    if not sd or abs(difference) < _LEAST_EFFECT * sd:
        return None
    tests = _tests(analysis)
    if analysis.several is None:
        needed = cases_needed(difference, sd, comparisons=tests)
    else:  # one family by Holm's correction, which makes no use of correlation
        needed = cases_needed(difference, sd, level=ALPHA / tests)
    return needed if needed <= 100_000 else None


def runs_share(compared: Comparison) -> float | None:
    """The share of a mean difference's variance that lies between runs; `None` with one run per loss."""
    variance = compared.variance
    if variance is None or (variance.retraining, variance.fold) == (None, None):
        return None
    between = (variance.retraining or 0.0) + (variance.fold or 0.0)
    return between / (between + variance.patient) if between + variance.patient > 0 else 0.0
