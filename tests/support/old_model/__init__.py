"""A model, an image and its prediction, made by the version before images were brought to one orientation.

A `unet` of two levels and two channels, trained for 12 epochs on the 3D phantom of `tiny.py`, with 12 x 16 x 20 voxels.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
