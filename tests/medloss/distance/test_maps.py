"""Distance maps against scipy, on masks that break distance code."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from torch.utils.data import DataLoader

import medloss
from medloss.distance.maps import (
    boundary_distance_map,
    distance_map,
    outside_distance_map,
    penalty_map,
    signed_distance_map,
)

SPACING = (3.0, 1.0, 0.8)
MAPS = (signed_distance_map, distance_map, outside_distance_map)


def _scipy_signed(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    if not mask.any() or mask.all():
        return np.zeros(mask.shape)
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    return np.asarray(outside) - np.asarray(inside)


def _masks() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (11, 17, 14)
    masks = {
        name: np.zeros(shape, bool) for name in ("empty", "one voxel", "corner", "sheet", "line", "border", "ball")
    }
    masks["full"] = np.ones(shape, bool)
    masks["one voxel"][5, 8, 3] = True
    masks["corner"][0, 0, 0] = masks["corner"][-1, -1, -1] = True
    masks["sheet"][:, 9, :] = True
    masks["line"][4, :, 6] = True
    masks["border"][:, :3, :] = True
    grid = np.indices(shape) * np.array(SPACING)[:, None, None, None]
    masks["ball"] = ((grid - np.array([15, 8, 6])[:, None, None, None]) ** 2).sum(0) < 30
    masks["all but one"] = np.ones(shape, bool)
    masks["all but one"][2, 3, 4] = False
    masks["noise"] = rng.random(shape) < 0.5
    masks["sparse"] = rng.random(shape) < 0.01
    return masks


@pytest.mark.parametrize("kind", _masks())
def test_maps_equal_scipy(kind: str) -> None:
    mask = _masks()[kind]
    expected = _scipy_signed(mask, SPACING)
    tensor = torch.from_numpy(mask)[None, None]
    np.testing.assert_allclose(signed_distance_map(tensor, SPACING)[0, 0], expected, atol=1e-3)
    np.testing.assert_allclose(boundary_distance_map(tensor, SPACING)[0, 0], np.abs(expected), atol=1e-3)
    np.testing.assert_allclose(distance_map(tensor, SPACING)[0, 0], np.maximum(-expected, 0), atol=1e-3)
    np.testing.assert_allclose(outside_distance_map(tensor, SPACING)[0, 0], np.maximum(expected, 0), atol=1e-3)


KERNELS = [name for name in ("eager", "numba") if name in medloss.kernels.available()]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    ("first", "second"),
    [((2.5, 0.7, 1.3), (0.4, 3.0, 1.0)), ((0.7, 0.7, 0.7), (2.0, 1.0, 3.0))],
    ids=["any spacing", "multiples"],
)
@pytest.mark.parametrize(
    "shape", [(40, 70), (5, 40, 70), (33, 3, 34), (1, 9, 8), (6, 1, 1), (3, 40, 131), (131, 4), (300, 5), (5, 300)]
)
def test_every_kernel_set_equals_scipy(
    kernels: str, shape: tuple[int, ...], first: tuple[float, ...], second: tuple[float, ...]
) -> None:
    rng = np.random.default_rng(3)
    noise = rng.random((2, 3, *shape))
    smooth = ndimage.gaussian_filter(rng.standard_normal((2, 3, *shape)), (0, 0, *(3,) * len(shape))) > 0.02
    spacings = [first[: len(shape)], second[: len(shape)]]
    for masks in (noise < 0.5, noise < 0.002, noise < 0.998, smooth, noise < 0, noise < 2):
        with medloss.kernels.use(kernels):
            maps = [m(torch.from_numpy(masks), spacings) for m in MAPS]
        for item, channel in np.ndindex(2, 3):
            expected = _scipy_signed(masks[item, channel], spacings[item])
            parts = (expected, np.maximum(-expected, 0), np.maximum(expected, 0))
            for actual, part in zip(maps, parts, strict=True):
                np.testing.assert_allclose(actual[item, channel], part, rtol=1e-6, atol=1e-4)


@pytest.mark.skipif("numba" not in KERNELS, reason="numba is not installed")
def test_distances_that_do_not_fit_16_bits_are_computed_in_floats() -> None:
    from medloss.kernels.numba.whole_distances import multiples

    assert multiples((1.5, 3.0, 1.5), (4, 5, 6)) == [1, 4, 1]
    assert multiples((1.0, 1.5, 1.0), (4, 5, 6)) is None
    assert multiples((1.0, 1.0), (256, 1)) == [1, 1]
    assert multiples((1.0, 1.0), (257, 1)) is None
    mask = torch.zeros(1, 1, 300, 4, dtype=torch.bool)
    mask[..., 0, 0] = True
    with medloss.kernels.use("numba"):
        assert distance_map(~mask)[0, 0, -1, 0] == 299


@pytest.mark.parametrize("kernels", KERNELS)
def test_maps_are_on_the_masks_device_whatever_the_default(kernels: str) -> None:
    mask = torch.from_numpy(_masks()["noise"])[None, None]
    with medloss.kernels.use(kernels):
        for distances in (*MAPS, boundary_distance_map, penalty_map):
            expected = distances(mask, SPACING)
            with torch.device("meta"):
                assert torch.equal(distances(mask, SPACING), expected)


@pytest.mark.parametrize("kernels", KERNELS)
def test_maps_do_not_depend_on_threads_and_survive_a_fork(kernels: str) -> None:
    masks = torch.from_numpy(np.random.default_rng(4).random((1, 3, 24, 50, 60)) < 0.1)
    threads = torch.get_num_threads()
    try:
        with medloss.kernels.use(kernels):
            torch.set_num_threads(2)
            expected = signed_distance_map(masks, SPACING)
            torch.set_num_threads(1)
            assert torch.equal(signed_distance_map(masks, SPACING), expected)
            # Its workers are forked from this process, whose helper threads they do not have.
            loader = DataLoader([masks[0], masks[0]], batch_size=None, num_workers=1, collate_fn=_signed)
            for maps in loader:
                assert torch.equal(maps, expected)
    finally:
        torch.set_num_threads(threads)


def _signed(masks: torch.Tensor) -> torch.Tensor:
    torch.set_num_threads(2)
    return signed_distance_map(masks[None], SPACING)


@given(
    shape=st.lists(st.integers(2, 9), min_size=2, max_size=3),
    spacing=st.lists(st.floats(0.2, 6.0), min_size=3, max_size=3),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_masks_equal_scipy(shape: list[int], spacing: list[float], share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    mask_spacing = tuple(spacing[: len(shape)])
    actual = signed_distance_map(torch.from_numpy(mask)[None, None], mask_spacing)[0, 0]
    np.testing.assert_allclose(actual, _scipy_signed(mask, mask_spacing), atol=1e-3)


def test_each_item_has_its_own_spacing_and_each_channel_its_own_map() -> None:
    rng = np.random.default_rng(1)
    masks = rng.random((2, 3, 7, 6, 5)) < 0.3
    spacings = [(3.0, 1.0, 0.6), (0.5, 2.0, 1.5)]
    maps = signed_distance_map(torch.from_numpy(masks), spacings)
    for item, spacing in enumerate(spacings):
        for channel in range(3):
            expected = _scipy_signed(masks[item, channel], spacing)
            np.testing.assert_allclose(maps[item, channel], expected, atol=1e-3)


def test_penalty_is_highest_at_the_border_and_lies_below_one() -> None:
    mask = torch.from_numpy(_masks()["ball"])[None, None]
    penalty = penalty_map(mask, SPACING)
    signed = signed_distance_map(mask, SPACING)
    assert penalty.min() == 0
    assert penalty.max() < 1
    for side in (signed < 0, signed > 0):
        order = signed[side].abs().argsort()
        assert (penalty[side][order].diff() <= 1e-6).all()
    assert torch.equal(penalty, penalty_map(mask, signed_map=signed))
    assert (penalty_map(torch.zeros(1, 1, 4, 4)) == 0).all()
    assert (penalty_map(torch.ones(1, 1, 4, 4)) == 0).all()


def test_a_given_map_takes_the_place_of_the_computed_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 7, 5, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 1, 6, 7, 5), generator=generator)
    maps = signed_distance_map((label == torch.arange(3).view(1, 3, 1, 1, 1)), SPACING)
    for name in ("hausdorff_dt", "distance_penalty", "shape_aware"):
        for background in (True, False):
            loss = medloss.create_loss(name, softmax=True, include_background=background)
            computed = loss(logits, label, spacing=SPACING)
            assert torch.isclose(computed, loss(logits, label, spacing=SPACING, distance_map=maps))
            if background:
                with pytest.raises(medloss.InputError, match=r"distance_map: got shape \(2, 2, 6, 7, 5\)"):
                    loss(logits, label, distance_map=maps[:, 1:])
            else:
                assert torch.isclose(computed, loss(logits, label, spacing=SPACING, distance_map=maps[:, 1:]))


@pytest.mark.parametrize("size", [(13, 40), (9, 14, 20)])
@pytest.mark.parametrize("masked", [False, True])
def test_contours_of_labels_are_those_of_masks(size: tuple[int, ...], masked: bool) -> None:
    generator = torch.Generator().manual_seed(len(size))
    spacing = SPACING[-len(size) :]
    label = torch.zeros(2, 1, *size, dtype=torch.uint8)
    label[0, 0, 2:9, 2:9] = 1
    label[1, 0, 5:] = 2
    logits = torch.randn(2, 3, *size, generator=generator)
    logits[0] += 6 * (label[0].roll(3, 1) == torch.arange(3).view(3, *(1,) * len(size)))
    mask = torch.rand(label.shape, generator=generator) < 0.8 if masked else None
    maps = signed_distance_map(label == torch.arange(3).view(1, 3, *(1,) * len(size)), spacing)
    loss = medloss.ShapeAwareLoss(softmax=True)
    values = []
    for kernels in ("eager", "numba") if "numba" in medloss.kernels.available() else ("eager",):
        for stored in (None, maps):
            with medloss.kernels.use(kernels):
                values.append(loss(logits, label, mask=mask, spacing=spacing, distance_map=stored))
    assert all(torch.isclose(values[0], value, rtol=1e-5) for value in values[1:])
    # A crop's map knows of more outside, but a class without a voxel has no contour.
    elsewhere = loss(logits[..., :1], 0 * label[..., :1], spacing=spacing, distance_map=maps[..., :1].abs() + 5)
    entropy = medloss.BinaryCrossEntropyLoss(softmax=True)(logits[..., :1], 0 * label[..., :1])
    assert torch.isclose(elsewhere, entropy)


@pytest.mark.skipif("numba" not in medloss.kernels.available(), reason="numba is not installed")
@given(
    shape=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    spacing=st.lists(st.floats(0.2, 6.0), min_size=3, max_size=3),
    share=st.floats(0.0, 1.0),
    masked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_search_finds_the_distances_of_the_transform(
    shape: list[int], spacing: list[float], share: float, masked: bool, seed: int
) -> None:
    """Of any contours and any map, which bounds the distances; the search may stop there."""
    from medloss.kernels.numba.contours import _search, _total

    rng = np.random.default_rng(seed)
    y, q = rng.integers(-1, 3, (2, *shape), dtype=np.int16)
    reference, contour = (rng.random((2, *shape)) < share).astype(np.uint8)
    counted = (rng.random(shape if masked else (0, 0, 0)) < 0.7).astype(np.uint8)
    signed = rng.normal(0, 5, shape).astype(np.float32)
    border = (reference != 0) & (y == 1)
    exact = np.full(shape, np.inf)
    if border.any():
        exact = np.asarray(ndimage.distance_transform_edt(~border, sampling=spacing))
    which = (contour != 0) & (q == 1) & (y == 1) & (counted != 0 if masked else True)
    expected = np.minimum(exact, abs(signed))[which].sum()
    rest = reference, q, y, contour, counted, signed, 1
    assert _search(*rest, np.square(spacing).astype(np.float32)) == pytest.approx(expected, rel=1e-5)
    assert _total(exact.astype(np.float32), *rest[1:]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif("numba" not in medloss.kernels.available(), reason="numba is not installed")
@pytest.mark.parametrize(("size", "radius", "shift"), [((256, 256), 100, 60), ((48, 48, 48), 12, 1)])
def test_the_transform_is_spared_where_a_search_takes_less_time(
    size: tuple[int, ...], radius: int, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medloss.kernels.numba import contours

    grid = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")) - size[0] // 2
    y = (grid.square().sum(0) < radius**2).short()[None]
    q = y.roll(shift, 1)
    maps = signed_distance_map((y == 1)[:, None], 0.8)
    transforms = []

    def transformed(*arguments: torch.Tensor) -> torch.Tensor:
        transforms.append(arguments)
        return outside_distance_map(*arguments)

    monkeypatch.setattr(contours, "outside_distances", transformed)
    means = []
    for per_voxel in (contours._PER_VOXEL, 0):
        monkeypatch.setattr(contours, "_PER_VOXEL", per_voxel)
        means.append(contours.contour_distances(q, y, None, 2, [(0.8,) * len(size)], maps))
        assert len(transforms) == (per_voxel == 0)
    assert torch.allclose(*means, rtol=1e-6)


def test_a_crop_with_the_whole_volumes_map_knows_of_borders_outside() -> None:
    label = torch.zeros(1, 1, 8, 24, 24, dtype=torch.long)
    label[..., 2:6, 2:10, 2:10] = 1
    maps = signed_distance_map(torch.cat([label == 0, label == 1], 1), SPACING)
    crop = (..., slice(None), slice(4, 8), slice(4, 8))
    logits = torch.zeros(1, 2, 8, 4, 4)
    loss = medloss.create_loss("hausdorff_dt", softmax=True)
    alone = loss(logits, label[crop], spacing=SPACING)
    informed = loss(logits, label[crop], spacing=SPACING, distance_map=maps[crop])
    assert not torch.isclose(alone, informed)
