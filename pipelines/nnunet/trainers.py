"""nnU-Net's trainer with our losses, a class per name, and the trainer of a comparison's runs."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from medloss.errors import InputError
from medloss.registry import LOSSES
from pipelines.nnunet.losses import (
    LOSS_STATE,
    PREFIX,
    TrainerName,
    create_nnunet_loss,
    hint,
    loss_state,
    restore_loss,
    scale_weights,
    trainer_name,
)
from pipelines.training.run_config import RunConfig
from pipelines.utils import TrainingError
from pipelines.utils.machine import seed_everything


class MedlossTrainer(nnUNetTrainer):
    """nnU-Net's trainer with another loss and no other change; subclasses name the loss."""

    #: In the form of `medloss.create_training_loss`.
    loss_spec: ClassVar[str] = "dice+binary_cross_entropy"
    #: Their number; None for nnU-Net's.
    epochs: ClassVar[int | None] = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  # nnU-Net reads this signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.epochs is not None:
            self.num_epochs = self.epochs

    def _build_loss(self) -> nn.Module:
        labels, plan = self.label_manager, self.configuration_manager
        weights = [1.0]
        if self.enable_deep_supervision:
            scales = len(self._get_deep_supervision_scales())
            weights = scale_weights(scales, keep_last=self.is_ddp and not self._do_i_compile())
        # Patches are resampled; their axes are in the plan's order, like its spacing.
        loss = create_nnunet_loss(
            self.loss_spec, heads=labels.num_segmentation_heads, regions=labels.has_regions,
            ignore_label=labels.ignore_label, batch_dice=plan.batch_dice, weights=weights, spacing=plan.spacing,
        )  # fmt: skip
        self.print_to_log_file(f"medloss: training with {self.loss_spec}:\n{loss}")
        # A sum's weights are float64, which MPS does not support: they stay on the CPU.
        return loss if self.device.type == "mps" else loss.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Also start the loss's epoch."""
        self.loss.train()
        self.loss.start_epoch(self.current_epoch)
        super().on_train_epoch_start()

    def on_validation_epoch_start(self) -> None:
        """Also keep the loss from updating its state by validation batches."""
        self.loss.eval()
        super().on_validation_epoch_start()

    def on_epoch_end(self) -> None:
        """Also save the loss's state, if it has one, in nnU-Net's log, which is part of its checkpoints."""
        if state := loss_state(self.loss):
            log: dict[str, list[Any]] = self.logger.local_logger.my_fantastic_logging
            # nnU-Net expects one entry per epoch; None for epochs before the loss had a state.
            entries = log.setdefault(LOSS_STATE, [])
            entries[self.current_epoch :] = []
            entries += [None] * (self.current_epoch - len(entries)) + [state]
        super().on_epoch_end()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Also restore the loss's state."""
        super().load_checkpoint(filename_or_checkpoint)
        entries = self.logger.get_checkpoint().get(LOSS_STATE) or [None]
        if entries[-1] is not None:
            restore_loss(self.loss, entries[-1])


def trainer_class(loss: str, epochs: int | None = None) -> type[MedlossTrainer]:
    """The trainer of a registered loss or a sum of them (else an `InputError`); always the same class."""
    found: type[MedlossTrainer] = getattr(sys.modules[__name__], str(TrainerName(loss, epochs)))
    return found


def __getattr__(name: str) -> Any:
    # nnU-Net and pickle look up classes by name.
    parsed = trainer_name(name)
    if parsed is None:
        if name.startswith(PREFIX):
            print(hint(name), file=sys.stderr)
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    ending = "" if parsed.epochs is None else f", for {parsed.epochs} epochs"
    document = f"nnU-Net's trainer with the loss {parsed.loss}{ending}."
    attributes = {"__module__": __name__, "__doc__": document, "loss_spec": parsed.loss, "epochs": parsed.epochs}
    created = globals()[name] = type(name, (MedlossTrainer,), attributes)
    return created


for _name in LOSSES:
    trainer_class(_name)
trainer_class(MedlossTrainer.loss_spec)


class ComparedTrainer(MedlossTrainer):
    """The trainer of a comparison's run: seeded, and resumable after each epoch, which ends with a checkpoint."""

    #: Of the initial weights and, without separate processes for augmentation, of the patches.
    seed: ClassVar[int] = 0
    #: Steps per epoch.
    iterations: ClassVar[int] = 250
    #: Called at the end of an epoch, before anything is written, and when its files are written.
    before_files: Callable[[], None] = staticmethod(lambda: None)
    after_epoch: Callable[[], None] = staticmethod(lambda: None)

    def initialize(self) -> None:
        """Also seed, and set the steps per epoch."""
        self.num_iterations_per_epoch = self.iterations
        self.num_val_iterations_per_epoch = max(1, self.iterations // 5)
        self.save_every = 1
        seed_everything(self.seed, 0)
        super().initialize()

    def on_train_epoch_start(self) -> None:
        """Also seed, so that a resumed run needs no states of random generators."""
        seed_everything(self.seed, self.current_epoch + 1)
        super().on_train_epoch_start()

    def on_epoch_end(self) -> None:
        """Also raise a `TrainingError` for weights that are not finite, and report the end of the epoch."""
        self.before_files()
        if not all(torch.isfinite(weights).all() for weights in self.network.parameters()):
            raise TrainingError(f"after epoch {self.current_epoch + 1} the network's weights are not finite any more")
        super().on_epoch_end()
        self.after_epoch()

    def save_checkpoint(self, filename: str) -> None:
        """Write atomically: a killed process leaves the previous checkpoint."""
        written = Path(f"{filename}.partial")
        super().save_checkpoint(str(written))
        if written.is_file():  # only the first rank writes
            with written.open("rb") as file:
                os.fsync(file.fileno())
            written.replace(filename)

    def rows(self) -> list[dict[str, Any]]:
        """A row of `epochs.csv` for each finished epoch, from nnU-Net's log."""
        names = ("train_losses", "mean_fg_dice", "epoch_start_timestamps", "epoch_end_timestamps")
        columns = [self.logger.get_value(name, step=None)[: self.current_epoch] for name in names]
        return [
            {
                "epoch": number, "train_loss": float(loss), "pseudo_dice": float(dice),
                "epoch_s": round(end - start, 3), "time": round(end, 3),
            }
            for number, (loss, dice, start, end) in enumerate(zip(*columns, strict=True), start=1)
        ]  # fmt: skip


def compared_trainer(config: RunConfig) -> type[ComparedTrainer]:
    """The trainer of a run; named as `nnUNet_extTrainer` finds it, if the loss can be part of a name."""
    assert config.nnunet is not None
    try:
        name = str(TrainerName(config.loss, config.epochs))
    except InputError:
        name = f"{PREFIX}of_another_package"
    document = f"nnU-Net's trainer with the loss {config.loss}, in a comparison."
    attributes = {
        "__module__": __name__, "__doc__": document, "loss_spec": config.loss, "epochs": config.epochs,
        "seed": config.seed, "iterations": config.nnunet.iterations,
    }  # fmt: skip
    return type(name, (ComparedTrainer,), attributes)
