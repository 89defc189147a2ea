"""Tubes, instances, border weights and soft labels: by hand, by brute force, and with scikit-image."""

import itertools
import sys
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialCrop
from references.distances import edt, nearest_distance
from references.skeletons import components
from torch import Tensor

import medloss
from medloss.maps import (
    BorderWeightMapd,
    InstanceMapd,
    SkeletonMapd,
    SmoothedLabeld,
    border_weight_map,
    instance_map,
    smoothed_label,
    tube_map,
)

SPACING = (3.0, 1.0, 0.6)


def blobs(shape: tuple[int, ...] = (6, 7, 8), share: float = 0.08, seed: int = 0) -> Tensor:
    """A mask of many small components."""
    return torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed)) < share


# --- instances ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "cells"),
    [((3.0, 1.0), [[1, 1, 1, 1], [1, 1, 2, 2], [2, 2, 2, 2]]), ((1.0, 3.0), [[1, 1, 2, 2]] * 3)],
)
def test_cells_are_of_the_nearest_component_in_mm(spacing: tuple[float, ...], cells: list[list[int]]) -> None:
    mask = torch.zeros(1, 1, 3, 4)
    mask[0, 0, 0, 0] = mask[0, 0, 2, 3] = 1
    assert instance_map(mask, spacing)[0, 0].tolist() == cells


@pytest.mark.parametrize("connectivity", [26, 6])
def test_each_voxel_has_its_nearest_component(connectivity: int) -> None:
    mask = blobs()
    numbers = instance_map(mask, SPACING, connectivity)[0, 0].numpy()
    found = components(mask[0, 0].numpy(), faces_only=connectivity == 6)
    voxels = np.argwhere(np.ones(numbers.shape))
    apart = np.stack([nearest_distance(voxels, np.argwhere(one), SPACING) for one in found])
    assert numbers.dtype == np.int32 and set(np.unique(numbers)) == set(range(1, len(found) + 1))
    for voxel, distances in zip(voxels, apart.T, strict=True):
        number = numbers[tuple(voxel)]
        component = next(i for i, one in enumerate(found) if numbers[one][0] == number)
        assert distances[component] == pytest.approx(distances.min(), abs=1e-12)


def test_touching_corners_join_components_unless_faces_are_asked_for() -> None:
    mask = torch.eye(4)[None, None]
    assert [int(instance_map(mask, None, c).max()) for c in (26, 8, 6, 4)] == [1, 1, 4, 4]
    with pytest.raises(medloss.InputError, match="connectivity: got 18; expected 26"):
        instance_map(mask, None, 18)
    with pytest.raises(medloss.InputError, match="connectivity: got 7"):
        InstanceMapd("label", connectivity=7)


def test_an_empty_class_has_the_number_zero() -> None:
    mask = torch.zeros(2, 2, 3, 3)
    mask[1, 1, 0, 0] = 1
    assert instance_map(mask).flatten(2).amax(2).tolist() == [[0, 0], [0, 1]]
    assert instance_map(mask)[1, 1].min() == 1


# --- tubes --------------------------------------------------------------------------------------------------------


def test_tubes_are_the_voxels_near_the_skeleton() -> None:
    morphology = pytest.importorskip("skimage.morphology")
    mask = torch.zeros(1, 1, 9, 15, 13, dtype=torch.bool)
    mask[..., 2:7, 3:8, 1:12] = mask[..., 4:7, 3:14, 6:11] = True
    lines = morphology.skeletonize(mask[0, 0].numpy()) > 0
    for radius in (None, 0.0, 0.6, 3.1):
        expected = mask[0, 0].numpy() & (edt(~lines, SPACING) <= (1.2 if radius is None else radius) + 1e-6)
        found = tube_map(mask, SPACING, radius)
        assert found.dtype == torch.uint8 and 0 < expected.sum() < mask.sum()
        np.testing.assert_array_equal(found[0, 0].numpy(), expected)


