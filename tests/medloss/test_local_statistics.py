"""Local mean and deviation against sums over the whole window, and the kernel sets against each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import medloss
from medloss.local_statistics import gaussian_window, local_contrast, structural_error, structure

SHAPES = [(7, 9), (6, 5, 8), (1, 4, 6), (3, 1, 2)]
WINDOWS = [(1, 1.0), (3, 1.5), (5, 0.8), (7, 20.0)]
KERNELS = medloss.kernels.available()
ON_CPU = [name for name in ("eager", "numba") if name in KERNELS]

every_set = pytest.mark.parametrize("kernels", ON_CPU)
every_shape = pytest.mark.parametrize("shape", SHAPES)
every_window = pytest.mark.parametrize("window", [gaussian_window(*w) for w in WINDOWS], ids=str)


def _reference(x: np.ndarray, window: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """x - m and s of one map, voxel by voxel."""
    half = len(window) // 2
    padded = np.pad(x, half, mode="edge")
    weights = np.array([math.prod(w) for w in itertools.product(window, repeat=x.ndim)])
    contrast, deviation = np.empty_like(x), np.empty_like(x)
    for voxel in np.ndindex(x.shape):
        patch = padded[tuple(slice(i, i + len(window)) for i in voxel)].ravel()
        mean = (weights * patch).sum()
        contrast[voxel] = x[voxel] - mean
        deviation[voxel] = math.sqrt((weights * (patch - mean) ** 2).sum())
    return contrast, deviation


def _maps(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(2, 3, *shape, generator=generator, dtype=dtype)
    return p, torch.rand(2, 3, *shape, generator=generator) > 0.6


@every_shape
@every_window
def test_contrast_and_deviation_are_the_whole_windows(shape: tuple[int, ...], window: list[float]) -> None:
    p, _ = _maps(shape)
    contrast, deviation = local_contrast(p, window)
    for item, channel in np.ndindex(2, 3):
        expected = _reference(p[item, channel].numpy(), window)
        np.testing.assert_allclose(contrast[item, channel], expected[0], atol=1e-12)
        np.testing.assert_allclose(deviation[item, channel], expected[1], atol=1e-7)


@every_set
@every_shape
@every_window
@pytest.mark.parametrize("average", [False, True])
def test_structural_error_is_the_difference(
    kernels: str, shape: tuple[int, ...], window: list[float], average: bool
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        p, y = _maps(shape, dtype)
        expected = (structure(y.double(), window, 0.01) - structure(p.double(), window, 0.01)).abs()
        expected = expected.mean(1, keepdim=True) if average else expected
        with medloss.kernels.use(kernels):
            for target in (y, y.to(dtype)):
                actual = structural_error(p, target, window, 0.01, average=average)
                assert actual.dtype == dtype
                torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)
            some = structural_error(p[:, 1:], y[:, 1:], window, 0.01, average=False)
            torch.testing.assert_close(some, structural_error(p, y, window, 0.01, average=False)[:, 1:])


def test_slabs_know_of_their_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    p, y = _maps((9, 5, 6))
    window = gaussian_window(5, 1.5)
    with medloss.kernels.use("eager"):
        whole = structural_error(p, y, window, 0.01, average=False)
        monkeypatch.setattr("medloss.local_statistics._SLAB_VOXELS", 60)  # two planes at a time
        torch.testing.assert_close(structural_error(p, y, window, 0.01, average=False), whole)


@every_set
def test_constants_have_no_structure(kernels: str) -> None:
    window = gaussian_window(3, 1.5)
    constant = torch.full((1, 2, 6, 7, 8), 0.3)
    contrast, deviation = local_contrast(constant, window)
    assert (contrast == 0).all()
    assert (deviation == 0).all()
    with medloss.kernels.use(kernels):
        for target in (torch.zeros(constant.shape, dtype=torch.bool), torch.ones_like(constant)):
            assert (structural_error(constant, target, window, 0.01, average=True) == 0).all()


@every_set
def test_nan_spreads_as_far_as_the_window(kernels: str) -> None:
    p, y = _maps((6, 7, 8), torch.float32)
    p[0, 1, 3, 3, 3] = float("nan")
    with medloss.kernels.use(kernels):
        error = structural_error(p, y, gaussian_window(3, 1.5), 0.01, average=False)
    expected = torch.zeros(error.shape, dtype=torch.bool)
    expected[0, 1, 2:5, 2:5, 2:5] = True
    assert torch.equal(error.isnan(), expected)


@every_set
def test_the_number_of_threads_changes_nothing(kernels: str) -> None:
    p, y = _maps((40, 60, 50), torch.float32)
    window = gaussian_window(3, 1.5)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with medloss.kernels.use(kernels):
                results.append(structural_error(p, y, window, 0.01, average=True))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_gradients_are_the_whole_windows() -> None:
    window = gaussian_window(3, 1.5)
    p = _maps((4, 5))[0][:1, :1].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: structure(x, window, 0.01), p)
    flat = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    structure(flat, window, 0.01).sum().backward()
    assert flat.grad is not None
    assert torch.isfinite(flat.grad).all()
