"""The components of a run, made from its config: data, network, loss, optimizer, schedule, engines."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import EMAHandler
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

import medloss
from medloss.create import pass_epoch_on
from medloss.training_loss import recipe_clip
from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import Case, Manifest, load_manifest
from pipelines.evaluation.calibration import NOTHING
from pipelines.preprocessing.case_store import CaseStore, EntryCache, content_key, take_fingerprint
from pipelines.preprocessing.label_maps import wanted_maps
from pipelines.preprocessing.patches import PatchDataset, start_epoch, training_loader, validation_loader
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.training.auto_config import create_loss, metric_settings, planned, preprocessing, refuse_misfit
from pipelines.training.distributed import broadcast_buffers, data_parallel, gather_metrics, rank, ranks
from pipelines.training.engines import TrainingStep, create_evaluator, create_trainer
from pipelines.training.networks import autocast_dtype, create_network
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import AutocastInferer, channels_last
from pipelines.utils.machine import chosen_device, seed_everything

#: nnU-Net's.
_MOMENTUM, _EXPONENT = 0.99, 0.9


def create_optimizer(network: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """The optimizer of a planned config."""
    rate, decay = config.learning_rate or 0.0, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), rate, momentum=_MOMENTUM, nesterov=True, weight_decay=decay)
    return torch.optim.AdamW(network.parameters(), rate, weight_decay=decay)


def create_schedule(optimizer: torch.optim.Optimizer, config: RunConfig, batches_per_epoch: int) -> LRScheduler:
    """A linear warm-up, then half a cosine, or a polynomial, down to 0; to be stepped after each optimizer step."""
    steps = config.epochs * math.ceil(batches_per_epoch / config.accumulate)
    warmup = max(1, round(config.warmup * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return (1 - done) ** _EXPONENT if config.schedule == "polynomial" else 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class PreparedData:
    """The prepared cases of a run, and the config planned from them."""

    config: RunConfig
    manifest: Manifest
    preprocessing: Preprocessing
    training: CaseStore
    validation: CaseStore


def prepared_data(config: RunConfig, cache_dir: Path | None = None) -> PreparedData:
    """Plan a run from its cases, and prepare them all once.

    Args:
        config: what to train.
        cache_dir: where prepared cases are kept if the config names no other folder.

    Raises:
        UserError: the config does not fit the data, or a case cannot be read.
    """
    manifest = load_manifest(config.manifest)
    device = chosen_device(config.device)
    # Before anything is read or written: a refused config leaves no trace.
    refuse_misfit(config, manifest)
    training, validation = manifest.split(config.fold)
    root = resolve_data(manifest, None if config.data_root is None else Path(config.data_root))
    folder = cache_dir if config.cache_dir is None else Path(config.cache_dir)
    cache = None if folder is None else EntryCache(folder)
    keys = {} if cache is None else {case.id: content_key(case, root) for case in (*training, *validation)}
    fingerprint = take_fingerprint(manifest, training, root, preprocessing(config, manifest), cache, keys)
    config = planned(config, manifest, fingerprint, device)
    processed = preprocessing(config, manifest)
    stores = []
    for cases in (training, validation):
        share = config.memory_mb * len(cases) / (len(training) + len(validation))
        # Validation computes no loss.
        maps = wanted_maps(create_loss(config, manifest.scheme)) if cases is training else ()
        stores.append(CaseStore(manifest, cases, root, processed, cache, share, keys, maps).prepare())
    return PreparedData(config, manifest, processed, *stores)


class Training:
    """The components of one run; the command line and MONAI bundles share this class.

    They are its attributes: the planned `config`, `manifest`, `device`, `dtype` (under autocast; None for float32),
    `preprocessing`, the stores of cases, `dataset` and `loader` of patches, `validation_loader` of whole cases,
    `network`, `average` (Ignite's handler of the averaged weights; None without `ema`), `loss`, `optimizer`,
    `scheduler`, `scaler` (for float16; else None), `metrics` (which are computed, and how), and MONAI's `trainer` and
    `evaluator`, which `validate` runs.

    Args:
        config: what to train; what it leaves open is planned.
        cache_dir: where prepared cases are kept if the config names no other folder.

    Raises:
        UserError: the config does not fit the data, or a case cannot be read.
    """

    def __init__(self, config: RunConfig, cache_dir: Path | None = None) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        data = prepared_data(config, cache_dir)
        config = self.config = data.config
        patch = config.patch_size or ()
        self.manifest, self.device = data.manifest, chosen_device(config.device)
        self.dtype = autocast_dtype(config, self.device, patch)
        self.preprocessing, self.cases, self.validation_cases = data.preprocessing, data.training, data.validation
        self.dataset = PatchDataset(
            self.cases, patch, config.seed, config.flip_axes, config.augmentation, config.foreground,
            self.manifest.scheme
        )  # fmt: skip
        self.loader = training_loader(self.dataset, config.batch_size or 1, config.workers, rank(), ranks())
        self.validation_loader = validation_loader(self.validation_cases, rank(), ranks())
        self._make_learner()
        self._make_engines()

    def _make_learner(self) -> None:
        config, manifest = self.config, self.manifest
        seed_everything(config.seed, 0)
        scheme, inputs = manifest.scheme, len(manifest.image_channels)
        network = create_network(config, manifest.dimensions, scheme.channels, inputs)
        self.network: nn.Module = network.to(self.device).to(memory_format=channels_last(manifest.dimensions))  # type: ignore[call-overload]
        self.loss = create_loss(config, scheme).to(self.device)
        self.optimizer = create_optimizer(self.network, config)
        self.scheduler = create_schedule(self.optimizer, config, len(self.loader))
        self.scaler = torch.amp.GradScaler(self.device.type) if self.dtype is torch.float16 else None
        self.average = None if config.ema is None else EMAHandler(self.network, 1 - config.ema)

    def _make_engines(self) -> None:
        config, manifest = self.config, self.manifest
        run = AutocastInferer(self.dtype, self.device, channels_last(manifest.dimensions))
        trained: Any = torch.compile(self.network) if config.compile else self.network
        loss = medloss.DeepSupervision(self.loss) if config.deep_supervision else self.loss
        norms = (config.clip, recipe_clip(config.loss, config.loss_schedule))
        clip = min((norm for norm in norms if norm is not None), default=None)
        network = data_parallel(trained, self.device)
        step = TrainingStep(network, config.accumulate, clip, self.scaler, self.scheduler.step)
        self.trainer = create_trainer(
            step, loss, self.loader, self.optimizer, run, scheme=manifest.scheme, epochs=config.epochs
        )
        if (average := self.average) is not None:
            # At first the average forgets fast: else the untrained first weights would stay in it for long. By the
            # number of the batch, not by Ignite's scheduler, which would start again in a resumed run.
            @self.trainer.on(Events.ITERATION_STARTED)
            def _set_momentum() -> None:
                self.trainer.state.ema_momentum = max(average.momentum, 9 / (10 + self.trainer.state.iteration))

            average.attach(self.trainer)
        self.metrics = metric_settings(config, manifest)
        self._collect: Callable[[dict[str, Any]], None] = lambda done: None
        self.evaluator = create_evaluator(
            self.best_network,
            self.validation_loader,
            lambda done: self._collect(done),
            run,
            scheme=manifest.scheme,
            patch=config.patch_size or (),
            metrics=self.metrics,
            keep_probabilities=config.keep_probabilities,
        )

    @property
    def best_network(self) -> nn.Module:
        """The network used for validation and prediction: with averaged weights, if there are any."""
        return self.network if self.average is None else self.average.ema_model

    @property
    def precision(self) -> str:
        """The type that the network computes in, such as `bfloat16`."""
        return "float32" if self.dtype is None else str(self.dtype).removeprefix("torch.")

    def validate(
        self, keep: Callable[[Case, Tensor, NDArray[np.float16] | None], None] | None = None
    ) -> list[dict[str, Any]]:
        """Predict and evaluate every validation case once, over all processes.

        Args:
            keep: gets each case that this process predicts, its labels `[*spatial]`, of 0..C-1, and its probabilities
                `[C, *spatial]` if they are kept or a metric needs them.

        Returns:
            A row per case and class, in the manifest's order: `case`, `patient`, `class` and the metrics; with
            probabilities also `calibration`, the numbers of `Calibration.to_list`.
        """
        cases = self.validation_cases.cases
        numbers = {case.id: number for number, case in enumerate(cases)}
        local: dict[int, list[dict[Any, float]]] = {}
        calibrated = self.config.keep_probabilities or bool(self.metrics.by_probabilities)

        def collect(done: dict[str, Any]) -> None:
            number = numbers[done["case"]]
            local[number] = done["metrics"]
            if calibrated:
                numbers_of = (NOTHING if found is None else found.to_list() for found in done["calibration"])
                local[number] = [row | dict(enumerate(of_class)) for row, of_class in
                                 zip(done["metrics"], numbers_of, strict=True)]  # fmt: skip
            if keep is not None:
                keep(cases[number], done["labels"], done.get("probabilities"))

        self._collect = collect
        broadcast_buffers(self.best_network)
        self.evaluator.run()
        names = tuple(self.metrics.metrics)
        everywhere = gather_metrics(local, (*names, *range(len(NOTHING) if calibrated else 0)), len(cases))
        scheme = self.manifest.scheme
        return [
            {"case": case.id, "patient": case.patient, "class": name, **dict(zip(names, values, strict=False))}
            | ({"calibration": values[len(names) :]} if calibrated else {})
            for number, case in enumerate(cases)
            for name, annotated, values in zip(
                scheme.names, scheme.annotated(case.labelled), everywhere[number], strict=True
            )
            if annotated  # a class that the case does not annotate has no row
        ]

    def _parts(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "average": None if self.average is None else self.average.ema_model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "loss": self.loss,
        }

    def state(self) -> dict[str, Any]:
        """The state to resume from; random numbers follow from the seed and the epoch."""
        return {name: None if part is None else part.state_dict() for name, part in self._parts().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        for name, part in self._parts().items():
            if part is not None:
                part.load_state_dict(state[name])

    def start_epoch(self, epoch: int) -> None:
        """Set what depends on the epoch, counted from 1: random numbers, order, and the loss's schedule."""
        seed_everything(self.config.seed, epoch, rank())
        start_epoch(self.loader, epoch)
        pass_epoch_on(self.loss, epoch - 1)
