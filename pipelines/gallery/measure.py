"""A loss's values and slopes on a scene; each channel its own yes/no, one channel."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medloss import call_loss, create_loss
from medloss.voxelwise import VoxelwiseLoss
from pipelines.gallery.scenes import Scene, imbalance_scene, logit, region_scene

#: Probabilities at which curves are drawn; 0.5 lies between two of them, since hard predictions change there.
PROBABILITIES = np.linspace(0.01, 0.99, 80)
#: Foreground's shares of the image.
SHARES = np.geomspace(1e-4, 0.5, 25)


def push(
    loss: nn.Module, logits: NDArray, reference: NDArray[np.bool_], spacing: tuple[float, ...]
) -> NDArray[np.float64]:
    """Where a loss pushes: -dL/dz a voxel, z its logit; positive is towards foreground.

    Args:
        loss: takes logits `[1, 1, *spatial]`, one channel, and gives a scalar.
        logits: `[*spatial]`.
        reference: the structure, of the same shape.
        spacing: mm, an axis.
    """
    z, target = _tensors(logits, reference)
    call_loss(loss, z, target, spacing=spacing).sum().backward()
    return -_gradient(z)


def is_voxelwise(name: str) -> bool:
    """Whether a registered loss is a value a voxel; else it is a value a structure."""
    return isinstance(create_loss(name, sigmoid=True), VoxelwiseLoss)


def probability_curve(name: str, foreground: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Value and slope dL/dz at each of `PROBABILITIES`, given to all voxels of `region_scene`'s region.

    Voxelwise losses: means over the region's voxels, of the unreduced loss. Others: the loss, and the slope as the
    logits of all of the region's voxels move together.
    """
    voxelwise = is_voxelwise(name)
    loss = create_loss(name, sigmoid=True, reduction="none" if voxelwise else "mean")
    scene = region_scene(foreground)
    region = torch.from_numpy(scene.region)
    values, slopes = [], []
    for p in PROBABILITIES:
        z, target = _tensors(np.where(scene.region, logit(p), scene.logits), scene.reference)
        result = call_loss(loss, z, target, spacing=scene.spacing)
        result.sum().backward()
        gradient = _gradient(z)[scene.region]
        values.append(result.detach()[0, 0][region].mean().item() if voxelwise else result.item())
        slopes.append(gradient.mean() if voxelwise else gradient.sum())
    return np.array(values), np.array(slopes)


def imbalance_curve(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Value, and mean |dL/dz| a foreground voxel, on `imbalance_scene` at each of `SHARES`."""
    loss = create_loss(name, sigmoid=True)
    values, norms = [], []
    for share in SHARES:
        scene: Scene = imbalance_scene(float(share))
        z, target = _tensors(scene.logits, scene.reference)
        result = call_loss(loss, z, target, spacing=scene.spacing)
        result.backward()
        values.append(result.item())
        norms.append(np.abs(_gradient(z)[scene.region]).mean())
    return np.array(values), np.array(norms)


def _tensors(logits: NDArray, reference: NDArray[np.bool_]) -> tuple[Tensor, Tensor]:
    z = torch.from_numpy(np.array(logits, np.float64))[None, None].requires_grad_()
    return z, torch.from_numpy(reference.astype(np.uint8))[None, None]


def _gradient(z: Tensor) -> NDArray[np.float64]:
    assert z.grad is not None
    return np.asarray(z.grad[0, 0].numpy(), np.float64)
