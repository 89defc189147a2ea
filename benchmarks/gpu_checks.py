"""Whether the losses are right on a GPU: checks that need torch, MONAI, triton, numpy and scipy alone.

With `dry` they run on the CPU, by Triton's interpreter and on tiny volumes. A check returns a note, and raises
`AssertionError` where something is wrong and `Skipped` where the machine cannot run it.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

import medloss
from medloss.distance import maps
from medloss.kernels import operators, self_check
from medloss.kernels.sum_spec import Row, VoxelTerms

HALVES = (torch.float16, torch.bfloat16)
#: Hyper-parameters that give a loss something to do on a small volume.
_SMALL: dict[str, dict[str, Any]] = {"hausdorff_cv": {"radii": (1.0, 1.9)}, "hausdorff_er": {"erosions": 4}}
_SPACING = (3.0, 1.0, 0.8)
#: A loss of each kind of sum. Each type and activation has kernels of its own, which are compiled.
_KINDS = ("dice", "focal", "binary_cross_entropy", "sensitivity_specificity", "exponential_logarithmic")


class Skipped(Exception):
    """A step that this machine cannot run, and why."""


@dataclass(frozen=True)
class Machine:
    """Where the steps run.

    Attributes:
        dry: tiny sizes, on the CPU.
    """

    dry: bool

    @property
    def device(self) -> torch.device:
        """Of the tensors."""
        return torch.device("cpu") if self.dry else torch.device("cuda", 0)

    def needs_gpu(self) -> None:
        """Raises `Skipped` in a dry run."""
        if self.dry:
            raise Skipped("needs a GPU")


def self_checks(machine: Machine) -> str:
    """The check that precedes the first use of a kernel set, for each kind of work and type."""
    create_all_losses()  # Which registers all cases.
    slowest, failed, count = 0.0, [], 0
    for work in self_check._cases:
        if work in ("erosion", "balls", "structure") or (machine.dry and work != "softmax sums"):
            continue  # Plain torch has the former on a GPU. The interpreter takes minutes for the distances.
        for dtype in (torch.float32, *HALVES) if "softmax" in work and not machine.dry else (torch.float32,):
            start = time.perf_counter()
            key = self_check.Key("triton", machine.device.type, machine.device.index, dtype, work)
            fault = self_check._in_a_thread(key)
            slowest, count = max(slowest, time.perf_counter() - start), count + 1
            failed += [f"{key}: {fault}"] if fault else []
    _no(failed)
    return f"{count} checks, the slowest {slowest:.1f} s"


def create_all_losses() -> dict[str, torch.nn.Module]:
    """A loss of each name, for softmax."""
    return {name: medloss.create_loss(name, softmax=True, **_SMALL.get(name, {})) for name in medloss.LOSSES}


def contract(machine: Machine) -> str:
    """Each loss: value and gradient by Triton, and by plain torch in float64 on the CPU."""
    return _contract(machine, (torch.float32,), ("dice",) if machine.dry else tuple(medloss.LOSSES))


def half_precision(machine: Machine) -> str:
    """The same with logits in float16 and bfloat16, of a loss of each kind."""
    return _contract(machine, HALVES, ("focal",) if machine.dry else (*_KINDS, "hausdorff_dt"))


def _contract(machine: Machine, types: Sequence[torch.dtype], names: Sequence[str]) -> str:
    failed, count = [], 0
    for name in names:
        modes = ("softmax", "sigmoid") if name in _KINDS else ("softmax",)
        for mode in modes:
            loss = medloss.create_loss(name, **{mode: True}, **_SMALL.get(name, {}))
            for dtype in types:
                count += 1
                try:
                    difference = _difference(machine, loss, dtype)
                except Exception as error:
                    difference = f"{type(error).__name__}: {error}".splitlines()[0]
                failed += [f"{name} ({mode}, {dtype}): {difference}"] if difference else []
    _no(failed)
    return f"{count} combinations of a loss, an activation and a type"


def _difference(machine: Machine, loss: torch.nn.Module, dtype: torch.dtype) -> str:
    logits, target = small_scene((5, 6, 4) if machine.dry else (14, 16, 12))
    logits = logits.to(dtype)
    # Skeletons that are not given need scikit-image.
    mask = target >= 0
    mask[..., 0] = False
    keywords: dict[str, Any] = {"spacing": _SPACING, "mask": mask, "skeleton_map": one_hot(target, 3).float()}
    with medloss.kernels.use("eager"), _without_simpleitk():
        expected, expected_gradient = value_and_gradient(loss, logits.double(), target, **keywords)
    there = {name: v.to(machine.device) if isinstance(v, Tensor) else v for name, v in keywords.items()}
    with medloss.kernels.use("triton"):
        value, gradient = value_and_gradient(loss, logits.to(machine.device), target.to(machine.device), **there)
    half = dtype in HALVES
    return _far(value, expected, 1e-3 if half else 1e-4) or _far(gradient, expected_gradient, 2e-2 if half else 1e-3)


def distances(machine: Machine) -> str:
    """The exact transform against scipy's: noise, balls, single voxels, empty and full masks, long lines."""
    sizes = (
        [(4, 6, 5), (3, 12)] if machine.dry else [(96, 80, 72), (300, 257), (1, 6, 5), (3, 256, 256), (160, 160, 160)]
    )
    worst = 0.0
    for size in sizes:
        masks = torch.zeros(1, 5, *size, dtype=torch.bool)
        masks[0, 0] = torch.rand(size, generator=torch.Generator().manual_seed(0)) < 0.6
        axes = torch.meshgrid(*(torch.arange(n) - n / 3 for n in size), indexing="ij")
        masks[0, 1] = sum(axis**2 for axis in axes) < (max(size) / 4) ** 2
        masks[0, 2].view(-1)[-1] = True
        masks[0, 3] = True
        masks[0, 3].view(-1)[1] = False
        spacing = _SPACING[-len(size) :]
        with medloss.kernels.use("triton"):
            found = maps.signed_distance_map(masks.to(machine.device), spacing).cpu().numpy()[0]
        for mask, distance in zip(masks[0].numpy(), found, strict=True):
            worst = max(worst, float(np.abs(distance - _signed(mask, spacing)).max()))
    assert worst < 1e-3, f"a distance differs by {worst:.3g} mm from scipy's"
    return f"{len(sizes)} sizes, the largest difference {worst:.1e} mm"


