"""Refusals of bad loss inputs, each in one line: the argument, what was given, what was expected.

`check_values`, `check_probabilities`, `check_unlabelled` and `check_weights` read their tensor once, and make a GPU
wait: `validate=False` turns them off, and they are left out while torch compiles. The other checks cost nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from medloss.errors import InputError


def first_argument(logits: Any, input: Any) -> Any:
    """The logits, by either name: `input` is MONAI's."""
    if logits is not None and input is not None:
        raise InputError("input: got logits too; expected one of them: input is MONAI's name for logits")
    return logits if input is None else input


def checked_tensors(logits: Any, target: Any, *, input: Any = None, **others: Any) -> tuple[Tensor, Tensor]:
    """Logits and target; refuses what is no tensor (several outputs, an array) or inside a `torch.func` transform.

    Args:
        logits: what stands for them, or None.
        target: likewise.
        input: MONAI's name for `logits`.
        **others: masks and maps, by their names; None where there is none.
    """
    logits = first_argument(logits, input)
    tensors = {"logits": logits, "target": target, **others}
    for name, value in tensors.items():
        if not isinstance(value, Tensor) and (value is not None or name in ("logits", "target")):
            raise InputError(f"{name}: got {_what(value)}; expected one torch.Tensor{_hint(name, value)}")
    if not torch.compiler.is_compiling():
        for name, value in tensors.items():
            if value is not None:
                _check_transforms(name, value)
    return logits, target


def _check_transforms(name: str, tensor: Tensor) -> None:
    # The kernels have a backward and no other derivative. Unasked, torch takes a forward derivative of 0.
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise InputError(
            f"{name}: got a tensor inside a transform of torch.func (grad, vjp, jvp, jacrev, vmap, ...), which the "
            "losses do not support; use backward() or torch.autograd.grad, and reduction='none' for values per item"
        )
    if forward_ad.unpack_dual(tensor).tangent is not None:
        raise InputError(
            f"{name}: got a dual tensor, and the losses have no forward-mode derivative; use backward() or "
            "torch.autograd.grad"
        )


def _what(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(str, value))}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a {type(value).__module__}.{type(value).__name__}"


