"""The time and disk that a comparison takes, forecast from a few measured steps and fitted into a budget.

Plans a comparison into a budget of time.

What gives way, and in which order, is decided by what it costs the answer; nothing of it looks at results:

1. **Seeds** beyond the first. A further fold brings new patients *and* another training; a further seed the training
   alone. The page then says that retraining is not covered.
2. **Folds**, the last first, down to the patients that Holm's test needs at all. Fewer patients widen the intervals,
   which the page shows; the question stays the same.
3. **Epochs**, evenly for all losses, down to half. Shorter trainings change the question: losses that learn slowly
   look worse than they are, and no interval shows that. So this comes after the folds. Each training still has its
   whole schedule. Epochs that were not asked for are the recipe's, and have half of them as their floor from the
   start: then they give way first, and take what time the folds leave.
4. **Losses**, the slowest first, never the reference: a loss left out cannot win. Chosen by time alone.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pipelines.comparison.step_timing import Measured
from pipelines.data.manifest import Manifest
from pipelines.runs.plan import Halving, Matrix, Training, Tuning, better_half, trainings
from pipelines.statistics.mean_difference import least_patients
from pipelines.utils import UserError
from pipelines.utils.text import duration, listed

# From a few measured steps to the time and the disk that a comparison takes.

#: Beside the trainings: a store for MLflow, and at the end table, report and MLflow. Importing their packages is most
#: of it, as it is of a worker's start, so it is counted in those: they grow together where a machine is slow or busy.
_REST_STARTS = 3.0
#: MB allowed for what is small: a run's tables and its copy in MLflow; MLflow's empty store, the logs and the report.
_RUN_MB, _REST_MB = 1.0, 10.0
#: The newest checkpoint and the one before it stay.
_CHECKPOINTS = 2


@dataclass(frozen=True)
class Forecast:
    """Times and sizes of runs, by what was measured."""

    measured: Measured
    manifest: Manifest

    def steps(self, fold: int) -> int:
        """Steps an epoch."""
        cases = len(self.manifest.split(fold)[0])
        return cases // min(self.measured.config.batch_size or 1, cases)

    def epoch_s(self, loss: str, fold: int) -> float:
        """Seconds of an epoch's steps; 0 of a loss that fails."""
        return (self.measured.steps[loss].seconds or 0.0) * self.steps(fold)

    def run_s(self, run: Training) -> float:
        """Seconds of a run, or of what is left of it: its start, its epochs, validations and checkpoints."""
        common, config = self.measured.common, self.measured.config
        step = self.measured.steps[run.loss]
        if step.seconds is None:
            return common.start_s
        compiling = max(0.0, step.first_s - step.seconds) if config.compile else 0.0
        validations = math.ceil(run.epochs / config.val_interval) - run.done // config.val_interval
        validated = validations * len(self.manifest.split(run.fold)[1])
        each = self.epoch_s(run.loss, run.fold) + common.save_s
        return common.start_s + compiling + (run.epochs - run.done) * each + validated * common.case_s

    def total_s(self, stages: Sequence[Sequence[Training]], jobs: int) -> float:
        """Seconds of everything: preparation, trainings, report.

        Args:
            stages: runs, each of which goes to the first worker that is free; a stage is over before the next begins.
            jobs: workers.
        """
        trained = sum(self.measured.worker_s + self._spread(stage, jobs) for stage in stages if stage)
        return self.measured.prepare_s + trained + self.rest_s

    @property
    def rest_s(self) -> float:
        """Seconds for what is neither preparation nor training."""
        return _REST_STARTS * self.measured.worker_s

    def _spread(self, runs: Sequence[Training], jobs: int) -> float:
        workers = [0.0] * min(jobs, len(runs))
        for run in runs:
            heapq.heapreplace(workers, workers[0] + self.run_s(run))
        return max(workers)

    def stages(
        self, matrix: Matrix, halving: Halving | None = None, tuning: Tuning | None = None
    ) -> list[list[Training]]:
        """All that a plan trains, one after another; with halving, the losses that survive are taken to be the slowest.

        Args:
            matrix: with all losses.
            halving: the screening; None without one.
            tuning: the choice of learning rates; None without one.
        """
        if tuning is not None:
            trial = [Training(loss, tuning.fold, tuning.epochs) for loss in matrix.losses]
            return [*(trial for _ in tuning.factors), *self.stages(matrix, halving)]
        if halving is None:
            return [trainings(matrix)]
        racing = sorted(halving.losses, key=lambda loss: -self.epoch_s(loss, halving.fold))
        stages = []
        for epochs in halving.rungs:
            stages.append([Training(loss, halving.fold, epochs) for loss in racing])
            racing = racing[: better_half(len(racing))]
        kept = (*(loss for loss in matrix.losses if loss not in halving.losses), *racing)
        return [*stages, trainings(Matrix(kept, matrix.folds, matrix.seeds, matrix.epochs))]

    def disk_mb(self, stages: Sequence[Sequence[Training]], jobs: int) -> dict[str, float]:
        """MB by what takes them."""
        own = self.measured
        every = [run for stage in stages for run in stage]
        runs = len(every)
        # While a checkpoint is written, there is a third one.
        kept = _CHECKPOINTS * runs + min(jobs, runs)
        predictions = own.labels_mb * runs if own.config.keep_predictions else 0.0
        return {
            "prepared cases": own.cache_mb,
            "checkpoints": kept * own.common.checkpoint_mb,
            "models": (runs + 1) * own.common.model_mb,  # MLflow has the best one, too
            "predictions": predictions,
            "tables, logs, MLflow, report": _RUN_MB * runs + _REST_MB,
        }


