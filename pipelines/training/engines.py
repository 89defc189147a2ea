"""MONAI's Ignite engines, with what they lack: spacing for loss and metrics, precision on any device."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.utils import CommonKeys
from torch import Tensor, nn
from torch.utils.data import DataLoader

import medloss
from medloss.errors import InputError
from pipelines.errors import TrainingError
from pipelines.evaluation.metrics import case_metrics
from pipelines.machine import lacks_memory
from pipelines.prediction.windows import AutocastInferer, WindowInferer, label_map
from pipelines.prediction.windows import channels_last as channels_last
from pipelines.training.step import TrainingStep

# Ignite logs each exception that it lets through, twice; whoever catches it tells it, once.
logging.getLogger("ignite.engine").addHandler(logging.NullHandler())


def create_trainer(
    network: nn.Module,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    loader: DataLoader,
    *,
    epochs: int,
    device: torch.device,
    dtype: torch.dtype | None,
    spatial_dims: int,
    accumulate: int = 1,
    clip: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> SupervisedTrainer:
    """A trainer that takes the batches of `training_loader`.

    The loss gets float32 logits, the labels and each item's spacing in mm.

    Args:
        network: the network.
        loss: the loss.
        optimizer: steps once every `accumulate` batches.
        scheduler: is stepped after each of the optimizer's steps.
        loader: from `training_loader`.
        epochs: how many.
        device: where the network is.
        dtype: under autocast; None for float32.
        spatial_dims: 2 or 3.
        accumulate: batches a step.
        clip: largest norm of a step's gradient.
        scaler: for float16.

    Raises:
        TrainingError: from `run`, when a loss or a gradient is not finite; names the batch's cases, or those of them
            whose logits are to blame.
    """
    step = TrainingStep(network, accumulate=accumulate, clip=clip, scaler=scaler, stepped=scheduler.step)
    return SupervisedTrainer(
        device=device,
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        # `targets` is the batch: the engine hands on whatever `prepare_batch` made.
        loss_function=_LossCall(loss),
        prepare_batch=_prepare_batch,
        inferer=AutocastInferer(dtype, device, channels_last(spatial_dims)),
        iteration_update=step,
        decollate=False,
    )


class _LossCall:
    """A loss's value of a batch. A loss from elsewhere that cannot take the first one is told in a line.

    What goes wrong later is a defect, whose traceback says more.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        self.untried = [type(part).__name__ for part in loss.modules() if _is_foreign(part)]

    def __call__(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        try:
            value = medloss.call_loss(self.loss, logits, batch["label"], spacing=batch["spacing"])
        except Exception as error:
            if not self.untried or isinstance(error, InputError) or lacks_memory(error):
                raise
            finest = logits if isinstance(logits, Tensor) else logits[0]
            shapes = f"logits {tuple(finest.shape)} and labels {tuple(batch['label'].shape)}"
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise TrainingError(f"the loss {' + '.join(self.untried)} cannot take {shapes}: {why}") from error
        self.untried = []
        return value


def _is_foreign(part: nn.Module) -> bool:
    module = type(part).__module__
    return not module.startswith(("medloss.", "torch.nn.modules.container"))


def create_evaluator(
    network: nn.Module,
    loader: DataLoader,
    on_case: Callable[[dict[str, Any]], None],
    *,
    num_classes: int,
    patch: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype | None,
    spatial_dims: int,
) -> SupervisedEvaluator:
    """An evaluator that predicts whole cases by sliding windows, and tells each case's measures.

    Args:
        network: the network.
        loader: from `validation_loader`.
        on_case: gets `{"case": id, "labels": [*spatial] of 0..C-1, "metrics": [{name: value}, ...]}`, one
            per foreground class.
        num_classes: C.
        patch: the window, voxels.
        device: where the network is.
        dtype: under autocast; None for float32.
        spatial_dims: 2 or 3.
    """
    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=loader,
        network=network,
        prepare_batch=_prepare_batch,
        inferer=WindowInferer(patch, AutocastInferer(dtype, device, channels_last(spatial_dims))),
        decollate=False,
    )

    @evaluator.on(Events.ITERATION_COMPLETED)
    def _measure(engine: SupervisedEvaluator) -> None:
        batch = engine.state.batch
        for index, case in enumerate(batch["case"]):
            reference = batch["reference"][index]
            # Measured where the label was drawn, not on the grid that the network sees.
            labels = label_map(engine.state.output[CommonKeys.PRED][index], reference.shape).cpu()
            measures = case_metrics(labels, reference, num_classes, batch["reference_spacing"][index])
            on_case({"case": case, "labels": labels, "metrics": measures})

    return evaluator


def _prepare_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool, **_: Any
) -> tuple[Tensor, dict[str, Any]]:
    image = batch["image"].to(device, non_blocking=non_blocking)
    label = batch["label"].to(device, non_blocking=non_blocking)
    return image, {"label": label, "spacing": batch["spacing"]}
