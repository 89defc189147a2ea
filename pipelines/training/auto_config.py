"""Plans the settings that a run leaves open from the data set's fingerprint: grid, patch, batch, network depth.

By nnU-Net's rules (Isensee et al. 2021, doi 10.1038/s41592-020-01008-z), with our implementation and constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pipelines.data.label_scheme import LabelScheme
from pipelines.data.manifest import Manifest
from pipelines.evaluation.metrics.base import MetricSettings, refuse_unknown_metrics, with_default
from pipelines.evaluation.references import manifest_settings
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError

if TYPE_CHECKING:  # `refuse_settings` runs without the seconds that torch and MONAI take to import
    import torch
    from torch import nn

    from pipelines.preprocessing import Clip
    from pipelines.preprocessing.case_store import Fingerprint
    from pipelines.preprocessing.resampling import Preprocessing

#: The V-Net halves every axis four times.
_VNET_DIVISOR = 16
#: The V-Net repeats an image's channels until there are so many.
_VNET_FEATURES = 16
#: Feature maps keep at least so many voxels per axis; below that a convolution sees mostly padding.
_LEAST_MAP = 4
#: An axis twice as coarse as the finest is not halved, nor convolved along, until the others are as coarse.
_COARSE = 2.0
_MOST_LEVELS = 6
#: MONAI's DynUNet needs at least three.
_LEAST_LEVELS = {"unet": 2, "dynunet": 3}
_CPU_MEMORY_GB = 2.0
_LEAST_BATCH, _MOST_BATCH = 2, 4
#: Values that a step holds at its peak per voxel of the finest level, in multiples of its channels. Measured in
#: float32 at 64^3 and 96^3: 16 to 18 with a DynUNet of four levels; 6 to 9 with the residual U-Net, whose plans are
#: therefore conservative.
_MAPS = 18
_RATES = {"adamw": 3e-3, "sgd": 1e-2}


def refuse_misfit(config: RunConfig, manifest: Manifest) -> None:
    """Refuse a config that does not fit the manifest, before any case is read.

    Raises:
        UserError: the settings do not fit the data, or each other.
        InputError: there is no such loss, or it does not take the arguments.
    """
    refuse_settings(config, manifest)
    loss = create_loss(config, manifest.scheme)
    needed = {"mask": "an ignored label"} if manifest.ignore is not None else {}
    if any(case.labelled is not None for case in manifest.cases):
        needed["labelled_classes"] = "partial labels"
    from medloss import CombinedLoss
    from medloss.create import accepted_keywords

    for part in loss.losses if isinstance(loss, CombinedLoss) else [loss]:
        taken = accepted_keywords(part)
        if missing := [name for name in needed if taken is not None and name not in taken]:
            raise UserError(
                f"loss: {type(part).__name__} takes no {missing[0]}, which '{manifest.name}' needs for "
                f"{needed[missing[0]]}; expected a loss of medloss"
            )


def create_loss(config: RunConfig, scheme: LabelScheme) -> nn.Module:
    """The loss of a config.

    Raises:
        InputError: there is no such loss, or it does not take the arguments.
    """
    from medloss import create_training_loss

    return create_training_loss(
        config.loss,
        num_classes=scheme.channels,
        arguments=config.loss_arguments,
        sigmoid=scheme.sigmoid or None,
        schedule=config.loss_schedule,
        epochs=config.epochs,
    )


def refuse_settings(config: RunConfig, manifest: Manifest) -> None:
    """`refuse_misfit` without the check of the loss, which needs torch.

    Raises:
        UserError: the settings do not fit the data, or each other.
    """
    dims = manifest.dimensions
    manifest.split(config.fold)
    metric_settings(config, manifest)
    if any(axis not in range(dims) for axis in config.flip_axes):
        raise UserError(f"flip axes: got {config.flip_axes}; '{manifest.name}' has axes 0 to {dims - 1}")
    if config.levels is not None and config.levels < _LEAST_LEVELS.get(config.network, 0):
        least = _LEAST_LEVELS[config.network]
        raise UserError(f"levels: got {config.levels}; '{config.network}' has at least {least}")
    inputs = len(manifest.image_channels)
    if config.network == "vnet" and _VNET_FEATURES % inputs:
        raise UserError(
            f"network: 'vnet' cannot take the {inputs} channels of '{manifest.name}', only a divisor of "
            f"{_VNET_FEATURES}; expected unet or dynunet"
        )
    if isinstance(config.intensity_clip, tuple) and len(config.intensity_clip) != inputs:
        raise UserError(
            f"intensity clip: got {len(config.intensity_clip)} entries; expected one per channel of "
            f"'{manifest.name}', which has {inputs}"
        )
    if config.deep_supervision and config.network != "dynunet":
        raise UserError(f"deep supervision: '{config.network}' has one output; expected 0, or the network dynunet")
    if config.spacing is not None and len(config.spacing) != dims:
        raise UserError(f"spacing: got {config.spacing}; expected {dims} numbers, mm, for '{manifest.name}'")
    if config.patch_size is not None and (config.levels is not None or len(config.patch_size) != dims):
        _refuse_patch(config, manifest, config.patch_size)


def metric_settings(config: RunConfig, manifest: Manifest) -> MetricSettings:
    """The metrics of a run: the default ones, the manifest's and the config's; with the config's tolerance, if any.

    Raises:
        UserError: there is no such metric, or it needs a package that is not installed.
    """
    settings = manifest_settings(manifest)
    refuse_unknown_metrics(config.metrics, "metrics")
    tolerance = settings.nsd_tolerance_mm if config.nsd_tolerance is None else config.nsd_tolerance
    names = with_default((*settings.metrics, *config.metrics))
    return replace(settings, names=names, nsd_tolerance_mm=tolerance)


def planned(config: RunConfig, manifest: Manifest, fingerprint: Fingerprint, device: torch.device) -> RunConfig:
    """The config with all open settings filled in from the training cases, for training on the device.

    Raises:
        UserError: the settings do not fit the data, or each other.
    """
    import torch

    from pipelines.preprocessing.resampling import Preprocessing
    from pipelines.training.distributed import ranks

    refuse_misfit(config, manifest)
    dims, on_gpu = manifest.dimensions, device.type == "cuda"
    memory_gb = config.memory_gb or _CPU_MEMORY_GB
    if config.memory_gb is None and on_gpu:
        memory_gb = round(0.8 * torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    spacing = config.spacing or fingerprint.target_spacing()
    clip = _clip(config, manifest, fingerprint)
    config = config.model_copy(
        update={
            "spacing": spacing,
            "intensity": _one_intensity(clip),
            "intensity_clip": clip,
            "base_channels": config.base_channels or (32 if on_gpu else 16),
            "learning_rate": recipe_rate(config),
            "memory_gb": memory_gb,
            "nsd_tolerance": metric_settings(config, manifest).nsd_tolerance_mm,
        }
    )
    grid = Preprocessing(dimensions=dims, spacing=spacing)
    shapes = [grid.shape(s, m) for s, m in zip(fingerprint.shapes, fingerprint.spacings, strict=True)]
    config = _with_patch(config, manifest, np.median(np.array(shapes), axis=0).tolist())
    if config.batch_size:
        return config
    fits = int((config.memory_gb or 0) / activations_gb(config, config.patch_size or ()))
    share = ranks()  # processes share a batch evenly
    batch = math.ceil(min(max(fits, _LEAST_BATCH), _MOST_BATCH) / share) * share
    return config.model_copy(update={"batch_size": batch})


def _clip(config: RunConfig, manifest: Manifest, fingerprint: Fingerprint) -> Clip | tuple[Clip | None, ...] | None:
    """How intensities are clipped, of one channel or one entry per channel; None if none are."""
    if config.intensity_clip is not None and config.intensity != "zscore":
        return config.intensity_clip
    clips = []
    for number, channel in enumerate(manifest.image_channels):
        clipped = channel.quantitative if config.intensity is None else config.intensity == "clip"
        clips.append(fingerprint.clip(number) if clipped else None)
    if not any(clips):
        return None
    return clips[0] if len(clips) == 1 else tuple(clips)


def _one_intensity(clip: Clip | tuple[Clip | None, ...] | None) -> str | None:
    """The `intensity` of all channels; None if they differ."""
    clips = clip if isinstance(clip, tuple) else (clip,)
    if len({one is None for one in clips}) > 1:
        return None
    return "zscore" if clips[0] is None else "clip"


def recipe_rate(config: RunConfig) -> float:
    """The peak learning rate of a config."""
    return config.learning_rates.get(config.loss, config.learning_rate or _RATES[config.optimizer])


def preprocessing(config: RunConfig, manifest: Manifest) -> Preprocessing:
    """The preprocessing of every image by a planned config."""
    from pipelines.preprocessing.resampling import Preprocessing

    return Preprocessing(
        dimensions=manifest.dimensions,
        spacing=config.spacing,
        clip=config.intensity_clip,
        orientation=config.orientation,
        resample_channels=config.resample_channels,
    )


def divisor(config: RunConfig, dims: int) -> tuple[int, ...]:
    """What a patch must be divisible by, per axis: the product of the network's strides."""
    if config.network == "vnet":
        return (_VNET_DIVISOR,) * dims
    if config.strides is None:
        return (2 ** ((config.levels or 3) - 1),) * dims
    return tuple(math.prod(stride[axis] for stride in config.strides) for axis in range(dims))


