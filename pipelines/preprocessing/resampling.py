"""Preprocessing of images and labels: reading cases, resampling, and normalisation of intensities."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from nibabel.imageglobals import LoggingOutputSuppressor
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from pipelines.data.grids import Volume, by, grid_problem
from pipelines.data.label_scheme import IGNORED, LabelScheme
from pipelines.data.manifest import Case, Manifest
from pipelines.data.nifti import BadFileError, digits, read_image, read_labels, stacked
from pipelines.preprocessing import Clip
from pipelines.utils import UserError

#: Relative difference up to which spacings count as equal: headers round, and resampling blurs.
_SAME_SPACING = 0.01


class Preprocessing(BaseModel):
    """From a file's array to a network's input; saved with the weights, since prediction needs it as well.

    Attributes:
        dimensions: 2 or 3.
        spacing: mm per axis of the grid that images are resampled to; None: no resampling.
        clip: how intensities are clipped and scaled, of one channel or one entry per channel; None: the channel of each
            image is normalised to mean 0 and standard deviation 1.
        orientation: whether arrays are along the canonical axes (right, anterior, superior) or along those of the file,
            as in models of older versions.
        resample_channels: whether channels on other grids are resampled to that of the label, or the first channel.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimensions: int
    spacing: tuple[float, ...] | None = None
    clip: Clip | tuple[Clip | None, ...] | None = None
    orientation: Literal["canonical", "file"] = "file"
    resample_channels: bool = False

    def shape(self, shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, ...]:
        """The shape (voxels) on the network's grid of an image of a shape (voxels) and a spacing (mm)."""
        if self.spacing is None or all(
            abs(s / t - 1) < _SAME_SPACING for s, t in zip(spacing, self.spacing, strict=True)
        ):
            return tuple(shape)
        return tuple(max(1, round(n * s / t)) for n, s, t in zip(shape, spacing, self.spacing, strict=True))

    def image(self, volume: Tensor, spacing: Sequence[float]) -> Tensor:
        """The network's input, `[K, *grid]`, float32, of finite intensities `[K, *spatial]` with a spacing (mm)."""
        clips = self.clip if isinstance(self.clip, tuple) else (self.clip,) * len(volume)
        channels = [_normalised(channel, clip) for channel, clip in zip(volume.float(), clips, strict=True)]
        image = channels[0][None] if len(channels) == 1 else torch.stack(channels)
        return resampled(image, self.shape(volume.shape[1:], spacing))

    def labels(self, label: Tensor, spacing: Sequence[float]) -> Tensor:
        """A label map `[1, *spatial]` on the network's grid: the value with the largest part of each voxel."""
        shape = self.shape(label.shape[1:], spacing)
        if shape == tuple(label.shape[1:]):
            return label
        values = label.unique()
        found = largest((resampled((label == value).float(), shape) for value in values), torch.uint8)
        return values[found.int()]

    def oriented(self, volume: Volume) -> Volume:
        """A volume as it was read, along the axes of `orientation`."""
        return volume if self.orientation == "canonical" else volume.as_stored()

    def intensities(self, volumes: Sequence[Volume], grid: Volume | None = None) -> Tensor:
        """The channels of an image, `[K, *spatial]`, float32.

        Args:
            volumes: from `nifti.read_image`, along the axes of `orientation`.
            grid: what channels on other grids are resampled to, if `resample_channels`; None: the first channel's.

        Raises:
            BadFileError: channels on different grids that are not resampled, or intensities that are not finite.
        """
        target = (grid or volumes[0]) if self.resample_channels and len(volumes) > 1 else None
        image = stacked(volumes, target)
        if bad := int(image.size - np.isfinite(image).sum()):
            raise BadFileError(f"NaN, Inf, or too large for float32, in {bad} voxel{'s' if bad > 1 else ''}")
        return torch.from_numpy(image)


def _normalised(channel: Tensor, clip: Clip | None) -> Tensor:
    if clip is not None:
        return (channel.clamp(clip.low, clip.high) - clip.mean) / clip.std
    deviation, mean = torch.std_mean(channel.double(), correction=0)
    return (channel - mean.float()) / (deviation.float() if deviation > 0 else 1.0)


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


