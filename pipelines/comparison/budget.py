"""The time and disk that a comparison takes, forecast from a few timed steps and fitted into a budget.

Where the budget is too short for what was asked, this is reduced in an order that costs the answer least; results play
no part in it:

1. **Seeds** beyond the first. A further fold brings new patients *and* another run; a further seed only the run. The
   report then says that retraining is not covered.
2. **Folds**, the last first, down to the patients that Holm's test needs at all. Fewer patients widen the intervals,
   which the report shows; the question stays the same.
3. **Epochs**, evenly for all losses, down to half. Shorter runs change the question: losses that learn slowly look
   worse than they are, and no interval shows that. So this comes after the folds. Each run still has its whole
   schedule. Epochs that were not asked for are the recipe's, and may be halved from the start: they are reduced first,
   and use the time that the folds leave.
4. **Losses**, the slowest first, never the reference: a loss left out cannot win. Chosen by time only.
"""

import heapq
import math
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

        Args:
            stages: runs, each of which goes to the first free worker; a stage ends before the next begins.
            jobs: workers.
        """
        trained = sum(self.measured.worker_s + self._spread(stage, jobs) for stage in stages if stage)
        return self.measured.prepare_s + trained + self.rest_s

    @property
    def rest_s(self) -> float:
        """Seconds of everything else than preparation and runs."""
        return _REST_STARTS * self.measured.worker_s

    def _spread(self, runs: Sequence[RunShape], jobs: int) -> float:
        workers = [0.0] * min(jobs, len(runs))
        for run in runs:
            heapq.heapreplace(workers, workers[0] + self.run_s(run))
        return max(workers)

    def stages(
        self, grid: RunGrid, halving: Halving | None = None, tuning: Tuning | None = None
    ) -> list[list[RunShape]]:
        """All runs of a plan, stage by stage; with halving, the slowest losses are assumed to survive.

        Args:
            grid: with all losses.
            halving: the screening; None without one.
            tuning: the choice of learning rates; None without one.
        """
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
        measured = self.measured
        every = [run for stage in stages for run in stage]
        runs = len(every)
        # While a checkpoint is written, there is a third.
        kept = _CHECKPOINTS * runs + min(jobs, runs)
        predictions = measured.labels_mb * runs if measured.config.keep_predictions else 0.0
        return {
            "prepared cases": measured.cache_mb,
            "checkpoints": kept * measured.common.checkpoint_mb,
            "models": (runs + 1) * measured.common.model_mb,  # MLflow has the best one, too
            "predictions": predictions,
            "tables, logs, MLflow, report": _RUN_MB * runs + _REST_MB,
        }


#: Epochs are not reduced below this share: a run of fewer answers another question.
FLOOR = 0.5
#: The share of the budget that is planned: steps timed in a quiet moment are faster than an hour's mean.
PLANNED_SHARE = 0.9


@dataclass(frozen=True)
class Fitted:
    """A plan that fits.

    Attributes:
        grid: its runs.
        seconds: that they take; None: not known, where there is no budget.
        reductions: what was reduced, one sentence each.
    """

    grid: RunGrid
    seconds: float | None
    reductions: tuple[str, ...]


@dataclass(frozen=True)
class Costs:
    """What decides how plans are reduced.

    Attributes:
        seconds: that a grid's runs take, with all around them.
        patients: how many validate in some folds.
        slowness: of a loss.
    """

    seconds: Callable[[RunGrid], float]
    patients: Callable[[tuple[int, ...]], int]
    slowness: Callable[[str], float]


@dataclass(frozen=True)
class Limits:
    """How far plans may be reduced.

    Attributes:
        reference: the loss that is never left out; None: there is none.
        epochs_asked: whether the epochs were asked for; otherwise they are reduced first.
        losses: the least number of losses.
        epochs: the least number of epochs, also where half of them is less.
    """

    reference: str | None
    epochs_asked: bool
    losses: int = 2
    epochs: int = 1


def fit(asked: RunGrid, minutes: float, costs: Costs, limits: Limits) -> Fitted:
    """The largest plan that fits a budget, reduced in the order above.

    Args:
        asked: all that was asked for; its epochs are the recipe's where none were asked for.
        minutes: the budget.
        costs: of plans.
        limits: of the reduction.

    Raises:
        UserError: nothing fits.
    """
    planned_s = minutes * 60 * PLANNED_SHARE
    grid = asked
    while True:
        for candidate in _candidates(grid, costs, limits):
            fitting = _with_epochs(candidate, planned_s, costs)
            if fitting is not None:
                return Fitted(fitting, costs.seconds(fitting), _reductions(asked, fitting, minutes))
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


def _with_epochs(candidate: tuple[RunGrid, int], planned_s: float, costs: Costs) -> RunGrid | None:
    """The candidate with as many epochs as fit; None: not even its least number fits."""
    grid, low = candidate
    high = grid.epochs
    if costs.seconds(replace(grid, epochs=low)) > planned_s:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if costs.seconds(replace(grid, epochs=middle)) <= planned_s:
            low = middle
        else:
            high = middle - 1
    return replace(grid, epochs=low)


def _reductions(asked: RunGrid, planned: RunGrid, minutes: float) -> tuple[str, ...]:
    sentences = []
    budget = f"to fit {minutes:g} minutes"
    if planned.seeds != asked.seeds:
        sentences.append(
            f"Planned {budget}: {listed('seed', planned.seeds)} of the {len(asked.seeds)} asked for; a further fold "
            "is more informative than a further seed."
        )
    if planned.folds != asked.folds:
        sentences.append(
            f"Planned {budget}: {listed('fold', planned.folds)} of the {len(asked.folds)} asked for; fewer patients "
            "widen the intervals."
        )
    if planned.epochs != asked.epochs:
        sentences.append(
            f"Planned {budget}: {planned.epochs} epochs instead of {asked.epochs}, for all losses; losses that learn "
            "slowly may look worse than with all of them."
        )
    sentences += [
        f"Planned {budget}: {loss} is left out as one of the slowest; nothing is known of it."
        for loss in asked.losses
        if loss not in planned.losses
    ]
    return tuple(sentences)
