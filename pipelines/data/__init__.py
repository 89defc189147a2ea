"""Data sets: manifests, checks, file formats, and the generated phantom."""

import os
from pathlib import Path
from typing import Literal

#: nnU-Net's plan configurations, except its cascade, which needs two runs.
Configuration = Literal["2d", "3d_fullres", "3d_lowres"]


def nnunet_folder(kind: Literal["raw", "preprocessed", "results"]) -> Path | None:
    """The folder that nnU-Net's environment variable names; None if it is not set."""
    named = os.environ.get(f"nnUNet_{kind}")
    return Path(named) if named else None
