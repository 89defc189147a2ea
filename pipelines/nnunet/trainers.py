"""nnU-Net's trainer with our losses: a class for each name, made when it is asked for."""

import sys
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from medloss.registry import LOSSES
from pipelines.nnunet.checkpoint import LOSS_STATE
from pipelines.nnunet.losses import create_nnunet_loss, loss_state, restore_loss, scale_weights
from pipelines.nnunet.names import PREFIX, TrainerName, hint, trainer_name


class MedlossTrainer(nnUNetTrainer):
    """nnU-Net's trainer with another loss, and nothing else; subclasses name the loss.

    Attributes:
        loss_spec: as `medloss.create_training_loss` takes it.
        epochs: how many; None for nnU-Net's.
    """

    loss_spec: ClassVar[str] = "dice+binary_cross_entropy"
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
        # Patches are resampled, and their axes in the plan's order, as its spacing is.
        loss = create_nnunet_loss(
            self.loss_spec,
            heads=labels.num_segmentation_heads,
            regions=labels.has_regions,
            ignore_label=labels.ignore_label,
            batch_dice=plan.batch_dice,
            weights=weights,
            spacing=plan.spacing,
        )
        self.print_to_log_file(f"medloss: training with {self.loss_spec}:\n{loss}")
        # A sum's weights are float64, which MPS has not; there they stay where they are.
        return loss if self.device.type == "mps" else loss.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Also tell the loss that an epoch begins."""
        self.loss.train()
        self.loss.start_epoch(self.current_epoch)
        super().on_train_epoch_start()

    def on_validation_epoch_start(self) -> None:
        """Also keep the loss from taking account of what it validates on."""
        self.loss.eval()
        super().on_validation_epoch_start()

    def on_epoch_end(self) -> None:
        """Also keep the loss's state, where it has one: in nnU-Net's log, which its checkpoints hold."""
        if state := loss_state(self.loss):
            log: dict[str, list[Any]] = self.logger.local_logger.my_fantastic_logging
            # An entry an epoch, as nnU-Net expects of each item; none where the training began without.
            entries = log.setdefault(LOSS_STATE, [])
            entries[self.current_epoch :] = []
            entries += [None] * (self.current_epoch - len(entries)) + [state]
        super().on_epoch_end()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """Also give the loss its state back."""
        super().load_checkpoint(filename_or_checkpoint)
        entries = self.logger.get_checkpoint().get(LOSS_STATE) or [None]
        if entries[-1] is not None:
            restore_loss(self.loss, entries[-1])


def trainer_class(loss: str, epochs: int | None = None) -> type[MedlossTrainer]:
    """The trainer of a loss, or of a sum of registered losses; the same class each time.

    Raises:
        InputError: an unknown loss.
    """
    found: type[MedlossTrainer] = getattr(sys.modules[__name__], str(TrainerName(loss, epochs)))
    return found


def __getattr__(name: str) -> Any:
    # nnU-Net asks modules for a class by name, and pickle does.
    meant = trainer_name(name)
    if meant is None:
        if name.startswith(PREFIX):
            print(hint(name), file=sys.stderr)
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    ending = "" if meant.epochs is None else f", for {meant.epochs} epochs"
    content = {
        "__module__": __name__,
        "__doc__": f"nnU-Net's trainer with the loss {meant.loss}{ending}.",
        "loss_spec": meant.loss,
        "epochs": meant.epochs,
    }
    made = type(name, (MedlossTrainer,), content)
    globals()[name] = made
    return made


for _name in LOSSES:
    trainer_class(_name)
trainer_class(MedlossTrainer.loss_spec)
