"""One run: train a network with a loss, validate it, report progress, and leave a folder that documents it."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar, Timer
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.utils import CommonKeys
from numpy.typing import NDArray
from torch import Tensor

from pipelines.data.manifest import Case
from pipelines.data.nifti import write_labels
from pipelines.data.probabilities import write_npz
from pipelines.evaluation.evaluate import class_means, mean_metrics
from pipelines.training.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from pipelines.training.components import Training
from pipelines.training.distributed import max_over_ranks, rank
from pipelines.training.engines import GRAD_NORM, UPDATE_RATIO
from pipelines.training.run_config import BEFORE, INCIDENTAL, RunConfig, as_begun
from pipelines.training.run_folder import RunFolder
from pipelines.training.saved_model import NAME, save_model
from pipelines.utils import TrainingError, UserError
from pipelines.utils.files import is_disk_full
from pipelines.utils.machine import is_out_of_memory, machine, peak_memory_mb, reset_peak_memory, versions
from pipelines.utils.text import duration

#: Of the checkpoint's content.
_FORMAT = 2


@dataclass(frozen=True)
class Progress:
    """Progress of a run after `epoch` of `epochs`.

    `train_loss` is the mean over the epoch's batches; `val_dice` that over the validation cases, None without a
    validation; `epoch_s` are the seconds of training; `seconds_left` is an estimate, with validation.
    """

    epoch: int
    epochs: int
    train_loss: float
    val_dice: float | None
    epoch_s: float
    seconds_left: float


def print_epoch(progress: Progress) -> None:
    """Print one line per epoch."""
    dice = "" if progress.val_dice is None or math.isnan(progress.val_dice) else f", val dice {progress.val_dice:.4f}"
    click.echo(
        f"epoch {progress.epoch}/{progress.epochs}: train loss {progress.train_loss:.4f}{dice}, "
        f"{progress.epoch_s:.1f} s, about {duration(progress.seconds_left)} left"
    )


def attach_bars(trainer: Engine, evaluator: Engine) -> None:
    """Show progress bars of the epoch's batches and the validation's cases, on terminals only."""
    if not sys.stderr.isatty():
        return
    bar_format = "{desc} {percentage:3.0f}% |{bar:30}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
    loss = {"output_transform": lambda output: {"loss": f"{output['loss'].item():.4f}"}}
    for engine, name, shown in ((trainer, "epoch", loss), (evaluator, "validation", {})):
        ProgressBar(persist=False, bar_format=bar_format, desc=name).attach(engine, **shown)


def train_run(
    config: RunConfig | Training,
    run_dir: Path,
    *,
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
    attach: Callable[[SupervisedTrainer, SupervisedEvaluator], None] | None = None,
) -> dict[str, Any]:
    """Train one run in its folder (see `RunFolder`), and return the content of `result.json`.

    Args:
        config: what to train, or the components already made from it.
        run_dir: the run's folder.
        resume: resume from the folder's checkpoint, if it has one; on a CPU a resumed run ends with exactly the
            weights of an uninterrupted one.
        report: called after each epoch.
        attach: called with the engines before they run, to add handlers.

    Raises:
        UserError: the config does not fit the data, every checkpoint is damaged, or the folder holds another run.
        TrainingError: the loss or a gradient was not finite, or memory ran out; `result.json` records it, too.
    """
    folder = RunFolder(run_dir)
    if not resume and has_checkpoint(run_dir):
        raise UserError(f"{run_dir} holds another run; name another folder, or resume it")
    reset_peak_memory()
    planned: RunConfig | None = None
    if resume and isinstance(config, RunConfig):
        with suppress(ValueError):  # damaged, or of another version: the checkpoint decides
            config = config if folder.config is None else as_begun(config, folder.config)
    try:
        run = Run(config if isinstance(config, Training) else Training(config), folder, report)
        planned = run.config
        if attach is not None:
            attach(run.training.trainer, run.training.evaluator)
        return run(resume)
    except TrainingError as error:
        failure = error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = TrainingError(_what_to_lower(planned))
    # In any process: one other than the first may have run out of memory.
    folder.write_result({"state": "failed", "error": str(failure)})
    raise failure from None


def _what_to_lower(planned: RunConfig | None) -> str:
    if planned is None:
        return "out of memory before the first step, while the cases were prepared; train on a coarser grid (--spacing)"
    patch = " x ".join(str(n) for n in planned.patch_size or ())
    loaders = f", then the loader processes (--workers, {planned.workers} now)" if planned.workers else ""
    return (
        f"out of memory with {planned.batch_size} patches of {patch} voxels per step; lower the batch size "
        f"(--batch-size), then the patch (--patch){loaders}"
    )


class Run:
    """A run in its folder, epoch by epoch; of several processes the first one writes."""

    def __init__(self, training: Training, folder: RunFolder, report: Callable[[Progress], None] | None = None) -> None:
        self.training, self.config, self.folder, self.report = training, training.config, folder, report
        self.rows: list[dict[str, Any]] = []
        self.cases: list[dict[str, Any]] = []

    def __call__(self, resume: bool) -> dict[str, Any]:
        """Train the remaining epochs, and return the result."""
        done = self._restore() if resume else 0
        if rank() == 0:
            # Only now: a refused config leaves the folder unchanged.
            self.folder.begin(self.config)
            self.folder.write_progress(done, self.config.epochs, None, None)
        self._attach()
        trainer = self.training.trainer
        if done < self.config.epochs:
            trainer.state.epoch = done
            trainer.state.iteration = done * len(self.training.loader)
            trainer.run()
        return self._finish()

    def _attach(self) -> None:
        trainer = self.training.trainer
        losses: list[float] = []
        steps: list[tuple[float, float]] = []
        timer, waited = Timer(), Timer()

        @trainer.on(Events.EPOCH_STARTED)
        def _start() -> None:
            self.training.start_epoch(trainer.state.epoch)
            losses.clear()
            steps.clear()

        timer.attach(trainer, Events.EPOCH_STARTED)
        waited.attach(trainer, Events.EPOCH_STARTED, Events.GET_BATCH_COMPLETED, Events.GET_BATCH_STARTED)

        @trainer.on(Events.ITERATION_COMPLETED)
        def _record() -> None:
            output = trainer.state.output
            losses.append(output[CommonKeys.LOSS].item())
            # A step that float16's scaler skipped has no finite norm, and does not count.
            if UPDATE_RATIO in output and math.isfinite(norm := float(output[GRAD_NORM])):
                steps.append((norm, float(output[UPDATE_RATIO])))

        @trainer.on(Events.EPOCH_COMPLETED)
        def _end() -> None:
            seconds = timer.value()
            row = {"epoch": trainer.state.epoch, "train_loss": statistics.fmean(losses), "epoch_s": round(seconds, 3)}
            if steps:
                row |= zip((GRAD_NORM, UPDATE_RATIO), map(statistics.fmean, zip(*steps, strict=True)), strict=True)
            share = max_over_ranks(waited.value() / seconds)
            self._end_epoch(row | {"data_share": round(share, 4)})

    def _end_epoch(self, row: dict[str, Any]) -> None:
        epoch, epochs = row["epoch"], self.config.epochs
        if epoch % self.config.val_interval == 0 or epoch == epochs:
            start = time.perf_counter()
            # Only those of the last validation: `cases.csv` holds their metrics.
            last = (self.config.keep_predictions or self.config.keep_probabilities) and epoch == epochs
            self.cases = self.training.validate(self._keep_prediction if last else None)
            row |= {f"val_{name}": value for name, value in mean_metrics(self.cases).items()}
            row["val_s"] = round(time.perf_counter() - start, 3)
        row["time"] = round(time.time(), 3)
        row["peak_mb"] = round(max_over_ranks(peak_memory_mb(self.training.device)), 1)
        self.rows.append(row)
        if rank() != 0:
            return
        # The checkpoint first: an epoch that a killed run has to train again was then never reported.
        save_checkpoint(self.folder.path, self._state(epoch))
        self.folder.write_epochs(self.rows)
        left = (epochs - epoch) * statistics.fmean(row["epoch_s"] + row.get("val_s", 0.0) for row in self.rows)
        dice = row.get("val_dice")
        self.folder.write_progress(epoch, epochs, left, None if dice is None or math.isnan(dice) else dice)
        if self.report is not None:
            self.report(Progress(epoch, epochs, row["train_loss"], dice, row["epoch_s"], left))

    def _keep_prediction(self, case: Case, labels: Tensor, probabilities: NDArray[np.float16] | None) -> None:
        manifest, root = self.training.manifest, self.training.validation_cases.root
        values = np.array(manifest.label_values)[labels.numpy()]
        try:
            header = nib.load(root / case.label).header
            canonical = self.config.orientation == "canonical"
            if self.config.keep_probabilities and probabilities is not None:
                write_npz(self.folder.probabilities(case.id), probabilities, header, canonical=canonical)
            write_labels(self.folder.prediction(case.id), values, header, canonical=canonical)
        except OSError as error:
            if is_disk_full(error):
                raise  # the run has not failed: it resumes once there is space
            reason = error.strerror or error
            raise TrainingError(f"the prediction of case '{case.id}' cannot be written: {reason}") from None

    def _state(self, epoch: int) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "epoch": epoch,
            "config": self.config.model_dump(mode="json"),
            "manifest_sha256": self.training.manifest.sha256,
            "precision": self.training.precision,
            "training": self.training.state(),
            "rows": self.rows,
            "cases": self.cases,
        }

    def _restore(self) -> int:
        state = load_checkpoint(self.folder.path)
        if state is None:
            return 0
        made, precision = f"{self.folder.path}: its checkpoint was made", self.training.precision
        if state.get("format") != _FORMAT:
            raise UserError(f"{made} by another version of medloss; name another folder")
        if state["manifest_sha256"] != self.training.manifest.sha256:
            raise UserError(f"{made} with other data: the manifest has changed")
        before = {**BEFORE, **state["config"]}
        spacing = self.config.spacing or ()
        if np.shape(before["spacing"] or ()) == np.shape(spacing) and np.allclose(before["spacing"] or (), spacing):
            before["spacing"] = list(spacing) or None  # versions before did not round those of files to a nanometre
        differing = sorted(
            name
            for name, value in self.config.model_dump(mode="json").items()
            # Of the precision, what it resolves to counts; checkpoints of earlier versions miss newer settings.
            if before.get(name, RunConfig.model_fields[name].default) != value
            and name not in INCIDENTAL | {"precision"}
        )
        if differing:
            raise UserError(f"{made} with another {', '.join(differing)}")
        if (before := state["precision"]) != precision:
            raise UserError(
                f"{made} in {before}, and this machine would resume in {precision}; pass --precision {before}"
            )
        self.training.load_state(state["training"])
        self.rows, self.cases = state["rows"], state["cases"]
        if rank() == 0:
            self.folder.write_epochs(self.rows)
        return int(state["epoch"])

    def _finish(self) -> dict[str, Any]:
        training = self.training
        result = {
            "state": "done",
            "error": None,
            "metrics": mean_metrics(self.cases),
            "per_class": class_means(self.cases, training.manifest.scheme.names),
            "seconds": round(sum(row["epoch_s"] + row.get("val_s", 0.0) for row in self.rows), 3),
            "epoch_s": statistics.median(row["epoch_s"] for row in self.rows),
            "data_share": statistics.median(row["data_share"] for row in self.rows),
            "peak_mb": max(row["peak_mb"] for row in self.rows),
            "patch_size": list(self.config.patch_size or ()),
            "precision": training.precision,
            "manifest_sha256": training.manifest.sha256,
            "versions": versions(),
            "machine": machine(training.device),
        }
        if rank() == 0:
            self.folder.write_calibration(self.cases)
            self.folder.write_cases(self.cases)
            save_model(
                self.folder.path / NAME, training.best_network, self.config, training.manifest, training.preprocessing
            )
            self.folder.write_result(result)
        return result
