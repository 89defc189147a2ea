"""The time and disk that a comparison takes, forecast from a few timed steps and fitted into a budget.

What was asked for is reduced in the order that costs the answer least, and results play no part in it: seeds, folds,
epochs, losses. Epochs that were not asked for are reduced first, at most to half of the recipe's; where time is left,
they fill it.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.comparison.step_timing import Measured
from pipelines.data.manifest import Manifest
from pipelines.runs.plan import Halving, RunGrid, RunShape, Tuning, better_half, run_shapes
from pipelines.statistics.mean_difference import least_patients
from pipelines.utils import UserError
from pipelines.utils.text import duration, listed

#: Besides the runs: a store for MLflow, and at the end table, report and MLflow. Importing their packages is most of
#: it, as it is of a worker's start, so it is counted in worker starts: both grow together on a slow or busy machine.
_REST_STARTS = 3.0
#: MB for small files, per run (tables, and their copy in MLflow) and in all (MLflow's empty store, logs, report).
_RUN_MB, _REST_MB = 1.0, 10.0
#: Below this number of steps per network there is a warning, since scores then show how fast losses learn at first. The
#: number is a choice between two measurements: in 20 epochs of 16 steps on the phantom, the 18 losses of the survey
#: were, on average, 0.21 Dice below their last value after 80 steps, 0.055 after 160, and 0.007 after 240.
LEAST_STEPS = 200
#: The two newest checkpoints are kept.
_CHECKPOINTS = 2


@dataclass(frozen=True)
class Forecast:
    """Times and sizes of runs, from the measured ones."""

    measured: Measured
    manifest: Manifest

    def steps(self, fold: int) -> int:
        """Steps per epoch."""
        cases = len(self.manifest.split(fold)[0])
        return cases // min(self.measured.config.batch_size or 1, cases)

    def optimizer_steps(self, fold: int) -> int:
        """Optimizer steps per epoch: fewer than steps where their gradients are accumulated."""
        return math.ceil(self.steps(fold) / self.measured.config.accumulate)

    def epochs_of_enough_steps(self, fold: int) -> int:
        """The least number of epochs that have `LEAST_STEPS` optimizer steps."""
        return math.ceil(LEAST_STEPS / self.optimizer_steps(fold))

    def epoch_s(self, loss: str, fold: int) -> float:
        """Seconds of an epoch's steps; 0 for a loss that fails."""
        return (self.measured.steps[loss].seconds or 0.0) * self.steps(fold)

    def run_s(self, run: RunShape) -> float:
        """Seconds of a run, or of what remains of it: start, epochs, validations and checkpoints."""
        common, config = self.measured.common, self.measured.config
        step = self.measured.steps[run.loss]
        if step.seconds is None:
            return common.start_s
        compiling = max(0.0, step.first_s - step.seconds) if config.compile else 0.0
        validations = math.ceil(run.epochs / config.val_interval) - run.done // config.val_interval
        validated = validations * len(self.manifest.split(run.fold)[1])
        each = self.epoch_s(run.loss, run.fold) + common.save_s
        return common.start_s + compiling + (run.epochs - run.done) * each + validated * common.case_s

    def total_s(self, stages: Sequence[Sequence[RunShape]], jobs: int) -> float:
        """Seconds of everything: preparation, runs, report.

        Each run goes to the first free one of `jobs` workers; a stage ends before the next begins.
        """
        seconds = self.measured.prepare_s + self.rest_s
        for stage in filter(None, stages):
            workers = [0.0] * min(jobs, len(stage))
            for run in stage:
                heapq.heapreplace(workers, workers[0] + self.run_s(run))
            seconds += self.measured.worker_s + max(workers)
        return seconds

    @property
    def rest_s(self) -> float:
        """Seconds of everything else than preparation and runs."""
        return _REST_STARTS * self.measured.worker_s

    def stages(
        self, grid: RunGrid, halving: Halving | None = None, tuning: Tuning | None = None
    ) -> list[list[RunShape]]:
        """All runs of a plan, stage by stage; with halving, the slowest losses are assumed to survive."""
        if tuning is not None:
            trial = [RunShape(loss, tuning.fold, tuning.epochs) for loss in grid.losses]
            return [*(trial for _ in tuning.factors), *self.stages(grid, halving)]
        if halving is None:
            return [run_shapes(grid)]
        racing = sorted(halving.losses, key=lambda loss: -self.epoch_s(loss, halving.fold))
        stages = []
        for epochs in halving.rungs:
            stages.append([RunShape(loss, halving.fold, epochs) for loss in racing])
            racing = racing[: better_half(len(racing))]
        kept = (*(loss for loss in grid.losses if loss not in halving.losses), *racing)
        return [*stages, run_shapes(RunGrid(kept, grid.folds, grid.seeds, grid.epochs))]

    def disk_mb(self, stages: Sequence[Sequence[RunShape]], jobs: int) -> dict[str, float]:
        """MB by purpose."""
        measured, runs = self.measured, sum(map(len, stages))
        # While a checkpoint is written, there is a third.
        kept = _CHECKPOINTS * runs + min(jobs, runs)
        keep = measured.config
        sizes = {
            "prepared cases": measured.cache_mb,
            "checkpoints": kept * measured.common.checkpoint_mb,
            "models": (runs + 1) * measured.common.model_mb,  # MLflow has the best one, too
            "predictions": measured.labels_mb * runs if keep.keep_predictions or keep.keep_probabilities else 0.0,
            "tables, logs, MLflow, report": _RUN_MB * runs + _REST_MB,
        }
        if keep.keep_probabilities:
            # How far they compress depends on how sure the networks are.
            sizes["probabilities, at most"] = measured.probabilities_mb * runs
        return sizes


