"""The compiled sums over balls compute what the Fourier transforms do, wherever they leave something out."""

import importlib.util
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from medloss.boundary import ball_means
from medloss.boundary.ball_means import _deep_errors
from medloss.boundary.balls import fitting

if importlib.util.find_spec("numba") is None:
    pytest.skip("numba is not installed", allow_module_level=True)

from medloss.kernels.numba import balls
from medloss.kernels.numba.vectors import LANES


def expected(p: Tensor, y: Tensor, radii: list[float], weights: list[float], spacing: Any) -> tuple[Tensor, Tensor]:
    sums, gradients = torch.empty(p.shape[:2], dtype=torch.float64), torch.empty(p.shape, dtype=torch.float64)
    for place in np.ndindex(*p.shape[:2]):
        sums[place] = _deep_errors(p[place].double(), y[place], radii, weights, spacing, gradients[place])
    return sums, gradients


def blobs(size: tuple[int, ...], share: float, sharpness: float, seed: int) -> Tensor:
    """Smooth random probabilities of which a share is above a half, and none at it: `[1, 2, *size]`."""
    noise = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pool = F.avg_pool2d if len(size) == 2 else F.avg_pool3d
    smooth = pool(F.pad(noise, (1, 1) * len(size)), 3, 1)
    # A quantile may be one of the numbers. A ball that is exactly half full has one of two gradients, by rounding.
    return ((smooth - smooth.flatten().quantile(1 - share)) * sharpness + 1e-4).sigmoid()


@settings(max_examples=60, deadline=None)
@given(
    size=st.one_of(st.tuples(*[st.integers(1, 70)] * 2), st.tuples(*[st.integers(1, 21)] * 2, st.integers(1, 70))),
    spacing=st.lists(st.sampled_from([0.5, 0.8, 1.0, 2.5]), min_size=3, max_size=3),
    radii=st.lists(st.floats(0.4, 9.0), min_size=1, max_size=10, unique=True),
    share=st.sampled_from([0.001, 0.05, 0.5, 0.9]),
    sharpness=st.sampled_from([3.0, 30.0, 300.0]),
    seed=st.integers(0, 2**31),
    threads=st.sampled_from([1, 2, 5]),
)
# Balls that reach farther than a vector, in images that they fill; more radii than a byte has bits, and many discs.
@example((3, 3, 75), [9.0, 9.0, 0.25], [9.2, 3.0], 0.5, 30.0, 0, 2)
@example((75, 1), [0.25, 9.0], [9.2, 3.0], 0.5, 30.0, 0, 2)
@example((33, 34), [1.0, 1.0], [float(r) for r in range(1, 17)], 0.5, 30.0, 0, 2)
def test_values_and_gradients_are_those_of_the_transforms(
    size: tuple[int, ...],
    spacing: list[float],
    radii: list[float],
    share: float,
    sharpness: float,
    seed: int,
    threads: int,
) -> None:
    spacing = spacing[: len(size)]
    radii = fitting(radii, spacing, size)
    if not radii:
        return
    p = blobs(size, share, sharpness, seed)
    # One class whose label is not at all where the probabilities are, one that is nearly empty.
    y = torch.cat([p[:, :1].roll(2, -1) > 0.5, blobs(size, 0.01, 30.0, seed + 1)[:, 1:] > 0.5], 1)
    weights = [0.3 + r for r in radii]
    found = torch.full_like(p, 7.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        sums = balls.deep_errors(p, y, radii, weights, spacing, found)
    finally:
        torch.set_num_threads(before)
    reference, gradients = expected(p, y, radii, weights, spacing)
    torch.testing.assert_close(sums, reference, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, gradients, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(balls.deep_errors(p, y, radii, weights, spacing, None), sums)


@pytest.mark.parametrize("value", [float("nan"), 9.0])
def test_numbers_above_one_are_not_left_out(value: float) -> None:
    p = torch.full((1, 1, 12, 12, 12), 0.01, dtype=torch.float64)
    p[0, 0, 6, 6, 6] = value
    y = torch.zeros(p.shape, dtype=torch.bool)
    sums = balls.deep_errors(p, y, [1.0, 2.0], [1.0, 1.0], [1.0, 1.0, 1.0], None)
    # 9 in the seven voxels of a ball: more than a half of it.
    reference = expected(p, y, [1.0, 2.0], [1.0, 1.0], [1.0, 1.0, 1.0])[0]
    torch.testing.assert_close(sums, reference, equal_nan=True)


def test_a_volume_without_a_label_counts_where_balls_are_full() -> None:
    p = torch.zeros(1, 1, 40, 40, 40, dtype=torch.float64)
    p[..., 10:20, 12:22, 15:25] = 0.95
    y = torch.zeros(p.shape, dtype=torch.bool)
    found = torch.empty_like(p)
    sums = balls.deep_errors(p, y, [2.0, 4.0], [1.0, 2.0], [1.0, 1.0, 1.0], found)
    reference, gradients = expected(p, y, [2.0, 4.0], [1.0, 2.0], [1.0, 1.0, 1.0])
    torch.testing.assert_close(sums, reference)
    torch.testing.assert_close(found, gradients)
    assert found[0, 0, 14, 16, 19] > 0.1


def test_a_ball_holds_more_voxels_of_a_label_than_16_bits_count() -> None:
    p = blobs((53, 53, 53), 0.5, 30.0, 0)[:, :1]
    y = torch.zeros(p.shape, dtype=torch.bool)
    y[..., :26, :, :] = True
    found = torch.empty_like(p)
    sums = balls.deep_errors(p, y, [26.0], [1.0], [1.0, 1.0, 1.0], found)
    reference, gradients = expected(p, y, [26.0], [1.0], [1.0, 1.0, 1.0])
    torch.testing.assert_close(sums, reference)
    torch.testing.assert_close(found, gradients)


def test_the_check_before_the_first_use_has_whole_vectors_and_parts_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = Mock(return_value=())
    monkeypatch.setattr(ball_means, "_operator", operator)
    ball_means._small_case(torch.device("cpu"), torch.float32)
    p, _, radii, _, spacing, *_ = operator.call_args.args
    assert p.shape[-1] > LANES and p.shape[-1] % LANES > 0
    assert fitting(radii, spacing, p.shape[2:]) == radii
