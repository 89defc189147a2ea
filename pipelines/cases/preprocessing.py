"""What is done to every image before a network sees it: the grid it is brought to, and its intensities."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from pipelines.training.run_config import Clip

#: Spacings that differ by less than this share are one grid: headers round, and resampling blurs.
_SAME_SPACING = 0.01


class Preprocessing(BaseModel):
    """The way from a file's array to a network's input; kept with the weights, since prediction takes it, too.

    Attributes:
        dimensions: 2 or 3.
        spacing: mm an axis, of the grid that images are brought to; None: each keeps its own.
        clip: how intensities are clipped and scaled; None: each image gets mean 0 and standard deviation 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int
    spacing: tuple[float, ...] | None = None
    clip: Clip | None = None

    def shape(self, shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
        """The shape (voxels) of an image on the network's grid.

        Args:
            shape: its own, voxels.
            spacing: its own, mm.
        """
        if self.spacing is None or all(
            abs(s / t - 1) < _SAME_SPACING for s, t in zip(spacing, self.spacing, strict=True)
        ):
            return tuple(shape)
        return tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, self.spacing, strict=True))

    def image(self, volume: Tensor, spacing: Sequence[float]) -> Tensor:
        """An image as the network reads it: `[1, *grid]` of `[1, *spatial]`, float32.

        Args:
            volume: intensities, finite.
            spacing: mm.
        """
        volume = volume.float()
        if self.clip is not None:
            volume = (volume.clamp(self.clip.low, self.clip.high) - self.clip.mean) / self.clip.std
        else:
            deviation, mean = torch.std_mean(volume.double(), correction=0)
            volume = (volume - mean.float()) / (deviation.float() if deviation > 0 else 1.0)
        return resampled(volume, self.shape(volume.shape[1:], spacing))

    def labels(self, label: Tensor, spacing: Sequence[float], num_classes: int) -> Tensor:
        """A label map `[1, *spatial]` on the network's grid: the class that fills most of each voxel."""
        shape = self.shape(label.shape[1:], spacing)
        if shape == tuple(label.shape[1:]):
            return label
        best = torch.full((1, *shape), -1.0)
        winner = torch.zeros((1, *shape), dtype=label.dtype)
        # Class by class: a one-hot map of a large volume would take C times its size.
        for c in range(num_classes):
            part = resampled((label == c).float(), shape)
            ahead = part > best
            winner[ahead] = c
            best = torch.maximum(best, part)
        return winner


def resampled(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """A volume `[C, *spatial]` on a grid of another shape with the same borders, by linear interpolation."""
    if tuple(volume.shape[1:]) == tuple(shape):
        return volume
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return F.interpolate(volume[None], size=tuple(shape), mode=mode, align_corners=False)[0]