def test_a_bar_of_an_even_width_is_its_own_skeleton() -> None:
    # scikit-image#3757: Lee's thinning leaves nothing of it.
    morphology = pytest.importorskip("skimage.morphology")
    mask = torch.zeros(1, 1, 8, 8, 30, dtype=torch.bool)
    mask[..., 1:3, 1:3, 5:25] = True
    mask[..., 5:8, 5:8, 5:25] = True
    assert not morphology.skeletonize(mask[0, 0].numpy())[:4].any()
    tubes = tube_map(mask, radius=0.0)[0, 0]
    assert torch.equal(tubes[:4].bool(), mask[0, 0, :4])
    assert 0 < tubes[4:].sum() < mask[0, 0, 4:].sum()


def test_classes_that_touch_keep_their_own_lines() -> None:
    pytest.importorskip("skimage")
    maps = torch.zeros(1, 2, 7, 24, dtype=torch.bool)
    maps[0, 0, :, :12] = maps[0, 1, :, 12:] = True
    together, apart = tube_map(maps.any(1, keepdim=True), radius=0.0), tube_map(maps, radius=0.0)
    assert apart.flatten(2).sum(2).min() > 0
    assert not torch.equal(apart.sum(1, keepdim=True), together)


def test_without_scikit_image_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.morphology", None)
    label = torch.ones(1, 1, 5, 5)
    message = r"scikit-image is not installed; expected it, by pip install 'medloss\[skeleton\]'"
    for call in (
        lambda: tube_map(label),
        lambda: SkeletonMapd("label", 2)({"label": torch.ones(1, 5, 5)}),
        lambda: medloss.SkeletonRecallLoss(sigmoid=True)(label, label),
    ):
        with pytest.raises(medloss.InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert medloss.SkeletonRecallLoss(sigmoid=True)(torch.zeros_like(label), label, skeleton_map=label).isclose(
        torch.tensor(0.5)
    )
    for radius in (-1.0, float("nan"), float("inf")):
        with pytest.raises(medloss.InputError, match="radius: got"):
            tube_map(label, radius=radius)


# --- border weights -----------------------------------------------------------------------------------------------


def test_border_weights_by_hand() -> None:
    weights = border_weight_map(torch.tensor([[[[1, 0, 0, 0, 1]]]]), 0.8, sigma=2.0)
    assert weights.flatten().tolist() == pytest.approx([1, 3.780373, 3.780373, 3.780373, 1], abs=5e-7)


def test_border_weights_by_brute_force() -> None:
    maps = torch.cat([torch.zeros(1, 1, 6, 7, 8, dtype=torch.bool), blobs(seed=1), blobs(seed=2)], 1)
    maps[:, 2] &= ~maps[:, 1]
    maps[:, 0] = ~maps.any(1)
    weights = border_weight_map(maps, SPACING, w0=4.0, sigma=1.5, class_weight=(0.5, 2.0, 3.0))
    found = [one for c in (1, 2) for one in components(maps[0, c].numpy())]
    voxels = np.argwhere(np.ones(maps.shape[2:]))
    apart = np.sort([nearest_distance(voxels, np.argwhere(one), SPACING) for one in found], axis=0)
    gap = (apart[0] + apart[1]).reshape(maps.shape[2:])
    outside = ~maps[0, 1:].any(0).numpy()
    expected = np.where(outside, 0.5 + 4 * np.exp(-(gap**2) / (2 * 1.5**2)), np.where(maps[0, 1].numpy(), 2.0, 3.0))
    np.testing.assert_allclose(weights[0, 0].numpy(), expected, rtol=1e-5)


def test_border_weights_need_two_components_and_keep_with_the_spacing() -> None:
    one = torch.zeros(1, 1, 5, 5)
    one[..., 1:3, 1:3] = 1
    assert torch.equal(border_weight_map(one, class_weight=(1.0, 3.0)), 1 + 2 * one)
    assert torch.equal(border_weight_map(torch.zeros(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))
    mask = blobs()
    double = tuple(2 * s for s in SPACING)
    torch.testing.assert_close(border_weight_map(mask, SPACING), border_weight_map(mask, double))
    torch.testing.assert_close(border_weight_map(mask, SPACING, sigma=2.0), border_weight_map(mask, double, sigma=4.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w0": -1.0}, "w0: got -1.0"),
        ({"sigma": 0.0}, "sigma: got 0.0; expected mm, above 0"),
        ({"class_weight": (1.0, 2.0, 3.0)}, r"class_weight: got \(1.0, 2.0, 3.0\); expected one number >= 0, or 2"),
        ({"class_weight": -1.0}, "class_weight: got -1.0"),
    ],
)
def test_border_weights_refuse_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(medloss.InputError, match=message):
        border_weight_map(torch.ones(1, 1, 4, 4), **arguments)
    with pytest.raises(medloss.InputError, match=message):
        BorderWeightMapd("label", 2, **arguments)({"label": torch.ones(1, 4, 4)})


# --- soft labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [None, 1.3])
def test_soft_labels_by_brute_force(sigma: float | None) -> None:
    maps = torch.nn.functional.one_hot(torch.randint(0, 3, (4, 5, 6)), 3).movedim(-1, 0)[None]
    soft = smoothed_label(maps, SPACING, sigma)
    width = 0.6 if sigma is None else sigma
    offsets = [o for o in itertools.product((-1, 0, 1), repeat=3) if any(o)]
    weights = [np.exp(-sum((a * s) ** 2 for a, s in zip(o, SPACING, strict=True)) / (2 * width**2)) for o in offsets]
    for voxel in ((0, 0, 0), (2, 3, 4), (3, 4, 5), (1, 0, 2)):
        near = [tuple(np.clip(np.add(voxel, o), 0, (3, 4, 5))) for o in offsets]
        for c in range(3):
            mean = np.average([maps[(0, c, *at)].item() for at in near], weights=weights)
            assert soft[(0, c, *voxel)].item() == pytest.approx((maps[(0, c, *voxel)].item() + mean) / 2, abs=1e-6)
    torch.testing.assert_close(soft.sum(1), torch.ones(1, 4, 5, 6))
    assert medloss.DiceLoss(softmax=True)(torch.zeros(1, 3, 4, 5, 6), soft).isfinite()


def test_soft_labels_are_the_label_where_it_is_constant() -> None:
    assert torch.equal(smoothed_label(torch.ones(1, 2, 4, 4)), torch.ones(1, 2, 4, 4))
    inf = float("inf")
    for make in (lambda: smoothed_label(torch.ones(1, 2, 4, 4), sigma=0.0), lambda: SmoothedLabeld("y", sigma=inf)):
        with pytest.raises(medloss.InputError, match="sigma: got"):
            make()


# --- transforms ---------------------------------------------------------------------------------------------------

TRANSFORMS: list[tuple[Any, str, torch.dtype, int]] = [
    (SkeletonMapd, "label_skeleton", torch.uint8, 3),
    (InstanceMapd, "label_instances", torch.int32, 3),
    (BorderWeightMapd, "label_border_weight", torch.float32, 1),
    (SmoothedLabeld, "label_soft", torch.float32, 3),
]


@pytest.mark.parametrize(("transform", "key", "dtype", "channels"), TRANSFORMS)
def test_transforms_add_the_map_of_the_whole_volume(
    transform: Any, key: str, dtype: torch.dtype, channels: int
) -> None:
    if transform is SkeletonMapd:
        pytest.importorskip("skimage")
    label = torch.zeros(1, 6, 7, 8, dtype=torch.uint8)
    label[0, 1:5, 1:6, 1:4], label[0, 2:4, 2:5, 5:7] = 1, 2
    given = MetaTensor(label, affine=torch.diag(torch.tensor([*SPACING, 1.0])))
    out = transform("label", num_classes=3)({"label": given})
    assert out["label"] is given and out[key].shape == (channels, 6, 7, 8) and out[key].dtype == dtype
    assert torch.equal(out[key].affine, given.affine)
    maps = (label == torch.arange(3).view(3, 1, 1, 1))[None]
    functions = {SkeletonMapd: tube_map, InstanceMapd: instance_map, BorderWeightMapd: border_weight_map}
    expected = functions.get(transform, smoothed_label)(maps, SPACING)
    torch.testing.assert_close(out[key].as_tensor(), expected[0])  # the affine has the spacing in float32
    plain = transform("label", num_classes=3)({"label": label})[key]
    assert type(plain) is Tensor
    # Cut along with the label, the map is that of the whole volume.
    crop = SpatialCrop(roi_start=(1, 1, 1), roi_end=(5, 5, 5))
    assert torch.equal(crop(out[key]).as_tensor(), out[key].as_tensor()[:, 1:5, 1:5, 1:5])
    with pytest.raises(medloss.InputError, match="num_classes: 'label' is an index map"):
        transform("label")({"label": label})
