"""Weights of the voxels between components that lie close together."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from medloss.distance.maps import outside_distance_map
from medloss.errors import InputError
from medloss.maps.instances import labelled_components
from medloss.maps.smoothing import check_sigma
from medloss.spacing import Spacing, resolve_spacing


def border_weight_map(
    mask: Tensor,
    spacing: Spacing | None = None,
    *,
    w0: float = 10.0,
    sigma: float | None = None,
    class_weight: float | Sequence[float] = 1.0,
) -> Tensor:
    r"""Weights that grow where two components are near: $w_c + w_0 \exp(-(d_1 + d_2)^2 / (2 \sigma^2))$.

    d_1, d_2: distances in mm to the nearest two components of all classes but class 0 (with one channel, of that). The
    second term is there outside of the components only (our reading of the paper), and where there are two of them.

    Args:
        mask: `[B, C, *spatial]`, one map per class; above 0.5 is inside.
        spacing: mm, as in `medloss.distance.distance_map`.
        w0: weight at a gap of no width. Default 10 (the paper's).
        sigma: mm; None: 5 smallest spacings (the paper: 5 pixels).
        class_weight: w_c, one number, or one per class (C; with one channel two: background and the rest).

    Returns:
        float32, `[B, 1, *spatial]`.

    Raises:
        InputError: a negative weight, a sigma that is not positive, another number of weights, a bad spacing.

    References:
        Ronneberger, Fischer and Brox (2015), U-Net: Convolutional Networks for Biomedical Image Segmentation, arXiv
        1505.04597.

    Example:
        >>> import torch
        >>> from medloss.maps import border_weight_map
        >>> weights = border_weight_map(torch.tensor([[[[1, 0, 0, 0, 1]]]]), 0.8, sigma=2.0)
        >>> [round(w, 4) for w in weights.flatten().tolist()]  # d_1 + d_2 = 3.2
        [1.0, 3.7804, 3.7804, 3.7804, 1.0]
    """
    check_border(w0, sigma)
    channels = mask.shape[1]
    weights = check_class_weight(class_weight, max(channels, 2))
    rows = resolve_spacing(spacing, mask, mask.shape[0], mask.ndim - 2)
    masks = (mask > 0.5).detach().cpu()
    structures = masks if channels == 1 else masks[:, 1:]
    maps = torch.empty((len(masks), 1, *masks.shape[2:]), dtype=torch.float32, device="cpu")
    for item, row in enumerate(rows):
        width = 5 * min(row) if sigma is None else sigma
        maps[item, 0] = weights[0]
        for c, structure in enumerate(structures[item], start=1):
            maps[item, 0][structure] = weights[c]
        gap = _two_nearest(structures[item], row)
        outside = ~structures[item].any(0)
        maps[item, 0] += torch.where(outside, w0 * torch.exp(-gap.square() / (2 * width**2)), 0.0)
    return maps.to(mask.device)


def check_border(w0: float, sigma: float | None) -> None:
    """Refuse a negative `w0`, and a `sigma` that is not positive."""
    if not 0 <= w0 < math.inf:
        raise InputError(f"w0: got {w0}; expected a number >= 0")
    check_sigma(sigma)


def check_class_weight(class_weight: float | Sequence[float], classes: int) -> list[float]:
    """One weight per class."""
    weights = list(class_weight) if isinstance(class_weight, Sequence) else [class_weight] * classes
    if len(weights) != classes or not all(0 <= w < math.inf for w in weights):
        raise InputError(f"class_weight: got {class_weight}; expected one number >= 0, or {classes}, one per class")
    return weights


def _two_nearest(structures: Tensor, spacing: tuple[float, ...]) -> Tensor:
    """d_1 + d_2, component by component; infinite where there are fewer than two."""
    first = torch.full(structures.shape[1:], math.inf, device="cpu")
    second = first.clone()
    for structure in structures.numpy():
        labels, number = labelled_components(structure)
        for component in range(1, number + 1):
            one = torch.from_numpy(np.equal(labels, component))
            apart = first.new_zeros(()) if one.all() else outside_distance_map(one[None, None], spacing)[0, 0]
            nearer = torch.minimum(first, apart)
            second = torch.minimum(second, torch.maximum(first, apart))
            first = nearer
    return first + second
