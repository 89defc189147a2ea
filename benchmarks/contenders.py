"""The two sides of a comparison, made to do the same work: ours, MONAI's, torch's and kornia's."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import monai.losses
import torch
import torch.nn.functional as F
from monai.networks import one_hot
from torch import Tensor

import medloss
from benchmarks.cases import Contender
from medloss.distance.maps import signed_distance_map
from medloss.kernels import dispatch
from medloss.maps.instances import instance_map

Function = Callable[[Tensor], Tensor]

#: Which losses each other library has.
ELSEWHERE = {
    "MONAI": ("dice", "tversky", "focal", "hausdorff_dt"),
    "torch": ("binary_cross_entropy", "weighted_cross_entropy"),
    "kornia": ("dice", "tversky", "focal", "lovasz"),
    "smp": ("lovasz",),
}
#: Memory that a side may need beyond the logits, in their sizes: what cannot fit is not started.
NEED = {"medloss": 4.0, "MONAI": 9.0, "torch": 4.0, "kornia": 10.0, "smp": 20.0}


@dataclass(frozen=True)
class Side:
    """A contender, bound to a target: `function` makes the loss of logits, `context` is entered around it."""

    contender: Contender
    function: Function
    context: Callable[[], AbstractContextManager]


def installed(library: str) -> bool:
    """Whether a library can take part."""
    if library == "smp":
        library = "segmentation_models_pytorch"
    elif library not in ("kornia", "edt"):
        return True
    return importlib.util.find_spec(library) is not None


def kernel_sets(device: str, dtype: str) -> list[str]:
    """The kernel sets that work on such logits here, the preferred first."""
    names = []
    for name in dispatch.available():
        if importlib.util.find_spec(f"medloss.kernels.{name}") is None:
            continue
        if dispatch.module(name).supports(device, getattr(torch, dtype)):
            names.append(name)
    return names


def sides_of(
    loss: str, device: str, dtype: str, others: tuple[str, ...] = ("MONAI", "torch", "kornia")
) -> tuple[Contender, ...]:
    """Ours with every kernel set, and everybody else who has the loss."""
    ours = [Contender("medloss", loss, kernels) for kernels in kernel_sets(device, dtype)]
    return (*ours, *(Contender(name, loss) for name in others if loss in ELSEWHERE[name] and installed(name)))


def build(contender: Contender, target: Tensor, classes: int) -> Side:
    """Bind a contender to a target.

    Args:
        contender: who.
        target: `[B, 1, *spatial]`, an index map. What a library needs of it besides is part of its work.
        classes: C.
    """
    if contender.library == "medloss":
        return Side(contender, _ours(contender, target, classes), lambda: dispatch.use(contender.kernels or "auto"))
    makers = {"MONAI": _monai, "torch": _torch, "kornia": _kornia, "smp": _smp}
    return Side(contender, makers[contender.library](contender.loss, target, classes), nullcontext)


def _ours(contender: Contender, target: Tensor, classes: int) -> Function:
    activation = {"softmax" if classes > 1 else "sigmoid": True}
    if "+" in contender.loss:
        combined = medloss.CombinedLoss(contender.loss, **activation)
        return lambda logits: combined(logits, target)
    options = {"dist_matrix": _distances(classes)} if contender.loss == "generalized_wasserstein_dice" else {}
    loss = medloss.create_loss(contender.loss, **activation, **options)
    if not contender.cached_map:
        return lambda logits: loss(logits, target)
    if contender.loss == "instance_wise":
        numbers = instance_map(target > 0, [(1.0,) * (target.ndim - 2)] * len(target), 26)
        return lambda logits: loss(logits, target, instance_map=numbers)
    stored = signed_distance_map(one_hot(target, classes) if classes > 1 else target)
    return lambda logits: loss(logits, target, distance_map=stored)


def _monai(loss: str, target: Tensor, classes: int) -> Function:
    module = monai_loss(loss, classes)
    return lambda logits: module(logits, target)


def monai_loss(loss: str, classes: int) -> torch.nn.Module:
    """MONAI's module of one of our names, for logits of C classes and an index map."""
    shared = {"include_background": True, "to_onehot_y": classes > 1}
    activation = {"softmax" if classes > 1 else "sigmoid": True}
    module: torch.nn.Module
    if loss == "dice":
        module = monai.losses.DiceLoss(**shared, **activation)
    elif loss == "tversky":
        module = monai.losses.TverskyLoss(alpha=0.3, beta=0.7, **shared, **activation)
    elif loss == "focal":
        module = monai.losses.FocalLoss(use_softmax=classes > 1, **shared)
    elif loss == "hausdorff_dt":
        module = monai.losses.HausdorffDTLoss(**shared, **activation)
    else:
        raise ValueError(f"MONAI has no {loss}")
    return module


def _torch(loss: str, target: Tensor, classes: int) -> Function:
    weighted = loss == "weighted_cross_entropy"
    if classes == 1:
        positive = torch.tensor(2.0, device=target.device) if weighted else None
        return lambda logits: F.binary_cross_entropy_with_logits(logits, target.to(logits), pos_weight=positive)
    weight = torch.tensor([1.0] + [2.0] * (classes - 1), device=target.device) if weighted else None
    return lambda logits: F.cross_entropy(logits, target[:, 0].long(), None if weight is None else weight.to(logits))


def _kornia(loss: str, target: Tensor, classes: int) -> Function:
    import kornia.losses

    if loss == "lovasz":
        return lambda logits: kornia.losses.lovasz_softmax_loss(*_planes(logits, target))
    if loss == "focal":
        return lambda logits: kornia.losses.focal_loss(logits, target[:, 0].long(), alpha=None, reduction="mean")
    if loss == "dice":
        return lambda logits: kornia.losses.dice_loss(*_planes(logits, target), average="macro")
    return lambda logits: kornia.losses.tversky_loss(*_planes(logits, target), alpha=0.3, beta=0.7)


def _smp(loss: str, target: Tensor, classes: int) -> Function:
    # Its package asks for torchvision; the file of the loss asks for torch.
    folder = Path(str(importlib.util.find_spec("segmentation_models_pytorch").origin)).parent / "losses"  # type: ignore
    package = ModuleType("smp_losses")
    package.__path__ = [str(folder)]
    sys.modules["smp_losses"] = package
    module = importlib.import_module("smp_losses.lovasz").LovaszLoss("multiclass", per_image=True, from_logits=True)

    def value(logits: Tensor) -> Tensor:
        z, index = _planes(logits, target)
        result: Tensor = module(z.softmax(1), index)
        return result

    return value


def _distances(classes: int) -> list[list[float]]:
    """Background at distance 1 from all other classes, which are at 0.5 from each other."""
    return [[0.0 if i == j else 0.5 if i and j else 1.0 for j in range(classes)] for i in range(classes)]


def _planes(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and target for functions that know two axes: a volume's last two axes as one are the same voxels."""
    index = target[:, 0].long()
    return (logits.flatten(-2), index.flatten(-2)) if logits.ndim == 5 else (logits, index)
