"""The choice of a kernel set, and what the kernels promise besides the contract."""

import itertools
import subprocess
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from bare import run_bare
from loss_inputs import MODES, assert_close, make, mask_like, modes_of, sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import medloss
from medloss.boundary import ball_means, balls, erosion
from medloss.kernels import dispatch, eager, operators
from medloss.kernels.sum_spec import ROWS, Row, VoxelTerms

SETS = [name for name in medloss.kernels.available() if dispatch.module(name).supports("cpu", torch.float32)]
TERMS: list[dict[str, Any]] = [
    {"overlap": True, "squares": True},
    {"errors": True},
    {"overlap": True, "entropy": "plain"},
    {"entropy": "focal", "gamma": 2.0},
    {"entropy": "focal", "gamma": 0.5},
    {"overlap": True, "entropy": "power", "gamma": 0.3},
]

DISTANCE_LOSSES = ("distance_penalty", "hausdorff_dt", "shape_aware", "log_hausdorff_dt", "boundary")
TYPES = (torch.float64, torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _silent_interpreter() -> Iterator[None]:
    # Triton's interpreter works out both branches of a selection, and NumPy warns of the one that is not taken.
    with np.errstate(all="ignore"):
        yield


every_set = pytest.mark.parametrize("kernels", SETS)


def sums_and_gradient(terms: VoxelTerms, logits: Tensor, target: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    found = operators.voxel_sums(terms, logits, target, more.get("mask"), more.get("voxel_weight"))
    sums = torch.stack([found.get(row, torch.zeros_like(found[Row.TARGET])) for row in Row])
    generator = torch.Generator().manual_seed(0)
    sum_gradients = torch.randn(sums.shape, generator=generator, dtype=torch.float64).to(sums)
    (gradient,) = torch.autograd.grad((sum_gradients * sums).sum(), logits)
    return sums.detach(), gradient


@pytest.mark.parametrize("kernels", [name for name in SETS if name != "eager"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("wanted", TERMS, ids=[f"{t}" for t in range(len(TERMS))])
def test_sets_agree_in_every_type(kernels: str, mode: str, wanted: dict[str, Any]) -> None:
    drawn = sample(mode, 3)
    for dtype, first, masked in itertools.product(TYPES, (0, 1), (False, True)):
        if not dispatch.module(kernels).supports("cpu", dtype):
            continue
        logits, terms = drawn.logits.to(dtype), VoxelTerms(mode, first, **wanted)
        channels = 1 if mode == "softmax" and not wanted.get("errors") else 3 - first
        mask = mask_like(drawn.index) if masked else None
        weight = torch.rand(2, channels, *drawn.index.shape[2:], generator=torch.Generator().manual_seed(1))
        with medloss.kernels.use("eager"):
            # Half logits against the same numbers in double: the sums must carry no half rounding.
            expected, expected_gradient = sums_and_gradient(
                terms, logits.double(), drawn.index, mask=mask, voxel_weight=weight.double()
            )
        weight = weight.double() if dtype == torch.float64 else weight
        with medloss.kernels.use(kernels):
            sums, gradient = sums_and_gradient(terms, logits, drawn.index, mask=mask, voxel_weight=weight)
        single = {"rtol": 2e-5, "atol": 1e-5} if dtype != torch.float64 else {"rtol": 1e-9, "atol": 1e-11}
        assert_close(sums, expected, **single)
        if dtype == torch.bfloat16:
            single = {"rtol": 1e-2, "atol": 1e-3 * float(expected_gradient.abs().max())}
        else:
            single["atol"] *= float(expected_gradient.abs().max())
        assert gradient.dtype == dtype
        assert_close(gradient.double(), expected_gradient, **single)


@pytest.mark.parametrize("mode", MODES)
def test_blocks_of_voxels_add_up(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = sample(mode, 3)
    last = drawn.logits.contiguous(memory_format=torch.channels_last_3d)
    terms = VoxelTerms(mode, 1, overlap=True, squares=True, errors=True, entropy="focal", gamma=2.0)
    given = {"mask": mask_like(drawn.index), "voxel_weight": 1 + drawn.maps[:, 1:2]}
    factors = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).double()
    results = []
    with medloss.kernels.use("eager"):
        # One piece; pieces and a rest; several blocks, of several pieces, of one, of one voxel.
        for voxels, numbers in ((1 << 12, 1 << 19), (32, 1 << 19), (16, 200), (32, 96), (32, 1)):
            monkeypatch.setattr(eager, "_VOXELS", voxels)
            monkeypatch.setattr(eager, "_NUMBERS", numbers)
            for logits, target in itertools.product((drawn.logits, last), (drawn.index, drawn.maps)):
                sums, gradient = sums_and_gradient(terms, logits, target, **given)
                values = operators.entropy_map(terms, logits, target, given["mask"], factors, factors.flip(0))
                results.append((sums, gradient, values))
    for found in results[1:]:
        for one, expected in zip(found, results[0], strict=True):
            assert_close(one, expected, rtol=1e-12)


@every_set
@pytest.mark.parametrize("channels", [3, 14])
def test_sums_do_not_depend_on_the_number_of_threads(kernels: str, channels: int) -> None:
    logits = torch.randn(2, channels, 40, 41, 42, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, channels, (2, 1, 40, 41, 42), dtype=torch.uint8)
    if kernels == "triton":
        pytest.skip("one interpreter, one thread")
    terms = VoxelTerms("softmax", overlap=True, entropy="plain")
    threads = torch.get_num_threads()
    results = []
    try:
        with medloss.kernels.use(kernels):
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(sums_and_gradient(terms, logits, target))
    finally:
        torch.set_num_threads(threads)
    for sums, gradient in results[1:]:
        if kernels == "numba":
            assert torch.equal(sums, results[0][0]) and torch.equal(gradient, results[0][1])
        assert_close(sums, results[0][0], rtol=1e-6)
        # Where the classes' gradients cancel, little is left but their rounding.
        assert_close(gradient, results[0][1], rtol=1e-5, atol=1e-7 * float(gradient.abs().max()))


@every_set
@pytest.mark.parametrize("mode", MODES)
def test_nan_comes_out_and_minus_infinity_is_no_probability(kernels: str, mode: str) -> None:
    drawn = sample(mode, 3, batch=1)
    logits = drawn.logits.float()
    logits[0, 1, 0, 0, 0] = float("nan")
    with medloss.kernels.use(kernels):
        loss = medloss.ComboLoss(validate=False, **({} if mode == "probabilities" else {mode: True}))
        assert loss(logits, drawn.index).isnan()
        if mode == "softmax":
            index = torch.zeros_like(drawn.index)
            logits = drawn.logits.float().index_fill(1, torch.tensor([2]), float("-inf")).requires_grad_()
            value = loss(logits, index)
            value.backward()
            assert value.isfinite()
            assert logits.grad is not None and logits.grad.isfinite().all()
            assert (logits.grad[:, 2] == 0).all()


@pytest.mark.parametrize("kernels", [name for name in SETS if name != "eager"])
@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
@pytest.mark.parametrize("wanted", TERMS[2:], ids=[f"{t}" for t in range(2, len(TERMS))])
def test_sets_agree_where_the_label_has_no_probability(kernels: str, mode: str, wanted: dict[str, Any]) -> None:
    drawn, terms = sample(mode, 2), VoxelTerms(mode, 0, **wanted)
    drawn.index[0, 0, 2, 3], drawn.index[0, 0, 1, 1], drawn.index[1, 0, 0, 0] = 1, 0, 2
    for dtype, big in itertools.product((torch.float64, torch.float32), (-torch.inf, -1e25, -3e38)):
        logits = drawn.logits.to(dtype)
        logits[0, 1, 2, 3] = logits[0, 0, 1, 1] = logits[1, 2, 0, 0] = big
        if mode == "sigmoid":
            logits[0, 1, 4, 4] = -big  # where the class is not
        weights = torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]], dtype=dtype)
        results = []
        for name in (kernels, "eager"):
            with medloss.kernels.use(name):
                sums, gradient = sums_and_gradient(terms, logits, drawn.index)
                values = operators.entropy_map(terms, logits, drawn.index, None, weights, weights)
            results.append((sums, gradient, values))
        for mine, reference in zip(*results, strict=True):
            assert mine.isfinite().all()
            assert_close(mine, reference, rtol=1e-5, atol=1e-5)


@every_set
@pytest.mark.parametrize("mode", ["softmax", "sigmoid"])
def test_a_label_without_probability_has_a_finite_loss_and_gradient(kernels: str, mode: str) -> None:
    drawn = sample(mode, 2)
    drawn.index[0, 0, 2, 3] = 1
    for name, weight in itertools.product(("focal", "binary_cross_entropy", "combo"), (None, [1.0, 0.0, 1.0])):
        logits = drawn.logits.float()
        logits[0, 1, 2, 3] = -torch.inf
        with medloss.kernels.use(kernels):
            value = make(name, mode, weight=weight)(logits.requires_grad_(), drawn.index)
            value.backward()
        assert value.isfinite() and (value < 1e4) == (weight is not None)
        assert logits.grad is not None and logits.grad.isfinite().all()


@every_set
@pytest.mark.parametrize("name", ["dice", "focal", "combo", "hausdorff_dt", "hausdorff_er", "hausdorff_cv"])
def test_second_derivatives_are_refused_in_one_line(kernels: str, name: str) -> None:
    drawn = sample("softmax", 2)
    logits = drawn.logits.float().requires_grad_()
    with medloss.kernels.use(kernels):
        value = make(name, "softmax")(logits, drawn.index)
        (gradient,) = torch.autograd.grad(value, logits, create_graph=True)
        with pytest.raises(medloss.InputError, match=r"^(hausdorff_..: )?second derivatives.*"):
            gradient.sum().backward()


@every_set
def test_a_traced_loss_equals_the_plain_one(kernels: str) -> None:
    traced_at, called_with = sample("softmax", 2), sample("softmax", 2, seed=1)
    loss = make("dice", "softmax")
    results = []
    with medloss.kernels.use(kernels), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of shapes become constants; torch deprecates TorchScript
        example = traced_at.logits.float(), traced_at.index
        for function in (torch.jit.trace(lambda z, y: loss(z, y), example, check_trace=False), loss):
            logits = called_with.logits.float().requires_grad_()
            value = function(logits, called_with.index)
            results.append((value.detach(), *torch.autograd.grad(value, logits)))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected)


