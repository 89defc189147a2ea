"""The engines: what a step does, precision, sliding windows, and the stop at what is not finite."""

import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from tiny import tiny_manifest
from torch import Tensor, nn

import medloss
from pipelines.data.label_scheme import LabelScheme
from pipelines.preprocessing.patches import PatchDataset, start_epoch, training_loader, validation_loader
from pipelines.training.components import Training, create_optimizer, create_schedule
from pipelines.training.engines import TrainingStep, _LossCall, create_evaluator, create_trainer
from pipelines.training.networks import create_network
from pipelines.training.run_config import RunConfig
from pipelines.training.saved_model import AutocastInferer, WindowInferer, channels_last
from pipelines.utils import TrainingError

CPU = torch.device("cpu")
SCHEME = LabelScheme(classes={0: "background", 1: "bright"})
ALL = torch.tensor([True, True])


def _items(shape: tuple[int, ...] = (8, 8, 8), count: int = 4) -> list[dict[str, Any]]:
    """Cases whose label is where the image is bright; each with another spacing."""
    items = []
    for index in range(count):
        generator = torch.Generator().manual_seed(index)
        image = torch.randn((1, *shape), generator=generator)
        spacing = torch.tensor([3.0, 1.0 + index, 0.5][: len(shape)], dtype=torch.float64)
        item = {"case": f"case{index}", "image": image, "label": (image > 0.5).to(torch.uint8), "spacing": spacing}
        item["labelled"] = ALL
        items.append(item | {"centres": []})
    return items


