"""Augmentation: image and label are rotated and scaled together, in physical space; intensities are varied."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.preprocessing import Augmentation
from pipelines.preprocessing.patches import Intensities, PatchDataset, random_matrix, sampled

ROTATE = Augmentation(rotation=90, spatial_share=1)
SCALE = Augmentation(scaling=(0.5, 2.0), spatial_share=1)


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _ball(shape: tuple[int, ...], centre: tuple[float, ...], spacing: tuple[float, ...], radius: float) -> Tensor:
    axes = [(torch.arange(n, dtype=torch.float64) - c) * s for n, c, s in zip(shape, centre, spacing, strict=True)]
    distance = sum(axis.square() for axis in torch.meshgrid(*axes, indexing="ij")).sqrt()
    return (distance <= radius).to(torch.uint8)[None]


@pytest.mark.parametrize("dims", [2, 3])
def test_the_identity_is_a_crop(dims: int) -> None:
    volume = torch.randn(1, *(12, 14, 13)[:dims])
    patch = (6, 7, 8)[:dims]
    start = (2, 4, 3)[:dims]
    centre = [s + (p - 1) / 2 for s, p in zip(start, patch, strict=True)]
    made = sampled(volume, centre, np.eye(dims), patch, "bilinear")
    crop = volume[(slice(None), *(slice(s, s + p) for s, p in zip(start, patch, strict=True)))]
    assert torch.allclose(made, crop, atol=1e-5)


def test_a_rotation_by_90_degrees_matches_numpy() -> None:
    image = torch.randn(1, 9, 9)
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    made = sampled(image, (4, 4), quarter, (9, 9), "bilinear")[0].numpy()
    # A step along the patch's first axis goes along the volume's second: out[i, j] = in[8 - j, i].
    assert np.allclose(made, np.rot90(image[0].numpy(), -1), atol=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 2.0, 0.7), (2.0, 0.9, 1.5)])
def test_rotation_is_rigid_in_physical_space(spacing: tuple[float, ...]) -> None:
    shape = (41, 41, 61)
    centre = tuple((n - 1) / 2 for n in shape)
    ball = _ball(shape, centre, spacing, 8.0)
    random = _random()
    for _ in range(5):
        matrix = random_matrix(ROTATE, spacing, random)
        assert matrix is not None
        mm = np.array(spacing)
        rotation = matrix * mm[:, None] / mm[None, :]
        assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) == pytest.approx(1)
        # With anisotropic voxels, a ball stays a ball only if the rotation is in mm.
        turned = sampled(ball, centre, matrix, shape, "nearest")
        overlap = 2 * (turned & ball).sum() / (turned.sum() + ball.sum())
        assert overlap > 0.9


def test_thick_slices_are_rotated_only_in_plane() -> None:
    for seed in range(5):
        matrix = random_matrix(ROTATE, (5.0, 1.0, 1.0), _random(seed))
        assert matrix is not None
        assert np.allclose(matrix[0], [1, 0, 0])
        assert np.allclose(matrix[:, 0], [1, 0, 0])
        assert not np.allclose(matrix, np.eye(3))


def test_scaling_is_within_the_bounds() -> None:
    factors = []
    for seed in range(200):
        matrix = random_matrix(SCALE, (2.0, 1.0, 1.0), _random(seed))
        assert matrix is not None
        assert np.allclose(matrix, matrix[0, 0] * np.eye(3))
        factors.append(1 / matrix[0, 0])
    assert 0.5 <= min(factors) < 0.6 and 1.8 < max(factors) <= 2.0
    # Half of the factors are below 1.
    assert 0.35 < np.mean(np.array(factors) < 1) < 0.65
    square = torch.zeros(1, 33, 33, dtype=torch.uint8)
    square[:, 12:21, 12:21] = 1
    assert sampled(square, (16, 16), np.eye(2) / 2, (33, 33), "nearest").sum() == pytest.approx(4 * 81, rel=0.15)


def test_a_share_of_the_patches_is_not_changed() -> None:
    half = Augmentation(rotation=30, scaling=(0.7, 1.4), spatial_share=0.5)
    kept = np.mean([random_matrix(half, (1.0, 1.0, 1.0), _random(seed)) is None for seed in range(4000)])
    assert 0.22 < kept < 0.28
    assert random_matrix(Augmentation(), (1.0, 1.0), _random()) is None


def test_image_and_label_are_transformed_together() -> None:
    label = _ball((20, 24, 22), (9, 11, 12), (1, 1, 1), 6)
    item = {
        "case": "a", "image": label.float() * 10, "label": label, "centres": [],
        "spacing": torch.ones(3, dtype=torch.float64),
        "labelled": torch.tensor([True, True]),
    }  # fmt: skip
    still = Augmentation(rotation=40, scaling=(0.7, 1.4), spatial_share=1, brightness_share=0)
    dataset = PatchDataset([item], (16, 24, 32), 0, (0, 1, 2), still)
    seen = set()
    for epoch in range(8):
        made = dataset[epoch, 0]
        assert made["image"].shape == made["label"].shape == (1, 16, 24, 32)
        assert made["label"].dtype == torch.uint8
        assert made["label"].unique().tolist() == [0, 1]
        near = (made["image"] > 5) == (made["label"] > 0)
        assert near.float().mean() > 0.985  # they only differ at the border, where the image is interpolated
        seen.add(int(made["label"].sum()))
        assert torch.equal(made["image"], dataset[epoch, 0]["image"])
    assert len(seen) > 4


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["noise", "blur", "gamma", "low_resolution", "brightness"])
def test_each_kind_is_random_and_reproducible(kind: str, dims: int) -> None:
    nothing = {f"{name}_share": 0.0 for name in ("noise", "blur", "gamma", "low_resolution", "brightness")}
    image = torch.randn(1, *(16, 18, 20)[:dims], generator=torch.Generator().manual_seed(0))
    before = image.clone()
    on = Intensities(Augmentation(**(nothing | {f"{kind}_share": 1.0})), dims)  # type: ignore[arg-type]
    made = on(image, _random(1))
    assert type(made) is Tensor
    assert made.shape == image.shape and made.dtype == torch.float32 and made.isfinite().all()
    assert torch.equal(image, before)
    assert torch.equal(made, on(image, _random(1)))
    assert not torch.equal(made, image)
    assert not torch.equal(made, on(image, _random(2)))
    if kind in ("blur", "low_resolution"):
        assert made.diff(dim=1).abs().mean() < image.diff(dim=1).abs().mean()
    if kind == "gamma":
        assert made.mean().item() == pytest.approx(image.mean().item(), abs=1e-3)
    off = Intensities(Augmentation(**nothing), dims)  # type: ignore[arg-type]
    assert torch.equal(off(image, _random(1)), image)
