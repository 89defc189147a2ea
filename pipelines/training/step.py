"""One step of training: forward, loss, backward, and what may stand between that and the optimizer."""

import math
from collections.abc import Callable
from typing import Any

import torch
from monai.engines import IterationEvents, SupervisedTrainer
from monai.utils import CommonKeys
from torch import Tensor, nn

from pipelines.errors import TrainingError
from pipelines.training.ranks import mean_over_ranks, texts_over_ranks
from pipelines.training.step_size import StepSize

#: In the engine's output, of a batch that ends with a step: the gradient's norm, before it is clipped, and the ratio of
#: the update to the weights.
GRAD_NORM, UPDATE_RATIO = "grad_norm", "update_ratio"
#: A scale below which float16's loss scaling has given up: every step before was skipped.
_LEAST_SCALE = 2.0**-10


class TrainingStep:
    """What MONAI's trainer does for a batch, on any device: its own knows mixed precision on CUDA alone.

    A loss, or a gradient, that is not finite stops the run before the optimizer's step. With float16, whose scaled
    gradients overflow now and then, such steps are left out, and the scale is lowered.

    Args:
        network: whose gradients are looked at.
        accumulate: batches whose gradients make one step.
        clip: largest norm of a step's gradient; None: any.
        scaler: of float16; None otherwise.
        stepped: called after each of the optimizer's steps.
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
        # The last batches of an epoch make a step of their own, by as many as they are.
        group = min(self.accumulate, length - number // self.accumulate * self.accumulate)
        engine.network.train()
        if number % self.accumulate == 0:
            engine.optimizer.zero_grad(set_to_none=True)
        output[CommonKeys.PRED] = engine.inferer(inputs, engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = output[CommonKeys.LOSS] = engine.loss_function(output[CommonKeys.PRED], targets).mean()
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        # Over all processes: were one to stop alone, the others would wait for its gradients.
        told = mean_over_ranks(loss.detach())
        if not math.isfinite(value := told.item()):
            raise _not_finite(engine, "loss", value)
        scaled = loss / group
        (scaled if self.scaler is None else self.scaler.scale(scaled)).backward()
        output[CommonKeys.LOSS] = told
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if number % self.accumulate == group - 1:
            self._step(engine)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return output

    def _step(self, engine: SupervisedTrainer) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(engine.optimizer)
        # A finite loss can have such a gradient, as a root's at 0; its step would ruin every weight in silence.
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
    """Says so; to be called in all processes, since each has its part of the batch."""
    cases: list[str] = engine.state.batch["case"]
    logits = engine.state.output[CommonKeys.PRED]
    finest: Tensor = logits if isinstance(logits, Tensor) else logits[0]
    finite = finest.isfinite().flatten(1).all(1).tolist()
    guilty = texts_over_ranks([case for case, fine in zip(cases, finite, strict=True) if not fine])
    guilty = guilty or texts_over_ranks(cases)
    named = f"the case {guilty[0]}" if len(guilty) == 1 else f"the cases {', '.join(guilty)}"
    return TrainingError(
        f"the {what} is {value} in epoch {engine.state.epoch}, on {named}; "
        "nothing was learned from that: lower the learning rate, or look at what is named"
    )
