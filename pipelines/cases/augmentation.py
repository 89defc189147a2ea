"""Patches varied at random: where they are cut from, turned and sized; and their intensities."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandSimulateLowResolution,
)
from monai.transforms.utils import create_rotate, create_scale
from numpy.random import Generator
from torch import Tensor

from pipelines.cases.fingerprint import ANISOTROPIC
from pipelines.training.run_config import Augmentation


def random_matrix(settings: Augmentation, spacing: Sequence[float], random: Generator) -> np.ndarray | None:
    """Which way, in voxels, a step in the patch goes in the volume; None for the very same.

    Args:
        settings: what may happen.
        spacing: mm: angles are angles in the body, not in the array.
        random: decides.

    Returns:
        `[d, d]`.
    """
    dims = len(spacing)
    # Always drawn: so what is random later depends on no probability.
    turned, sized = random.random(2) < settings.spatial_share
    angles = np.radians(random.uniform(-settings.rotation, settings.rotation, 1 if dims == 2 else 3))
    factor = math.exp(random.uniform(*np.log(settings.scaling)))
    turned, sized = turned and settings.rotation > 0, sized and factor != 1
    if not turned and not sized:
        return None
    mm = np.array(spacing)
    coarse = int(mm.argmax())
    if dims == 3 and mm[coarse] >= ANISOTROPIC * np.delete(mm, coarse).max():
        angles = np.where(np.arange(3) == coarse, angles, 0.0)
    matrix = np.eye(dims)
    if turned:
        matrix = create_rotate(dims, angles.tolist())[:dims, :dims]
    if sized:
        matrix = matrix @ create_scale(dims, [1 / factor] * dims)[:dims, :dims]
    voxel: np.ndarray = matrix * mm[None, :] / mm[:, None]
    return voxel


def sampled(volume: Tensor, centre: Sequence[float], matrix: np.ndarray, patch: Sequence[int], mode: str) -> Tensor:
    """The patch `[1, *patch]` round a centre of a volume `[1, *spatial]`; what lies outside is 0.

    One interpolation crops, turns and sizes at once, and only where the patch lies.

    Args:
        volume: image or label.
        centre: voxel coordinates.
        matrix: from `random_matrix`.
        patch: voxels an axis.
        mode: `bilinear` (in 3D, too), or `nearest` for labels.
    """
    reach = np.abs(matrix) @ (np.array(patch) / 2) + 2
    box = [
        (max(0, math.floor(c - r)), min(n, math.ceil(c + r) + 1))
        for c, r, n in zip(centre, reach, volume.shape[1:], strict=True)
    ]
    part = volume[(slice(None), *(slice(first, last) for first, last in box))].float()
    size = np.array(part.shape[1:])
    offset = np.array([c - first for c, (first, _) in zip(centre, box, strict=True)])
    # `affine_grid` counts from -1 to 1 over all voxels, and its axes from the last.
    theta = np.concatenate([matrix * np.array(patch) / size[:, None], ((2 * offset + 1) / size - 1)[:, None]], axis=1)
    theta[:, :-1] = theta[::-1, -2::-1]
    theta[:, -1] = theta[::-1, -1]
    grid = F.affine_grid(torch.from_numpy(theta).float()[None], [1, 1, *patch], align_corners=False)
    return F.grid_sample(part[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0].to(volume.dtype)


class Intensities:
    """Varies a patch's intensities by MONAI's transforms.

    Args:
        settings: what may happen.
        dims: 2 or 3.
    """

    def __init__(self, settings: Augmentation, dims: int) -> None:
        self.settings = settings
        transforms: list[object] = []
        if settings.noise_share:
            transforms.append(RandGaussianNoise(settings.noise_share, std=settings.noise))
        if settings.blur_share:
            transforms.append(RandGaussianSmooth(settings.blur, settings.blur, settings.blur, settings.blur_share))
        if settings.low_resolution_share:
            zoom, smooth = (settings.low_resolution, 1.0), "trilinear" if dims == 3 else "bilinear"
            transforms.append(
                RandSimulateLowResolution(settings.low_resolution_share, upsample_mode=smooth, zoom_range=zoom)
            )
        if settings.gamma_share:
            transforms.append(RandAdjustContrast(settings.gamma_share, settings.gamma, retain_stats=True))
        self.transforms = Compose(transforms) if transforms else None

    def __call__(self, image: Tensor, random: Generator) -> Tensor:
        """A patch like `image` `[1, *patch]`, varied as `random` decides."""
        scale, shift = (
            random.uniform(-self.settings.brightness, self.settings.brightness)
            * (random.random() < self.settings.brightness_share)
            for _ in range(2)
        )
        image = image.mul(1 + scale).add_(shift)
        if self.transforms is None:
            return image
        self.transforms.set_random_state(seed=int(random.integers(2**32)))
        varied: Tensor = self.transforms(image)
        return getattr(varied, "as_tensor", lambda: varied)()
