"""MONAI's Ignite engines, with what they lack: spacing for loss and metrics, precision on the CPU, a stop at NaN."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedEvaluator, SupervisedTrainer
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import CommonKeys
from torch import Tensor, nn
from torch.utils.data import DataLoader

import medloss
from pipelines.errors import TrainingError
from pipelines.metrics import argmax_labels, case_metrics

# Ignite logs each exception that it lets through, twice; whoever catches it tells it, once.
logging.getLogger("ignite.engine").addHandler(logging.NullHandler())


class _AutocastInferer(Inferer):
    """Runs a network under autocast on any device, and gives float32 logits: MONAI's engines know CUDA alone."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.dtype = dtype
        self.device = device
        self.memory_format = memory_format

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            logits: Tensor = network(inputs.contiguous(memory_format=self.memory_format), *args, **kwargs)
        return logits.float()


def channels_last(spatial_dims: int) -> torch.memory_format:
    """The memory format in which convolutions are fastest: a step takes 0.7 of the time of the plain one."""
    return torch.channels_last if spatial_dims == 2 else torch.channels_last_3d


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
) -> SupervisedTrainer:
    """A trainer that takes one step a batch of `training_loader`.

    The loss gets float32 logits, the labels and each item's spacing in mm. A loss, or a gradient, that is not finite
    stops the run before the optimizer's step.

    Raises:
        TrainingError: from `run`, when a loss or a gradient is not finite; names the batch's cases, or those of them
            whose logits are to blame.
    """
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        # `targets` is the batch: the engine hands on whatever `prepare_batch` made.
        loss_function=lambda logits, targets: medloss.call_loss(
            loss, logits, targets["label"], spacing=targets["spacing"]
        ),
        prepare_batch=_prepare_batch,
        inferer=_AutocastInferer(dtype, device, channels_last(spatial_dims)),
        decollate=False,
        optim_set_to_none=True,
    )

    @trainer.on(IterationEvents.LOSS_COMPLETED)
    def _stop_at_nan(engine: SupervisedTrainer) -> None:
        value = engine.state.output[CommonKeys.LOSS].item()
        if not math.isfinite(value):
            raise _not_finite(engine, "loss", value)

    @trainer.on(IterationEvents.BACKWARD_COMPLETED)
    def _stop_at_nan_gradients(engine: SupervisedTrainer) -> None:
        # A finite loss can have such a gradient, as a root's at 0; its step would ruin every weight in silence.
        norm = float(nn.utils.get_total_norm(p.grad for p in network.parameters() if p.grad is not None))
        if not math.isfinite(norm):
            raise _not_finite(engine, "gradient", norm)

    @trainer.on(Events.ITERATION_COMPLETED)
    def _step_the_schedule() -> None:
        scheduler.step()

    return trainer


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
        on_case: gets `{"case": id, "metrics": [ClassMetrics, ...]}`, one a foreground class.
        num_classes: C.
        patch: the window, voxels.
        device: where the network is.
        dtype: under autocast; None for float32.
        spatial_dims: 2 or 3.
    """
    window = SlidingWindowInferer(patch, sw_batch_size=4, overlap=0.25, mode="gaussian")
    autocast = _AutocastInferer(dtype, device, channels_last(spatial_dims))

    def infer(inputs: Tensor, network: nn.Module) -> Tensor:
        result: Tensor = window(inputs, lambda patches: autocast(patches, network))
        return result

    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=loader,
        network=network,
        prepare_batch=_prepare_batch,
        inferer=infer,
        decollate=False,
    )

    @evaluator.on(Events.ITERATION_COMPLETED)
    def _measure(engine: SupervisedEvaluator) -> None:
        labels = argmax_labels(engine.state.output[CommonKeys.PRED]).cpu()
        reference = engine.state.output[CommonKeys.LABEL]["label"][:, 0].cpu()
        for index, case in enumerate(engine.state.batch["case"]):
            spacing = tuple(engine.state.batch["spacing"][index].tolist())
            on_case({"case": case, "metrics": case_metrics(labels[index], reference[index], num_classes, spacing)})

    return evaluator


def _not_finite(engine: SupervisedTrainer, what: str, value: float) -> TrainingError:
    cases: list[str] = engine.state.batch["case"]
    finite = engine.state.output[CommonKeys.PRED].isfinite().flatten(1).all(1).tolist()
    guilty = [case for case, fine in zip(cases, finite, strict=True) if not fine] or cases
    named = f"the case {guilty[0]}" if len(guilty) == 1 else f"the cases {', '.join(guilty)}"
    return TrainingError(
        f"the {what} is {value} in epoch {engine.state.epoch}, on {named}; "
        "nothing was learned from that: lower the learning rate, or look at what is named"
    )


def _prepare_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool, **_: Any
) -> tuple[Tensor, dict[str, Any]]:
    image = batch["image"].to(device, non_blocking=non_blocking)
    label = batch["label"].to(device, non_blocking=non_blocking)
    return image, {"label": label, "spacing": batch["spacing"]}