def _hint(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ": pass one of its values"
    if isinstance(value, Sequence) and any(isinstance(part, Tensor) for part in value):
        if name == "logits":
            return ": pass one output, or all of them, finest first, to medloss.DeepSupervision(loss)"
        return ": pass that of the finest grid, which medloss.DeepSupervision brings to the other grids"
    return "" if value is None else f": pass torch.as_tensor({name})"


def check_axes(logits: Tensor, target: Tensor) -> None:
    """Refuse logits that are empty or neither 2D nor 3D, and targets with another number of axes."""
    if logits.ndim in (5, 6) and logits.ndim == target.ndim + 1 and (logits.ndim == 6 or target.shape[1] == 1):
        raise InputError(
            f"logits: got shape {tuple(logits.shape)} for a target {tuple(target.shape)}, one axis more; expected "
            "[B, C, *spatial]: pass stacked outputs [B, n, C, *spatial], such as DynUNet's, as logits.unbind(1) to "
            "medloss.DeepSupervision(loss)"
        )
    if logits.ndim not in (4, 5):
        raise InputError(f"logits: got shape {tuple(logits.shape)}; expected [B, C, H, W] (2D) or [B, C, D, H, W] (3D)")
    if 0 in logits.shape:
        # Not a value of 0: with `batch=True` the other ranks would wait for this one's sums.
        raise InputError(
            f"logits: got shape {tuple(logits.shape)}, which is empty; expected one or more items, channels and voxels"
            "; leave out empty batches, or mask their voxels"
        )
    if target.ndim != logits.ndim:
        raise _target_error(logits, target)


def check_shapes(logits: Tensor, target: Tensor, mask: Tensor | None) -> None:
    """Refuse logits, targets and masks whose shapes or types do not fit together."""
    if not logits.is_floating_point():
        raise InputError(f"logits: got {logits.dtype}; expected floating point numbers")
    check_axes(logits, target)
    batch, channels, *spatial = logits.shape
    if [target.shape[0], *target.shape[2:]] != [batch, *spatial]:
        raise _target_error(logits, target)
    if target.shape[1] not in (1, channels):
        raise InputError(
            f"target: got {target.shape[1]} channels for logits of {channels}; "
            f"expected 1 (an index map) or {channels} (one map per class)"
        )
    if mask is not None and list(mask.shape) != [batch, 1, *spatial]:
        raise InputError(f"mask: got shape {tuple(mask.shape)}; expected {(batch, 1, *spatial)}")


def _target_error(logits: Tensor, target: Tensor) -> InputError:
    batch, _, *spatial = logits.shape
    return InputError(
        f"target: got shape {tuple(target.shape)} for logits {tuple(logits.shape)}; "
        f"expected an index map {(batch, 1, *spatial)} or one map per class {tuple(logits.shape)}"
    )


def check_maps(name: str, maps: Tensor, logits: Tensor, include_background: bool) -> None:
    """Refuse a distance map, or another one of the target, that is not one map per class that counts."""
    batch, channels, *spatial = logits.shape
    shapes = [(batch, channels, *spatial)]
    if not include_background:
        shapes.append((batch, channels - 1, *spatial))
    if tuple(maps.shape) not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise InputError(f"{name}: got shape {tuple(maps.shape)}; expected {expected}, one map per class")


def check_voxel_weight(voxel_weight: Tensor, logits: Tensor) -> None:
    """Refuse weights that are not one number per voxel."""
    expected = (logits.shape[0], 1, *logits.shape[2:])
    if tuple(voxel_weight.shape) != expected:
        raise InputError(f"voxel_weight: got shape {tuple(voxel_weight.shape)}; expected {expected}, of all classes")


def check_weights(voxel_weight: Tensor) -> None:
    """Refuse weights that are negative or not finite; those of masked voxels are 0 here."""
    low, high = (float(bound) for bound in torch.aminmax(voxel_weight))
    if not 0 <= low <= high < math.inf:
        raise InputError(f"voxel_weight: got values from {low:g} to {high:g}; expected finite numbers >= 0")


def check_labelled_classes(labelled: Tensor, logits: Tensor) -> None:
    """Refuse anything but one bool per item and class."""
    if labelled.dtype != torch.bool or labelled.shape != logits.shape[:2]:
        raise InputError(
            f"labelled_classes: got {labelled.dtype} of shape {tuple(labelled.shape)}; expected torch.bool of shape "
            f"{tuple(logits.shape[:2])}, True where an item's labels contain the class"
        )


def check_unlabelled(target: Tensor, mask: Tensor | None, labelled: Tensor) -> None:
    """Refuse a target with voxels of a class that its item does not label; only voxels that count are checked.

    Class 0 of an index map is where no other class is: it is not checked.

    Args:
        target: an index map, or one map per class.
        mask: True where a voxel counts.
        labelled: `[B, C]` bool.
    """
    is_index = target.shape[1] == 1 and labelled.shape[1] > 1
    for item, c in (~labelled).nonzero().tolist():
        if is_index and c == 0:
            continue
        found = target[item, 0] == c if is_index else target[item, c] != 0
        if bool((found if mask is None else found & mask[item, 0]).any()):
            raise InputError(
                f"labelled_classes: the target of item {item} has voxels of class {c}, and "
                f"labelled_classes[{item}, {c}] is False; expected none, or True there"
            )


def check_values(target: Tensor, mask: Tensor | None, channels: int, soft_targets: bool) -> None:
    """Refuse labels that are no class, and maps that leave [0, 1]; only voxels that count are checked."""
    if target.dtype == torch.bool:
        return
    given, target = target, as_signed(target)
    if mask is not None:
        target = torch.where(mask, target, target.new_zeros(()))
    is_index = target.shape[1] == 1
    low, high = map(float, torch.aminmax(target))
    if low != low or high != high:
        raise InputError("target: it holds NaN; expected labels, or maps with values in [0, 1]")
    if is_index and channels > 1:
        if low < 0 or high > channels - 1:
            if given is not target:
                labels = given.long() if mask is None else torch.where(mask, given.long(), 0)
                low, high = (float(bound) for bound in torch.aminmax(labels))
            raise InputError(
                f"target: got labels from {low:g} to {high:g} for logits of {channels} channels; "
                f"expected labels 0 to {channels - 1} (a label to leave out: ignore_index)"
            )
        if target.is_floating_point() and bool(target.frac().any()):
            raise InputError("target: an index map must hold whole numbers, and this one does not")
        return
    if low < 0 or high > 1:
        hint = "; labels above 1 need logits of one channel per class" if is_index and high > 1 else ""
        raise InputError(f"target: got values from {low:g} to {high:g}; expected values in [0, 1]{hint}")
    if not soft_targets and target.is_floating_point() and bool(((target != 0) & (target != 1)).any()):
        raise InputError("target: this loss needs a target of 0 and 1 only, and got values in between")


def check_probabilities(probabilities: Tensor, mask: Tensor | None) -> None:
    """Refuse logits passed where no activation was requested."""
    if mask is not None:
        probabilities = torch.where(mask, probabilities, probabilities.new_zeros(()))
    low, high = (float(bound) for bound in torch.aminmax(probabilities.detach()))
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(
            f"logits: got values from {low:g} to {high:g} where probabilities in [0, 1] were expected; "
            "for logits pass softmax=True (classes exclude each other) or sigmoid=True"
        )


def as_signed(target: Tensor) -> Tensor:
    """The same memory with signed numbers: torch has few operations for unsigned ones of more than a byte.

    Labels that are classes stay what they are; numbers too large to be one become negative.
    """
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
    return target.view(signed[target.dtype]) if target.dtype in signed else target
