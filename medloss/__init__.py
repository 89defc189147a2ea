"""Losses for medical image segmentation: 2D and 3D, on anisotropic voxels, next to MONAI's."""

from typing import TYPE_CHECKING

#: The one place of the version: packaging reads it here, and a test compares CITATION.cff and CHANGELOG.md with it.
__version__ = "0.1.0"

if TYPE_CHECKING:
    from medloss.exports import *  # noqa: F403
else:
    # The command checks names before it waits seconds for torch.
    from medloss.lazy import lazy_exports as _lazy_exports

    __getattr__, __dir__ = _lazy_exports(__name__)