@every_set
def test_negative_views_and_single_voxels_of_any_stride_are_read_right(kernels: str) -> None:
    drawn = sample("softmax", 2)
    logits = drawn.logits.float()
    terms = VoxelTerms("softmax", overlap=True)
    strided = [torch.ones(7, dtype=kind).as_strided((1, 1, 1, 1), (7, 7, 7, 7)) for kind in (torch.int64, torch.bool)]
    with medloss.kernels.use(kernels):
        expected = sums_and_gradient(terms, logits, drawn.index)
        leaf = (-logits).requires_grad_()
        negative = torch._neg_view(leaf)
        assert negative.is_neg()
        found = operators.voxel_sums(terms, negative, drawn.index, None)
        for row, value in found.items():
            assert_close(value.detach(), expected[0][row])
        (gradient,) = torch.autograd.grad(found[Row.PREDICTION][:, 0].sum(), leaf)
        alone = logits.clone().requires_grad_()
        prediction = operators.voxel_sums(terms, alone, drawn.index, None)[Row.PREDICTION]
        assert_close(gradient, -torch.autograd.grad(prediction[:, 0].sum(), alone)[0])
        maps = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1))
        sums, _ = sums_and_gradient(terms, logits, torch._neg_view(-maps), voxel_weight=torch._neg_view(-maps[:, :1]))
        assert_close(sums, sums_and_gradient(terms, logits, maps, voxel_weight=maps[:, :1].clone())[0])
        sums, _ = sums_and_gradient(terms, torch.zeros(1, 2, 1, 1), strided[0], mask=strided[1])
    assert sums[Row.TARGET].tolist() == [[0, 1]]


