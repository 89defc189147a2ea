"""Where our trainers lie, and where nnU-Net keeps its own things."""

import os
from pathlib import Path
from typing import Literal

#: Of nnU-Net's plans; its cascade is none, for that takes two trainings.
Configuration = Literal["2d", "3d_fullres", "3d_lowres"]
#: nnU-Net's own trainer, of Dice + cross entropy; folders of results are called by their trainer.
STOCK = "nnUNetTrainer"


def trainer_folder() -> Path:
    """The folder for `nnUNet_extTrainer`; it holds one module."""
    return Path(__file__).parent / "trainer_folder"


def nnunet_folder(kind: Literal["raw", "preprocessed", "results"]) -> Path | None:
    """The folder that nnU-Net's environment variable names; None where it is not set."""
    named = os.environ.get(f"nnUNet_{kind}")
    return Path(named) if named else None