def large(machine: Machine) -> str:
    """More than 2^31 logits, and more than 2^31 voxels of distance maps."""
    side = 8 if machine.dry else 1024
    shape = (1, 2, side, side, side + 1)
    if not machine.dry and torch.cuda.mem_get_info()[1] < 48 * 2**30:
        raise Skipped("needs a GPU with 48 GiB")
    logits = torch.zeros(shape, dtype=torch.bfloat16, device=machine.device)
    target = torch.zeros(1, 1, *shape[2:], dtype=torch.uint8, device=machine.device)
    # One voxel, at the end, that differs from all others: class 1, predicted with certainty.
    logits[0, 1, -1, -1, -1], target[0, 0, -1, -1, -1] = 30, 1
    voxels = target.numel()
    with medloss.kernels.use("triton"):
        logits.requires_grad_()
        sums = operators.voxel_sums(VoxelTerms("softmax", overlap=True), logits, target, None)
        (gradient,) = torch.autograd.grad(sums[Row.PREDICTION][0, 1], logits)
    assert _far(sums[Row.TP].detach()[0], torch.tensor([(voxels - 1) / 2, 1.0]), 1e-6) == ""
    assert sums[Row.TARGET][0].tolist() == [torch.tensor(voxels - 1.0).item(), 1.0]
    corner = gradient[0, :, -1, -1, -2:].float().cpu()
    assert torch.allclose(corner, torch.tensor([[-0.25, 0.0], [0.25, 0.0]]), atol=1e-6), corner
    count = logits.numel()
    del logits, target, gradient
    if not machine.dry:
        torch.cuda.empty_cache()
    one = torch.zeros(1, 1, *((4, 4, 6) if machine.dry else (256, 256, 256)), dtype=torch.bool, device=machine.device)
    one[0, 0, 1, 2, 3] = True
    volumes = 2 if machine.dry else 130
    with medloss.kernels.use("triton"):
        many, alone = (maps.distance_map(~mask) for mask in (one.expand(1, volumes, -1, -1, -1).contiguous(), one))
    assert torch.equal(many[0, -1], alone[0, 0]) and alone.any()
    return f"{count:.2e} logits, {many.numel():.2e} voxels"


def streams(machine: Machine) -> str:
    """A loss on another stream than the default one; the same result to the bit each time."""
    machine.needs_gpu()
    logits, target = (t.to(machine.device) for t in small_scene((64, 64, 64)))
    loss = medloss.HausdorffDTLoss(softmax=True)
    with medloss.kernels.use("triton"):
        expected = value_and_gradient(loss, logits, target)
        torch.cuda.synchronize()
        results = []
        for stream in [torch.cuda.Stream() for _ in range(4)]:
            with torch.cuda.stream(stream):
                results.append(value_and_gradient(loss, logits, target))
        torch.cuda.synchronize()
    assert all(torch.equal(a, b) for found in results for a, b in zip(found, expected, strict=True))
    return "4 streams"