#: Epochs are not reduced below this share: a run of fewer answers another question.
FLOOR = 0.5
#: The share of the budget that is planned: steps timed in a quiet moment are faster than an hour's mean.
PLANNED_SHARE = 0.9


@dataclass(frozen=True)
class Fitted:
    """The runs of a plan that fits; what was changed, one sentence each."""

    grid: RunGrid
    seconds: float | None  #: that they take; None: not known, where there is no budget
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Costs:
    """What decides how plans are reduced."""

    seconds: Callable[[RunGrid], float]  #: that a grid's runs take, with all around them
    patients: Callable[[tuple[int, ...]], int]  #: how many validate in some folds
    slowness: Callable[[str], float]  #: of a loss


@dataclass(frozen=True)
class Limits:
    """How far plans may be reduced."""

    reference: str | None  #: the loss that is never left out
    epochs_asked: bool  #: otherwise they are reduced first
    losses: int = 2  #: the least number
    epochs: int = 1  #: the least number, also where half of them is less
    most_epochs: int = 0  #: that are planned where they were not asked for, if that is more than the recipe's


def fit(asked: RunGrid, minutes: float, costs: Costs, limits: Limits) -> Fitted:
    """The largest plan that fits a budget of minutes, reduced as little as possible.

    1. **Seeds** beyond the first. A further fold brings new patients *and* another run; a further seed only the run.
       The report then says that retraining is not covered.
    2. **Folds**, the last first, down to the patients that Holm's test needs at all. Fewer patients widen the
       intervals, which the report shows; the question stays the same.
    3. **Epochs**, evenly for all losses, down to half: losses that learn slowly look worse than they are, and no
       interval shows that. Each run still has its whole schedule.
    4. **Losses**, the slowest first, never the reference: a loss left out cannot win.

    Epochs that were not asked for grow to as many as fit, up to `limits.most_epochs`: what the recipe has is a number
    for any data, and few epochs compare networks that have hardly learnt.

    Raises:
        UserError: nothing fits.
    """
    planned_s = minutes * 60 * PLANNED_SHARE
    grid = asked
    while True:
        for candidate in _candidates(grid, costs, limits):
            fitting = _with_epochs(candidate, planned_s, costs, 0 if limits.epochs_asked else limits.most_epochs)
            if fitting is not None:
                return Fitted(fitting, costs.seconds(fitting), _changes(asked, fitting, minutes))
        others = [loss for loss in grid.losses if loss != limits.reference]
        if len(grid.losses) <= limits.losses or len(others) < 2:
            smallest, epochs = list(_candidates(grid, costs, replace(limits, epochs_asked=True)))[-1]
            smallest = replace(smallest, epochs=epochs)
            raise UserError(
                f"--budget: got {minutes:g} minutes, of which {PLANNED_SHARE:.0%} are planned; the smallest comparison "
                f"({', '.join(grid.losses)}; {listed('fold', smallest.folds)}; {epochs} epochs) "
                f"takes about {duration(costs.seconds(smallest))}, including the measurement"
            )
        slowest = max(others, key=costs.slowness)
        grid = replace(grid, losses=tuple(loss for loss in grid.losses if loss != slowest))


def _candidates(grid: RunGrid, costs: Costs, limits: Limits) -> Iterator[tuple[RunGrid, int]]:
    """Grids with the least epochs that each may have, the best first."""
    grids = [replace(grid, seeds=grid.seeds[:count]) for count in range(len(grid.seeds), 0, -1)]
    for count in range(len(grid.folds) - 1, 0, -1):
        if costs.patients(grid.folds[:count]) < least_patients():
            break
        grids.append(replace(grid, seeds=grid.seeds[:1], folds=grid.folds[:count]))
    floor = max(math.ceil(grid.epochs * FLOOR), limits.epochs)
    if limits.epochs_asked:
        yield from ((candidate, grid.epochs) for candidate in grids)
        yield grids[-1], floor
    else:
        yield from ((candidate, floor) for candidate in grids)


def _with_epochs(candidate: tuple[RunGrid, int], planned_s: float, costs: Costs, most: int) -> RunGrid | None:
    """The candidate with as many epochs as fit, its number or `most`; None: not even its least number fits."""
    grid, least = candidate
    numbers = range(least, max(grid.epochs, most) + 1)
    fitting = bisect_right(numbers, planned_s, key=lambda epochs: costs.seconds(replace(grid, epochs=epochs)))
    return replace(grid, epochs=numbers[fitting - 1]) if fitting else None


def _changes(asked: RunGrid, planned: RunGrid, minutes: float) -> tuple[str, ...]:
    reasons = []
    if planned.seeds != asked.seeds:
        seeds = f"{listed('seed', planned.seeds)} of the {len(asked.seeds)} asked for"
        reasons.append(f"{seeds}; a further fold is more informative than a further seed.")
    if planned.folds != asked.folds:
        folds = f"{listed('fold', planned.folds)} of the {len(asked.folds)} asked for"
        reasons.append(f"{folds}; fewer cases to validate on widen the intervals.")
    if planned.epochs > asked.epochs:
        reasons.append(f"{planned.epochs} epochs, as many as fit, instead of the recipe's {asked.epochs}.")
    if planned.epochs < asked.epochs:
        epochs = f"{planned.epochs} epochs instead of {asked.epochs}, for all losses"
        reasons.append(f"{epochs}; losses that learn slowly may look worse than with all of them.")
    left_out = [loss for loss in asked.losses if loss not in planned.losses]
    reasons += [f"{loss} is left out as one of the slowest; nothing is known of it." for loss in left_out]
    return tuple(f"Planned to fit {minutes:g} minutes: {reason}" for reason in reasons)
