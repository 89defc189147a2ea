"""Data sets: manifests, their checks, the phantom that the project makes itself, and nnU-Net's names."""

import os
from pathlib import Path
from typing import Literal

# Data sets: manifests, their checks, and the phantom that the project makes itself.


# Where our trainers lie, and where nnU-Net keeps its own things.

#: Of nnU-Net's plans; its cascade is none, for that takes two trainings.
Configuration = Literal["2d", "3d_fullres", "3d_lowres"]


def nnunet_folder(kind: Literal["raw", "preprocessed", "results"]) -> Path | None:
    """The folder that nnU-Net's environment variable names; None where it is not set."""
    named = os.environ.get(f"nnUNet_{kind}")
    return Path(named) if named else None