def graphs(machine: Machine) -> str:
    """A loss and its backward pass captured as a CUDA graph, and replayed on other numbers."""
    machine.needs_gpu()
    for name in ("dice", "focal", "binary_cross_entropy"):
        loss = medloss.create_loss(name, softmax=True, validate=False)
        logits, target = (t.to(machine.device) for t in small_scene((32, 32, 32)))
        logits.requires_grad_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                logits.grad = None
                loss(logits, target).backward()
        torch.cuda.current_stream().wait_stream(side)
        logits.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            value = loss(logits, target)
            value.backward()
        others = small_scene((32, 32, 32), seed=1)
        with torch.no_grad():
            logits.copy_(others[0])
            target.copy_(others[1])
        graph.replay()
        torch.cuda.synchronize()
        with medloss.kernels.use("eager"):
            expected, gradient = value_and_gradient(loss, logits.detach(), target)
        assert logits.grad is not None
        difference = _far(value.detach(), expected, 1e-4) or _far(logits.grad, gradient, 1e-3)
        assert not difference, f"{name}: {difference}"
    return "3 losses"


def second_device(machine: Machine) -> str:
    """Tensors on a device that is not the current one."""
    machine.needs_gpu()
    if torch.cuda.device_count() < 2:
        raise Skipped("one GPU")
    logits, target = small_scene((32, 32, 32))
    for name in ("dice", "hausdorff_dt"):
        loss = medloss.create_loss(name, softmax=True)
        here, there = (value_and_gradient(loss, logits.to(d), target.to(d)) for d in ("cuda:0", "cuda:1"))
        assert there[0].device == there[1].device == torch.device("cuda:1")
        assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(here, there, strict=True)), name
    return "2 losses"


def compiled(machine: Machine) -> str:
    """Losses compiled by torch, as one graph."""
    names = ("dice",) if machine.dry else ("dice", "focal", "hausdorff_dt")
    for name in names:
        loss = medloss.create_loss(name, softmax=True, validate=False)
        logits, target = (t.to(machine.device) for t in small_scene((5, 6, 4) if machine.dry else (32, 32, 32)))
        torch.compiler.reset()
        fast = torch.compile(loss, fullgraph=True, backend="aot_eager" if machine.dry else "inductor")
        with medloss.kernels.use("eager" if machine.dry else "auto"):
            found, expected = (value_and_gradient(function, logits, target) for function in (fast, loss))
        difference = _far(found[0], expected[0], 1e-5) or _far(found[1], expected[1], 1e-4)
        assert not difference, f"{name}: {difference}"
    return ", ".join(names)


CHECKS: dict[str, Callable[[Machine], str]] = {
    check.__name__: check
    for check in (self_checks, contract, half_precision, distances, large, streams, graphs, second_device, compiled)
}


def small_scene(size: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits of two items and three classes, and an index map with boxes that they nearly hit; on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.zeros(2, 1, *size, dtype=torch.long)
    for item in range(2):
        for label in (1, 2):
            start = [int(torch.randint(0, n // 2 + 1, (), generator=generator)) for n in size]
            box = tuple(slice(s, s + max(n // 2, 1)) for s, n in zip(start, size, strict=True))
            target[item, 0][box] = label
    logits = torch.randn(2, 3, *size, generator=generator) + 3 * one_hot(target.roll(1, 2), 3) - 1.5
    return logits, target


def one_hot(index: Tensor, classes: int) -> Tensor:
    """A map per class, bool."""
    return index == torch.arange(classes, device=index.device).view(1, -1, *(1,) * (index.ndim - 2))


def value_and_gradient(
    loss: Callable[..., Tensor], logits: Tensor, *rest: Any, **keywords: Any
) -> tuple[Tensor, Tensor]:
    """Of the logits."""
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits, *rest, **keywords)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def _far(found: Tensor, expected: Tensor, tolerance: float) -> str:
    found, expected = found.double().cpu(), expected.double().cpu()
    error, size = float((found - expected).abs().max()), float(expected.abs().max())
    return "" if error <= tolerance * size + 1e-12 else f"differs by {error:.3g}, of {size:.3g}"


def _no(failed: list[str]) -> None:
    assert not failed, f"{len(failed)} failed: " + "; ".join(failed[:6])


def _signed(mask: Any, spacing: Sequence[float]) -> Any:
    if not mask.any() or mask.all():
        return np.zeros(mask.shape)
    return distance_transform_edt(~mask, sampling=spacing) - distance_transform_edt(mask, sampling=spacing)


@contextmanager
def _without_simpleitk() -> Iterator[None]:
    """Distances of the reference by scipy: SimpleITK may not be installed."""
    stand_in = ModuleType("by_scipy")

    def add(name: str, part: Callable[[Any], Any]) -> None:
        def transform(masks: Tensor, spacings: Sequence[Sequence[float]]) -> Tensor:
            signed = [[_signed(m, s) for m in item] for item, s in zip(masks.numpy(), spacings, strict=True)]
            return torch.from_numpy(part(np.array(signed))).float()

        setattr(stand_in, name, transform)

    add("signed_distances", lambda d: d)
    add("inside_distances", lambda d: np.maximum(-d, 0))
    add("outside_distances", lambda d: np.maximum(d, 0))
    name = "medloss.distance._simpleitk"
    before = sys.modules.get(name)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
