"""How fast the losses are on a GPU, next to MONAI's and torch's; needs torch, MONAI, triton, numpy and scipy alone."""

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import medloss
from benchmarks.cases import CACHING, Case, Contender, Row, row
from benchmarks.contenders import ELSEWHERE, NEED, Function, Side, build
from benchmarks.gpu_checks import Machine
from benchmarks.measure import Stopwatch, alternate, once, summary
from benchmarks.memory import peak_memory
from benchmarks.plain_torch import PLAIN
from benchmarks.scenes import scene
from medloss.distance.maps import signed_distance_map

LOSSES = ("dice", "tversky", "focal", "binary_cross_entropy", "hausdorff_dt")
#: The least that a scene can have.
DRY_SIDE = 5
#: The one size at which compiled sides take part: each is compiled for some ten seconds.
_COMPILED_SIDE, _COMPILED_CLASSES = 128, 14


def losses(machine: Machine, side: int, dtype: str) -> Iterator[Row]:
    """The main losses at C = 2, 14 and 104, next to MONAI's and torch's eager ones."""
    for classes in (2,) if machine.dry else (2, 14, 104):
        batch = 2 if side <= 128 and classes < 104 else 1
        if not machine.dry:
            torch.cuda.empty_cache()  # What the allocator keeps counts as taken.
        logits, target = _scene(machine, side, classes, batch, dtype)
        for loss in ("dice", "binary_cross_entropy") if machine.dry else LOSSES:
            case = _case(machine, "grid", side, classes, batch, dtype, loss)
            sides = [c for c in case.contenders if _fits(machine, case, c)]
            yield from _rows(machine, case, [build(c, target, classes) for c in sides], logits)
        if (side, classes) == (_COMPILED_SIDE, 2) and dtype == "bfloat16":
            yield from _goal_rows(machine)


def compiled(machine: Machine, dtype: str) -> Iterator[Row]:
    """MONAI's losses and plain torch's, compiled by torch, next to ours."""
    side, classes = (DRY_SIDE, 2) if machine.dry else (_COMPILED_SIDE, _COMPILED_CLASSES)
    logits, target = _scene(machine, side, classes, 2, dtype)
    backend = "aot_eager" if machine.dry else "inductor"
    for loss in LOSSES[:1] if machine.dry else LOSSES[:4]:
        case = _case(machine, "compiled", side, classes, 2, dtype, loss)
        sides = [build(c, target, classes) for c in case.contenders]
        plain = Side(Contender("torch", loss), _plain(loss, target), sides[-1].context)
        torch.compiler.reset()
        sides += [
            replace(
                other,
                contender=Contender(f"{other.contender.library}, compiled", loss),
                function=torch.compile(other.function, backend=backend),
            )
            for other in ([s for s in sides if s.contender.library == "MONAI"] + [plain])
        ]
        yield from _rows(machine, case, sides, logits)


def hausdorff(machine: Machine) -> Iterator[Row]:
    """The Hausdorff loss next to MONAI's, which transforms on the CPU unless cuCIM is installed."""
    side = DRY_SIDE if machine.dry else 64
    logits, target = _scene(machine, side, 3, 1, "float32")
    case = replace(_case(machine, "hausdorff", side, 3, 1, "float32", "hausdorff_dt"), warmup=1, rounds=5, least=1)
    yield from _rows(machine, case, [build(c, target, 3) for c in case.contenders], logits)


def others(machine: Machine) -> Iterator[Row]:
    """Every other loss once, next to our Dice."""
    side = DRY_SIDE if machine.dry else 128
    logits, target = _scene(machine, side, 3, 2, "float32")
    names = ["dice", "combo"] if machine.dry else ["dice", *(name for name in medloss.LOSSES if name not in LOSSES)]
    for name in names:
        case = _case(machine, "others", side, 3, 2, "float32", name)
        case = replace(case, contenders=case.contenders[:1], rounds=5, least=1, seconds=3.0, warmup=1)
        try:
            yield from _rows(machine, case, [build(case.contenders[0], target, 3)], logits)
        except Exception as error:
            yield row(case, case.contenders[0], CACHING, note=_line(error))


