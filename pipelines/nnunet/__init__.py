"""nnU-Net: trainers with our losses, found from outside; its raw data sets as manifests, and back."""

from pathlib import Path


def trainer_folder() -> Path:
    """The folder for `nnUNet_extTrainer`; it holds one module."""
    return Path(__file__).parent / "trainer_folder"
