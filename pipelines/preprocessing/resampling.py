"""Preprocessing of images and labels: resampling, normalisation of intensities, and reading cases."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.data.utils import affine_to_spacing
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, LoadImaged
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from pipelines.data.manifest import Case, Manifest
from pipelines.data.nifti import digits, squeezed, whole_labels
from pipelines.preprocessing import Clip
from pipelines.utils import UserError

#: Relative difference up to which spacings count as equal: headers round, and resampling blurs.
_SAME_SPACING = 0.01


class Preprocessing(BaseModel):
    """From a file's array to a network's input; saved with the weights, since prediction needs it as well.

    Attributes:
        dimensions: 2 or 3.
        spacing: mm per axis of the grid that images are resampled to; None: no resampling.
        clip: how intensities are clipped and scaled; None: each image is normalised to mean 0 and standard deviation 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int
    spacing: tuple[float, ...] | None = None
    clip: Clip | None = None

    def shape(self, shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
        """The shape (voxels) on the network's grid of an image of a shape (voxels) and a spacing (mm)."""
        if self.spacing is None or all(
            abs(s / t - 1) < _SAME_SPACING for s, t in zip(spacing, self.spacing, strict=True)
        ):
            return tuple(shape)
        return tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, self.spacing, strict=True))

    def image(self, volume: Tensor, spacing: Sequence[float]) -> Tensor:
        """The network's input, `[1, *grid]`, float32, of finite intensities `[1, *spatial]` with a spacing (mm)."""
        volume = volume.float()
        if self.clip is not None:
            volume = (volume.clamp(self.clip.low, self.clip.high) - self.clip.mean) / self.clip.std
        else:
            deviation, mean = torch.std_mean(volume.double(), correction=0)
            volume = (volume - mean.float()) / (deviation.float() if deviation > 0 else 1.0)
        return resampled(volume, self.shape(volume.shape[1:], spacing))

    def labels(self, label: Tensor, spacing: Sequence[float], num_classes: int) -> Tensor:
        """A label map `[1, *spatial]` on the network's grid: the class with the largest part of each voxel."""
        shape = self.shape(label.shape[1:], spacing)
        if shape == tuple(label.shape[1:]):
            return label
        return largest((resampled((label == c).float(), shape) for c in range(num_classes)), label.dtype)


def resampled(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """Resample a volume `[C, *spatial]` to another shape with the same borders, by linear interpolation."""
    if tuple(volume.shape[1:]) == tuple(shape):
        return volume
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    return F.interpolate(volume[None], size=tuple(shape), mode=mode, align_corners=False)[0]


def largest(parts: Iterator[Tensor], dtype: torch.dtype) -> Tensor:
    """The index of the largest of several maps per voxel; one map is made at a time, to save memory."""
    best = next(parts).clone()
    winner = torch.zeros(best.shape, dtype=dtype, device=best.device)
    for index, part in enumerate(parts, start=1):
        winner.masked_fill_(part > best, index)
        torch.maximum(best, part, out=best)
    return winner


# Reading cases.

CHECK = "`medloss check` lists every bad file"
#: Number of voxels per class that are kept as centres of patches, evenly spaced.
_MAX_CENTRES = 10_000
_BOTH = ["image", "label"]
# Float also for labels: an integer type would hide a value of 1.7.
_READER = Compose([LoadImaged(_BOTH, reader="NibabelReader", ensure_channel_first=False),
                   EnsureChannelFirstd(_BOTH, channel_dim="no_channel"),
                   EnsureTyped(_BOTH, dtype=torch.float32)])  # fmt: skip


def read_case(manifest: Manifest, case: Case, root: Path) -> dict[str, Any]:
    """Read a case without resampling: `case`, `image` and `label` `[1, *spatial]`, `spacing` (mm).

    The label map has the indices 0..C-1 of the manifest's label values.

    Raises:
        UserError: the case cannot be read or used for training.
    """
    for path in (case.image, case.label):
        if not (root / path).is_file() or not (root / path).stat().st_size:
            raise UserError(f"case '{case.id}': {root / path} is missing or empty; {CHECK}")
    try:
        data = _READER({"image": str(root / case.image), "label": str(root / case.label)})
    except RuntimeError as error:
        # MONAI's message only names the transform; the cause is what the transform raised.
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"case '{case.id}': {case.image} or {case.label} cannot be read: {cause}; {CHECK}") from None
    image, label = (_squeezed(data[role].as_tensor(), manifest.dimensions) for role in _BOTH)
    label = torch.from_numpy(whole_labels(label.numpy()))
    if image.shape != label.shape or label.ndim != manifest.dimensions + 1:
        shapes = f"an image of shape {tuple(image.shape[1:])} and a label of {tuple(label.shape[1:])}"
        raise UserError(f"case '{case.id}': {shapes}; expected the same {manifest.dimensions} axes; {CHECK}")
    if not image.isfinite().all():
        raise UserError(f"case '{case.id}': {case.image} holds NaN or infinite values; {CHECK}")
    classes = torch.full(label.shape, 255, dtype=torch.uint8)
    for index, value in enumerate(manifest.label_values):
        classes[label == value] = index
    if (classes == 255).any():
        first = digits(label[classes == 255].numpy()[0])
        named = ", ".join(map(str, manifest.label_values))
        raise UserError(f"case '{case.id}': {case.label} holds {first}; the manifest names {named}; {CHECK}")
    spacing = affine_to_spacing(data["label"].affine)[: manifest.dimensions]
    return {"case": case.id, "image": image, "label": classes, "spacing": torch.as_tensor(spacing, dtype=torch.float64)}


def _squeezed(volume: Tensor, dimensions: int) -> Tensor:
    """`[1, *spatial]` without superfluous trailing axes of length 1."""
    return volume.reshape(1, *squeezed(volume.shape[1:], dimensions)).contiguous()


def prepared(case: dict[str, Any], preprocessing: Preprocessing, num_classes: int) -> dict[str, Any]:
    """A case from `read_case` on the training grid.

    `image`, `label` and `spacing` are on the grid; `centres` are flat indices of voxels of each foreground class. If
    the case was resampled, `reference` and `reference_spacing` are the original label, for validation.
    """
    label, spacing = case["label"], case["spacing"].tolist()
    on_grid = preprocessing.labels(label, spacing, num_classes)
    image = preprocessing.image(case["image"], spacing)
    item = case | {"image": image, "label": on_grid, "centres": _centres(on_grid)}
    if on_grid.shape != label.shape:
        size = torch.tensor(label.shape[1:], dtype=torch.float64) / torch.tensor(on_grid.shape[1:])
        item |= {"spacing": case["spacing"] * size, "reference": label, "reference_spacing": case["spacing"]}
    return item


def _centres(label: Tensor) -> list[Tensor]:
    """Flat indices of voxels, one tensor per foreground class in the label."""
    flat = label.reshape(-1)
    foreground = flat.nonzero()[:, 0]
    values = flat[foreground]
    voxels = [foreground[values == value] for value in values.unique()]
    return [v[:: math.ceil(len(v) / _MAX_CENTRES)].to(torch.int32) for v in voxels]
