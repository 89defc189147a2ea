"""Runs whose optimizer stood still: such a run's score says little about its loss."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from pipelines.comparison.plan import NO_REFERENCE, Plan, PlannedRun, run_folder

#: Of the reference's ratio of update to weights, in the same epoch, fold and seed.
SHARE = 0.01


@dataclass(frozen=True)
class StoodStill:
    """A run whose steps were far below the reference's.

    Attributes:
        run: the planned run.
        epochs: in which ones, from 1.
    """

    run: PlannedRun
    epochs: tuple[int, ...]

    @property
    def when(self) -> str:
        """`epoch 3`, `epochs 2, 6 to 20`."""
        spans: list[list[int]] = []
        for epoch in self.epochs:
            if spans and epoch == spans[-1][1] + 1:
                spans[-1][1] = epoch
            else:
                spans.append([epoch, epoch])
        text = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)
        return f"epoch{'' if len(self.epochs) == 1 else 's'} {text}"


def stood_still(folder: Path, plan: Plan) -> tuple[StoodStill, ...]:
    """The runs of a comparison that stood still, so far.

    A run is compared with the reference's of the same fold and seed, epoch by epoch; in a plan without a reference,
    with the median over the losses. Runs of an earlier version, and nnU-Net's, have no ratio, and are not judged.

    Args:
        folder: the comparison's.
        plan: its plan.
    """
    relative = _relative(folder, plan)
    found = ((run, tuple(epoch for epoch, share in relative[run.id].items() if share < SHARE)) for run in plan.runs)
    return tuple(StoodStill(run, epochs) for run, epochs in found if epochs)


def relative_steps(folder: Path, plan: Plan) -> dict[str, float]:
    """Loss -> the median, over its runs and epochs, of its ratio of update to weights over the reference's.

    Args:
        folder: the comparison's.
        plan: its plan; without a reference, as in `stood_still`.
    """
    relative = _relative(folder, plan)
    shares: dict[str, list[float]] = {loss: [] for loss in plan.losses}
    for run in plan.runs:
        shares[run.config.loss] += relative[run.id].values()
    return {loss: statistics.median(values) for loss, values in shares.items() if values}


def stood_still_notes(plan: Plan, found: tuple[StoodStill, ...]) -> tuple[str, ...]:
    """A sentence per run that stood still."""
    named = plan.reference not in (None, NO_REFERENCE)
    norm = f"that of {plan.reference}" if named else "the median of the losses"
    return tuple(
        f"{still.run.title}: the optimizer stood still in {still.when}: its ratio of update to weights "
        f"(train/update_ratio) was below a hundredth of {norm}. The scores say little about the loss; try another "
        "learning rate (--tune-lr, --loss-lr)."
        for still in found
    )


def _relative(folder: Path, plan: Plan) -> dict[str, dict[int, float]]:
    """Of each run, epoch by epoch, the ratio over the reference's."""
    ratios = {run.id: _ratios(folder, run) for run in plan.runs}
    found: dict[str, dict[int, float]] = {}
    for run in plan.runs:
        peers = [other for other in plan.runs if _block(other) == _block(run)]
        if plan.reference not in (None, NO_REFERENCE):
            peers = [other for other in peers if other.config.loss == plan.reference]
        found[run.id] = {}
        for epoch, ratio in ratios[run.id].items():
            known = [ratios[other.id][epoch] for other in peers if epoch in ratios[other.id]]
            if known and (norm := statistics.median(known)) > 0:
                found[run.id][epoch] = ratio / norm
    return found


def _ratios(folder: Path, run: PlannedRun) -> dict[int, float]:
    try:
        rows = run_folder(folder, run).epochs
    except (ValueError, TypeError):
        return {}  # damaged; whoever needs the file reports that
    ratios = {int(row["epoch"]): row.get("update_ratio", math.nan) for row in rows}
    return {epoch: ratio for epoch, ratio in ratios.items() if math.isfinite(ratio)}


def _block(run: PlannedRun) -> tuple[int, int]:
    return run.config.fold, run.config.seed
