"""`DistanceMapd`: whole-volume maps that stay right through crops, flips, pads and turns."""

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor, PersistentDataset
from monai.transforms import Compose, CropForegroundd, Flipd, Rotate90d, SpatialCropd, SpatialPadd

import medloss
from medloss.distance.maps import signed_distance_map
from medloss.distance.transforms import DistanceMapd

SPACING = (3.0, 1.0, 0.6)
KEYS = ["label", "label_distance"]


def _label() -> MetaTensor:
    index = torch.zeros(1, 10, 14, 16, dtype=torch.uint8)
    index[:, 3:7, 4:10, 5:11] = 1
    index[:, 2:4, 9:13, 2:6] = 2
    return MetaTensor(index, affine=torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64)))


def _expected(label: torch.Tensor, spacing: tuple[float, ...] = SPACING) -> torch.Tensor:
    maps = label.as_tensor() == torch.arange(3).view(3, 1, 1, 1)
    return signed_distance_map(maps[None], spacing)[0]


def test_the_map_is_the_whole_volumes_in_mm() -> None:
    out = DistanceMapd("label", num_classes=3)({"label": _label()})
    assert isinstance(out["label_distance"], MetaTensor)
    assert out["label_distance"].shape == (3, 10, 14, 16)
    assert torch.equal(out["label_distance"].as_tensor(), _expected(_label()))
    np.testing.assert_allclose(out["label_distance"].affine, _label().affine)
    one_hot = _label() == torch.arange(3).view(3, 1, 1, 1)
    assert torch.equal(DistanceMapd("label")({"label": one_hot})["label_distance"].as_tensor(), _expected(_label()))
    plain = DistanceMapd("label", num_classes=3)({"label": _label().as_tensor()})
    assert torch.equal(plain["label_distance"], _expected(_label(), (1.0, 1.0, 1.0)))


@pytest.mark.parametrize("value", [1.5, float("nan")])
def test_labels_that_are_no_whole_numbers_are_refused(value: float) -> None:
    label = _label().as_tensor().float()
    label[0, 0, 0, 0] = value
    with pytest.raises(medloss.InputError, match="'label': got labels that are no whole numbers; expected 0 to 2"):
        DistanceMapd("label", num_classes=3)({"label": label})


@pytest.mark.parametrize(
    "move",
    [
        Flipd(KEYS, spatial_axis=[0, 2]),
        Rotate90d(KEYS, k=1, spatial_axes=(1, 2)),
        Rotate90d(KEYS, k=3, spatial_axes=(0, 2)),
    ],
    ids=["flip", "turn the fine axes", "turn coarse and fine"],
)
def test_flips_and_turns_keep_maps_right(move: object) -> None:
    out = Compose([DistanceMapd("label", num_classes=3), move])({"label": _label()})
    spacing = tuple(out["label"].pixdim.tolist())
    assert torch.allclose(out["label_distance"].as_tensor(), _expected(out["label"], spacing), atol=1e-4)


def test_crops_know_of_what_lies_outside_and_pads_of_nothing() -> None:
    crop = SpatialCropd(KEYS, roi_start=(4, 5, 6), roi_end=(6, 8, 9))
    whole = DistanceMapd("label", num_classes=3)({"label": _label()})
    out = crop(whole)
    assert torch.equal(out["label_distance"].as_tensor(), _expected(_label())[:, 4:6, 5:8, 6:9])
    assert (out["label"] == 1).all()
    assert (out["label_distance"][1] < 0).all()
    padded = SpatialPadd(KEYS, (12, 16, 18), mode="edge")(whole)
    assert torch.equal(padded["label_distance"].as_tensor()[:, 1:-1, 1:-1, 1:-1], _expected(_label()))


@pytest.mark.parametrize("name", ["hausdorff_dt", "distance_penalty"])
def test_a_crops_loss_differs_with_the_whole_volumes_map(name: str) -> None:
    out = Compose([DistanceMapd("label", num_classes=3), SpatialCropd(KEYS, roi_start=(2, 3, 3), roi_end=(7, 9, 9))])(
        {"label": _label()}
    )
    logits = torch.randn(1, 3, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    loss = medloss.create_loss(name, softmax=True)
    alone = loss(logits, out["label"][None], spacing=SPACING)
    informed = loss(logits, out["label"][None], spacing=SPACING, distance_map=out["label_distance"][None])
    assert not torch.isclose(alone, informed)


def test_caching_data_sets_keep_the_map(tmp_path) -> None:
    transform = Compose([DistanceMapd("label", num_classes=3), CropForegroundd(KEYS, source_key="label")])
    direct = transform({"label": _label()})["label_distance"].as_tensor()
    cached = CacheDataset([{"label": _label()}], transform, num_workers=0, progress=False)
    stored = PersistentDataset([{"label": _label()}], transform, tmp_path, weights_only=True)
    for data in (cached, stored, stored):
        assert torch.equal(torch.as_tensor(data[0]["label_distance"]), direct)


def test_bad_labels_are_refused() -> None:
    with pytest.raises(medloss.InputError, match="num_classes: 'label' is an index map"):
        DistanceMapd("label")({"label": _label()})
    with pytest.raises(medloss.InputError, match="'label': got labels from 0 to 2; expected 0 to 1"):
        DistanceMapd("label", num_classes=2)({"label": _label()})
    with pytest.raises(medloss.InputError, match=r"'label': got shape \(1, 0, 4, 4\), which is empty"):
        DistanceMapd("label", num_classes=2)({"label": torch.zeros(1, 0, 4, 4)})
    assert DistanceMapd("label", num_classes=3, allow_missing_keys=True)({}) == {}


def test_maps_stay_with_their_label_whatever_the_default_device() -> None:
    transform = DistanceMapd("label", num_classes=3)
    for label in (_label(), _label().as_tensor(), _label().numpy()):
        expected = transform({"label": label})["label_distance"]
        with torch.device("meta"):
            actual = transform({"label": label})["label_distance"]
        assert type(actual) is type(expected)
        assert actual.device.type == "cpu"
        assert torch.equal(torch.Tensor(actual), torch.Tensor(expected))
