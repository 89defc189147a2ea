"""Losses with kernels of their own: every set gives the same values and gradients in float32 and bfloat16."""

import importlib.util
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from forked import Forked
from loss_inputs import MODES, assert_close, class_weights, make, mask_like, modes_of
from torch import Tensor

import medloss

if importlib.util.find_spec("numba") is None:
    pytest.skip("numba is not installed", allow_module_level=True)

from medloss.kernels import eager
from medloss.kernels.numba import lovasz, sums

#: More voxels than a block has, in numbers that no block divides.
SHAPES = {2: (61, 53), 3: (17, 14, 15)}
BINS = 7
CASES: list[tuple[str, dict[str, Any]]] = [
    ("lovasz", {}),
    ("lovasz", {"classes": "all", "batch": True}),
    ("lovasz", {"hinge": True}),
    ("l1_ace", {"num_bins": BINS}),
    ("l1_ace", {"num_bins": BINS, "binning": "soft"}),
    ("generalized_wasserstein_dice", {"dist_matrix": [[0.0, 1.0, 1.0], [1.0, 0.0, 0.3], [1.0, 0.3, 0.0]]}),
    ("generalized_wasserstein_dice", {"weighting_mode": "GDL"}),
    ("unified_focal", {}),
    ("unified_focal", {"asymmetric": False, "gamma": 0.3}),
    ("topk_cross_entropy", {"k": 20}),
    ("instance_wise", {}),
    ("instance_wise", {"cells": "blob", "loss": "tversky+focal"}),
]
MODED = [(n, o, mode) for n, o in CASES for mode in (modes_of(n) if "hinge" not in o else MODES[1:2])]
NAMES = tuple(dict.fromkeys(name for name, _ in CASES))

