"""From a few measured steps to the time and the disk that a comparison takes."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.comparison.planning.halving import better_half
from pipelines.comparison.planning.matrix import Matrix, Training, trainings
from pipelines.comparison.planning.measure import Measured
from pipelines.comparison.planning.records import Halving, Tuning
from pipelines.dataset.manifest import Manifest

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
