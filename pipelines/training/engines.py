"""The training step, and MONAI's engines around it: with spacing for loss and metrics, and any precision."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import IterationEvents, SupervisedEvaluator, SupervisedTrainer
from monai.utils import CommonKeys
from torch import Tensor, nn
from torch.utils.data import DataLoader

import medloss
from medloss.errors import InputError
from pipelines.data.label_scheme import IGNORED, LabelScheme
from pipelines.evaluation.evaluate import region_metrics
from pipelines.training.distributed import mean_over_ranks, texts_over_ranks
from pipelines.training.saved_model import AutocastInferer, WindowInferer, channels_last, label_map
from pipelines.utils import TrainingError
from pipelines.utils.machine import is_out_of_memory

#: In the engine's output, of a batch that ends with a step: the gradient's norm, before it is clipped, and the ratio of
#: the update to the weights.
GRAD_NORM, UPDATE_RATIO = "grad_norm", "update_ratio"
#: Below this scale float16's loss scaling has failed: every step before was skipped.
_LEAST_SCALE = 2.0**-10

# Ignite logs every exception that it lets through, twice; the caller reports it once.
logging.getLogger("ignite.engine").addHandler(logging.NullHandler())


class StepSize:
    r"""The ratio of a step's update to the weights: $\|w' - (1 - \eta \lambda) w\| / \|w\|$.

    w, w': the weights before and after the step; eta: the learning rate; lambda: the decoupled weight decay, which
    AdamW applies whatever the gradient is, and which is therefore no part of the update here (0 for SGD, whose decay is
    a part of the gradient). Norms are over all trained parameters. A small ratio shows that the optimizer hardly moves
    the weights. Costs three passes over the weights, and a copy of them during the step.

    Args:
        optimizer: before its step; call `ratio` after it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.kept: list[Tensor] = []
        self.weights: list[Tensor] = []
        for group in optimizer.param_groups:
            weights = [w.detach() for w in group["params"] if w.grad is not None]
            if weights:
                decay = group["lr"] * group["weight_decay"] if isinstance(optimizer, torch.optim.AdamW) else 0.0
                self.kept += torch._foreach_mul(weights, 1 - float(decay))
                self.weights += weights
        self.size = nn.utils.get_total_norm(self.weights)

    def ratio(self) -> Tensor:
        """The ratio for the step since; a number on the weights' device."""
        torch._foreach_sub_(self.kept, self.weights)
        return nn.utils.get_total_norm(self.kept) / self.size


