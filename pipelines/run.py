"""One run: train a network with a loss, validate it, and leave a folder that says all about it."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.utils import CommonKeys

import medloss
from pipelines.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from pipelines.data import decode_cases
from pipelines.data_root import resolve_data
from pipelines.engines import channels_last, create_evaluator, create_trainer
from pipelines.errors import TrainingError, UserError
from pipelines.machine import peak_memory_mb, reset_peak_memory, versions
from pipelines.manifest import load_manifest
from pipelines.metrics import METRICS, mean_metrics, nanmean
from pipelines.networks import create_network
from pipelines.patches import PatchDataset, start_epoch, training_loader, validation_loader
from pipelines.precision import autocast_dtype
from pipelines.progress import Progress
from pipelines.recipe import checked_patch, chosen_device, create_schedule, seed_everything
from pipelines.run_config import RunConfig
from pipelines.run_folder import RunFolder

#: What a run may go on with changed: it decides nothing of the result. (Of the precision, what it comes to counts.)
_INCIDENTAL = {"threads", "workers", "cache_dir", "data_root", "precision"}


@dataclass
class _History:
    """What the epochs so far have brought; lives in the checkpoint, too."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)


def train_run(
    config: RunConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    report: Callable[[Progress], None] | None = None,
    attach: Callable[[SupervisedTrainer, SupervisedEvaluator], None] | None = None,
) -> dict[str, Any]:
    """Train one run in its folder.

    Args:
        config: what to train.
        run_dir: the run's folder, see `RunFolder`.
        resume: go on from the folder's checkpoint, if it has one; a run so resumed ends, on a CPU, in the very
            weights of one that was never interrupted.
        report: called after each epoch.
        attach: called with the engines before they run, to add handlers of its own.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: the config does not fit the data, every checkpoint is damaged, or the folder holds another run.
        TrainingError: the loss or a gradient was not finite; `result.json` says so, too.
    """
    folder = RunFolder(run_dir)
    if not resume and has_checkpoint(run_dir):
        raise UserError(f"{run_dir} holds another run; name another folder, or resume it")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    reset_peak_memory()
    try:
        training = Training(config, folder, report)
        if attach is not None:
            attach(training.trainer, training.evaluator)
        return training.run(resume)
    except TrainingError as error:
        folder.write_result({"state": "failed", "error": str(error)})
        raise


