"""Labels that are soft at their borders."""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medloss.errors import InputError
from medloss.spacing import Spacing, resolve_spacing


def smoothed_label(mask: Tensor, spacing: Spacing | None = None, sigma: float | None = None) -> Tensor:
    """Half of each voxel's label, and half of the Gaussian mean of its 3^d - 1 neighbours' labels.

    Args:
        mask: `[B, C, *spatial]`, one map per class, 2D or 3D.
        spacing: mm, as in `medloss.distance.distance_map`.
        sigma: of the Gaussian, mm; None: the smallest spacing (ours).

    Returns:
        float32, the mask's shape; the classes' values at a voxel add up to what the mask's do. Edges are repeated.

    Raises:
        InputError: a sigma that is not positive, a bad spacing.

    References:
        Islam and Glocker (2021), Spatially Varying Label Smoothing: Capturing Uncertainty from Expert Annotations,
        arXiv 2104.05788.

    Example:
        >>> import torch
        >>> from medloss.maps import smoothed_label
        >>> soft = smoothed_label(torch.tensor([[[[0, 0, 1, 1]] * 3]]))
        >>> [round(v, 3) for v in soft[0, 0, 1].tolist()]
        [0.0, 0.172, 0.828, 1.0]
    """
    check_sigma(sigma)
    dims = mask.ndim - 2
    rows = resolve_spacing(spacing, mask, mask.shape[0], dims)
    labels = mask.detach().float()
    soft = torch.empty_like(labels)
    for item, row in enumerate(rows):
        width = min(row) if sigma is None else sigma
        padded = F.pad(labels[item], (1, 1) * dims, mode="replicate")
        total, weights = torch.zeros_like(labels[item]), 0.0
        for offset in itertools.product((-1, 0, 1), repeat=dims):
            if any(offset):
                weight = math.exp(-sum((o * s) ** 2 for o, s in zip(offset, row, strict=True)) / (2 * width**2))
                window = (slice(1 + o, 1 + o + n) for o, n in zip(offset, mask.shape[2:], strict=True))
                total += weight * padded[(slice(None), *window)]
                weights += weight
        soft[item] = (labels[item] + total / weights) / 2
    return soft


def check_sigma(sigma: float | None) -> None:
    """Refuse a sigma that is not positive and finite."""
    if sigma is not None and not 0 < sigma < math.inf:
        raise InputError(f"sigma: got {sigma}; expected mm, above 0, or None")