def topology(
    patch: Sequence[int], spacing: Sequence[float], most_levels: int = _MOST_LEVELS
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Strides and kernels per level for a patch (voxels) with a spacing (mm), at most `most_levels` of them.

    Fine axes are halved first, until all are alike.
    """
    size, mm = list(patch), list(spacing)
    stride = (1,) * len(size)
    strides, kernels = [], []
    while True:
        size = [math.ceil(n / s) for n, s in zip(size, stride, strict=True)]
        mm = [m * s for m, s in zip(mm, stride, strict=True)]
        strides.append(stride)
        kernels.append(tuple(3 if m < _COARSE * min(mm) else 1 for m in mm))
        possible = [m for n, m in zip(size, mm, strict=True) if n >= 2 * _LEAST_MAP]
        if not possible or len(strides) == most_levels:
            return tuple(strides), tuple(kernels)
        limit = _COARSE * min(possible)
        stride = tuple(2 if n >= 2 * _LEAST_MAP and m < limit else 1 for n, m in zip(size, mm, strict=True))


def _with_patch(config: RunConfig, manifest: Manifest, median: list[float]) -> RunConfig:
    """Patch, strides and kernels: as large as a median case, smaller where memory limits it."""
    dims = manifest.dimensions
    if config.patch_size is not None:
        shaped = _with_topology(config, config.patch_size)
        _refuse_patch(shaped, manifest, config.patch_size)
        return shaped
    patch = tuple(max(8, math.ceil(n / 8) * 8) for n in median)
    # A rough first cut: step by step, a huge grid would take forever.
    excess = activations_gb(config, patch) * _LEAST_BATCH / (2 * (config.memory_gb or 1))
    if excess > 1:
        patch = tuple(max(8, math.ceil(n / excess ** (1 / dims) / 8) * 8) for n in patch)
    while True:
        shaped = _with_topology(config, patch)
        steps = divisor(shaped, dims)
        patch = tuple(math.ceil(n / s) * s for n, s in zip(patch, steps, strict=True))
        largest = max(range(dims), key=lambda axis: patch[axis] / median[axis] if patch[axis] > steps[axis] else 0)
        if activations_gb(shaped, patch) * _LEAST_BATCH <= (config.memory_gb or 0) or patch[largest] <= steps[largest]:
            return shaped.model_copy(update={"patch_size": patch})
        patch = tuple(n - steps[axis] if axis == largest else n for axis, n in enumerate(patch))


def _refuse_patch(config: RunConfig, manifest: Manifest, patch: tuple[int, ...]) -> None:
    steps = divisor(config, manifest.dimensions)
    if len(patch) != manifest.dimensions or any(n % s for n, s in zip(patch, steps, strict=True)):
        by = ", ".join(map(str, steps if len(set(steps)) > 1 else steps[:1]))
        needed = f"{manifest.dimensions} numbers divisible by {by}"
        raise UserError(f"patch size: got {patch}; '{config.network}' on '{manifest.name}' needs {needed}")


def _with_topology(config: RunConfig, patch: tuple[int, ...]) -> RunConfig:
    if config.network == "vnet" or config.levels is not None or config.strides is not None:
        return config
    strides, kernels = topology(patch, config.spacing or (1.0,) * len(patch))
    missing = max(0, _LEAST_LEVELS[config.network] - len(strides))
    strides, kernels = strides + ((1,) * len(patch),) * missing, kernels + kernels[-1:] * missing
    return config.model_copy(update={"strides": strides, "kernels": config.kernels or kernels})


def activations_gb(config: RunConfig, patch: Sequence[int]) -> float:
    """Estimate of the memory (GB) that a training step takes per patch in float32."""
    return _MAPS * (config.base_channels or 16) * math.prod(patch) * 4 / 2**30
