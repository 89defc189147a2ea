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
from pipelines.evaluation.calibration import Probabilities
from pipelines.evaluation.evaluate import computed, region_masks
from pipelines.evaluation.metrics.base import DEFAULT_SETTINGS, MetricSettings
from pipelines.preprocessing.label_maps import MAPS, channel_masks
from pipelines.preprocessing.resampling import resampled
from pipelines.training.distributed import mean_over_ranks, texts_over_ranks
from pipelines.training.saved_model import AutocastInferer, WindowInferer, label_map, probabilities
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

    w, w': the weights before and after the step; eta: the learning rate; lambda: AdamW's decoupled weight decay, which
    does not depend on the gradient (0 for SGD). Norms are over all trained parameters. Make it before the optimizer's
    step, which it takes a copy of the weights for, and call `ratio` after it.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.kept: list[Tensor] = []
        self.weights: list[Tensor] = []
        for group in optimizer.param_groups:
            if weights := [w.detach() for w in group["params"] if w.grad is not None]:
                decay = group["lr"] * group["weight_decay"] if isinstance(optimizer, torch.optim.AdamW) else 0.0
                self.kept += torch._foreach_mul(weights, 1 - float(decay))
                self.weights += weights
        self.size = nn.utils.get_total_norm(self.weights)

    def ratio(self) -> Tensor:
        """The ratio for the step since; a number on the weights' device."""
        torch._foreach_sub_(self.kept, self.weights)
        return nn.utils.get_total_norm(self.kept) / self.size


@dataclass
class TrainingStep:
    """MONAI's training step for a batch, on any device: MONAI's supports mixed precision on CUDA only.

    A loss or a gradient that is not finite stops the run before the optimizer's step. With float16, whose scaled
    gradients overflow now and then, such steps are skipped, and the scale is lowered.

    Attributes:
        network: the network whose gradients are checked.
        accumulate: batches per optimizer step.
        clip: largest norm of a step's gradient; None: any.
        scaler: for float16; None otherwise.
        stepped: called after each optimizer step, such as the `step` of a schedule.
    """

    network: nn.Module
    accumulate: int = 1
    clip: float | None = None
    scaler: torch.amp.GradScaler | None = None
    stepped: Callable[[], object] = lambda: None

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        """Train on a batch; the engine's output."""
        inputs, targets = engine.prepare_batch(batch, engine.state.device, engine.non_blocking)
        engine.state.output = output = {CommonKeys.IMAGE: inputs, CommonKeys.LABEL: targets}
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


def create_trainer(
    step: TrainingStep,
    loss: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    run: AutocastInferer,
    *,
    scheme: LabelScheme,
    epochs: int,
) -> SupervisedTrainer:
    """A trainer of the step's network on `run`'s device, in its precision.

    The loss gets the logits, in float32 if a part of it is not ours; the class indices `[B, 1, *patch]`, or 0 and 1
    per region `[B, C, *patch]`; and each item's spacing in mm. If voxels are ignored or classes not annotated, it gets
    `mask` and `labelled_classes` as well.

    Raises:
        TrainingError: from `run`, when a loss or a gradient is not finite; names the cases whose logits are not finite,
            or else all cases of the batch.
    """
    return SupervisedTrainer(
        device=run.device,
        max_epochs=epochs,
        train_data_loader=loader,
        network=step.network,
        optimizer=optimizer,
        loss_function=_LossCall(loss, scheme),
        prepare_batch=_prepare_batch,
        inferer=run,
        iteration_update=step,
        decollate=False,
    )