#: The share of the epochs below which a training is another one.
FLOOR = 0.5
#: The share of the budget that is planned: steps measured in a quiet moment are faster than an hour's mean.
PLANNED_SHARE = 0.9


@dataclass(frozen=True)
class Fitted:
    """A plan that fits.

    Attributes:
        matrix: its runs.
        seconds: that they take; None: not known, where there is no budget.
        told: what gave way, a sentence each.
    """

    matrix: Matrix
    seconds: float | None
    told: tuple[str, ...]


def fit(
    asked: Matrix,
    minutes: float,
    seconds: Callable[[Matrix], float],
    patients: Callable[[tuple[int, ...]], int],
    slowness: Callable[[str], float],
    *,
    reference: str | None,
    epochs_asked: bool,
    least_losses: int = 2,
    least_epochs: int = 1,
) -> Fitted:
    """The largest plan, in the order above, that fits.

    Args:
        asked: everything; its epochs are the recipe's where none were asked for.
        minutes: the budget.
        seconds: that a plan takes.
        patients: how many validate in some folds.
        slowness: of a loss.
        reference: that is never left out; None: there is none.
        epochs_asked: whether the epochs were asked for.
        least_losses: that are needed at all.
        least_epochs: that are needed at all, whatever half of them is.

    Raises:
        UserError: nothing fits.
    """
    planned_s = minutes * 60 * PLANNED_SHARE
    left = asked
    while True:
        needed = least_patients()
        for candidate in _candidates(left, needed, patients, epochs_asked, least_epochs):
            fitting = _with_epochs(candidate, planned_s, seconds)
            if fitting is not None:
                return Fitted(fitting, seconds(fitting), _told(asked, fitting, minutes))
        others = [loss for loss in left.losses if loss != reference]
        if len(left.losses) <= least_losses or len(others) < 2:
            shape, epochs = list(_candidates(left, needed, patients, True, least_epochs))[-1]
            least = replace(shape, epochs=epochs)
            raise UserError(
                f"--budget: got {minutes:g} minutes, of which {PLANNED_SHARE:.0%} are planned; the least comparison "
                f"({', '.join(left.losses)}; {listed('fold', least.folds)}; {least.epochs} epochs) "
                f"takes about {duration(seconds(least))}, measuring included"
            )
        slowest = max(others, key=slowness)
        left = replace(left, losses=tuple(loss for loss in left.losses if loss != slowest))


def _candidates(
    left: Matrix, needed: int, patients: Callable[[tuple[int, ...]], int], epochs_asked: bool, least_epochs: int
) -> Iterator[tuple[Matrix, int]]:
    """Plans with the least epochs that each may have, the best first."""
    shapes = [replace(left, seeds=left.seeds[:count]) for count in range(len(left.seeds), 0, -1)]
    for count in range(len(left.folds) - 1, 0, -1):
        if patients(left.folds[:count]) < needed:
            break
        shapes.append(replace(left, seeds=left.seeds[:1], folds=left.folds[:count]))
    floor = max(math.ceil(left.epochs * FLOOR), least_epochs)
    if epochs_asked:
        yield from ((shape, left.epochs) for shape in shapes)
        yield shapes[-1], floor
    else:
        yield from ((shape, floor) for shape in shapes)


def _with_epochs(candidate: tuple[Matrix, int], planned_s: float, seconds: Callable[[Matrix], float]) -> Matrix | None:
    """The candidate with as many epochs as fit, at least its own; None: not even those."""
    shape, least = candidate
    low, high = least, shape.epochs
    if seconds(replace(shape, epochs=least)) > planned_s:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        if seconds(replace(shape, epochs=middle)) <= planned_s:
            low = middle
        else:
            high = middle - 1
    return replace(shape, epochs=low)


def _told(asked: Matrix, planned: Matrix, minutes: float) -> tuple[str, ...]:
    told = []
    budget = f"to fit {minutes:g} minutes"
    if planned.seeds != asked.seeds:
        told.append(
            f"Planned {budget}: {listed('seed', planned.seeds)} of the {len(asked.seeds)} asked for; a further fold "
            "tells more than a further seed."
        )
    if planned.folds != asked.folds:
        told.append(
            f"Planned {budget}: {listed('fold', planned.folds)} of the {len(asked.folds)} asked for; fewer patients "
            "widen the intervals."
        )
    if planned.epochs != asked.epochs:
        told.append(
            f"Planned {budget}: {planned.epochs} epochs in place of {asked.epochs}, for all losses alike; losses that "
            "learn slowly may look worse than with all of them."
        )
    told += [
        f"Planned {budget}: {loss} is left out, being among the slowest; nothing is known of it."
        for loss in asked.losses
        if loss not in planned.losses
    ]
    return tuple(told)
