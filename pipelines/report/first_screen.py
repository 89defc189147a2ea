"""What the first screen says next to the verdict: how sure it is, on what evidence, at what cost."""

import math

from pipelines.report.collect import Collected, Cost
from pipelines.statistics.plain_summary import next_steps, sureness
from pipelines.statistics.results import Analysis
from pipelines.utils.text import counted, duration, in_words

#: A run that reports nothing for longer, between two epochs, did not run: an epoch ends with a checkpoint.
_PAUSE_S = 60.0
#: A heading and its sentences.
Fact = tuple[str, tuple[str, ...]]


def first_facts(analysis: Analysis, collected: Collected) -> tuple[Fact, ...]:
    """The facts of the first screen."""
    return (
        ("How sure", (sureness(analysis),)),
        ("On what", _evidence(analysis)),
        ("Complete misses", (_misses(analysis),)),
        *_false_alarms(analysis),
        ("Cost", _cost(analysis, collected)),
        ("What could change the answer", (*_more_epochs(collected), *next_steps(analysis))),
    )


def _more_epochs(collected: Collected) -> tuple[str, ...]:
    """Whether losses were still improving, which more cases cannot make up for."""
    if not collected.improving:
        return ()
    names = in_words(list(collected.improving), 3)
    were = "was" if len(collected.improving) == 1 else "were"
    return (f"More epochs: {names} {were} still improving at the end, so the order is that of unfinished training.",)


def _evidence(analysis: Analysis) -> tuple[str, ...]:
    analyses = {analysis.primary.metric: analysis.primary} if analysis.several is None else analysis.several.analyses
    sizes = {of_metric.patients for of_metric in analyses.values()}
    patients = counted(analysis.primary.patients, analysis.unit)
    if len(sizes) > 1:
        patients = ", ".join(f"{counted(one.patients, analysis.unit)} in {analysis.metrics[name].label}"
                             for name, one in analyses.items())  # fmt: skip
    cases = f"{patients}, {counted(analysis.trainings, 'run')} per loss."
    detectable = []
    for name, of_metric in analyses.items():
        reach = of_metric.reach
        least = reach.difference if len(of_metric.contrasts) == 1 and len(analyses) == 1 else reach.difference_family
        if least is not None:
            metric = analysis.metrics[name]
            detectable.append(metric.shown(least) + (f" in {metric.label}" if len(analyses) > 1 else ""))
    if not detectable:
        return (cases,)
    return (
        cases,
        f"Most losses have to differ by {in_words(detectable)} to be found with 80 % power, those whose scores vary "
        "less by less.",
    )


def _misses(analysis: Analysis) -> str:
    """Complete misses, failed and missing predictions, per loss."""
    ranking = analysis.primary.ranking
    missed = _per_loss({ranked.loss: ranked.missed for ranked in ranking})
    failed = _per_loss({ranked.loss: ranked.failed + len(ranked.lacking) for ranked in ranking})
    text = "No loss missed a class completely."
    if missed:
        text = f"{missed} Each is a class of a case of which nothing was found."
    return f"{text} Failed or missing predictions: {failed}" if failed else text


def _false_alarms(analysis: Analysis) -> tuple[Fact, ...]:
    """False alarms per loss; nothing where every reference has every class."""
    if not analysis.primary.empty:
        return ()
    alarms = _per_loss({ranked.loss: ranked.false_alarms for ranked in analysis.primary.ranking})
    text = f"{alarms} Each is a class of a case that was predicted although the reference has none of it."
    return (("False alarms", (text if alarms else "No loss predicted a class where the reference has none of it.",)),)


def _per_loss(counts: dict[str, int]) -> str:
    """`a 4 and b 1; none with the other 2 losses.`, the highest count first; empty if all are 0."""
    found = sorted(((count, loss) for loss, count in counts.items() if count), key=lambda pair: -pair[0])
    if not found:
        return ""
    others = len(counts) - len(found)
    rest = f"; none with {'the other' if others > 1 else 'the other loss'}" if others else ""
    rest += f" {counted(others, 'loss')}" if others > 1 else ""
    return f"{in_words([f'{loss} {count}' for count, loss in found], 5)}{rest}."


def _cost(analysis: Analysis, collected: Collected) -> tuple[str, ...]:
    """Time and memory of the loss that the verdict is about, next to those of the reference."""
    costs = {loss: cost for loss, cost in collected.costs.items() if cost.epoch_s is not None}
    if not costs:
        return ("Not recorded: the table has scores only.",)
    first = next(
        (c.loss for c in analysis.primary.contrasts if c.verdict == "better"), analysis.primary.ranking[0].loss
    )
    named = [loss for loss in dict.fromkeys((first, analysis.base)) if loss in costs]
    lines = [f"{loss}: {_of_one(costs[loss])}." for loss in named if loss is not None]
    times = [cost.epoch_s for cost in costs.values() if cost.epoch_s is not None]
    if len(times) > len(named):
        low, high = _seconds(min(times)), _seconds(max(times))
        lines.append(f"All losses: {low if low == high else f'{low} to {high}'} per epoch.")
    if total := sum(cost.seconds or 0.0 for cost in costs.values()):
        runs = sum(cost.runs for cost in costs.values())
        added = "" if runs == 1 else " added up: less on the clock where several ran at a time"
        if runs > 1 and (clock := _on_the_clock(collected)) is not None:
            seconds, most = clock
            added = " added up" + (
                ", one run at a time" if most == 1 else f", {duration(seconds)} on the clock: up to {most} at a time"
            )
        lines.append(f"{counted(runs, 'run')} took {duration(total)}{added}.")
    return tuple(lines)


def _on_the_clock(collected: Collected) -> tuple[float, int] | None:
    """Seconds during which any of the finished runs trained or validated, and the most of them at a time.

    None if it is unknown for one of them.
    """
    events: list[tuple[float, int]] = []
    for curve in collected.curves:
        if curve.failed or curve.loss not in collected.costs:
            continue
        if not curve.epochs:
            return None
        begun = ended = math.nan
        for epoch in curve.epochs:
            time, trained, validated = (epoch.get(name, math.nan) for name in ("time", "epoch_s", "val_s"))
            start = time - trained - (0.0 if math.isnan(validated) else validated)
            if math.isnan(start):
                return None
            if start > ended + _PAUSE_S:
                events += [(begun, 1), (ended, -1)]
                begun = start
            begun, ended = start if math.isnan(begun) else begun, time
        events += [(begun, 1), (ended, -1)]
    total, running, most, before = 0.0, 0, 0, 0.0
    # To a tenth: times are rounded, and where a run ends as another begins, the end comes first.
    for time, change in sorted((round(time, 1), change) for time, change in events):
        total += (time - before) * (running > 0)
        before, running = time, running + change
        most = max(most, running)
    return (total, most) if most else None


def _of_one(cost: Cost) -> str:
    memory = "" if cost.peak_mb is None else f", {cost.peak_mb:.0f} MB"
    return f"{_seconds(cost.epoch_s or 0.0)} per epoch{memory}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else duration(seconds)
