"""Triton's kernels against the formulas in torch's float64: on a GPU, or where there is none in Triton's interpreter.

`conftest.py` chooses the interpreter by TRITON_INTERPRET, before Triton is imported. Without a GPU the kernels are
compiled for one, too (`triton_compiled.py`): what the interpreter accepts, a GPU's compiler may refuse.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

pytest.importorskip("triton", reason="Triton is not installed")

from medloss.kernels.sum_spec import ROWS, Row, VoxelTerms, sum_type
from medloss.kernels.triton import distance as triton_distance
from medloss.kernels.triton import sums as kernels

# The interpreter computes in NumPy, which warns where a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCE = {torch.float64: 1e-7, torch.float32: 3e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
ENTROPIES = [("", 0.0), ("plain", 0.0)]
ENTROPIES += [("focal", gamma) for gamma in (0.0, 0.5, 1.0, 1.7, 2.0)] + [("power", gamma) for gamma in (0.3, 2.0)]
ENTROPIES += [("focal_background", gamma) for gamma in (0.0, 0.5)]
# C, first, type, target, masked, weights, N: by a multiple of the vector and not.
SHAPES = [
    (2, 0, torch.float64, "soft", True, "shared", 208),
    (17, 0, torch.float32, "index", True, "", 40),
    (3, 1, torch.float64, "index", True, "each", 200),
    (5, 1, torch.bfloat16, "onehot", False, "", 130),
]
# Each mode with each entropy, on two of the shapes.
CASES = [
    (mode, *entropy, *SHAPES[(i + j) % 2 + k])
    for i, mode in enumerate(("softmax", "sigmoid", "probabilities"))
    for j, entropy in enumerate(ENTROPIES)
    for k in (0, 2)
]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several tiles a program, on volumes that the interpreter can walk.
    monkeypatch.setattr(kernels, "_PROGRAMS", 1)
    if INTERPRETED:
        monkeypatch.setattr(kernels, "_HELD", 32)


def one_hot(target: Tensor, classes: int) -> Tensor:
    return target.long() == torch.arange(classes, device=target.device).view(1, -1, 1)


def formulas(
    terms: VoxelTerms, z: Tensor, y: Tensor, mask: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums, and h(l, q), h(q, l) per voxel."""
    if terms.mode == "softmax":
        l, q = torch.log_softmax(z, 1), torch.log(-torch.expm1(torch.log_softmax(z, 1)))  # noqa: E741
        p = l.exp()
    elif terms.mode == "sigmoid":
        l, q, p = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z), z.sigmoid()  # noqa: E741
    else:
        l, q, p = z.log().clamp(min=-100), (1 - z).log().clamp(min=-100), z  # noqa: E741

    def h(l: Tensor, q: Tensor, no: bool = False) -> Tensor:  # noqa: E741
        if terms.entropy == "power":
            return (-l).clamp(min=1e-7) ** terms.gamma
        if terms.entropy == "focal_background":
            background = torch.full_like(l, no)
            background[:, 0] = no or terms.mode == "softmax"
            return -l * torch.exp(terms.gamma * q * background)
        return -l * torch.exp(terms.gamma * q) if terms.entropy == "focal" else -l

    counts = torch.ones_like(z[:, :1]) if mask is None else mask[:, None].to(z)
    v = 1.0 if weight is None else torch.nn.functional.pad(weight.double(), (0, 0, z.shape[1] - weight.shape[1], 0))
    if weight is not None and weight.shape[1] == 1:
        v = weight.double()
    sums = z.new_zeros((ROWS, *z.shape[:2]))
    voxelwise: dict[Row, Tensor] = {Row.TARGET: y}
    if terms.overlap:
        voxelwise |= {Row.TP: v * y * p, Row.PREDICTION: v * p}
        if weight is not None:
            voxelwise |= {Row.WEIGHTED_TARGET: v * y}
    if terms.squares:
        voxelwise |= {Row.SQUARED_PREDICTION: v * p**2, Row.SQUARED_TARGET: v * y**2}
    if terms.errors:
        error = v * (y - p) ** 2
        voxelwise |= {Row.ERROR_INSIDE: error * y, Row.ERROR_OUTSIDE: error * (1 - y)}
    if terms.entropy:
        voxelwise |= {Row.POSITIVE: v * y * h(l, q)}
        if terms.mode != "softmax":
            voxelwise |= {Row.NEGATIVE: v * (1 - y) * h(q, l, no=True)}
    rows = torch.stack([(voxelwise[row] * counts).sum(-1) if row in voxelwise else sums[row] for row in Row])
    kept = torch.arange(z.shape[1], device=z.device) >= terms.first
    kept = torch.stack([kept | (row == Row.TARGET) for row in Row])
    return rows * kept[:, None], h(l, q), h(q, l, no=True)


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert torch.isfinite(actual).all()
    error = (actual.double() - expected).abs().amax()
    assert error <= TOLERANCE[dtype] * (expected.abs().amax() + 1e-30), f"{error} next to {expected.abs().amax()}"


