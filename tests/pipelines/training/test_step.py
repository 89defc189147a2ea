"""The training step: accumulation, clipping, float16's scaler, and what must not reach the optimizer."""

import math
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipelines.training.engines import GRAD_NORM, UPDATE_RATIO, StepSize, TrainingStep
from pipelines.utils import TrainingError


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight


def _run(
    batches: list[Tensor],
    loss: Any = lambda z, _: z.square().mean(),
    epochs: int = 1,
    kind: type[TrainingStep] = TrainingStep,
    **settings: Any,
) -> tuple[_Scale, list[int]]:
    network, steps = _Scale(), []
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    step = kind(network, stepped=lambda: steps.append(trainer.state.iteration), **settings)
    loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"), max_epochs=epochs, train_data_loader=loader, network=network, optimizer=optimizer,
        loss_function=loss, iteration_update=step, decollate=False,
        prepare_batch=lambda batch, *_: (batch, {}),
    )  # fmt: skip

    @trainer.on(Events.GET_BATCH_COMPLETED)
    def _as_ours() -> None:
        trainer.state.batch = _Batch(trainer.state.batch)

    trainer.run()
    return network, steps


class _Batch(Tensor):
    def __new__(cls, values: Tensor) -> "_Batch":
        return values.as_subclass(cls)  # type: ignore[return-value]

    def __getitem__(self, name: Any) -> Any:
        return ["a case"] if name == "case" else super().__getitem__(name)


BATCHES = [torch.tensor([[1.0, 2.0]]) * k for k in (1, 2, 3, 4, 5)]


def test_accumulated_batches_make_the_step_of_one() -> None:
    # Groups of 2, 2 and, at the end of the epoch, 1: each steps by the mean of its gradients.
    network, steps = _run(BATCHES, accumulate=2)
    assert steps == [2, 4, 5]
    by_hand = _Scale()
    for group in (BATCHES[:2], BATCHES[2:4], BATCHES[4:]):
        loss = torch.stack([by_hand(batch).square().mean() for batch in group]).mean()
        (gradient,) = torch.autograd.grad(loss, by_hand.parameters())
        with torch.no_grad():
            by_hand.weight -= 0.1 * gradient
    assert torch.allclose(network.weight, by_hand.weight, atol=1e-5)
    assert _run(BATCHES, accumulate=2, epochs=2)[1] == [2, 4, 5, 7, 9, 10]
    assert _run(BATCHES, accumulate=100)[1] == [5]


def test_clipping_bounds_the_step() -> None:
    free, _ = _run(BATCHES[:1])
    clipped, _ = _run(BATCHES[:1], clip=0.5)
    start = torch.tensor([1.0, 2.0])
    assert (clipped.weight - start).norm().item() == pytest.approx(0.05, rel=1e-4)
    assert torch.allclose((clipped.weight - start) / 0.05, (free.weight - start) / (free.weight - start).norm())
    assert torch.equal(_run(BATCHES[:1], clip=1e6)[0].weight, free.weight)


def test_an_infinite_gradient_is_not_learned() -> None:
    # The root of 0, whose value is finite.
    with pytest.raises(TrainingError, match="the gradient is inf in epoch 1, on the case a case"):
        _run(BATCHES, loss=lambda z, _: (z - z.detach()).sum().sqrt())


def test_the_scaler_leaves_out_steps_that_overflow() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    network, steps = _run(BATCHES, scaler=scaler)
    assert scaler.get_scale() < 2.0**127  # 4 * 2^127 is no float32
    assert len(steps) == 5
    plain, _ = _run(BATCHES, scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    assert torch.allclose(plain.weight, _run(BATCHES)[0].weight)
    assert network.weight.isfinite().all()
    assert not torch.equal(network.weight, plain.weight)


def test_the_bound_of_clipping_is_of_the_unscaled_gradient() -> None:
    scaled, _ = _run(BATCHES[:2], clip=0.5, scaler=torch.amp.GradScaler("cpu", init_scale=64.0))
    assert torch.allclose(scaled.weight, _run(BATCHES[:2], clip=0.5)[0].weight)


def test_a_scaler_that_has_given_up_ends_the_run() -> None:
    class _Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, z: Tensor) -> Tensor:
            return z.sum()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return torch.full((1, 2), torch.inf)

    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with pytest.raises(TrainingError, match=r"the gradient is .* on the case a case"):
        _run(BATCHES * 10, loss=lambda z, _: _Broken.apply(z), scaler=scaler)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_the_ratio_of_update_to_weights(decay: float) -> None:
    """AdamW's decay of the weights is no update: without any gradient the ratio is 0."""
    weights = [nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([[12.0]]))]
    for optimizer, moved in (
        (torch.optim.SGD(weights, 0.1, weight_decay=0.0), 0.1 * math.hypot(1, 2, 2)),
        (torch.optim.AdamW(weights, 0.1, weight_decay=decay), 0.1 * math.sqrt(3)),  # each weight by the rate
    ):
        for weight, value in zip(weights, ([3.0, 4.0], [[12.0]]), strict=True):
            weight.data = torch.tensor(value)
        weights[0].grad, weights[1].grad = torch.tensor([1.0, -2.0]), torch.tensor([[2.0]])
        size = StepSize(optimizer)
        optimizer.step()
        assert size.ratio().item() == pytest.approx(moved / 13, rel=1e-5)
    still = torch.optim.AdamW(weights, 0.1, weight_decay=decay)
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    size = StepSize(still)
    still.step()
    assert size.ratio().item() < 1e-6


def test_each_step_reports_its_size() -> None:
    seen: list[dict[str, Any]] = []

    class _Seen(TrainingStep):
        def __call__(self, engine: SupervisedTrainer, batch: Any) -> dict[str, Any]:
            output = super().__call__(engine, batch)
            seen.append({name: float(output[name]) for name in (GRAD_NORM, UPDATE_RATIO) if name in output})
            return output

    _run(BATCHES, accumulate=2, clip=0.5, kind=_Seen)
    assert [bool(one) for one in seen] == [False, True, False, True, True]
    start = torch.tensor([1.0, 2.0])
    # The gradient's norm is that before clipping; the step is that after it.
    gradient = torch.stack([k * k * torch.tensor([1.0, 4.0]) * start for k in (1, 2)]).mean(0)
    assert seen[1][GRAD_NORM] == pytest.approx(gradient.norm().item(), rel=1e-5)
    assert seen[1][UPDATE_RATIO] == pytest.approx(0.05 / start.norm().item(), rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nothing_that_is_not_finite_is_learned(accumulate: int) -> None:
    poisoned = [*BATCHES[:3], BATCHES[3] * torch.nan]
    steps: list[int] = []
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1, on the case a case"):
        _run(poisoned, accumulate=accumulate, loss=lambda z, _: (steps.append(1), z.square().mean())[1])
    assert len(steps) == 4
