"""The loss of a trainer, compared with nnU-Net's own and with the loss called directly."""

import itertools
from typing import Any

import pytest

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: `make test-nnunet` makes an environment for it")

import torch
from made_trainer import SPACING, Batch, Task, made_batch, make_trainer
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import TopKLoss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerCELoss import nnUNetTrainerCELoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceCELoss_noSmooth
from torch import Tensor, nn

import medloss
from medloss.errors import InputError
from pipelines.nnunet.losses import create_nnunet_loss
from pipelines.nnunet.trainers import trainer_class

DEFAULT = "dice+binary_cross_entropy"
TASKS = [
    Task(dimensions, regions, ignore, batch_dice)
    for dimensions, regions, ignore, batch_dice in itertools.product((2, 3), *[(False, True)] * 3)
]


def evaluate(loss: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Value, and the gradient of each output; zero where an output has no weight."""
    for output in batch.outputs:
        output.grad = None
    value = loss(batch.outputs, batch.targets)
    value.backward()
    return value.detach(), [torch.zeros_like(z) if z.grad is None else z.grad.clone() for z in batch.outputs]


def assert_same(ours: tuple[Tensor, list[Tensor]], theirs: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=2e-6, atol=2e-6)
    for mine, other in zip(ours[1], theirs[1], strict=True):
        # Single voxels' gradients are small: as a share of the largest.
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("task", TASKS, ids=str)
@pytest.mark.parametrize("spec", [DEFAULT, "binary_cross_entropy+dice", "dice@nnunet+binary_cross_entropy"])
def test_the_default_sum_is_nnunets_own_loss(task: Task, spec: str) -> None:
    theirs = make_trainer(nnUNetTrainer, task)._build_loss()
    ours = make_trainer(trainer_class(spec), task)._build_loss()
    for seed in range(3):
        batch = made_batch(task, seed=seed)
        assert_same(evaluate(ours, batch), evaluate(theirs, batch))


@pytest.mark.parametrize("task", [Task(), Task(regions=True)], ids=str)
def test_dice_without_smoothing_is_nnunets(task: Task) -> None:
    theirs = make_trainer(nnUNetTrainerDiceCELoss_noSmooth, task)._build_loss()
    ours = make_trainer(trainer_class("dice@nnunet_nosmooth+binary_cross_entropy"), task)._build_loss()
    batch = made_batch(task)
    value, gradients = evaluate(ours, batch)
    assert_same((value - 1, gradients), evaluate(theirs, batch))  # there Dice counts as -D


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_topk_is_nnunets() -> None:
    batch = made_batch(Task())
    logits, target = batch.outputs[0], batch.targets[0]
    ours = medloss.create_loss("topk_cross_entropy@nnunet", softmax=True)
    torch.testing.assert_close(ours(logits, target), TopKLoss(k=10)(logits, target), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_one_region_alone(ignore: bool, batch_dice: bool) -> None:
    """One channel: its target looks like an index map."""
    stock = DC_and_BCE_loss(
        {}, {"batch_dice": batch_dice, "do_bg": True, "smooth": 1e-5, "ddp": False}, use_ignore_label=ignore,
        dice_class=MemoryEfficientSoftDiceLoss,
    )  # fmt: skip
    ours = create_nnunet_loss(
        DEFAULT, heads=1, regions=True, ignore_label=2 if ignore else None, batch_dice=batch_dice, weights=[1.0],
        spacing=SPACING,
    )  # fmt: skip
    target = torch.rand(2, 2 if ignore else 1, 4, 6, 8, generator=torch.Generator().manual_seed(0)) > 0.7
    seen = []
    for loss in (ours, stock):
        logits = torch.randn(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        value = loss(logits, target)
        value.backward()
        seen.append((value.detach(), [logits.grad]))
    assert_same(*seen)


@pytest.mark.parametrize("ignore", [False, True])
def test_cross_entropy_alone_is_nnunets_variant(ignore: bool) -> None:
    task = Task(ignore=ignore)
    theirs = make_trainer(nnUNetTrainerCELoss, task)._build_loss()
    batch = made_batch(task)
    assert_same(
        evaluate(make_trainer(trainer_class("binary_cross_entropy"), task)._build_loss(), batch),
        evaluate(theirs, batch),
    )


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_every_loss_is_itself_on_each_scale(task: Task) -> None:
    """By its recipe, with the scale's spacing in mm and the ignored voxels masked."""
    for name, entry in medloss.LOSSES.items():
        if task.regions and entry.cls.categorical_only:
            continue
        batch = made_batch(task)
        value, gradients = evaluate(make_trainer(trainer_class(name), task)._build_loss(), made_batch(task))
        # Of Hausdorff's balanced sums, too: their weights move on with each call, so the scales come in order.
        loss = medloss.create_training_loss(
            name,
            num_classes=task.heads,
            sigmoid=task.regions,
            common={"batch": task.batch_dice},
            terms={"dice": dice(task)},
        )
        expected: Any = 0.0
        for weight, stride, logits, target in zip(
            (2 / 3, 1 / 3), ((1, 1, 1), (1, 2, 2)), batch.outputs, batch.targets, strict=False
        ):
            spacing = tuple(s * n for s, n in zip(SPACING, stride, strict=True))[-task.dimensions :]
            mask = None
            if task.ignore:
                mask = ~target[:, -1:] if task.regions else target != 4
                target = target[:, :-1] if task.regions else target
            expected = expected + weight * medloss.call_loss(loss, logits, target, mask=mask, spacing=spacing)
        expected.backward()
        assert float(gradients[0].abs().max()) > 0
        assert float(gradients[2].abs().max()) == 0
        torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-6)
        for logits, gradient in zip(batch.outputs[:2], gradients, strict=False):
            torch.testing.assert_close(gradient, logits.grad, rtol=1e-4, atol=1e-7)


