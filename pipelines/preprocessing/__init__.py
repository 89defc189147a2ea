"""From a case's files to a batch: reading, resampling, cache, patches, augmentation; and the settings of these."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]


class Clip(BaseModel):
    """Intensities of a scale that means something, such as Hounsfield units, over all training cases' foreground.

    Attributes:
        low: 0.5th percentile; what is below becomes it.
        high: 99.5th percentile.
        mean: of the clipped values, then subtracted.
        std: of the clipped values, by which is divided then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    mean: float
    std: float


class Augmentation(BaseModel):
    """How patches are varied; each kind in a share of the patches, independently.

    Attributes:
        rotation: largest angle about each axis, degrees; in mm, and where slices are three times as thick as pixels
            within the slices alone.
        scaling: least and largest factor of size.
        spatial_share: of the patches rotated, and of those scaled.
        brightness: largest part of the intensity that is added or taken, and largest shift, in standard deviations.
        brightness_share: of the patches.
        noise: standard deviation of Gaussian noise, at most; of intensities that have one of 1.
        noise_share: of the patches.
        blur: standard deviation of a Gaussian, voxels: least and largest.
        blur_share: of the patches.
        gamma: exponent of the intensities between their least and largest: least and largest.
        gamma_share: of the patches.
        low_resolution: least factor by which a patch is sampled down, and up again.
        low_resolution_share: of the patches.
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
