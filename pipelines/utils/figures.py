"""Common style of all figures, and how they are written."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from pipelines.utils.files import write_atomically

#: Okabe and Ito's colours, which can be distinguished with every kind of colour vision.
FOREGROUND = "#0072B2"
BACKGROUND = "#D55E00"
PREDICTION = "#00795A"
NEIGHBOUR_GREY = "#8A8A8A"
#: Colours of negative gradients: blue (away from foreground), white, red (towards foreground).
GRADIENT_COLOURS = matplotlib.colormaps["RdBu_r"]

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@contextmanager
def styled() -> Iterator[None]:
    """Context in which figures are drawn in the common style, whatever the user's settings are."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure (inches), without a window and without pyplot's state."""
    return Figure(figsize=(width, height), dpi=125, layout="constrained", facecolor="white")


def write_png(figure: Figure, path: Path) -> None:
    """Write a figure, atomically and reproducibly, with a palette of 256 colours, which takes a third of the bytes."""
    buffer = BytesIO()
    with styled():
        figure.savefig(buffer, format="png")
    buffer.seek(0)
    with Image.open(buffer) as image:
        small = indexed(image, _palette())
    write_atomically(path, lambda file: small.save(file, format="PNG", optimize=True))


def indexed(image: Image.Image, palette: NDArray[np.uint8]) -> Image.Image:
    """An image in the nearest colours of a palette, `[256, 3]`."""
    pixels = np.asarray(image.convert("RGB"), np.uint32)
    colours, numbers = np.unique(pixels @ np.array([1 << 16, 1 << 8, 1], np.uint32), return_inverse=True)
    channels = np.stack([colours >> 16 & 255, colours >> 8 & 255, colours & 255], -1)
    nearest = np.asarray(cKDTree(palette).query(channels)[1], np.uint8)
    small = Image.fromarray(nearest[numbers].reshape(pixels.shape[:2]), "P")
    small.putpalette(palette.tobytes())
    return small


@cache
def _palette() -> NDArray[np.uint8]:
    """`[256, 3]`: the gradient's colours, greys, and the lines' to white, of which Pillow would choose too few."""
    white = (1.0, 1.0, 1.0)
    shades = [GRADIENT_COLOURS(np.linspace(0, 1, 136))[:, :3], np.linspace((0.0, 0.0, 0.0), white, 72)]
    shades += [np.linspace(to_rgb(line), white, 16, endpoint=False) for line in (FOREGROUND, BACKGROUND, PREDICTION)]
    return np.rint(255 * np.concatenate(shades)).astype(np.uint8)


def plain(axes: Axes) -> None:
    """An image's axes: a frame, no grid."""
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