class _Linear(nn.Module):
    """Two logits a voxel, each the image times a weight: small enough to follow a step by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.25, -0.5]))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.weight.view(1, 2, *(1,) * (image.ndim - 2))


class _Loss(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, target: Tensor, *, spacing: Tensor) -> Tensor:
        return self.function(logits, target, spacing)


def _trainer(
    loss: Callable[..., Tensor],
    items: list[dict[str, Any]],
    *,
    network: nn.Module | None = None,
    dtype: torch.dtype | None = None,
    learning_rate: float = 0.5,
    epochs: int = 1,
) -> tuple[SupervisedTrainer, nn.Module]:
    network = _Linear() if network is None else network
    optimizer = torch.optim.SGD(network.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    loader = training_loader(PatchDataset(items, items[0]["image"].shape[1:], seed=0), batch_size=2, workers=0)
    start_epoch(loader, 1)
    run = AutocastInferer(dtype, CPU, channels_last(items[0]["image"].ndim - 1))
    step = TrainingStep(network, stepped=schedule.step)
    trainer = create_trainer(step, _Loss(loss), loader, optimizer, run, scheme=SCHEME, epochs=epochs)
    return trainer, network


def test_steps_are_those_of_a_loop_by_hand() -> None:
    items = _items()
    trainer, network = _trainer(lambda z, y, s: (z * y).square().mean(), items, epochs=1)
    batches = list(trainer.data_loader)  # the sampler gives the same epoch again
    trainer.run()
    weight = torch.tensor([0.25, -0.5])
    for step, batch in enumerate(batches):
        masked = (batch["image"] * batch["label"]).square()
        gradient = 2 * weight * masked.mean() / 2
        weight = weight - 0.5 * 0.5**step * gradient
    assert len(batches) == 2
    assert network.get_parameter("weight").tolist() == pytest.approx(weight.tolist(), rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "polynomial"])
def test_the_learning_rate_rises_from_the_first_step_and_falls_to_0_after_the_last(schedule: str) -> None:
    # Of five batches per epoch, two at a time make three steps: twelve in all, of which a quarter warms up.
    config = RunConfig(
        manifest="phantom", epochs=4, accumulate=2, warmup=0.25, learning_rate=0.3, optimizer="sgd", schedule=schedule
    )
    optimizer = create_optimizer(_Linear(), config)
    scheduler = create_schedule(optimizer, config, 5)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert all(before > after > 0 for before, after in itertools.pairwise(rates[3:]))
    assert scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)


def test_the_loss_gets_float32_and_each_items_spacing() -> None:
    items = _items((12, 16, 12))
    seen: list[tuple[Any, ...]] = []

    def loss(logits: Tensor, target: Tensor, spacing: Tensor) -> Tensor:
        seen.append((logits.dtype, target.dtype, tuple(target.shape), torch.is_autocast_enabled("cpu"), spacing))
        return logits.square().mean()

    network = create_network(RunConfig(manifest="phantom"), 3, 2)
    trainer, _ = _trainer(loss, items, network=network, dtype=torch.bfloat16, learning_rate=1e-3)
    batches = [batch["case"] for batch in trainer.data_loader]
    trainer.run()
    spacing_of = {item["case"]: item["spacing"].tolist() for item in items}
    for cases, (logits, target, shape, autocast, spacing) in zip(batches, seen, strict=True):
        assert (logits, target, shape, autocast) == (torch.float32, torch.uint8, (2, 1, 12, 16, 12), False)
        assert spacing.tolist() == [spacing_of[case] for case in cases]


@pytest.mark.parametrize("loss", ["dice+binary_cross_entropy", "dice+distance_penalty"])
def test_our_losses_read_bfloat16_logits_and_the_step_is_that_of_float32_ones(loss: str) -> None:
    items = _items((12, 16, 12))
    weights, seen = [], []
    for foreign in (False, True):
        torch.manual_seed(0)
        network = create_network(RunConfig(manifest="phantom"), 3, 2)
        trainer, _ = _trainer(
            lambda z, y, s: z.mean(), items, network=network, dtype=torch.bfloat16, learning_rate=1e-2
        )
        ours = medloss.create_training_loss(loss, num_classes=2)
        call = trainer.loss_function = _LossCall(ours, SCHEME)
        call.casts |= foreign
        ours.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
        trainer.run()
        weights.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert set(seen[: len(seen) // 2]) == {torch.bfloat16} and set(seen[len(seen) // 2 :]) == {torch.float32}
    assert torch.equal(*weights)


@pytest.mark.parametrize("dims", [2, 3])
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights(dims: int) -> None:
    network = create_network(RunConfig(manifest="phantom"), dims, 2)
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            module.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    trainer, _ = _trainer(
        lambda z, y, s: z.square().mean(),
        _items((16,) * dims),
        network=network,
        dtype=torch.bfloat16,
        learning_rate=1e-3,
    )
    trainer.run()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def _nan_item(items: list[dict[str, Any]], case: str) -> None:
    (item,) = (item for item in items if item["case"] == case)
    item["image"] = item["image"].clone()
    item["image"][0, 0, 0, 0] = torch.nan


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(value: float) -> None:
    trainer, network = _trainer(lambda z, y, s: z.mean() * 0 + value, _items())
    (first, _) = [batch["case"] for batch in trainer.data_loader]
    with pytest.raises(TrainingError, match=f"the loss is {value} in epoch 1, on the cases {', '.join(first)};"):
        trainer.run()
    assert network.get_parameter("weight").tolist() == [0.25, -0.5]


def test_the_stop_is_told_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    # Ignite logs exceptions, too; without any handler, as on the command line, that goes to stderr.
    trainer, _ = _trainer(lambda z, y, s: z.mean() * torch.nan, _items())
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with pytest.raises(TrainingError):
        trainer.run()
    assert capfd.readouterr().err == ""


def test_the_case_with_nan_is_named_and_not_its_neighbour() -> None:
    items = _items()
    _nan_item(items, "case2")
    trainer, network = _trainer(lambda z, y, s: z.square().mean(), items)
    with pytest.raises(TrainingError, match="the loss is nan in epoch 1, on the case case2;"):
        trainer.run()
    assert network.get_parameter("weight").isfinite().all()


def test_a_gradient_that_is_not_finite_stops_before_the_step() -> None:
    # The root of 0: the loss is 0, its gradient infinite, and 0 times that NaN.
    trainer, network = _trainer(lambda z, y, s: (z * 0).sum().sqrt(), _items())
    with pytest.raises(TrainingError, match="the gradient is nan in epoch 1, on the cases case"):
        trainer.run()
    assert network.get_parameter("weight").tolist() == [0.25, -0.5]


def _evaluate(network: nn.Module, items: list[dict[str, Any]], patch: tuple[int, ...]) -> list[dict[str, Any]]:
    evaluated: list[dict[str, Any]] = []
    run = AutocastInferer(None, CPU, channels_last(len(patch)))
    evaluator = create_evaluator(network, validation_loader(items), evaluated.append, run, scheme=SCHEME, patch=patch)
    evaluator.run()
    return evaluated


def test_the_middle_of_a_window_counts_more_than_its_border() -> None:
    # Windows of eight columns begin at columns 0 and 6; each holds how far a column lies from the window's beginning.
    run = AutocastInferer(None, CPU, channels_last(2))
    column = WindowInferer((8, 8), run)(
        torch.zeros(1, 1, 8, 14), lambda window: torch.arange(8.0).repeat(len(window), 1, 8, 1)
    )[0, 0, 4]
    assert column[:6].tolist() == pytest.approx(list(range(6)), abs=1e-4)
    assert column[6] > 3.5 and column[7] < 3.5  # plain means are 3 and 4


class _Threshold(nn.Module):
    """Finds the label from the image, voxel by voxel; notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        self.shapes.append(tuple(image.shape[2:]))
        return torch.cat([torch.full_like(image, 0.5), image], 1)


