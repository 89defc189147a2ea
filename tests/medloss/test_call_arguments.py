"""What a loss is called with besides logits and target: every argument through every wrapper."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medloss
from medloss.call_arguments import CALL_ARGUMENTS, TARGET_MAPS
from medloss.inputs import LossInputs

LOGITS = torch.zeros(2, 3, 4, 6)
LABEL = torch.zeros(2, 1, 4, 6, dtype=torch.uint8)
GIVEN: dict[str, Any] = {
    "mask": torch.ones(2, 1, 4, 6),
    "spacing": (2.0, 0.7),
    "labelled_classes": torch.ones(2, 3, dtype=torch.bool),
    "voxel_weight": torch.full((2, 1, 4, 6), 2.0),
    **{name: torch.ones(2, 3, 4, 6) for name in TARGET_MAPS},
}


class _Any(nn.Module):
    """Takes any keyword, and keeps what came."""

    def __init__(self) -> None:
        super().__init__()
        self.came: dict[str, Any] = {}

    def forward(self, logits: Tensor, target: Tensor, **keywords: Any) -> Tensor:
        self.came = keywords
        return logits.mean()


class _None(nn.Module):
    """A loss from elsewhere, which takes none."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.mean()


WRAPPERS = {
    "FixedSpacing": lambda loss: medloss.FixedSpacing(loss, (2.0, 0.7)),
    "DeepSupervision": medloss.DeepSupervision,
    "CombinedLoss": lambda loss: medloss.CombinedLoss([loss, "dice"], sigmoid=True),
    "call_loss": lambda loss: lambda logits, target, **given: medloss.call_loss(loss, logits, target, **given),
}


def test_a_loss_reads_each_of_them() -> None:
    assert set(GIVEN) == set(CALL_ARGUMENTS)
    fields = {field.name for field in dataclasses.fields(LossInputs)}
    assert set(CALL_ARGUMENTS) - fields == {"spacing", "labelled_classes"}  # read as item_spacing and labelled
    inputs = medloss.DiceLoss(softmax=True).prepare(LOGITS, LABEL, **GIVEN)
    assert inputs.spacing == [(2.0, 0.7)] * 2
    assert inputs.mask is not None and inputs.voxel_weight is not None
    for name in TARGET_MAPS:
        assert torch.equal(getattr(inputs, name), GIVEN[name])


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", CALL_ARGUMENTS)
def test_every_wrapper_passes_it_on(name: str, wrapper: str) -> None:
    probe = _Any()
    WRAPPERS[wrapper](probe)(LOGITS, LABEL, **{name: GIVEN[name]})
    came = probe.came[name]
    if name == "spacing":
        assert torch.equal(torch.tensor(came).expand(2, 2), torch.tensor(GIVEN[name]).expand(2, 2))
    else:
        assert torch.equal(came, GIVEN[name])


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", CALL_ARGUMENTS)
def test_a_loss_that_takes_none_is_refused_where_its_value_would_be_wrong(name: str, wrapper: str) -> None:
    wrapped = WRAPPERS[wrapper](_None())
    if CALL_ARGUMENTS[name].lost:
        with pytest.raises(medloss.InputError, match=f"^{name}: .*_None takes none and would count every"):
            wrapped(LOGITS, LABEL, **{name: GIVEN[name]})
    else:
        assert wrapped(LOGITS, LABEL, **{name: GIVEN[name]}).ndim == 0


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("inside", ["dice", "elsewhere"])
def test_a_name_that_is_none_of_them_is_an_error(inside: str, wrapper: str) -> None:
    loss = medloss.DiceLoss(softmax=True) if inside == "dice" else _None()
    with pytest.raises(TypeError, match="unexpected keyword argument 'maks'; expected mask, spacing, distance_map"):
        WRAPPERS[wrapper](loss)(LOGITS, LABEL, maks=GIVEN["mask"])
