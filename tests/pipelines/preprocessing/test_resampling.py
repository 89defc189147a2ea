"""Preprocessing: grids and intensities of images and labels."""

import numpy as np
import pytest
import torch

from pipelines.preprocessing import Clip
from pipelines.preprocessing.resampling import Preprocessing, resampled


def test_the_grid_preserves_the_size_in_mm() -> None:
    grid = Preprocessing(dimensions=3, spacing=(1.0, 1.0, 2.0))
    assert grid.shape((10, 20, 30), (3.0, 0.5, 2.0)) == (30, 10, 30)
    assert grid.shape((10, 20, 30), (1.004, 0.996, 2.01)) == (10, 20, 30)  # headers round
    assert grid.shape((1, 1, 1), (0.1, 0.1, 0.1)) == (1, 1, 1)
    assert Preprocessing(dimensions=2).shape((7, 8), (3.0, 1.0)) == (7, 8)


def test_a_ramp_survives_resampling_and_back() -> None:
    # Voxel centres at (i + 1/2) spacing: the border of the volume stays where it was.
    ramp = ((torch.arange(12.0) + 0.5) * 3)[None, :, None, None].expand(1, 12, 8, 8).contiguous()
    fine = resampled(ramp, (36, 8, 8))
    expected = torch.arange(36.0) + 0.5
    assert torch.allclose(fine[0, 2:-2, 4, 4], expected[2:-2], atol=1e-4)
    assert torch.allclose(resampled(fine, (12, 8, 8))[0, 1:-1], ramp[0, 1:-1], atol=1e-3)
    assert resampled(ramp, ramp.shape[1:]) is ramp


def test_labels_keep_their_volume_and_their_values() -> None:
    label = torch.zeros(1, 12, 24, 24, dtype=torch.uint8)
    label[:, 3:9, 6:18, 6:18] = 7
    label[:, 5:7, 10:14, 10:14] = 2
    grid = Preprocessing(dimensions=3, spacing=(1.0, 1.0, 1.0))
    fine = grid.labels(label, (3.0, 1.0, 1.0))
    assert fine.shape == (1, 36, 24, 24) and fine.dtype == torch.uint8
    assert fine.unique().tolist() == [0, 2, 7]
    for value in (2, 7):
        assert (fine == value).sum() == pytest.approx(3 * int((label == value).sum()), rel=0.1)
    assert torch.equal(grid.labels(fine, (1.0, 1.0, 1.0)), fine)


def test_intensities_have_mean_0_and_deviation_1() -> None:
    volume = torch.from_numpy(np.random.default_rng(0).normal(500, 30, (1, 6, 7, 8)).astype(np.float32))
    made = Preprocessing(dimensions=3).image(volume, (1.0, 1.0, 1.0))
    assert made.dtype == torch.float32
    assert made.mean().item() == pytest.approx(0, abs=1e-5)
    assert made.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    flat = Preprocessing(dimensions=3).image(torch.full((1, 3, 3, 3), 1e6), (1.0, 1.0, 1.0))
    assert torch.equal(flat, torch.zeros(1, 3, 3, 3))  # and not NaN


def test_clipping_uses_the_data_sets_statistics() -> None:
    clip = Clip(low=-100, high=300, mean=40, std=20)
    volume = torch.tensor([-3000.0, -100.0, 40.0, 60.0, 300.0, 9000.0]).view(1, 6, 1, 1)
    made = Preprocessing(dimensions=3, clip=clip).image(volume, (1.0, 1.0, 1.0)).flatten().tolist()
    assert made == pytest.approx([-7, -7, 0, 1, 13, 13])