@every_set
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [2, 3, 4, 5, 8, 14])
def test_channels_last_logits_are_read_as_they_are(
    kernels: str, mode: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "_VOXELS", 32)
    drawn = sample(mode, 3, channels=channels)
    terms = VoxelTerms(mode, 1, overlap=True, squares=True, entropy="focal", gamma=2.0)
    mask = mask_like(drawn.index)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        plain = drawn.logits.to(dtype)
        last = plain.contiguous(memory_format=torch.channels_last_3d)
        with medloss.kernels.use(kernels):
            sums, gradient = sums_and_gradient(terms, plain, drawn.index, mask=mask)
            other_sums, other_gradient = sums_and_gradient(terms, last, drawn.index, mask=mask)
        assert_close(other_sums, sums, rtol=1e-6)
        assert gradient.stride() == plain.stride() and other_gradient.stride() == last.stride()
        assert gradient.dtype == other_gradient.dtype == dtype
        assert_close(
            other_gradient.double(), gradient.double(), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6
        )
        if kernels != "triton":
            assert torch.equal(other_sums, sums) and torch.equal(other_gradient, gradient)


@every_set
def test_logits_of_other_strides_are_read_right(kernels: str) -> None:
    drawn = sample("softmax", 3)
    terms = VoxelTerms("softmax", overlap=True)
    swapped = drawn.logits.float().transpose(2, 4).contiguous().transpose(2, 4)
    assert not swapped.is_contiguous()
    with medloss.kernels.use(kernels):
        for found, expected in zip(
            sums_and_gradient(terms, swapped, drawn.index),
            sums_and_gradient(terms, drawn.logits.float(), drawn.index),
            strict=True,
        ):
            assert_close(found, expected, rtol=1e-5)


