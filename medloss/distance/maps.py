"""Distance maps of masks `[B, C, *spatial]`, in mm, without gradient."""

import math
from importlib import import_module

import torch
from torch import Tensor

from medloss.errors import InputError
from medloss.kernels import dispatch, self_check
from medloss.spacing import Spacing, is_meta_tensor, resolve_spacing


def distance_map(mask: Tensor, spacing: Spacing | None = None) -> Tensor:
    """Euclidean distance transform: from each voxel of a mask to the nearest voxel outside it.

    Voxel centre to voxel centre, exact: what `scipy.ndimage.distance_transform_edt(mask, sampling=spacing)` gives.

    Args:
        mask: `[B, C, *spatial]`, 2D or 3D; above 0.5 is inside.
        spacing: mm, in the order of the array's axes; one for all or one per item. None: the mask's when
            it is a `MetaTensor`, else 1.

    Returns:
        float32, mm, the mask's shape and device; 0 outside, and everywhere for a mask that is empty or full.

    Raises:
        InputError: a shape that is not `[B, C, *spatial]`, a bad spacing.

    Example:
        >>> import torch
        >>> from medloss.distance import distance_map
        >>> distance_map(torch.tensor([[[[0, 1, 1, 1, 0]]]]), spacing=(1.0, 0.5)).flatten().tolist()
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return _transform_each(mask, spacing, "inside_distances")


def signed_distance_map(mask: Tensor, spacing: Spacing | None = None) -> Tensor:
    """Distance to the other side's nearest voxel: positive outside, negative inside.

    `edt(not m) - edt(m)`, with `edt` as in `distance_map`, whose arguments and errors it shares; there is no 0
    except for a mask that is empty or full.

    Example:
        >>> import torch
        >>> from medloss.distance import signed_distance_map
        >>> signed_distance_map(torch.tensor([[[[0, 1, 1, 1, 0]]]]), spacing=(1.0, 0.5)).flatten().tolist()
        [0.5, -0.5, -1.0, -0.5, 0.5]
    """
    return _transform_each(mask, spacing, "signed_distances")


def boundary_distance_map(mask: Tensor, spacing: Spacing | None = None) -> Tensor:
    """Distance to the other side's nearest voxel, on both sides positive: `edt(m) + edt(not m)`.

    Arguments and errors as `distance_map`.

    Example:
        >>> import torch
        >>> from medloss.distance import boundary_distance_map
        >>> boundary_distance_map(torch.tensor([[[[0, 1, 1, 1, 0]]]]), spacing=(1.0, 0.5)).flatten().tolist()
        [0.5, 0.5, 1.0, 0.5, 0.5]
    """
    return signed_distance_map(mask, spacing).abs_()


def squared_distance_map(mask: Tensor, spacing: Spacing | None = None) -> Tensor:
    """The squares of `boundary_distance_map`, in mm^2; as `distance_map`."""
    return _transform_each(mask, spacing, "squared_distances")


def outside_distance_map(mask: Tensor, spacing: Spacing | None = None) -> Tensor:
    """Distance from each voxel outside a mask to its nearest voxel: `edt(not m)`; as `distance_map`."""
    return _transform_each(mask, spacing, "outside_distances")


def penalty_map(mask: Tensor, spacing: Spacing | None = None, *, signed_map: Tensor | None = None) -> Tensor:
    """How near the border a voxel lies, separately for each side of the border: `F = (max d - d) / max d`.

    d: distance to the other side; max d: over the whole side. F lies in [0, 1), and is 0 for a mask that is
    empty or full.

    Args:
        mask: `[B, C, *spatial]`; above 0.5 is inside.
        spacing: mm, as in `distance_map`.
        signed_map: `signed_distance_map(mask, spacing)`, if it is available. NaN stays where it is, and is not part of
            max d.

    Raises:
        InputError: as `distance_map`.

    Example:
        >>> import torch
        >>> from medloss.distance import penalty_map
        >>> penalty_map(torch.tensor([[[[0, 0, 1, 1, 1]]]])).flatten().tolist()
        [0.0, 0.5, 0.6666666865348816, 0.3333333432674408, 0.0]
    """
    signed = signed_distance_map(mask, spacing) if signed_map is None else signed_map.detach()
    penalty = signed if signed_map is None else torch.empty_like(signed)
    # Map by map, so that what lies in between is one map's.
    for item in range(signed.shape[0]):
        for channel in range(signed.shape[1]):
            _penalty(signed[item, channel], penalty[item, channel])
    return penalty


def _penalty(signed: Tensor, out: Tensor) -> None:
    """`penalty_map` of one map; `out` may be `signed`."""
    if not signed.numel():
        return
    if out is not signed:  # given, perhaps with NaN, of which the largest distances would be NaN
        torch.nan_to_num(signed, 0.0, math.inf, -math.inf, out=out)
    low, high = torch.aminmax(out)
    largest = torch.where(signed > 0, high, -low)
    on_a_side = signed != 0
    torch.sub(largest, torch.abs(signed, out=out), out=out).div_(largest)
    out.masked_fill_(on_a_side.logical_not_(), 0)


def _transform_each(mask: Tensor, spacing: Spacing | None, transform: str) -> Tensor:
    if mask.ndim not in (4, 5):
        raise InputError(f"mask: got shape {tuple(mask.shape)}; expected [B, C, H, W] (2D) or [B, C, D, H, W] (3D)")
    spacings = resolve_spacing(spacing, mask, mask.shape[0], mask.ndim - 2)
    plain = (mask.as_tensor() if is_meta_tensor(mask) else mask).detach()
    masks = (plain if plain.dtype == torch.bool else plain > 0.5).contiguous()
    flat = [s for row in spacings for s in row]
    # The first call of an operator imports torch's compiler, which takes a second.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or type(masks) is not Tensor
    maps: Tensor = _operator(masks, flat, transform) if traced else _distances(masks, flat, transform)
    return maps


# An operator, so that torch's compiler does not look into SimpleITK or a compiled kernel.
@torch.library.custom_op("medloss::distances", mutates_args=())
def _operator(masks: Tensor, spacing: list[float], transform: str) -> Tensor:
    return _distances(masks, spacing, transform)


def _distances(masks: Tensor, spacing: list[float], transform: str) -> Tensor:
    dims = masks.ndim - 2
    spacings = [tuple(spacing[i : i + dims]) for i in range(0, len(spacing), dims)]
    name, device = _kernels(masks.device, transform)
    module = import_module(name)
    squared = transform == "squared_distances" and not hasattr(module, transform)
    function = getattr(module, "signed_distances" if squared else transform)
    maps: Tensor = function(masks.to(device or masks.device), spacings)
    maps = maps.square_() if squared else maps
    return maps.to(masks.device)


@_operator.register_fake
def _(masks: Tensor, spacing: list[float], transform: str) -> Tensor:
    return torch.empty_like(masks, dtype=torch.float32)


def _kernels(device: torch.device, transform: str) -> tuple[str, str | None]:
    """The module that transforms masks on a device, and where it wants them: None for where they are."""
    try:
        chosen = dispatch.choose(device.type, torch.float32, _work(transform), device.index)
    except InputError:
        # The forced set is for the losses' device; a data set's transform may be on another.
        chosen = "eager"
    if chosen == "triton":
        return "medloss.kernels.triton.distance", None
    if chosen == "numba":
        return "medloss.kernels.numba.distance", "cpu"
    return "medloss.distance._simpleitk", "cpu"


def _register_small_case(transform: str, outside: float, inside: float) -> None:
    """Lines short and long, and voxels far from a border; the reference, all pairs of voxels, needs no SimpleITK."""
    shapes, spacings = ((2, 80, 3), (2, 3, 80)), ((3.0, 1.0, 0.8), (0.7, 1.3, 2.1))

    def case(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        flat = [s for spacing in spacings for s in spacing]
        return [_distances(_small_masks(shape, device), flat, transform) for shape in shapes]

    def by_all_pairs(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        results = []
        for shape in shapes:
            masks = _small_masks(shape, device)
            maps = torch.zeros(masks.shape, dtype=torch.float32, device=device)
            grid = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64, device=device) for n in shape))
            for item, spacing in enumerate(spacings):
                scaled = grid * torch.tensor(spacing, dtype=torch.float64, device=device)
                apart = (scaled[:, None] - scaled).square_().sum(-1)
                for mask, out in zip(masks[item].flatten(1), maps[item].flatten(1), strict=True):
                    if mask.any() and not mask.all():
                        nearest = apart.masked_fill(mask == mask[:, None], torch.inf).amin(1).sqrt_()
                        out.copy_(torch.where(mask, inside * nearest, outside * nearest))
            results.append(maps)
        return results

    self_check.register(_work(transform), case, by_all_pairs)


def _work(transform: str) -> str:
    # Squares are of the same pass.
    return transform.replace("squared", "signed").replace("_", " ")


def _small_masks(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Two items of three masks: scattered, one voxel, all but one; empty, full, a slab."""
    masks = torch.zeros(2, 3, *shape, dtype=torch.bool, device="cpu")
    masks[0, 0] = (torch.arange(math.prod(shape), dtype=torch.float64, device="cpu") * 1.7).sin().view(shape) > 0.4
    masks[0, 1, 1, 0, -1] = True
    masks[0, 2] = True
    masks[0, 2, 0, 2, 2] = False
    masks[1, 1] = True
    masks[1, 2, :, 1:, 1:] = True
    return masks.to(device)


for _transform, _outside, _inside in (("signed", 1, -1), ("inside", 0, 1), ("outside", 1, 0)):
    _register_small_case(f"{_transform}_distances", _outside, _inside)