class _LossCall:
    """If an external loss cannot take the first batch, the error is one line; a later one needs its traceback."""

    def __init__(self, loss: nn.Module, scheme: LabelScheme) -> None:
        self.loss = loss
        self.scheme = scheme
        ours = ("medloss.", "torch.nn.modules.container")
        self.untried = [type(part).__name__ for part in loss.modules() if not type(part).__module__.startswith(ours)]
        # Ours compute in float32 whatever they read, without a copy; losses from elsewhere compute in the logits' type.
        self.casts = bool(self.untried)

    def __call__(self, logits: Any, batch: dict[str, Any]) -> Tensor:
        if self.casts:
            logits = logits.float() if isinstance(logits, Tensor) else [scale.float() for scale in logits]
        target, extras = loss_target(batch["label"], batch["labelled"], self.scheme)
        extras |= {name: batch[name] for name in MAPS if name in batch}
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
        target = channel_masks(target, scheme).to(torch.uint8)
    if not labelled.all():
        extras["labelled_classes"] = rows = labelled.to(label.device)
        if scheme.regions:  # a region without all of its classes is unknown
            target = target * rows.view(*rows.shape, *(1,) * (target.ndim - 2))
    return target, extras


def create_evaluator(
    network: nn.Module,
    loader: DataLoader,
    on_case: Callable[[dict[str, Any]], None],
    run: AutocastInferer,
    *,
    scheme: LabelScheme,
    patch: tuple[int, ...],
    metrics: MetricSettings = DEFAULT_SETTINGS,
    keep_probabilities: bool = False,
) -> SupervisedEvaluator:
    """An evaluator that predicts whole cases by sliding windows of a size (voxels), and passes on each case's metrics.

    `on_case` gets `{"case": id, "labels": [*spatial] of 0..C-1, "metrics": [{name: value}, ...]}`, one per foreground
    class or region of the scheme; if a metric needs them, or `keep_probabilities`, also `probabilities`, an array
    `[C, *spatial]` in float16, in which they are kept, and `calibration`, one per class or None.
    """
    with_probabilities = keep_probabilities or bool(metrics.by_probabilities)
    evaluator = SupervisedEvaluator(
        device=run.device, val_data_loader=loader, network=network, prepare_batch=_prepare_batch,
        inferer=WindowInferer(patch, run), decollate=False
    )  # fmt: skip

    @evaluator.on(Events.ITERATION_COMPLETED)
    def _evaluate_cases(engine: SupervisedEvaluator) -> None:
        batch = engine.state.batch
        for index, case in enumerate(batch["case"]):
            reference = batch["reference"][index]
            # On the grid of the label, not on the one that the network sees.
            labels = label_map(engine.state.output[CommonKeys.PRED][index], reference.shape, scheme).cpu()
            done: dict[str, Any] = {"case": case, "labels": labels}
            given = None
            if with_probabilities:
                logits = resampled(engine.state.output[CommonKeys.PRED][index], reference.shape).float().clone()
                # Rounded first, so that the kept files give the same metrics.
                data = done["probabilities"] = probabilities(logits, scheme).half().cpu().numpy()
                own = [(number,) for number in range(len(data))]
                given = Probabilities(data, own if scheme.sigmoid else scheme.members)
            found = list(
                region_masks(
                    labels.numpy(),
                    reference.cpu().numpy(),
                    scheme.members,
                    batch["reference_spacing"][index],
                    ignored=None if scheme.ignore is None else IGNORED,
                    settings=metrics,
                    probabilities=given,
                )
            )
            done["metrics"] = [computed(masks, metrics) for masks in found]
            if with_probabilities:
                done["calibration"] = [masks.calibration for masks in found]
            on_case(done)

    return evaluator


def _prepare_batch(
    batch: dict[str, Any], device: torch.device, non_blocking: bool, **_: Any
) -> tuple[Tensor, dict[str, Any]]:
    image = batch["image"].to(device, non_blocking=non_blocking)
    label = batch["label"].to(device, non_blocking=non_blocking)
    maps = {name: batch[name].to(device, non_blocking=non_blocking) for name in MAPS if name in batch}
    return image, {"label": label, "spacing": batch["spacing"], "labelled": batch["labelled"], **maps}