def dice(task: Task) -> dict[str, Any]:
    """nnU-Net's settings."""
    return {"smooth_nr": 1e-5, "smooth_dr": 1e-5, "include_background": task.regions}


@pytest.mark.parametrize("name", ["shape_aware", "hausdorff_dt"])
def test_distances_are_in_mm_of_the_plan(name: str) -> None:
    """Three different spacings: an exchange of axes would show, and so would voxels in the place of mm."""
    batch = made_batch(Task())
    loss = make_trainer(trainer_class(name), Task())._build_loss()
    assert loss.spacing == SPACING
    single = loss.loss.losses[0] if name == "hausdorff_dt" else loss.loss
    values = {}
    for spacing in (SPACING, SPACING[::-1], (1.0, 1.0, 1.0)):
        values[spacing] = float(single(batch.outputs[0].detach(), batch.targets[0], spacing=spacing))
    seen: list[tuple[float, ...]] = []
    single.register_forward_pre_hook(lambda _, __, keywords: seen.append(keywords["spacing"]), with_kwargs=True)
    loss(batch.outputs, batch.targets)
    assert seen == [SPACING, (3.0, 3.0, 1.6)]
    assert len({round(value, 6) for value in values.values()}) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_in_mixed_precision(dtype: torch.dtype) -> None:
    """bfloat16 is what autocast gives on a CPU, float16 on a GPU; the loss is float32's on the same numbers."""
    for name in [DEFAULT, *medloss.LOSSES]:
        loss = make_trainer(trainer_class(name), Task())._build_loss()
        rounded = made_batch(Task(), dtype=torch.float32)
        half = Batch([z.detach().to(dtype).requires_grad_() for z in rounded.outputs], rounded.targets)
        with torch.no_grad():
            for z, low in zip(rounded.outputs, half.outputs, strict=True):
                z.copy_(low)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low_value = loss(half.outputs, half.targets)
        low_value.backward()
        assert low_value.dtype == torch.float32
        fresh = make_trainer(trainer_class(name), Task())._build_loss()
        value, gradients = evaluate(fresh, rounded)
        torch.testing.assert_close(low_value.detach(), value, rtol=1e-5, atol=1e-6)
        low_gradient = half.outputs[0].grad
        assert low_gradient is not None
        assert low_gradient.dtype == dtype
        torch.testing.assert_close(
            low_gradient.float(), gradients[0], rtol=1e-2, atol=1e-2 * float(gradients[0].abs().max())
        )


def test_without_deep_supervision() -> None:
    task = Task()
    trainer = make_trainer(trainer_class(DEFAULT), task)
    stock = make_trainer(nnUNetTrainer, task)
    trainer.enable_deep_supervision = stock.enable_deep_supervision = False
    batch = made_batch(task)
    pair = batch.outputs[0], batch.targets[0]
    torch.testing.assert_close(trainer._build_loss()(*pair), stock._build_loss()(*pair), rtol=2e-6, atol=2e-6)


def test_a_loss_that_cannot_leave_voxels_out_is_refused() -> None:
    settings: dict[str, Any] = {
        "heads": 4, "regions": False, "batch_dice": False, "weights": [1.0], "spacing": SPACING,
    }  # fmt: skip
    for spec in ("monai.losses.DiceLoss", "0.5*monai.losses.DiceLoss+focal"):
        create_nnunet_loss(spec, ignore_label=None, **settings)
        with pytest.raises(InputError, match="DiceLoss takes no mask"):
            create_nnunet_loss(spec, ignore_label=4, **settings)