@every_set
def test_unsigned_labels_are_ignored_and_named_as_they_are(kernels: str) -> None:
    drawn = sample("softmax", 3)
    ignored = mask_like(drawn.index, share=0.2)
    index = torch.where(ignored, 65535, drawn.index).to(torch.uint16)
    with medloss.kernels.use(kernels):
        value = medloss.ComboLoss(softmax=True, ignore_index=65535)(drawn.logits, index)
        assert_close(value, medloss.ComboLoss(softmax=True)(drawn.logits, drawn.index, mask=~ignored))
        with pytest.raises(medloss.InputError, match="got labels from 0 to 65535 for logits of 3 channels"):
            medloss.ComboLoss(softmax=True)(drawn.logits, index)


@pytest.mark.parametrize("name", ["structural_similarity", "shape_aware", "hausdorff_dt", "dice"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int8])
def test_more_classes_than_the_labels_type_can_count(name: str, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, label = (
        torch.randn(1, 300, 6, 6, generator=generator),
        torch.randint(120, (1, 1, 6, 6), generator=generator),
    )
    loss = medloss.create_loss(name, softmax=True)
    assert_close(loss(logits, label.to(kind)), loss(logits, label))


def test_only_what_differs_from_the_defaults_is_printed() -> None:
    assert str(medloss.DiceLoss()) == "DiceLoss()"
    loss = medloss.FocalLoss(softmax=True, gamma=0.0, include_background=False, weight=[1.0, 2.0])
    assert str(loss) == "FocalLoss(include_background=False, softmax=True, weight=[1.0, 2.0], gamma=0.0, alpha=None)"


def test_use_forces_a_set_and_gives_it_back() -> None:
    before = medloss.kernels.in_use()
    with medloss.kernels.use("eager"):
        assert medloss.kernels.in_use() == "eager"
        with pytest.raises(medloss.InputError, match="kernels: got 'cuda'; expected one of auto, triton, numba, eager"):
            medloss.kernels.use("cuda")
        with medloss.kernels.use("auto"):
            pass
        assert medloss.kernels.in_use() == "eager"
    assert medloss.kernels.in_use() == before


def test_the_environment_forces_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_forced", None)
    monkeypatch.setenv("MEDLOSS_KERNELS", "eager")
    assert medloss.kernels.in_use() == "eager"
    monkeypatch.setenv("MEDLOSS_KERNELS", "fast")
    with pytest.raises(medloss.InputError, match="MEDLOSS_KERNELS: got 'fast'"):
        medloss.kernels.in_use()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_installed", lambda name: name == "eager")
    with pytest.raises(medloss.InputError, match=r"kernels: 'numba' is not installed: pip install numba"):
        medloss.kernels.use("numba")


def test_a_set_that_cannot_be_imported_is_passed_over_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        if name == "numba":
            raise ImportError("Numba needs NumPy 1.0 or less")
        return original(name)

    original = dispatch.module
    monkeypatch.setattr(dispatch, "_installed", lambda name: True)
    monkeypatch.setattr(dispatch, "module", broken)
    dispatch._best.cache_clear()
    with medloss.kernels.use("auto"), pytest.warns(UserWarning, match="'numba' is installed, and cannot be imported"):
        assert medloss.kernels.in_use() == "eager"
    dispatch._best.cache_clear()


def test_medloss_works_without_triton() -> None:
    # torch may import it, so what counts is that medloss comes along without.
    code = "import sys; sys.modules['triton'] = None; import medloss; print(medloss.kernels.available())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "triton" not in ran.stdout and "eager" in ran.stdout


def test_losses_need_no_more_than_torch_monai_numpy_and_scipy() -> None:
    code = """
import medloss, torch
logits, label = torch.randn(1, 3, 6, 7, 8, requires_grad=True), torch.randint(0, 3, (1, 1, 6, 7, 8))
for name in medloss.LOSSES:
    try:
        medloss.create_loss(name, softmax=True)(logits, label).backward()
    except Exception as error:
        print(name, str(error).splitlines()[0])
"""
    failed = dict(line.split(" ", 1) for line in run_bare(code).splitlines())
    # Without a GPU SimpleITK computes the distances; skeletons that are not given are scikit-image's.
    assert "scikit-image is not installed" in failed.pop("skeleton_recall")
    assert set(failed) == set(DISTANCE_LOSSES)
    assert set(failed.values()) == {"No module named 'SimpleITK'"}


def test_losses_of_one_prediction_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = sample("softmax", 3)
    parts = ["dice", "binary_cross_entropy", "tversky"]
    combined = medloss.CombinedLoss("dice+0.5*binary_cross_entropy+tversky", softmax=True)
    values = [medloss.create_loss(name, softmax=True)(drawn.logits, drawn.index) for name in parts]
    expected = values[0] + 0.5 * values[1] + values[2]
    passes = []
    original = operators.voxel_sums
    monkeypatch.setattr(operators, "voxel_sums", lambda *a, **k: passes.append(1) or original(*a, **k))
    assert_close(combined(drawn.logits, drawn.index), expected)
    assert len(passes) == 1


def test_losses_that_read_otherwise_have_a_pass_of_their_own() -> None:
    drawn = sample("softmax", 3)
    losses = [
        medloss.DiceLoss(softmax=True, weight=[1.0, 2.0, 3.0]),
        medloss.DiceLoss(softmax=True, include_background=False),
        medloss.FocalLoss(softmax=True, alpha=0.3),
        medloss.BinaryCrossEntropyLoss(softmax=True, weight=[0.5, 1.0, 2.0]),
        medloss.FocalLoss(softmax=True, gamma=1.0),
        medloss.DiceLoss(softmax=True, ignore_index=2),
    ]
    combined = medloss.CombinedLoss(losses)
    assert_close(combined(drawn.logits, drawn.index), sum(loss(drawn.logits, drawn.index) for loss in losses))


class _Float64(TorchDispatchMode):
    """Remembers the operations that gave float64."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            self.seen.append(str(func))
        return result


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_float32_erosions_and_balls_need_no_float64(renormalize: bool, masked: bool, weighted: bool) -> None:
    """Apple's GPUs have none. Only what is made on the CPU, and kept, may be more precise."""
    drawn = sample("sigmoid", 3)
    p, y = drawn.logits.sigmoid().float(), drawn.maps > 0.5
    mask = mask_like(drawn.index) if masked else None
    weight = p[:, :1] if weighted else None
    balls = (p, y, [1.0, 2.0], [1.0, 4.0], [1.0, 0.8, 0.6], weight, True)
    with medloss.kernels.use("eager"):
        ball_means._operator._init_fn(*balls)
        with _Float64() as mode:
            ball_means._operator._init_fn(*balls)
            erosion._operator._init_fn(p, y, mask, [1, 1, 2], [1.0, 4.0, 9.0], renormalize, weight, True)
    assert mode.seen == []


@pytest.mark.parametrize("kernels", [name for name in ("eager", "numba") if name in medloss.kernels.available()])
@pytest.mark.parametrize("name", medloss.LOSSES)
def test_tensors_stay_on_their_device_whatever_the_default(kernels: str, name: str) -> None:
    for mode, dims, reduction in itertools.product(modes_of(name)[:2], (2, 3), ("mean", "none")):
        drawn, loss = sample(mode, dims), make(name, mode, reduction=reduction)
        # Skeletons that are not given need scikit-image.
        keywords: dict[str, Any] = {"mask": mask_like(drawn.index), "spacing": drawn.spacing}
        keywords["skeleton_map"] = drawn.maps
        results = []
        # No CPU code can read a tensor of the meta device, nor one of a GPU.
        for device in ("cpu", "meta"):
            ball_means._ball_spectrum.cache_clear()
            balls.discs.cache_clear()
            logits = drawn.logits.float().requires_grad_()
            with medloss.kernels.use(kernels), torch.device(device):
                value = loss(logits, drawn.index, **keywords)
                results.append((value.detach(), *torch.autograd.grad(value.sum(), logits)))
        for here, there in zip(*results, strict=True):
            assert torch.equal(here, there)


@pytest.mark.parametrize("kernels", [name for name in ("eager", "numba") if name in medloss.kernels.available()])
def test_kernels_make_their_tensors_on_the_logits_device(kernels: str) -> None:
    # Called as they are: within an operator torch forgets the default device.
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(1, 2, 40, generator=generator), torch.ones(1, 1, 40)
    ones, sum_gradients = torch.ones(1, 2), torch.ones(ROWS, 1, 2)
    terms = VoxelTerms("softmax", overlap=True, entropy="plain")
    module = dispatch.module(kernels)
    p, y = logits.softmax(1).view(2, 5, 8)[0], target.view(5, 8) > 0
    with torch.device("meta"):
        results = [
            module.voxel_sums(terms, logits, target, None, None),
            module.voxel_sums_backward(terms, logits, target, None, None, sum_gradients),
            module.entropy_map(terms, logits, target, None, ones, ones),
            ball_means._deep_errors(p, y, [1.0], [1.0], (1.0, 0.5), None),
            *vars(balls.discs.__wrapped__((1.0, 2.0), (1.0, 0.7, 0.5))).values(),
        ]
        if kernels == "numba":
            from medloss.kernels.numba import structure

            results.append(structure.structural_error(p[None, None], y[None, None], [0.2, 0.6, 0.2], 0.01, False))
    assert all(part.device.type == "cpu" for part in results if isinstance(part, Tensor))
