"""From a case's files to a batch: reading, resampling, cache, patches, augmentation, and their settings."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class Clip(BaseModel):
    """Clipping and normalisation of quantitative intensities, such as Hounsfield units.

    By statistics of the foreground of all training cases: intensities are clipped to `low` and `high`, the 0.5th and
    99.5th percentiles; then the clipped values' `mean` is subtracted, and they are divided by their deviation `std`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    mean: float
    std: float


class Augmentation(BaseModel):
    """Augmentation of patches: each kind is applied to a share of the patches, independently of the others.

    Attributes:
        rotation: largest angle about each axis, degrees, in physical space; if slices are three times as thick as
            pixels, only within the slices.
        scaling: smallest and largest factor of size.
        spatial_share: share of the patches that are rotated, and share that are scaled.
        brightness: largest relative change of the intensity, and largest shift in standard deviations.
        brightness_share: share of the patches.
        noise: largest standard deviation of Gaussian noise, relative to intensities of standard deviation 1.
        noise_share: share of the patches.
        blur: smallest and largest standard deviation of the Gaussian, voxels.
        blur_share: share of the patches.
        gamma: smallest and largest exponent of the intensities, which are scaled to 0..1 for it.
        gamma_share: share of the patches.
        low_resolution: smallest factor by which a patch is downsampled before it is upsampled again.
        low_resolution_share: share of the patches.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rotation: float = Field(default=0, ge=0, le=180)
    scaling: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    spatial_share: Share = 0.0
    brightness: float = Field(default=0.1, ge=0, lt=1)
    brightness_share: Share = 0.5
    noise: float = Field(default=0.1, ge=0)
    noise_share: Share = 0.0
    blur: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 1.0)
    blur_share: Share = 0.0
    gamma: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.7, 1.5)
    gamma_share: Share = 0.0
    low_resolution: float = Field(default=0.5, gt=0, le=1)
    low_resolution_share: Share = 0.0
