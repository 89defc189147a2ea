"""nnU-Net's trainer as a run of a comparison: seeded, killed and resumed at any time, and heard after each epoch."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch

from medloss.errors import InputError
from pipelines.errors import TrainingError
from pipelines.nnunet.names import PREFIX, TrainerName
from pipelines.nnunet.trainers import MedlossTrainer
from pipelines.training.optimization import seed_everything
from pipelines.training.run_config import RunConfig


class ComparedTrainer(MedlossTrainer):
    """A training that leaves a checkpoint after each epoch.

    Attributes:
        seed: of the network's first weights and, where no processes of their own augment, of the patches.
        iterations: steps an epoch.
        before_files: called at the end of an epoch, before anything is written.
        after_epoch: called once it is written.
    """

    seed: ClassVar[int] = 0
    iterations: ClassVar[int] = 250
    before_files: Callable[[], None] = staticmethod(lambda: None)
    after_epoch: Callable[[], None] = staticmethod(lambda: None)

    def initialize(self) -> None:
        """Also seed, and set the steps an epoch."""
        self.num_iterations_per_epoch = self.iterations
        self.num_val_iterations_per_epoch = max(1, self.iterations // 5)
        self.save_every = 1
        seed_everything(self.seed, 0)
        super().initialize()

    def on_train_epoch_start(self) -> None:
        """Also seed: so a resumed run needs no generator's state."""
        seed_everything(self.seed, self.current_epoch + 1)
        super().on_train_epoch_start()

    def on_epoch_end(self) -> None:
        """Also refuse weights that are not numbers any more, and say that the epoch is over.

        Raises:
            TrainingError: there are such weights.
        """
        self.before_files()
        if not all(torch.isfinite(weights).all() for weights in self.network.parameters()):
            raise TrainingError(f"after epoch {self.current_epoch + 1} the network's weights are not finite any more")
        super().on_epoch_end()
        self.after_epoch()

    def save_checkpoint(self, filename: str) -> None:
        """Whole, or not at all: a kill leaves the checkpoint before."""
        written = Path(f"{filename}.partial")
        super().save_checkpoint(str(written))
        if written.is_file():  # of several processes the first one writes
            with written.open("rb") as file:
                os.fsync(file.fileno())
            written.replace(filename)

    def rows(self) -> list[dict[str, Any]]:
        """Of each epoch that is over, what nnU-Net's log says, as columns of `epochs.csv`."""
        names = ("train_losses", "mean_fg_dice", "epoch_start_timestamps", "epoch_end_timestamps")
        columns = [self.logger.get_value(name, step=None)[: self.current_epoch] for name in names]
        return [
            {
                "epoch": number,
                "train_loss": float(loss),
                "pseudo_dice": float(dice),
                "epoch_s": round(end - start, 3),
                "time": round(end, 3),
            }
            for number, (loss, dice, start, end) in enumerate(zip(*columns, strict=True), start=1)
        ]


def compared_trainer(config: RunConfig) -> type[ComparedTrainer]:
    """The trainer of a run; where its loss can be named, by the name that `nnUNet_extTrainer` finds."""
    assert config.nnunet is not None
    try:
        name = str(TrainerName(config.loss, config.epochs))
    except InputError:
        name = f"{PREFIX}of_another_package"
    attributes = {
        "__module__": __name__,
        "__doc__": f"nnU-Net's trainer with the loss {config.loss}, in a comparison.",
        "loss_spec": config.loss,
        "epochs": config.epochs,
        "seed": config.seed,
        "iterations": config.nnunet.iterations,
    }
    return type(name, (ComparedTrainer,), attributes)