class TrainingStep:
    """MONAI's training step for a batch, on any device: MONAI's supports mixed precision on CUDA only.

    A loss or a gradient that is not finite stops the run before the optimizer's step. With float16, whose scaled
    gradients overflow now and then, such steps are skipped, and the scale is lowered.

    Args:
        network: the network whose gradients are checked.
        accumulate: batches per optimizer step.
        clip: largest norm of a step's gradient; None: any.
        scaler: for float16; None otherwise.
        stepped: called after each optimizer step.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        accumulate: int = 1,
        clip: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        stepped: Callable[[], None] = lambda: None,
    ) -> None:
        self.network = network
        self.accumulate = accumulate
        self.clip = clip
        self.scaler = scaler
        self.stepped = stepped

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch; the engine's output."""
        inputs, targets = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        output: dict[str, Any] = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: targets}
        engine.state.output = output
        number, length = (engine.state.iteration - 1) % engine.state.epoch_length, engine.state.epoch_length
        # The last batches of an epoch make a step of their mean, even if there are fewer of them.
        group = min(self.accumulate, length - number // self.accumulate * self.accumulate)
        engine.network.train()
        if number % self.accumulate == 0:
            engine.optimizer.zero_grad(set_to_none=True)
        output[CommonKeys.PRED] = engine.inferer(inputs, engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = output[CommonKeys.LOSS] = engine.loss_function(output[CommonKeys.PRED], targets).mean()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        # Over all processes: were one to stop alone, the others would wait for its gradients.
        mean_loss = mean_over_ranks(loss.detach())
        if not math.isfinite(value := mean_loss.item()):
            raise _not_finite(engine, "loss", value)
        scaled = loss / group
        (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        output[CommonKeys.LOSS] = mean_loss
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if number % self.accumulate == group - 1:
            self._step(engine)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _step(self, engine: SupervisedTrainer) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(engine.optimizer)
        # A finite loss can have an infinite gradient, such as a root at 0; its step would ruin every weight silently.
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if self.scaler is None and not math.isfinite(float(norm)):
            raise _not_finite(engine, "gradient", float(norm))
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), self.clip, norm)
        size = StepSize(engine.optimizer)
        if self.scaler is None:
            engine.optimizer.step()
        else:
            self.scaler.step(engine.optimizer)
            self.scaler.update()
            if self.scaler.get_scale() < _LEAST_SCALE:
                raise _not_finite(engine, "gradient", float(norm))
        engine.state.output |= {GRAD_NORM: norm, UPDATE_RATIO: size.ratio()}
        self.stepped()


def _not_finite(engine: SupervisedTrainer, what: str, value: float) -> TrainingError:
    """The error that names the cases; to be called in all processes, since each has its part of the batch."""
    cases: list[str] = engine.state.batch["case"]
    logits = engine.state.output[CommonKeys.PRED]
    finest: Tensor = logits if isinstance(logits, Tensor) else logits[0]
    finite = finest.isfinite().flatten(1).all(1).tolist()
    failed = texts_over_ranks([case for case, fine in zip(cases, finite, strict=True) if not fine])
    failed = failed or texts_over_ranks(cases)
    named = f"the case {failed[0]}" if len(failed) == 1 else f"the cases {', '.join(failed)}"
    return TrainingError(
        f"the {what} is {value} in epoch {engine.state.epoch}, on {named}; "
        "the weights were not updated: lower the learning rate, or check these images and labels"
    )


@dataclass(frozen=True)
class Compute:
    """Where and in which precision a network computes.

    Attributes:
        device: where the network is.
        dtype: under autocast; None for float32.
        spatial_dims: 2 or 3.
    """

    device: torch.device
    dtype: torch.dtype | None
    spatial_dims: int

    def inferer(self) -> AutocastInferer:
        """What runs the network on a batch."""
        return AutocastInferer(self.dtype, self.device, channels_last(self.spatial_dims))


@dataclass(frozen=True)
class Optimization:
    """How the weights are updated.

    Attributes:
        optimizer: steps once every `accumulate` batches.
        scheduler: is stepped after each optimizer step.
        accumulate: batches per optimizer step.
        clip: largest norm of a step's gradient; None: any.
        scaler: for float16; None otherwise.
    """

    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    accumulate: int = 1
    clip: float | None = None
    scaler: torch.amp.GradScaler | None = None


def create_trainer(
    network: nn.Module,
    loss: nn.Module,
    loader: DataLoader,
    optimization: Optimization,
    compute: Compute,
    *,
    scheme: LabelScheme,
    epochs: int,
) -> SupervisedTrainer:
    """A trainer that takes the batches of `training_loader`.

    The loss gets float32 logits; the class indices `[B, 1, *patch]`, or 0 and 1 per region `[B, C, *patch]`; and each
    item's spacing in mm. If voxels are ignored or classes not annotated, it gets `mask` and `labelled_classes` as well.

    Args:
        network: the network.
        loss: the loss.
        loader: from `training_loader`.
        optimization: optimizer, schedule, accumulation, clipping and loss scaling.
        compute: device and precision.
        scheme: the classes or regions of the labels.
        epochs: number of epochs.

    Raises:
        TrainingError: from `run`, when a loss or a gradient is not finite; names the cases whose logits are not finite,
            or else all cases of the batch.
    """
    step = TrainingStep(
        network,
        accumulate=optimization.accumulate,
        clip=optimization.clip,
        scaler=optimization.scaler,
        stepped=optimization.scheduler.step,
    )
    return SupervisedTrainer(
        device=compute.device,
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimization.optimizer,
        # Its `targets` is the batch: the engine passes on whatever `prepare_batch` made.
        loss_function=_LossCall(loss, scheme),
        prepare_batch=_prepare_batch,
        inferer=compute.inferer(),
        iteration_update=step,
        decollate=False,
    )


class _LossCall:
    """The value of a loss for a batch. If an external loss cannot take the first batch, the error is one line.

    A later failure is a defect, which needs its traceback.
    """

    def __init__(self, loss: nn.Module, scheme: LabelScheme) -> None:
        self.loss = loss
        self.scheme = scheme
        self.untried = [type(part).__name__ for part in loss.modules() if _is_foreign(part)]

    def __call__(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        target, extras = loss_target(batch["label"], batch["labelled"], self.scheme)
        try:
            value = medloss.call_loss(self.loss, logits, target, spacing=batch["spacing"], **extras)
        except Exception as error:
            if not self.untried or isinstance(error, InputError) or is_out_of_memory(error):
                raise
            finest = logits if isinstance(logits, Tensor) else logits[0]
            shapes = f"logits {tuple(finest.shape)} and labels {tuple(batch['label'].shape)}"
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise TrainingError(f"the loss {' + '.join(self.untried)} cannot take {shapes}: {why}") from error
        self.untried = []
        return value


def loss_target(label: Tensor, labelled: Tensor, scheme: LabelScheme) -> tuple[Tensor, dict[str, Tensor]]:
    """What a loss gets of a batch's labels: the target, and its keyword arguments `mask` and `labelled_classes`.

    Args:
        label: class indices and `IGNORED`, `[B, 1, *spatial]`, uint8.
        labelled: whether each item annotates each channel, `[B, C]`.
        scheme: the classes or regions.

    Returns:
        The target: class indices, or with regions a map of 0 and 1 per region, `[B, C, *spatial]`, uint8. `mask`, if
        the scheme ignores a label: where voxels count. `labelled_classes`, if some item does not annotate all channels.
    """
    extras: dict[str, Tensor] = {}
    target = label
    if scheme.ignore is not None:
        extras["mask"] = label != IGNORED
        target = label.masked_fill(label == IGNORED, 0)
    if scheme.regions:
        target = torch.cat([_one_of(target, members) for members in scheme.members], 1)
    if not labelled.all():
        extras["labelled_classes"] = labelled.to(label.device)
    return target, extras


def _one_of(label: Tensor, members: tuple[int, ...]) -> Tensor:
    found = label == members[0]
    for index in members[1:]:
        found |= label == index
    return found.to(torch.uint8)


def _is_foreign(part: nn.Module) -> bool:
    module = type(part).__module__
    return not module.startswith(("medloss.", "torch.nn.modules.container"))


def create_evaluator(
    network: nn.Module,
    loader: DataLoader,
    on_case: Callable[[dict[str, Any]], None],
    compute: Compute,
    *,
    scheme: LabelScheme,
    patch: tuple[int, ...],
) -> SupervisedEvaluator:
    """An evaluator that predicts whole cases by sliding windows, and passes on the metrics of each case.

    Args:
        network: the network.
        loader: from `validation_loader`.
        on_case: gets `{"case": id, "labels": [*spatial] of 0..C-1, "metrics": [{name: value}, ...]}`, one
            per foreground class or region.
        compute: device and precision.
        scheme: the classes or regions of the labels.
        patch: the window, voxels.
    """
    evaluator = SupervisedEvaluator(
        device=compute.device,
        val_data_loader=loader,
        network=network,
        prepare_batch=_prepare_batch,
        inferer=WindowInferer(patch, compute.inferer()),
        decollate=False,
    )

    @evaluator.on(Events.ITERATION_COMPLETED)
    def _evaluate_cases(engine: SupervisedEvaluator) -> None:
        batch = engine.state.batch
        for index, case in enumerate(batch["case"]):
            reference = batch["reference"][index]
            # On the grid of the label, not on the one that the network sees.
            labels = label_map(engine.state.output[CommonKeys.PRED][index], reference.shape, scheme).cpu()
            metrics = region_metrics(
                labels.numpy(),
                reference.cpu().numpy(),
                scheme.members,
                batch["reference_spacing"][index],
                ignored=None if scheme.ignore is None else IGNORED,
            )
            on_case({"case": case, "labels": labels, "metrics": metrics})

    return evaluator


def _prepare_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool, **_: Any
) -> tuple[Tensor, dict[str, Any]]:
    image = batch["image"].to(device, non_blocking=non_blocking)
    label = batch["label"].to(device, non_blocking=non_blocking)
    return image, {"label": label, "spacing": batch["spacing"], "labelled": batch["labelled"]}