def draw(mode: str, classes: int, dtype: torch.dtype, voxels: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    z = torch.randn(2, classes, voxels, generator=generator, dtype=torch.float64) * 2
    index = torch.randint(classes, (2, 1, voxels), generator=generator)
    z = z if mode != "probabilities" else z.sigmoid().clamp(0.01, 0.99)
    return z.to(dtype).to(DEVICE), index.to(DEVICE)


@pytest.mark.parametrize("mode,entropy,gamma,classes,first,dtype,kind,masked,weights,voxels", CASES)
def test_sums_gradient_and_map(
    mode: str,
    entropy: str,
    gamma: float,
    classes: int,
    first: int,
    dtype: torch.dtype,
    kind: str,
    masked: bool,
    weights: str,
    voxels: int,
) -> None:
    if classes == 2 and mode != "softmax":
        classes = 1
    terms = VoxelTerms(mode, first, True, True, True, entropy, gamma)
    z, index = draw(mode, classes, dtype, voxels)
    clean = z.double().requires_grad_()
    soft = torch.rand(2, classes, voxels, device=DEVICE)
    target = {"index": index, "onehot": one_hot(index, classes), "soft": soft}[kind]
    y = (one_hot(index, classes) if kind == "index" else target).double()
    mask = torch.rand(2, voxels, device=DEVICE) < 0.7 if masked else None
    weight = torch.rand(2, classes - first if weights == "each" else 1, voxels, device=DEVICE).to(sum_type(z))
    weight = weight if weights else None
    expected, positive_map, negative_map = formulas(terms, clean, y, mask, weight)
    if mask is not None:
        # What is masked is garbage, in every tensor.
        z = torch.where(mask[:, None], z, float("nan"))
        target = torch.where(mask[:, None], target, float("nan") if target.is_floating_point() else -7)
        weight = None if weight is None else torch.where(mask[:, None], weight, float("nan"))

    sums = kernels.voxel_sums(terms, z, target, mask, weight)
    assert sums.dtype == sum_type(z)
    for row in Row:
        assert_near(sums[row], expected[row].detach(), torch.float32 if dtype != torch.float64 else dtype)

    sum_gradients = torch.rand(expected.shape, device=DEVICE, dtype=sum_type(z)) - 0.5
    (expected_gradient,) = torch.autograd.grad((sum_gradients.double() * expected).sum(), clean, retain_graph=True)
    sum_gradients[:, :, :first] = float("nan")
    gradient = kernels.voxel_sums_backward(terms, z, target, mask, weight, sum_gradients)
    assert gradient.dtype == dtype
    assert_near(gradient, expected_gradient, dtype)
    if mask is not None:
        assert not gradient.masked_select(~mask[:, None]).any()

    if entropy:
        yes, no = torch.rand(2, 2, classes, 1, device=DEVICE, dtype=sum_type(z))
        expected = yes * y * positive_map if mode == "softmax" else yes * y * positive_map + no * (1 - y) * negative_map
        expected = expected[:, first:].sum(1, keepdim=True) if mode == "softmax" else expected[:, first:]
        expected = expected if mask is None else torch.where(mask[:, None], expected, 0.0)
        values = kernels.entropy_map(terms, z, target, mask, yes[..., 0], no[..., 0])
        assert values.shape == expected.shape
        assert_near(values, expected.detach(), torch.float32 if dtype != torch.float64 else dtype)


INDICES = [torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.float32]


@pytest.mark.parametrize("mode,entropy,gamma", [("softmax", "plain", 0.0), ("sigmoid", "focal", 2.0)])
def test_an_index_map_and_one_hot_are_the_same_to_the_bit(mode: str, entropy: str, gamma: float) -> None:
    terms = VoxelTerms(mode, 1, True, True, True, entropy, gamma)
    z, index = draw(mode, 3, torch.float32, 48 if INTERPRETED else 4800)
    sum_gradients = torch.rand(ROWS, 2, 3, device=DEVICE)
    hot = one_hot(index, 3)
    targets = [index.to(kind) for kind in INDICES]
    targets += [hot.to(kind) for kind in (torch.bool, torch.int64, torch.float16, torch.float64)]
    results = [
        (
            kernels.voxel_sums(terms, z, t, None, None),
            kernels.voxel_sums_backward(terms, z, t, None, None, sum_gradients),
        )
        for t in targets
    ]
    for sums, gradient in results[1:]:
        assert torch.equal(sums, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("kind", [torch.int64, torch.int16, torch.uint8, torch.float32])
def test_labels_out_of_range_belong_to_no_class(kind: torch.dtype) -> None:
    terms = VoxelTerms("softmax", 0, True, False, False, "plain")
    z, index = draw("softmax", 3, torch.float32, 300)
    wrong = torch.where(torch.arange(300, device=DEVICE) % 3 == 0, 3, index)
    # Labels that a conversion to 32 bits would bring back into range; fractions.
    wrong[..., 7:] = torch.where(index[..., 7:] == 1, {torch.int64: 2**32 + 1}.get(kind, 200), wrong[..., 7:])
    wrong = wrong.to(kind)
    if kind == torch.float32:
        wrong[..., 5], wrong[..., 6] = 1.5, -1.0
    hot = wrong == torch.arange(3, device=DEVICE).view(1, -1, 1)
    assert torch.equal(
        kernels.voxel_sums(terms, z, wrong, None, None), kernels.voxel_sums(terms, z, hot.float(), None, None)
    )


@pytest.mark.parametrize("entropy,gamma", [("plain", 0.0), ("focal", 0.5), ("focal", 2.0), ("power", 2.0)])
def test_logits_of_minus_infinity(entropy: str, gamma: float) -> None:
    terms = VoxelTerms("softmax", 0, True, True, True, entropy, gamma)
    z, index = draw("softmax", 3, torch.float32, 40)
    z[:, 2], index = float("-inf"), index.clamp(max=1)
    sum_gradients = torch.rand(ROWS, 2, 3, device=DEVICE)
    both = [
        (
            kernels.voxel_sums(terms, part, index, None, None),
            kernels.voxel_sums_backward(terms, part, index, None, None, sum_gradients[:, :, : part.shape[1]]),
        )
        for part in (z, z[:, :2].contiguous())
    ]
    assert not both[0][0][:, :, 2].any() and not both[0][1][:, 2].any()
    torch.testing.assert_close(both[0][0][:, :, :2], both[1][0])
    torch.testing.assert_close(both[0][1][:, :2], both[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["softmax", "sigmoid", "probabilities"])
@pytest.mark.parametrize("entropy,gamma", [("plain", 0.0), ("focal", 2.0), ("power", 0.5)])
def test_nan_and_extreme_logits(mode: str, entropy: str, gamma: float) -> None:
    terms = VoxelTerms(mode, 0, True, False, False, entropy, gamma)
    z, index = draw(mode, 2, torch.float32, 40)
    z[0, 0, :2], z[0, 0, 2:4] = (0.0, 1.0) if mode == "probabilities" else (-1e4, 1e4)
    sum_gradients = torch.rand(ROWS, 2, 2, device=DEVICE)
    assert torch.isfinite(kernels.voxel_sums(terms, z, index, None, None)).all()
    assert torch.isfinite(kernels.voxel_sums_backward(terms, z, index, None, None, sum_gradients)).all()
    z[1, 1, 5] = float("nan")
    sums = kernels.voxel_sums(terms, z, index, None, None)
    gradient = kernels.voxel_sums_backward(terms, z, index, None, None, sum_gradients)
    for row in (Row.PREDICTION, Row.POSITIVE):
        assert sums[row, 1, 1].isnan() and torch.isfinite(sums[row, 0]).all()
    assert gradient[1, 1, 5].isnan() and torch.isfinite(gradient[0]).all()


@pytest.mark.parametrize("classes", [40, 100])
def test_many_classes_and_programs(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_PROGRAMS", 2)
    terms = VoxelTerms("softmax", 1, True, False, False, "plain")
    z, index = draw("softmax", classes, torch.float32, 70)
    clean = z.double().requires_grad_()
    expected, _, _ = formulas(terms, clean, one_hot(index, classes).double(), None, None)
    assert_near(kernels.voxel_sums(terms, z, index, None, None), expected.detach(), torch.float32)
    sum_gradients = torch.rand(expected.shape, device=DEVICE)
    (expected_gradient,) = torch.autograd.grad((sum_gradients.double() * expected).sum(), clean)
    assert_near(
        kernels.voxel_sums_backward(terms, z, index, None, None, sum_gradients), expected_gradient, torch.float32
    )


def test_what_it_works_on() -> None:
    assert kernels.supports("cuda", torch.bfloat16) and not kernels.supports("cuda", torch.int32)
    assert kernels.supports("cpu", torch.float64) == INTERPRETED
    assert kernels.preferred("cuda", torch.float32) == (not INTERPRETED)
    assert triton_distance.supports("cuda") and triton_distance.supports("cpu") == INTERPRETED


def edt(mask: Any, spacing: tuple[float, ...]) -> Any:
    return distance_transform_edt(mask, sampling=spacing) if mask.any() and not mask.all() else np.zeros(mask.shape)


def masks_like(shape: tuple[int, ...]) -> Tensor:
    """Noise and a ball; one voxel and all but one; empty and full."""
    masks = torch.zeros(2, 3, *shape, dtype=torch.bool)
    masks[0, 0] = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.6
    axes = torch.meshgrid(*(torch.arange(n) - n / 3 for n in shape), indexing="ij")
    masks[0, 1] = sum(axis**2 for axis in axes) < (max(shape) / 4) ** 2
    masks[0, 2].view(-1)[-1] = True
    masks[1, 0] = True
    masks[1, 0].view(-1)[1] = False
    masks[1, 2] = True
    return masks


SIZES = [(4, 6, 5), (11, 13), (1, 3, 4)] if INTERPRETED else [(96, 80, 72), (300, 257), (1, 6, 5), (3, 256, 256)]


@pytest.mark.parametrize("shape", SIZES)
def test_distances_equal_scipys(shape: tuple[int, ...]) -> None:
    masks = masks_like(shape)
    spacings = [(3.0, 1.0, 0.8)[-len(shape) :], (0.7, 1.3, 2.1)[-len(shape) :]]
    signed = triton_distance.signed_distances(masks.to(DEVICE), spacings).cpu().numpy()
    within = triton_distance.inside_distances(masks.to(DEVICE), spacings).cpu().numpy()
    around = triton_distance.outside_distances(masks.to(DEVICE), spacings).cpu().numpy()
    assert signed.dtype == np.float32
    for item, spacing in enumerate(spacings):
        for channel, mask in enumerate(masks[item].numpy()):
            inside, outside = edt(mask, spacing), edt(~mask, spacing)
            np.testing.assert_allclose(within[item, channel], inside, atol=1e-4, rtol=0)
            np.testing.assert_allclose(around[item, channel], outside, atol=1e-4, rtol=0)
            np.testing.assert_allclose(signed[item, channel], outside - inside, atol=1e-4, rtol=0)


def assert_distances(masks: Tensor, spacing: tuple[float, ...]) -> None:
    for name, sides in (("signed", (1, -1)), ("inside", (0, 1)), ("outside", (1, 0))):
        found = getattr(triton_distance, f"{name}_distances")(masks[None].to(DEVICE), [spacing])[0].cpu().numpy()
        for channel, mask in enumerate(masks.numpy()):
            expected = sides[0] * edt(~mask, spacing) + sides[1] * edt(mask, spacing)
            np.testing.assert_allclose(found[channel], expected, atol=1e-4, rtol=0)


def test_distances_beyond_the_reach_of_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_distance, "_REACH", 0)
    masks = torch.zeros(3, 2, 10, 3, dtype=torch.bool) if INTERPRETED else torch.zeros(3, 20, 90, 41, dtype=torch.bool)
    masks[0].view(-1)[-1] = True
    masks[1] = torch.rand(masks.shape[1:], generator=torch.Generator().manual_seed(1)) < 0.9
    masks[1, 0, :7] = True
    masks[2, :, 2:5] = True
    assert_distances(masks, (3.0, 1.0, 0.8))


def _loaded_numbers(masks: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many numbers the kernels read for signed distances; each step along a line reads one to three."""
    from triton.runtime.interpreter import InterpreterBuilder

    counts = []
    original = InterpreterBuilder.create_masked_load

    def counting(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        counts.append(int(np.count_nonzero(mask.data)))
        return original(self, pointers, mask, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(InterpreterBuilder, "create_masked_load", counting)
        triton_distance.signed_distances(masks, [(1.0, 1.0)])
    return sum(counts)


@pytest.mark.skipif(not INTERPRETED, reason="the interpreter counts")
def test_a_single_voxel_takes_a_number_of_steps_linear_in_the_lines_length(monkeypatch: pytest.MonkeyPatch) -> None:
    length, reach = 52, 2
    masks = torch.zeros(1, 1, 2, length, dtype=torch.bool)
    masks[0, 0, 0, 0] = True
    # The first axis reads a voxel three times. Then: two voxels per step outwards; one to look for what is left; for
    # each of the two sides at most four steps that read three.
    bound = (3 + 1 + 2 * reach + 1 + 2 * 4 * 3) * masks.numel()
    monkeypatch.setattr(triton_distance, "_REACH", length)
    assert _loaded_numbers(masks, monkeypatch) > bound
    monkeypatch.setattr(triton_distance, "_REACH", reach)
    assert 0 < _loaded_numbers(masks, monkeypatch) < bound


@pytest.mark.slow
def test_kernels_compile_for_a_gpu() -> None:
    # In a separate process: Triton reads the variable when it is imported, and for good.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "triton_compiled.py"]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    ran = subprocess.run(
        command, cwd=Path(__file__).parents[2] / "support", env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
