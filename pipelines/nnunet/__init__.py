"""nnU-Net: its trainers with our losses, runs of comparisons, and data sets in its format."""

from pathlib import Path


def trainer_folder() -> Path:
    """The folder for `nnUNet_extTrainer`, with one module."""
    return Path(__file__).parent / "trainer_folder"
