"""What the curves of runs say against their scores: the optimizer stood still, or the metric was still improving."""

import math
import statistics
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pipelines.evaluation.metrics import METRICS
from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.plan import Plan, PlannedRun

# Runs whose optimizer stood still: such a run's score says little about its loss.

#: A run stands still below this share of the reference's ratio of update to weights, per epoch, fold and seed.
_SHARE = 0.01


@dataclass(frozen=True)
class StoodStill:
    """A run whose optimizer steps were far smaller than the reference's, and in which epochs, from 1."""

    run: PlannedRun
    epochs: tuple[int, ...]

    @property
    def when(self) -> str:
        """`epoch 3`, `epochs 2, 6 to 20`."""
        first = [epoch for epoch in self.epochs if epoch - 1 not in self.epochs]
        last = [epoch for epoch in self.epochs if epoch + 1 not in self.epochs]
        text = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in zip(first, last, strict=True))
        return f"epoch{'' if len(self.epochs) == 1 else 's'} {text}"


def stood_still(folder: Path, plan: Plan) -> tuple[StoodStill, ...]:
    """The runs of a comparison that stood still, so far.

    A run is compared with the reference's of the same fold and seed, epoch by epoch; in a plan without a reference,
    with the median over the losses. Runs of an earlier version, and nnU-Net's, have no ratio and are left out.
    """
    relative = _relative(folder, plan)
    found = ((run, tuple(epoch for epoch, share in relative[run.id].items() if share < _SHARE)) for run in plan.runs)
    return tuple(StoodStill(run, epochs) for run, epochs in found if epochs)


def relative_steps(folder: Path, plan: Plan) -> dict[str, float]:
    """Loss -> the median, over its runs and epochs, of its ratio of update to weights over the reference's."""
    relative = _relative(folder, plan)
    shares: dict[str, list[float]] = {loss: [] for loss in plan.losses}
    for run in plan.runs:
        shares[run.config.loss] += relative[run.id].values()
    return {loss: statistics.median(values) for loss, values in shares.items() if values}


def stood_still_notes(plan: Plan, found: tuple[StoodStill, ...]) -> tuple[str, ...]:
    """A sentence per run that stood still."""
    norm = f"that of {plan.reference}" if plan.has_reference else "the median of the losses"
    return tuple(
        f"{still.run.title}: the optimizer stood still in {still.when}: its ratio of update to weights "
        f"(train/update_ratio) was below a hundredth of {norm}. The scores say little about the loss; try another "
        "learning rate (--tune-lr, --loss-lr)."
        for still in found
    )


def _relative(folder: Path, plan: Plan) -> dict[str, dict[int, float]]:
    """Run id -> epoch -> ratio of update to weights over the reference's."""
    ratios = {run.id: _ratios(folder, run) for run in plan.runs}
    found: dict[str, dict[int, float]] = {run.id: {} for run in plan.runs}
    for run in plan.runs:
        same = [
            peer for peer in plan.runs if (peer.config.fold, peer.config.seed) == (run.config.fold, run.config.seed)
        ]
        peers = [peer.id for peer in same if not plan.has_reference or peer.config.loss == plan.reference]
        for epoch, ratio in ratios[run.id].items():
            known = [ratios[peer][epoch] for peer in peers if epoch in ratios[peer]]
            if known and (norm := statistics.median(known)) > 0:
                found[run.id][epoch] = ratio / norm
    return found


def _ratios(folder: Path, run: PlannedRun) -> dict[int, float]:
    rows = _rows(folder, run)
    return {int(row["epoch"]): ratio for row in rows if math.isfinite(ratio := row.get("update_ratio", math.nan))}


# Losses whose metric was still improving: with more epochs their place may change.

#: The gain is that from the last validation before this share of the epochs on.
_EARLIER = 0.75
#: A gain of this share of the last value counts, too, though below the margin: so do losses that have hardly begun.
_RELATIVE = 0.05


def still_improving(folder: Path, plan: Plan) -> dict[str, float]:
    """Loss -> gain of the primary metric towards the end of its finished runs, where it is large.

    Large is more than the plan's margin, or, where higher is better, than a twentieth of the last value, which a low
    score reaches sooner.
    The gain is the mean over runs of the rise of a line through the validations of the last quarter of the epochs and
    the one before, with the sign that makes a better score positive. Its slope is the median of those between any two
    validations (Theil 1950, Sen 1968), so that no single one decides where there are many; of two it is their
    difference. Runs that were validated less often are left out.
    """
    sign = METRICS[plan.metric].sign
    gains: dict[str, list[float]] = {loss: [] for loss in plan.losses}
    last: dict[str, list[float]] = {loss: [] for loss in plan.losses}
    for run in plan.runs:
        result = run_folder(folder, run).result
        if result is None or result["state"] != "done":
            continue
        values = {int(row["epoch"]): row[f"val_{plan.metric}"] for row in _rows(folder, run) if _validated(row, plan)}
        earlier = [epoch for epoch in values if epoch <= _EARLIER * run.config.epochs]
        if earlier and max(values) > max(earlier):
            late = [epoch for epoch in values if epoch >= max(earlier)]
            slope = statistics.median((values[b] - values[a]) / (b - a) for a, b in combinations(late, 2))
            gains[run.config.loss].append(sign * slope * (max(late) - min(late)))
            last[run.config.loss].append(values[max(values)])
    means = {loss: statistics.fmean(found) for loss, found in gains.items() if found}
    least = dict.fromkeys(means, plan.margin)
    if sign > 0:
        least = {loss: min(plan.margin, _RELATIVE * abs(statistics.fmean(last[loss]))) for loss in means}
    return {loss: gain for loss, gain in means.items() if gain > least[loss]}


def still_improving_note(plan: Plan, gains: dict[str, float]) -> tuple[str, ...]:
    """One sentence, if there are such losses."""
    if not gains:
        return ()
    metric = METRICS[plan.metric]
    listed = ", ".join(f"{loss} {metric.shown(gain)}" for loss, gain in sorted(gains.items(), key=lambda one: -one[1]))
    share = " or 5 % of the last value" if metric.sign > 0 else ""
    return (
        f"Still improving: over the last quarter of the epochs, a line through the validations of each run improves in "
        f"{metric.label}, on average, by more than the margin of {metric.shown(plan.margin)}{share}: "
        f"{listed}. With more epochs the place of these losses may change.",
    )


def _validated(row: dict[str, float], plan: Plan) -> bool:
    return math.isfinite(row.get(f"val_{plan.metric}", math.nan))


def _rows(folder: Path, run: PlannedRun) -> list[dict[str, float]]:
    try:
        return run_folder(folder, run).epochs
    except (ValueError, TypeError):
        return []  # damaged; what needs the file reports that