def read_case(manifest: Manifest, case: Case, root: Path, preprocessing: Preprocessing) -> dict[str, Any]:
    """Read a case without resampling it to the network's grid.

    Args:
        manifest: the data set; the label map has the indices 0..C-1 of its label values, and `IGNORED`.
        case: the case.
        root: the data root.
        preprocessing: its orientation, and whether channels are resampled.

    Returns:
        `case`; `image` `[K, *spatial]`; `label` `[1, *spatial]`; `spacing` (mm); `labelled`, whether the case annotates
        each channel of the network's output.

    Raises:
        UserError: the case cannot be read or used for training.
    """
    dimensions, scheme = {manifest.dimensions}, manifest.scheme
    file = ", ".join(case.images)
    try:
        with LoggingOutputSuppressor():
            paths = [root / path for path in case.images]
            volumes = [preprocessing.oriented(v) for v in read_image(paths, len(manifest.image_channels), dimensions)]
            file = case.label
            label = preprocessing.oriented(read_labels(root / case.label, dimensions))
        file = ", ".join(case.images)
        image = preprocessing.intensities(volumes, label)
        file = case.label
        on_one_grid = len(volumes) == 1 or not preprocessing.resample_channels
        if on_one_grid and (problem := grid_problem(label, volumes[0], "image")) is not None:
            raise BadFileError(problem)
        classes = _class_indices(label.data, scheme)
        if case.labelled is not None:
            _refuse_unlabelled(classes, scheme, case.labelled)
    except BadFileError as error:
        raise UserError(f"case '{case.id}': {file}: {error}; {CHECK}") from None
    # Not rounded as `Volume.spacing` is, so that runs of older versions resume with the same numbers.
    spacing = np.linalg.norm(label.affine[:3, : manifest.dimensions], axis=0)
    return {
        "case": case.id,
        "image": image,
        "label": torch.from_numpy(classes)[None],
        "spacing": torch.from_numpy(spacing),
        "labelled": torch.tensor(scheme.annotated_channels(case.labelled)),
    }


def _class_indices(labels: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """The indices of a label map's values in `scheme.values`, and `IGNORED`: uint8, contiguous.

    Raises:
        BadFileError: a value that is no class, or a map in which all voxels are ignored.
    """
    indices = np.zeros_like(labels, np.uint8)
    known = 0
    numbered = {value: index for index, value in enumerate(scheme.values)}
    if scheme.ignore is not None:
        numbered[scheme.ignore] = IGNORED
    for value, index in numbered.items():
        voxels = labels == value
        known += int(np.count_nonzero(voxels))
        indices[voxels] = index  # `putmask` takes six times as long where axes are not in the order of memory
    if known < labels.size:
        unknown = labels[~np.isin(labels, list(numbered))]
        raise BadFileError(f"holds {digits(unknown[0])}; the manifest names {', '.join(map(str, numbered))}")
    if scheme.ignore is not None and (indices == IGNORED).all():
        raise BadFileError(f"all voxels have the ignored label {scheme.ignore}")
    return np.ascontiguousarray(indices)


def _refuse_unlabelled(classes: np.ndarray, scheme: LabelScheme, labelled: Sequence[str]) -> None:
    """Refuse a map of class indices with voxels of a class that the case does not annotate.

    Raises:
        BadFileError: there are such voxels.
    """
    for index, value in enumerate(scheme.values):
        if index and (name := scheme.classes[value]) not in labelled and (classes == index).any():
            raise BadFileError(f"has voxels of '{name}', which is not among the case's 'labelled'")


def prepared(case: dict[str, Any], preprocessing: Preprocessing, scheme: LabelScheme) -> dict[str, Any]:
    """A case from `read_case` on the training grid.

    `image`, `label` and `spacing` are on the grid; `centres` are flat indices of voxels of each foreground class or
    region in the label, and `counted` of voxels that are not ignored, if some are. If the case was resampled,
    `reference` and `reference_spacing` are the original label, for validation.

    Raises:
        UserError: on the grid all voxels are ignored.
    """
    label, spacing = case["label"], case["spacing"].tolist()
    on_grid = preprocessing.labels(label, spacing)
    image = preprocessing.image(case["image"], spacing)
    item = case | {"image": image, "label": on_grid, "centres": _centres(on_grid, scheme)}
    counted = on_grid.reshape(-1) != IGNORED
    if not counted.any():
        raise UserError(
            f"case '{case['case']}': all voxels are ignored on the training grid of {by(preprocessing.spacing or ())} "
            "mm; pass a finer one as --spacing"
        )
    if not counted.all():
        item["counted"] = _sampled(counted.nonzero()[:, 0])
    if on_grid.shape != label.shape:
        size = torch.tensor(label.shape[1:], dtype=torch.float64) / torch.tensor(on_grid.shape[1:])
        item |= {"spacing": case["spacing"] * size, "reference": label, "reference_spacing": case["spacing"]}
    return item


def _centres(label: Tensor, scheme: LabelScheme) -> list[Tensor]:
    """Flat indices of voxels, one tensor per foreground class or region that the label has."""
    flat = label.reshape(-1)
    foreground = ((flat != 0) & (flat != IGNORED)).nonzero()[:, 0]
    values = flat[foreground]
    found = [foreground[torch.isin(values, torch.tensor(members, dtype=values.dtype))] for members in scheme.members]
    return [_sampled(voxels) for voxels in found if len(voxels)]


def _sampled(voxels: Tensor) -> Tensor:
    return voxels[:: math.ceil(len(voxels) / _MAX_CENTRES)].to(torch.int32)