def transforms(machine: Machine) -> Iterator[Row]:
    """The Euclidean transform of a scene and of single voxels, others' where they are installed, and a copy."""
    side, classes = (DRY_SIDE, 2) if machine.dry else (256, 14)
    _, label = _scene(machine, side, 2, 1, "float32")
    mask = (label == 1).expand(-1, classes, -1, -1, -1).contiguous()
    single = torch.zeros_like(mask)
    single[..., 0, 0, 0] = True
    source = torch.randn(mask.shape, device=machine.device)
    copy = torch.empty_like(source)
    works: dict[tuple[str, str], Callable[[], object]] = {
        ("medloss", "signed_distance_map"): lambda: signed_distance_map(mask),
        ("medloss, a single voxel", "signed_distance_map"): lambda: signed_distance_map(single),
        ("copy", "copy"): lambda: copy.copy_(source),
        **_elsewhere(mask),
    }
    case = Case("transform", (), (side,) * 3, classes, 1, device=machine.device.type)
    for (library, what), work in works.items():
        contender = Contender(library, what)
        try:
            with medloss.kernels.use("triton"):
                slow = library == "SimpleITK"
                times = [_timed(work, machine) for _ in range(2 if slow or machine.dry else 7)]
            # SimpleITK takes one mask after the other: one is timed.
            times = [classes * times[-1]] if slow else times[len(times) // 3 :]
            yield row(case, contender, CACHING, **summary([(t, 0.0) for t in times]))
        except Exception as error:
            yield row(case, contender, CACHING, note=_line(error))


def _plain(loss: str, target: Tensor) -> Function:
    return lambda logits: PLAIN[loss](logits.float(), target)


def _goal_rows(machine: Machine) -> Iterator[Row]:
    """The sizes of the goals: our losses alone, 2 x 14 x 128^3 in bfloat16."""
    logits, target = _scene(machine, _COMPILED_SIDE, 14, 2, "bfloat16")
    ours = tuple(Contender("medloss", loss, "triton") for loss in ("dice", "binary_cross_entropy", "hausdorff_dt"))
    case = replace(_case(machine, "gpu", _COMPILED_SIDE, 14, 2, "bfloat16", "dice"), contenders=ours)
    yield from _rows(machine, case, [build(c, target, 14) for c in ours], logits)


def _case(machine: Machine, group: str, side: int, classes: int, batch: int, dtype: str, loss: str) -> Case:
    others = tuple(Contender(name, loss) for name in ("MONAI", "torch") if loss in ELSEWHERE[name])
    rounds = {"warmup": 1, "rounds": 1} if machine.dry else {"warmup": 3, "rounds": 10}
    sides = (Contender("medloss", loss, "triton"), *others)
    return Case(group, sides, (side,) * 3, classes, batch, dtype, machine.device.type, least=2, seconds=2.0, **rounds)


def _fits(machine: Machine, case: Case, contender: Contender) -> bool:
    if contender.library == "MONAI" and contender.loss == "hausdorff_dt":
        return False  # `hausdorff` has it, on a volume that it can transform in time.
    return machine.dry or NEED[contender.library] * case.logits_bytes < 0.9 * torch.cuda.mem_get_info()[0]


def _rows(machine: Machine, case: Case, sides: list[Side], logits: Tensor) -> Iterator[Row]:
    """Rows of the sides that work; a side that fails leaves its reason."""
    working = []
    for one in sides:
        try:
            once(one, logits)
            working.append(one)
        except Exception as error:
            logits.grad = None
            yield row(case, one.contender, CACHING, note=_line(error))
    limits = {name: getattr(case, name) for name in ("warmup", "rounds", "least", "seconds")}
    for one, times in zip(working, alternate(working, logits, **limits), strict=True):
        peak = None if machine.dry else peak_memory(partial(once, one, logits), logits.device, 1)
        share = None if peak is None else peak / case.logits_bytes
        yield row(case, one.contender, CACHING, **summary(times), peak=share)


def _scene(machine: Machine, side: int, classes: int, batch: int, dtype: str) -> tuple[Tensor, Tensor]:
    """`scenes.scene` where it is quick; else its structures of few classes, with further classes next to them."""
    few = min(classes, 14)
    _, label = scene((side,) * 3, few, batch) if side <= 64 else _coarse_scene(side, few, batch)
    label = label.to(machine.device)
    if classes > few:
        # Slabs of the background become the classes that are missing.
        slabs = few + torch.arange(side, device=machine.device).mul(classes - few).div(side, rounding_mode="floor")
        label = torch.where(label == 0, slabs.to(torch.uint8), label)
    generator = torch.Generator(machine.device).manual_seed(0)
    logits = torch.empty(batch, classes, *(side,) * 3, dtype=getattr(torch, dtype), device=machine.device)
    near = label.roll(max(side // 32, 1), 2)
    for channel in range(classes):
        noise = torch.randn(near[:, 0].shape, generator=generator, device=machine.device)
        logits[:, channel] = noise.mul_(0.5).add_(near[:, 0] == channel, alpha=3)
    return logits.requires_grad_(), label


def _coarse_scene(side: int, classes: int, batch: int) -> tuple[Tensor, Tensor]:
    """A quarter of the resolution, each voxel repeated."""
    logits, label = scene((side // 4,) * 3, classes, batch)
    return logits, F.interpolate(label.float(), scale_factor=4).to(torch.uint8)


def _elsewhere(mask: Tensor) -> dict[tuple[str, str], Callable[[], object]]:
    """CuPy's, cuCIM's and SimpleITK's transforms, where they are installed, of one mask after the other."""
    found: dict[tuple[str, str], Callable[[], object]] = {}
    sources = {"CuPy": "cupyx.scipy.ndimage", "cuCIM": "cucim.core.operations.morphology"}
    for library, name in sources.items():
        try:
            transform = importlib.import_module(name).distance_transform_edt
            cupy = importlib.import_module("cupy")
        except Exception:
            continue

        def both(transform: Any = transform, cupy: Any = cupy) -> None:
            for one in mask[0]:
                array = cupy.asarray(one.view(torch.uint8))
                _ = transform(1 - array) - transform(array)

        found[library, "signed distances"] = both
    if importlib.util.find_spec("SimpleITK"):
        host = mask[:, :1].cpu()
        found["SimpleITK", "signed_distance_map"] = lambda: _by_simpleitk(host)
    return found


def _by_simpleitk(mask: Tensor) -> Tensor:
    with medloss.kernels.use("eager"):
        return signed_distance_map(mask)


def _timed(work: Callable[[], object], machine: Machine) -> float:
    watch = Stopwatch(machine.device)
    watch.mark()
    work()
    watch.mark()
    return watch.seconds()[0]


def _line(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]