every_case = pytest.mark.parametrize(("name", "options", "mode"), MODED, ids=[f"{n}-{m}-{len(o)}" for n, o, m in MODED])


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tasks of threads, tables of ranges, and pieces of a block, for as few voxels as these."""
    monkeypatch.setattr(eager, "_VOXELS", 1 << 9)
    monkeypatch.setattr(sums, "_CHUNK_NUMBERS", 1 << 11)
    monkeypatch.setattr(lovasz, "_PART", 1 << 10)


@pytest.fixture
def threads() -> Iterator[Any]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _labels(dims: int, channels: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """Boxes: the second item has no class 1, but where that is the only one."""
    index = torch.zeros(2, 1, *SHAPES[dims], dtype=dtype)
    for item, label, start, size in (
        (0, 1, 0.05, 0.3), (0, 1, 0.5, 0.15), (0, 2, 0.7, 0.25), (1, 2, 0.1, 0.5), (1, 2, 0.75, 0.1),
    ):  # fmt: skip
        box = tuple(slice(int(start * n), int((start + size) * n)) for n in SHAPES[dims])
        index[(item, 0, *box)] = min(label, max(channels - 1, 1))
    return index


def _apart(mode: str, index: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Logits whose errors differ by more than rounding does, none at the edge or centre of a bin.

    bfloat16 has too few numbers for the former.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (len(index), channels, *index.shape[2:])
    logits = torch.empty(shape)
    classes = index == torch.arange(channels).view(1, -1, *(1,) * (index.ndim - 2)) if channels > 1 else index > 0
    redraw = torch.ones_like(index, dtype=torch.bool)
    for _ in range(100):
        drawn = (2 * torch.randn(shape, generator=generator)).to(dtype).float()
        drawn = drawn.sigmoid().to(dtype).float() if mode == "probabilities" else drawn
        logits = torch.where(redraw, drawn, logits)
        p = logits.double()
        p = p.softmax(1) if mode == "softmax" else p.sigmoid() if mode == "sigmoid" else p
        bad = (p * 2 * BINS - (p * 2 * BINS).round()).abs() < 1e-4
        if dtype == torch.float32:
            error, order = (p - classes.double()).abs().transpose(0, 1).flatten(1).sort(1)
            close = torch.zeros_like(error, dtype=torch.bool)
            close[:, 1:] = error.diff(dim=1) < 1e-6
            close = torch.zeros_like(close).scatter_(1, order, close)
            bad |= close.view(channels, len(index), *index.shape[2:]).transpose(0, 1)
        redraw = bad.any(1, keepdim=True)
        if not redraw.any():
            return logits.to(dtype)
    raise AssertionError("no such logits were found")


def _run(kernels: str, loss: Any, logits: Tensor, *given: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    with medloss.kernels.use(kernels):
        value = loss(logits, *given, **keywords)
        factors = torch.arange(value.numel()).cos().view_as(value)
        (gradient,) = torch.autograd.grad((factors * value).sum(), logits)
    return value.detach(), gradient


def _assert_agree(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], half: bool) -> None:
    assert found[1].dtype == expected[1].dtype
    assert_close(found[0], expected[0], rtol=1e-5, atol=1e-6)
    size = float(expected[1].abs().max())
    assert size > 0
    gradients = [gradient.float() for gradient in (found[1], expected[1])]
    assert_close(*gradients, rtol=2**-7 if half else 1e-4, atol=size * (1e-3 if half else 1e-5))


@every_case
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.usefixtures("small_tasks")
def test_sets_agree(name: str, options: dict[str, Any], mode: str, dims: int) -> None:
    index = _labels(dims, 3)
    logits = _apart(mode, index, 3, torch.float32)
    ignored = torch.where(mask_like(index, seed=2, share=0.9), index, torch.tensor(255, dtype=torch.uint8))
    weight = class_weights(name, mode, True)
    layout = torch.channels_last if dims == 2 else torch.channels_last_3d
    variants: list[tuple[Tensor, Tensor, dict[str, Any], dict[str, Any]]] = [
        (logits, index, {}, {}),
        (logits.contiguous(memory_format=layout), index, {"reduction": "sum", "weight": weight}, {}),
        (logits, ignored, {"ignore_index": 255, "reduction": "none"}, {"mask": mask_like(index)}),
        (logits, index.float(), {"include_background": False}, {"mask": mask_like(index)}),
    ]
    for z, y, arguments, call in variants:
        loss = make(name, mode, **(options | arguments))
        _assert_agree(*(_run(kernels, loss, z, y, **call) for kernels in ("numba", "eager")), half=False)


@every_case
@pytest.mark.usefixtures("small_tasks")
def test_sets_agree_on_bfloat16(name: str, options: dict[str, Any], mode: str) -> None:
    index = _labels(2, 3)
    logits = _apart(mode, index, 3, torch.bfloat16)
    for layout, mask in ((torch.contiguous_format, None), (torch.channels_last, mask_like(index))):
        loss, z = make(name, mode, **options), logits.contiguous(memory_format=layout)
        results = [_run(kernels, loss, z, index, mask=mask) for kernels in ("numba", "eager")]
        if name != "lovasz":
            _assert_agree(*results, half=True)
            continue
        # Voxels with equal errors share what these cost, in any order.
        assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
        if mode != "softmax":
            inside = 1 - logits if mode == "probabilities" else -logits
            keys = torch.where(index == torch.arange(3).view(1, -1, 1, 1), inside, logits)
            for c, items in itertools.product(range(3), [[0, 1]] if options.get("batch") else [[0], [1]]):
                shared = [_shared(gradient[items, c], keys[items, c]) for _, gradient in results]
                assert_close(*shared, rtol=2**-6, atol=1e-3 * float(shared[1].max()))


def _shared(gradient: Tensor, keys: Tensor) -> Tensor:
    """The size of the gradient of all voxels with the same key."""
    _, places = keys.flatten().unique(return_inverse=True)
    return torch.zeros(int(places.max()) + 1).index_add_(0, places, gradient.flatten().float().abs())


@pytest.mark.parametrize("hinge", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "narrow", "levels", "equal", "extreme", "wide"])
def test_extensions_agree_whatever_the_distribution_of_errors(kind: str, hinge: bool) -> None:
    """Without an activation both sets have the same errors to the bit, and ties are the only freedom."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(2, 2, 400, 410, generator=generator)
    p = {
        "uniform": uniform,
        "narrow": 0.5 + 1e-4 * uniform,
        "levels": (uniform * 50).round() / 50,
        "equal": torch.full_like(uniform, 0.25),
        "extreme": (uniform > 0.3).float(),
        "wide": 10.0 ** (-30 * uniform),
    }[kind]
    y = (torch.rand(p.shape, generator=generator) < 0.1 + 0.3 * p).float()
    y[1, 1] = 0
    mask = torch.rand(2, 1, 400, 410, generator=generator) < 0.8
    loss = medloss.LovaszLoss(classes="all", reduction="none", sigmoid=hinge, hinge=hinge)
    z = 6 * p - 3 if hinge else p
    (value, gradient), (expected, expected_gradient) = (
        _run(kernels, loss, z, y, mask=mask) for kernels in ("numba", "eager")
    )
    assert_close(value, expected, rtol=2e-6)
    sign = 1 - 2 * y
    errors = (1 + z * sign).clamp(min=0) if hinge else (p - y).abs()
    for item, c in itertools.product(range(2), range(2)):
        kept = mask[item, 0]
        assert (gradient[item, c][~kept] == 0).all()
        one, other = (g[item, c] * sign[item, c] for g in (gradient, expected_gradient))
        shared, wanted = (_shared(g[kept], errors[item, c][kept]) for g in (one, other))
        assert_close(shared, wanted, rtol=1e-4, atol=1e-6 * float(wanted.max()))
        # Each has the sign of its error, times that of the value's factor.
        assert (one.min() >= 0) or (one.max() <= 0)


