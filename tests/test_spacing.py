"""Where a loss has its spacing from: the argument, the MetaTensor, or 1."""

import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import list_data_collate

import medloss
from medloss.spacing import resolve_spacing

SPACINGS = [(3.0, 1.0, 0.6), (0.5, 2.0, 1.5)]
SPATIAL = (6, 7, 5)


def _affine(spacing: tuple[float, ...]) -> torch.Tensor:
    # Axes turned as files have them: the spacing is the columns' length, not the diagonal.
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor([[0, 0, spacing[2]], [0, -spacing[1], 0], [spacing[0], 0, 0]])
    return affine


def _items() -> list[MetaTensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        MetaTensor(torch.randint(0, 3, (1, *SPATIAL), generator=generator), affine=_affine(spacing))
        for spacing in SPACINGS
    ]


@pytest.mark.parametrize("name", ["distance_penalty", "hausdorff_dt", "hausdorff_er", "hausdorff_cv", "shape_aware"])
def test_meta_tensors_bring_their_spacing(name: str) -> None:
    radii = {"radii": (1.0, 2.0)} if name == "hausdorff_cv" else {}
    loss = medloss.create_loss(name, softmax=True, **radii)
    label = torch.stack([item.as_tensor() for item in _items()])
    maps = (label.roll(2, 3) == torch.arange(3).view(1, 3, 1, 1, 1)).double()
    logits = 6 * maps - 3
    collated = list_data_collate([{"label": item} for item in _items()])["label"]
    assert isinstance(collated.pixdim, list)
    value = loss(logits, collated)
    assert type(value) is torch.Tensor
    torch.testing.assert_close(value, loss(logits, label, spacing=SPACINGS), rtol=1e-6, atol=0)
    assert not torch.isclose(value, loss(logits, label))
    single = loss(logits[:1], collated[:1])
    assert torch.isclose(single, loss(logits[:1], label[:1], spacing=SPACINGS[0]))
    assert torch.equal(loss(logits, collated, spacing=(1.0, 1.0, 1.0)), loss(logits, label))


def test_every_way_to_pass_a_spacing() -> None:
    target = torch.zeros(2, 1, *SPATIAL)
    rows = [tuple(row) for row in SPACINGS]
    for given in (SPACINGS, torch.tensor(SPACINGS, dtype=torch.float64), [torch.tensor(s) for s in SPACINGS]):
        resolved = resolve_spacing(given, target, 2, 3)
        for got, wanted in zip(resolved, rows, strict=True):
            assert got == pytest.approx(wanted)
    assert resolve_spacing((3.0, 1.0, 0.6), target, 2, 3) == [(3.0, 1.0, 0.6)] * 2
    assert resolve_spacing(2.0, target, 2, 3) == [(2.0, 2.0, 2.0)] * 2
    assert resolve_spacing(None, target, 2, 3) == [(1.0, 1.0, 1.0)] * 2


def test_a_2d_image_with_a_3d_affine() -> None:
    target = MetaTensor(torch.zeros(1, 4, 5), affine=torch.diag(torch.tensor([2.0, 0.7, 9.0, 1.0])))
    assert resolve_spacing(None, target, 1, 2)[0] == pytest.approx((2.0, 0.7))
    batch = list_data_collate([{"label": target}, {"label": target}])["label"]
    assert resolve_spacing(None, batch, 2, 2)[1] == pytest.approx((2.0, 0.7))
