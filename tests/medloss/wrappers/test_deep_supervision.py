"""A loss on several scales: weights, spacing, masks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medloss
from medloss.call_arguments import CALL_ARGUMENTS

SPACING = (3.0, 1.0, 0.6)
LABEL = torch.randint(0, 3, (2, 1, 8, 12, 16), generator=torch.Generator().manual_seed(0))


def _outputs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, *size, generator=generator) for size in ((8, 12, 16), (8, 6, 8), (4, 3, 4))]


class _Probe(nn.Module):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def forward(self, logits: Tensor, target: Tensor, **keywords: Any) -> Tensor:
        self.calls.append({"target": target, **keywords})
        return logits.mean()


def test_each_scale_gets_its_own_spacing_mask_and_target() -> None:
    probe = _Probe()
    mask = torch.rand(LABEL.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    maps = torch.rand(2, 3, *LABEL.shape[2:])
    lines = torch.zeros(2, 3, *LABEL.shape[2:], dtype=torch.uint8)
    lines[..., 5, 7, 11] = 1
    numbers = torch.randint(0, 300, (2, 3, *LABEL.shape[2:]), dtype=torch.int32)
    keywords: dict[str, Any] = {"distance_map": maps, "skeleton_map": lines, "instance_map": numbers}
    keywords["voxel_weight"] = maps[:, :1]
    medloss.DeepSupervision(probe)(_outputs(), LABEL, mask=mask, spacing=SPACING, **keywords)
    assert [call["spacing"][0] for call in probe.calls] == [
        pytest.approx((3.0, 1.0, 0.6)),
        pytest.approx((3.0, 2.0, 1.2)),
        pytest.approx((6.0, 4.0, 2.4)),
    ]
    for call, size in zip(probe.calls, ((8, 12, 16), (8, 6, 8), (4, 3, 4)), strict=True):
        assert call["target"].shape == (2, 1, *size)
        assert call["target"].dtype == LABEL.dtype
        assert call["mask"].dtype == torch.bool
        assert call["mask"].shape == (2, 1, *size)
        assert call["distance_map"].shape == (2, 3, *size)
        assert torch.equal(call["voxel_weight"], call["distance_map"][:, :1])
        # A line of one voxel is still there: nearest neighbours would step over it.
        assert call["skeleton_map"].dtype == torch.uint8 and call["skeleton_map"].flatten(2).sum(2).eq(1).all()
        assert call["instance_map"].shape == (2, 3, *size) and call["instance_map"].dtype == torch.int32
    assert torch.equal(probe.calls[1]["instance_map"], numbers[..., 1::2, 1::2])
    assert torch.equal(probe.calls[1]["target"], LABEL[..., 1::2, 1::2])


def test_weights_are_nnunets_unless_given() -> None:
    outputs = _outputs()
    dice = medloss.DiceLoss(softmax=True)
    parts = [
        dice(o, t) for o, t in zip(outputs, (LABEL, LABEL[..., 1::2, 1::2], LABEL[..., 1::2, 2::4, 2::4]), strict=True)
    ]
    value = medloss.DeepSupervision(dice)(outputs, LABEL)
    assert torch.isclose(value, (4 * parts[0] + 2 * parts[1] + parts[2]) / 7)
    assert torch.isclose(medloss.DeepSupervision(dice, [1.0, 0.0])(outputs, LABEL), parts[0])
    assert torch.isclose(medloss.DeepSupervision(dice)(outputs[0], LABEL), parts[0])


def test_labelled_classes_hold_on_every_scale() -> None:
    labelled = torch.tensor([[True, True, False], [True, True, True]])
    label = torch.where(labelled.gather(1, LABEL.flatten(1)).view(LABEL.shape), LABEL, 0)
    dice = medloss.DiceLoss(softmax=True)
    fine, coarse = _outputs()[0], _outputs()[0][..., 1::2, 1::2, 1::2].contiguous()
    parts = [
        dice(fine, label, labelled_classes=labelled),
        dice(coarse, label[..., 1::2, 1::2, 1::2], labelled_classes=labelled),
    ]
    value = medloss.DeepSupervision(dice)([fine, coarse], label, labelled_classes=labelled)
    assert torch.isclose(value, (2 * parts[0] + parts[1]) / 3)


@pytest.mark.parametrize("schedule", ["constant", "balanced"])
def test_a_sum_of_deep_supervisions_takes_the_outputs(schedule: str) -> None:
    terms = [
        medloss.DeepSupervision(loss) for loss in (medloss.DiceLoss(softmax=True), medloss.FocalLoss(softmax=True))
    ]
    outputs = [output.requires_grad_() for output in _outputs()]
    value = medloss.CombinedLoss(terms, schedule=schedule)(outputs, LABEL)
    dice, focal = (term(outputs, LABEL) for term in terms)
    assert torch.isclose(value, dice + focal if schedule == "constant" else 2 * dice)


@pytest.mark.parametrize("name", [name for name, argument in CALL_ARGUMENTS.items() if argument.resize])
@pytest.mark.parametrize("grid", [(3, 3, 3), (12, 12), ()])
def test_masks_and_maps_of_another_grid_are_refused(name: str, grid: tuple[int, ...]) -> None:
    loss = medloss.DeepSupervision(medloss.DiceLoss(softmax=True))
    with pytest.raises(medloss.InputError, match=f"{name}: got shape .*; expected the target's grid"):
        loss(_outputs(), LABEL, **{name: torch.ones(LABEL.shape[0], 1, *grid)})


def test_bad_weights_are_refused() -> None:
    for weights in ([], [-1.0]):
        with pytest.raises(medloss.InputError, match="weights: got"):
            medloss.DeepSupervision(medloss.DiceLoss(), weights)
    with pytest.raises(medloss.InputError, match="weights: got 4 for 3 outputs"):
        medloss.DeepSupervision(medloss.DiceLoss(softmax=True), [1.0] * 4)(_outputs(), LABEL)