def test_extensions_do_not_depend_on_the_number_of_threads(threads: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, index = torch.randn(1, 3, 420, 430, generator=generator), torch.randint(0, 3, (1, 1, 420, 430))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(_run("numba", make("lovasz", "softmax"), logits, index))
    for value, gradient in results[1:]:
        assert torch.equal(value, results[0][0]) and torch.equal(gradient, results[0][1])


# --- autograd, threads and processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["numba", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_autograd_as_of_any_loss(kernels: str, name: str) -> None:
    index, loss = _labels(2, 3), make(name, "softmax")
    logits = _apart("softmax", index, 3, torch.float32)
    value, gradient = _run(kernels, loss, logits, index)
    with medloss.kernels.use(kernels):
        assert torch.equal(loss(logits, index), value)
        with torch.no_grad():
            silent = loss(logits.clone().requires_grad_(), index)
        assert torch.equal(silent, value) and not silent.requires_grad
        leaf = logits.clone().requires_grad_()
        result = loss(leaf, index)
        for _ in range(2):  # a graph that is retained
            (again,) = torch.autograd.grad(result, leaf, retain_graph=True)
            assert torch.equal(again, gradient)
        (first,) = torch.autograd.grad(loss(leaf, index), leaf, create_graph=True)
        assert torch.equal(first.detach(), gradient)
        with pytest.raises(medloss.InputError, match=r"^second derivatives"):
            first.sum().backward()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "instance_wise"])
def test_compiled_as_one_graph_it_is_the_same(name: str) -> None:
    torch.compiler.reset()
    index, loss = _labels(2, 3), make(name, "softmax")
    logits = _apart("softmax", index, 3, torch.float32)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    _assert_agree(*(_run("numba", one, logits, index) for one in (compiled, loss)), half=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("small_tasks")
def test_threads_and_forked_processes_get_the_same(name: str, threads: Any) -> None:
    threads(2)
    index, loss = _labels(2, 3), make(name, "softmax")
    logits = _apart("softmax", index, 3, torch.float32)
    expected = _run("numba", loss, logits, index)
    found: list[bool] = []

    def work() -> None:
        z = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(z, index), z)
        found.append(torch.equal(gradient, expected[1]))

    def in_a_process() -> None:
        torch.set_num_threads(1)  # as loaders' workers have it: torch's own threads do not survive a fork
        work()
        assert found[-1]

    with medloss.kernels.use("numba"):
        callers = [threading.Thread(target=work) for _ in range(4)]
        for caller in callers:
            caller.start()
        process = Forked(in_a_process)
        for caller in callers:
            caller.join()
        code = process.join()
        assert code == 0, process.stderr
    assert found == [True] * 4
