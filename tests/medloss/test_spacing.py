"""Where a loss takes its spacing from: the argument, the MetaTensor, or 1."""

import gc
import weakref

import pytest
import torch
from monai.data import MetaTensor
from monai.data.utils import list_data_collate
from monai.transforms import SqueezeDim
from torch.utils.data import default_collate

import medloss
from medloss.distance.maps import signed_distance_map
from medloss.distance.transforms import DistanceMapd
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


PAIR = [(0.5, 2.0), (1.5, 1.0)]


@pytest.mark.parametrize("container", [list, tuple])
def test_tuples_collated_by_axis_are_rows_of_items(container: type) -> None:
    for batch in (1, 3):
        rows = [(0.5 + i, 2.0) for i in range(batch)]
        collated = container(default_collate(rows))
        assert len(collated) == 2 and len(collated[0]) == batch
        assert resolve_spacing(collated, torch.zeros(batch, 1, 4, 5), batch, 2) == rows


def test_tensors_by_item_or_by_axis_are_refused_where_both_fit() -> None:
    label = torch.zeros(2, 1, 6, 7, dtype=torch.long)
    label[..., 1:4, 2:6] = 1
    logits = torch.randn(2, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    loss = medloss.HausdorffDTLoss(softmax=True)
    collated = default_collate(PAIR)
    with pytest.raises(medloss.InputError, match=r"spacing: got 2 tensors of 2 numbers .* torch.stack\(spacing, 1\)"):
        loss(logits, label, spacing=collated)
    # What the message says to do, and the readings between which there is no difference.
    assert loss(logits, label, spacing=torch.stack(collated, 1)) == loss(logits, label, spacing=PAIR)
    assert resolve_spacing(default_collate([(2.0, 2.0)] * 2), label, 2, 2) == [(2.0, 2.0)] * 2
    assert resolve_spacing([torch.tensor([0.5, 2.0])], label, 2, 2) == [(0.5, 2.0)] * 2


VOLUME = MetaTensor(
    torch.randint(0, 2, (1, 4, 8, 9), generator=torch.Generator().manual_seed(0)),
    affine=torch.diag(torch.tensor([3.0, 1.0, 0.8, 1.0], dtype=torch.float64)),
)
SLICES = {
    "indexed": VOLUME[:, 2][None],
    "squeezed": VOLUME[:, 2:3].squeeze(1)[None],
    "last axis": VOLUME[..., 2][None],
    "collated": list_data_collate([{"label": VOLUME[:, 2]}, {"label": VOLUME[:, 3]}])["label"],
    "of a collated batch": list_data_collate([{"label": VOLUME}] * 2)["label"][:, :, 2],
}


@pytest.mark.parametrize("kind", SLICES)
def test_a_slice_of_a_volume_has_no_known_spacing(kind: str) -> None:
    label = SLICES[kind]
    logits = torch.zeros(len(label), 2, *label.shape[2:])
    loss = medloss.HausdorffDTLoss(softmax=True)
    message = r"spacing: the target is a MetaTensor of 3 spatial axes with pixdim \(3, 1, 0.8\) .* 2D .* pass spacing="
    for call in (loss, medloss.DeepSupervision(loss)):
        with pytest.raises(medloss.InputError, match=message):
            call(logits, label)
    with pytest.raises(medloss.InputError, match=message):
        signed_distance_map(label)
    with pytest.raises(medloss.InputError, match=message):
        DistanceMapd("label", num_classes=2)({"label": VOLUME[:, 2]})
    plain = label.as_tensor()
    assert loss(logits, label, spacing=(1.0, 0.8)) == loss(logits, plain, spacing=(1.0, 0.8))
    for without_distances in (medloss.DiceLoss(softmax=True), medloss.CombinedLoss("dice+focal", softmax=True)):
        assert without_distances(logits, label) == without_distances(logits, plain)
        wrapped = medloss.DeepSupervision(without_distances)
        assert wrapped(logits, label) == wrapped(logits, plain)


@pytest.mark.parametrize("kernels", [name for name in ("eager", "numba") if name in medloss.kernels.available()])
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("distance_penalty", "distance_map"),
        ("boundary", "distance_map"),
        ("hausdorff_dt", "distance_map"),
        ("skeleton_recall", "skeleton_map"),
        ("instance_wise", "instance_map"),
    ],
)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_a_given_map_needs_no_spacing(name: str, given: str, activation: str, kernels: str) -> None:
    label = SLICES["indexed"]
    if activation == "sigmoid":
        label = torch.cat([label == 0, label == 1], 1).float()
    plain = label.as_tensor()
    masks = plain if activation == "sigmoid" else torch.cat([plain == 0, plain == 1], 1)
    make_map = {
        "distance_map": signed_distance_map,
        "skeleton_map": medloss.maps.tube_map,
        "instance_map": medloss.maps.instance_map,
    }[given]
    maps = make_map(masks, (1.0, 0.8))
    one_sided = {"one_sided": True} if name == "hausdorff_dt" else {}  # the prediction's distances need a spacing
    loss = medloss.create_loss(name, **{activation: True}, **one_sided)
    logits = torch.randn(1, 2, *label.shape[2:], generator=torch.Generator().manual_seed(0))
    with medloss.kernels.use(kernels):
        assert loss(logits, label, **{given: maps}) == loss(logits, plain, spacing=(1.0, 0.8), **{given: maps})
        with pytest.raises(medloss.InputError, match="spacing: the target is a MetaTensor"):
            loss(logits, label)


def test_slices_whose_spacing_is_known() -> None:
    for axis, left in ((1, (1.0, 0.8)), (2, (3.0, 0.8)), (3, (3.0, 1.0))):
        flat = SqueezeDim(axis)(VOLUME.narrow(axis, 2, 1))
        assert resolve_spacing(None, flat[None], 1, 2)[0] == pytest.approx(left)
    cube = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
    assert resolve_spacing(None, cube[:, 1][None], 1, 2) == [(2.0, 2.0)]
    with pytest.raises(medloss.InputError, match=r"MetaTensor of 2 spatial axes with pixdim \(2, 2\) .* 3D"):
        resolve_spacing(None, torch.stack([SqueezeDim(1)(cube[:, 1:2])] * 3, 1)[None], 1, 3)


def test_a_slice_of_unknown_spacing_keeps_no_tensor_of_the_step() -> None:
    """A stored exception's traceback would hold them until Python looks for cycles."""
    volume = MetaTensor(torch.ones(1, 1, 6, 5, 4), affine=torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0])))
    logits = torch.zeros(1, 1, 6, 5, requires_grad=True)
    seen = weakref.ref(logits)
    gc.disable()
    try:
        medloss.DiceLoss(sigmoid=True)(logits, volume[..., 2])
        del logits
        assert seen() is None
    finally:
        gc.enable()


def test_too_few_axes_are_an_input_error() -> None:
    with pytest.raises(medloss.InputError, match=r"logits: got shape \(2, 3\)"):
        medloss.DiceLoss(softmax=True)(torch.zeros(2, 3), torch.zeros(2))