@pytest.mark.parametrize("shape", [(8, 8, 8), (12, 19, 8), (5, 9, 30), (9, 9), (21, 6)])
def test_windows_cover_every_case_whatever_its_shape(shape: tuple[int, ...]) -> None:
    patch = (8,) * len(shape)
    network = _Threshold()
    evaluated = _evaluate(network, _items(shape), patch)
    assert [case["case"] for case in evaluated] == ["case0", "case1", "case2", "case3"]
    for case in evaluated:
        (metrics,) = case["metrics"]
        assert metrics["dice"] == metrics["sensitivity"] == metrics["specificity"] == 1
        assert metrics["hd95_mm"] == 0
    assert set(network.shapes) == {patch}


def test_distances_use_the_spacing_of_each_case() -> None:
    items = []
    for axis in range(3):
        label = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
        label[0, 5, 5, 5] = 1
        image = torch.zeros(1, 12, 12, 12)
        image[(0, *(7 if a == axis else 5 for a in range(3)))] = 1  # two voxels off, along one axis
        spacing = torch.tensor([3.0, 1.0, 0.6], dtype=torch.float64) * (axis + 1)
        items.append({"case": f"off along {axis}", "image": image, "label": label, "spacing": spacing, "labelled": ALL})
    distances = [case["metrics"][0]["hd95_mm"] for case in _evaluate(_Threshold(), items, (12, 12, 12))]
    assert distances == pytest.approx([2 * 3.0, 2 * 2.0, 2 * 1.8])


def test_evaluation_leaves_the_network_as_it_was() -> None:
    network = create_network(RunConfig(manifest="phantom", network="vnet"), 2, 2).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    _evaluate(network, _items((16, 16), 2), (16, 16))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(("dims", "expected"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_memory_format(dims: int, expected: torch.memory_format) -> None:
    assert channels_last(dims) is expected


@pytest.mark.parametrize(
    ("loss", "clip", "expected"),
    [
        ("dice", None, None),
        ("dice", 12.0, 12.0),
        ("hausdorff_er", None, 1.0),
        ("hausdorff_er", 12.0, 1.0),
        ("hausdorff_er", 0.5, 0.5),
    ],
)
def test_a_run_clips_at_the_lesser_of_the_norms_of_its_config_and_its_loss(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loss: str, clip: float | None, expected: float | None
) -> None:
    seen: list[float | None] = []
    whole = TrainingStep.__init__

    def noted(self: TrainingStep, *given: Any, **named: Any) -> None:
        whole(self, *given, **named)
        seen.append(self.clip)

    monkeypatch.setattr(TrainingStep, "__init__", noted)
    manifest = tiny_manifest(tmp_path, dims=2)
    config = RunConfig(
        manifest=str(manifest), data_root=str(tmp_path / "data"), loss=loss, clip=clip, batch_size=2,
        patch_size=(16, 16), device="cpu", precision="float32",
    )  # fmt: skip
    Training(config)
    assert seen == [expected]
