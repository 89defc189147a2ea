"""The scenes on which losses are shown, and a loss's values and gradients on them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

from medloss import SegmentationLoss, call_loss, create_loss
from medloss.create import loss_class
from medloss.voxelwise import VoxelwiseLoss

#: Probabilities at which curves are drawn; 0.5 lies between two of them, since hard predictions change there.
PROBABILITIES = np.linspace(0.01, 0.99, 80)
#: Foreground's shares of the image.
SHARES = np.geomspace(1e-4, 0.5, 25)
#: Absolute logit of voxels whose prediction is certain and right.
SURE = 15.0


@dataclass(frozen=True)
class Scene:
    """A case with one structure and a prediction of it.

    Attributes:
        reference: the structure.
        logits: the prediction, of the same shape.
        spacing: mm, per axis.
        region: the voxels whose values and gradients are shown.
        image: intensities; None where there are none.
    """

    reference: NDArray[np.bool_]
    logits: NDArray[np.float64]
    spacing: tuple[float, ...]
    region: NDArray[np.bool_]
    image: NDArray | None = None


def region_scene(foreground: bool) -> Scene:
    """A ball of 9 mm radius in 42 x 40 x 40 mm, on voxels of 3 x 2 x 2 mm; everything but the region is right.

    The region is the ball, or, for background, an equal ball next to it.
    """
    shape, spacing = (14, 20, 20), (3.0, 2.0, 2.0)
    grid = _millimetres(shape, spacing)
    ball, other = (np.linalg.norm(grid - (19.5, 19.0, x), axis=-1) <= 9.0 for x in (9.0, 29.0))
    return Scene(ball, np.where(ball, SURE, -SURE), spacing, ball if foreground else other)


def imbalance_scene(share: float) -> Scene:
    """A disc in 256 x 256 mm, on pixels of 1 mm, one half of which is missed; the background is right.

    `share` is the disc's share of the pixels, in (0, 0.7), rounded to an even number of pixels.
    """
    shape = (256, 256)
    grid = _millimetres(shape, (1.0, 1.0))
    order = np.argsort(np.linalg.norm(grid - (127.5, 127.5), axis=-1).ravel(), kind="stable")
    disc = np.zeros(shape, bool)
    half = max(round(share * disc.size / 2), 1)
    disc.ravel()[order[: 2 * half]] = True
    logits = np.where(disc, logit(0.9), -SURE)
    # Exactly half of the pixels, so that the curve is smooth for small discs: those furthest along the last axis.
    inside = np.argwhere(disc)
    missed = inside[np.argsort(inside[:, 1], kind="stable")[half:]]
    logits[tuple(missed.T)] = logit(0.1)
    return Scene(disc, logits, (1.0, 1.0), disc)


def phantom_scene() -> Scene:
    """A case of the embedded data set's 3D phantom, its organ, and a wrong prediction of it.

    The prediction is shifted by 5 mm, misses the organ's end, and has an island in the background.
    """
    from pipelines.data.phantom import phantom_case

    shape, spacing = (20, 56, 56), (3.0, 1.0, 1.0)
    image, label = phantom_case(shape, spacing, seed=0, index=3)
    organ = label == 1
    grid = _millimetres(shape, spacing)
    across = int(np.argmax(organ.sum((0, 1))))
    predicted = ndimage.shift(organ.astype(float), (0, 5, 0), order=0) > 0.5
    ends = np.flatnonzero(organ.any((1, 2)))
    predicted[: ends[0] + len(ends) // 3] = False
    # Where there is most room on the slice that is shown, away from the organ and the image's edge.
    room = ndimage.distance_transform_edt(np.pad(~(organ | predicted)[..., across], 1), sampling=spacing[:2])
    centre = np.array(np.unravel_index(np.argmax(room), room.shape)) - 1
    island = np.linalg.norm(grid - (*(centre * spacing[:2]), across * spacing[2]), axis=-1) <= 7.0
    return Scene(organ, soft_logits(predicted | island, spacing, 1.5), spacing, organ, image)


def soft_logits(mask: NDArray[np.bool_], spacing: tuple[float, ...], width: float) -> NDArray[np.float64]:
    """Logits whose probability rises over `width` mm across a mask's border; within 0.001 and 0.999."""
    if not mask.any() or mask.all():
        return np.where(mask, logit(0.999), logit(0.001))
    inside = ndimage.distance_transform_edt(mask, sampling=spacing)
    outside = ndimage.distance_transform_edt(~mask, sampling=spacing)
    return np.asarray(np.clip((inside - outside) / width, logit(0.001), logit(0.999)), np.float64)


def logit(p: Any) -> Any:
    """The logit of a probability, or of an array of them."""
    return np.log(p) - np.log1p(-p)


def _millimetres(shape: tuple[int, ...], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    axes = [np.arange(n) * s for n, s in zip(shape, spacing, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1)


def negative_gradient(
    loss: nn.Module, logits: NDArray, reference: NDArray[np.bool_], spacing: tuple[float, ...]
) -> NDArray[np.float64]:
    """-dL/dz per voxel, z its logit; positive is towards foreground.

    Args:
        loss: takes logits `[1, 1, *spatial]`, one channel, and returns a scalar.
        logits: `[*spatial]`.
        reference: the structure, of the same shape.
        spacing: mm, per axis.
    """
    z, target = _tensors(logits, reference)
    call_loss(loss, z, target, spacing=spacing).sum().backward()
    return -_gradient(z)


class _AsTwoClasses(nn.Module):
    """A loss of classes that exclude each other, called with the logit of one channel: that against a 0."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor, **keywords: Any) -> Tensor:
        """The loss of two classes whose softmax is the channel's sigmoid."""
        return call_loss(self.loss, torch.cat([torch.zeros_like(logits), logits], 1), target, **keywords)


def one_channel_loss(name: str, **arguments: Any) -> nn.Module:
    """A loss by name, for logits of one channel."""
    cls = loss_class(name)
    if issubclass(cls, SegmentationLoss) and cls.categorical_only:
        return _AsTwoClasses(create_loss(name, softmax=True, **arguments))
    return create_loss(name, sigmoid=True, **arguments)


def is_voxelwise(name: str) -> bool:
    """Whether a registered loss has a value per voxel; else it has a value per structure."""
    return isinstance(one_channel_loss(name), VoxelwiseLoss)


def probability_curve(name: str, foreground: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Value and gradient dL/dz at each of `PROBABILITIES`, assigned to all voxels of `region_scene`'s region.

    Voxelwise losses: means over the region's voxels, of the unreduced loss. Others: the loss, and its derivative as the
    logits of all the region's voxels change together.
    """
    voxelwise = is_voxelwise(name)
    loss = one_channel_loss(name, reduction="none" if voxelwise else "mean")
    scene = region_scene(foreground)
    region = torch.from_numpy(scene.region)
    values, gradients = [], []
    for p in PROBABILITIES:
        z, target = _tensors(np.where(scene.region, logit(p), scene.logits), scene.reference)
        result = call_loss(loss, z, target, spacing=scene.spacing)
        result.sum().backward()
        gradient = _gradient(z)[scene.region]
        values.append(result.detach()[0, 0][region].mean().item() if voxelwise else result.item())
        gradients.append(gradient.mean() if voxelwise else gradient.sum())
    return np.array(values), np.array(gradients)


def imbalance_curve(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Value, and mean |dL/dz| per foreground voxel, on `imbalance_scene` at each of `SHARES`."""
    loss = one_channel_loss(name)
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