class Training:
    def __init__(self, config: RunConfig, folder: RunFolder, report: Callable[[Progress], None] | None) -> None:
        self.config = config
        self.folder = folder
        self.report = report
        self.history = _History()
        manifest = load_manifest(config.manifest)
        self.manifest = manifest
        training, validation = manifest.split(config.fold)
        self.patients = {case.id: case.patient for case in manifest.cases}
        root = resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
        cache = None if config.cache_dir is None else Path(config.cache_dir)
        decoded = decode_cases(manifest, training, root, cache)
        self.patch = checked_patch(config, manifest, [tuple(item["label"].shape[1:]) for item in decoded])
        self.device = chosen_device(config.device)
        self.dtype = autocast_dtype(config.precision, self.device, network=config.network, patch=self.patch)
        self.precision = "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")
        self.loader = training_loader(
            PatchDataset(decoded, self.patch, config.seed, config.flip_axes), config.batch_size, config.workers
        )
        seed_everything(config.seed, 0)
        network = create_network(config.network, manifest.dimensions, manifest.num_classes)
        self.network = network.to(self.device).to(memory_format=channels_last(manifest.dimensions))  # type: ignore[call-overload]
        self.loss = medloss.create_training_loss(
            config.loss, num_classes=manifest.num_classes, arguments=config.loss_arguments
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.scheduler = create_schedule(self.optimizer, config, len(self.loader))
        common: dict[str, Any] = {
            "device": self.device, "dtype": self.dtype, "spatial_dims": manifest.dimensions,
        }  # fmt: skip
        self.trainer = create_trainer(
            self.network, self.loss, self.optimizer, self.scheduler, self.loader, epochs=config.epochs, **common
        )
        self.evaluator = create_evaluator(
            self.network,
            validation_loader(decode_cases(manifest, validation, root, cache)),
            self._add_case,
            num_classes=manifest.num_classes,
            patch=self.patch,
            **common,
        )

    def run(self, resume: bool) -> dict[str, Any]:
        done = self._restore() if resume else 0
        # Not before: a config that is refused leaves the folder as it was.
        self.folder.begin(self.config)
        self.folder.write_progress(done, self.config.epochs, None, None)
        self._attach()
        if done < self.config.epochs:
            self.trainer.state.epoch = done
            self.trainer.state.iteration = done * len(self.loader)
            self.trainer.run()
        return self._finish()

    def _attach(self) -> None:
        losses: list[float] = []
        clock = {"epoch": 0.0}

        @self.trainer.on(Events.EPOCH_STARTED)
        def _start() -> None:
            epoch = self.trainer.state.epoch
            seed_everything(self.config.seed, epoch)
            start_epoch(self.loader, epoch)
            schedule = getattr(self.loss, "start_epoch", None)
            if callable(schedule):
                schedule(epoch - 1)
            losses.clear()
            clock["epoch"] = time.perf_counter()

        @self.trainer.on(Events.ITERATION_COMPLETED)
        def _note() -> None:
            losses.append(self.trainer.state.output[CommonKeys.LOSS].item())

        @self.trainer.on(Events.EPOCH_COMPLETED)
        def _end() -> None:
            seconds = time.perf_counter() - clock["epoch"]
            self._end_epoch(self.trainer.state.epoch, statistics.fmean(losses), seconds)

    def _end_epoch(self, epoch: int, train_loss: float, seconds: float) -> None:
        validated = epoch % self.config.val_interval == 0 or epoch == self.config.epochs
        row: dict[str, Any] = {"epoch": epoch, "train_loss": train_loss, "epoch_s": round(seconds, 3)}
        if validated:
            start = time.perf_counter()
            self.history.cases = []
            self.evaluator.run()
            row |= {f"val_{name}": value for name, value in mean_metrics(self.history.cases).items()}
            row["val_s"] = round(time.perf_counter() - start, 3)
        row["time"] = round(time.time(), 3)
        row["peak_mb"] = round(peak_memory_mb(self.device), 1)
        self.history.rows.append(row)
        # The checkpoint first: an epoch that a killed run must train again was then never told to anyone.
        self._save(epoch)
        self.folder.write_epochs(self.history.rows)
        left = self._seconds_left(epoch)
        dice = row.get("val_dice")
        self.folder.write_progress(epoch, self.config.epochs, left, None if dice is None or math.isnan(dice) else dice)
        if self.report is not None:
            self.report(Progress(epoch, self.config.epochs, train_loss, dice, seconds, left))

    def _seconds_left(self, epoch: int) -> float:
        spent = [row["epoch_s"] + row.get("val_s", 0.0) for row in self.history.rows]
        return (self.config.epochs - epoch) * statistics.fmean(spent)

    def _add_case(self, case: dict[str, Any]) -> None:
        for name, measures in zip(self.manifest.foreground, case["metrics"], strict=True):
            row = {"case": case["case"], "patient": self.patients[case["case"]], "class": name}
            self.history.cases.append(row | {metric: getattr(measures, metric) for metric in METRICS})

    def _save(self, epoch: int) -> None:
        save_checkpoint(
            self.folder.path,
            {
                "epoch": epoch,
                "config": self.config.model_dump(mode="json"),
                "manifest_sha256": self.manifest.sha256,
                "patch": list(self.patch),
                "precision": self.precision,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "loss": self.loss.state_dict(),
                "rows": self.history.rows,
                "cases": self.history.cases,
            },
        )

    def _restore(self) -> int:
        state = load_checkpoint(self.folder.path)
        if state is None:
            return 0
        differing = sorted(
            name
            for name, value in self.config.model_dump(mode="json").items()
            if state["config"].get(name) != value and name not in _INCIDENTAL
        )
        if differing:
            raise UserError(f"{self.folder.path}: its checkpoint was made with another {', '.join(differing)}")
        if state["manifest_sha256"] != self.manifest.sha256 or tuple(state["patch"]) != self.patch:
            raise UserError(f"{self.folder.path}: its checkpoint was made with other data: the manifest has changed")
        if state["precision"] != self.precision:
            raise UserError(
                f"{self.folder.path}: its checkpoint was made in {state['precision']}, and this machine would go on in "
                f"{self.precision}; pass --precision {state['precision']}"
            )
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.loss.load_state_dict(state["loss"])
        self.history = _History(state["rows"], state["cases"])
        self.folder.write_epochs(self.history.rows)
        return int(state["epoch"])

    def _finish(self) -> dict[str, Any]:
        self.folder.write_cases(self.history.cases)
        by_class: dict[str, dict[str, float]] = {}
        for name in self.manifest.foreground:
            rows = [row for row in self.history.cases if row["class"] == name]
            by_class[name] = {metric: nanmean([row[metric] for row in rows]) for metric in METRICS}
        result = {
            "state": "done",
            "error": None,
            "metrics": mean_metrics(self.history.cases),
            "per_class": by_class,
            "seconds": round(sum(row["epoch_s"] + row.get("val_s", 0.0) for row in self.history.rows), 3),
            "epoch_s": statistics.median(row["epoch_s"] for row in self.history.rows),
            "peak_mb": max(row["peak_mb"] for row in self.history.rows),
            "patch_size": list(self.patch),
            "precision": self.precision,
            "manifest_sha256": self.manifest.sha256,
            "versions": versions(),
        }
        self.folder.write_result(result)
        return result
