"""One case of the embedded data set, as arrays: an organ, a thin shell and small lesions, drawn and then imaged."""

import numpy as np
from numpy.typing import NDArray

#: Changes when the drawing does: a data set that an older version made lies apart.
VERSION = 3

#: Mean intensities of background, organ, shell and lesions, and the noise's standard deviation.
_INTENSITIES = np.array([100.0, 148.0, 178.0, 240.0])
_NOISE = 15.0
#: The lesions' share of the voxels stays below this.
_MOST_LESION = 0.005


def phantom_case(
    shape: tuple[int, ...], spacing: tuple[float, ...], seed: int, index: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One case: image and label (0 background, 1 organ, 2 shell, 3 lesions), arrays of `shape`.

    Args:
        shape: voxels, 2 or 3 axes.
        spacing: mm, an axis.
        seed: the data set's.
        index: the case's.
    """
    rng = np.random.default_rng([seed, index])
    size = np.array(shape) * np.array(spacing)
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"), -1)
    label = np.zeros(shape, np.uint8)
    label[_organ(rng, grid, size)] = 1
    label[_shell(rng, grid, size, 2.4 * min(spacing))] = 2
    _add_lesions(rng, label, grid, spacing)
    return _image(rng, label, grid, size, spacing), label


def _organ(rng: np.random.Generator, grid: NDArray, size: NDArray) -> NDArray[np.bool_]:
    """An ellipsoid, bent by a smooth wave."""
    axes = len(size)
    centre = size * (np.array([0.5] * (axes - 1) + [0.32]) + rng.uniform(-0.06, 0.06, axes))
    radii = size * rng.uniform(0.2, 0.3, axes)
    return _radius(rng, (grid - centre) / radii, wave=0.15) < 1


def _shell(rng: np.random.Generator, grid: NDArray, size: NDArray, thickness: float) -> NDArray[np.bool_]:
    """A closed surface, `thickness` mm thick along the rays from its centre."""
    axes = len(size)
    centre = size * (np.array([0.5] * (axes - 1) + [0.74]) + rng.uniform(-0.05, 0.05, axes))
    radii = size * rng.uniform([0.2] * (axes - 1) + [0.13], [0.3] * (axes - 1) + [0.18])
    radius = _radius(rng, (grid - centre) / radii, wave=0.08)
    from_centre = np.linalg.norm(grid - centre, axis=-1)
    return np.abs(radius - 1) * from_centre < thickness / 2 * radius


def _radius(rng: np.random.Generator, scaled: NDArray, wave: float) -> NDArray:
    """Distance from the origin in units of a surface whose own distance waves with the direction: 1 on it."""
    radius = np.linalg.norm(scaled, axis=-1)
    direction = scaled / np.maximum(radius, 1e-6)[..., None]
    waves = sum(
        rng.normal() * np.sin(direction @ rng.normal(scale=2.0, size=scaled.shape[-1]) + rng.uniform(0, 6.3))
        for _ in range(3)
    )
    return np.asarray(radius * (1 + wave * waves / 2))


def _add_lesions(rng: np.random.Generator, label: NDArray[np.uint8], grid: NDArray, spacing: tuple[float, ...]) -> None:
    """Scatter small balls over the background, as long as they are less than the share that they may be."""
    from scipy import ndimage  # not above: commands that make no phantom do not wait for it

    free = np.argwhere(ndimage.binary_erosion(label == 0))
    if not len(free):
        free = np.argwhere(label == 0)
    room = int(_MOST_LESION * (label.size - 1))
    for _ in range(rng.integers(6, 12)):
        centre = np.array(spacing) * free[rng.integers(len(free))]
        radius = max(spacing) * rng.uniform(*((0.5, 0.95) if label.ndim == 3 else (0.8, 1.3)))
        distance = np.where(label == 0, np.linalg.norm(grid - centre, axis=-1), np.inf).ravel()
        voxels = np.count_nonzero(distance <= radius)
        if voxels > room and np.any(label == 3):
            continue
        # In a tiny volume even the first does not fit: then the voxels nearest to its centre.
        ball = np.argsort(distance, kind="stable")[: min(voxels, room)]
        label.ravel()[ball] = 3
        room -= len(ball)


def _image(
    rng: np.random.Generator, label: NDArray[np.uint8], grid: NDArray, size: NDArray, spacing: tuple[float, ...]
) -> NDArray[np.int16]:
    from scipy import ndimage

    intensities = _INTENSITIES * rng.normal(1, 0.04, len(_INTENSITIES))
    # Partial volume: the scanner's blur is as wide as a voxel of the finest axis.
    image = ndimage.gaussian_filter(intensities[label], [0.6 * min(spacing) / s for s in spacing])
    texture = ndimage.gaussian_filter(rng.normal(size=label.shape), [2.0 * min(spacing) / s for s in spacing])
    image = image + 8 * texture / texture.std()
    phase = grid / size @ rng.normal(scale=2.5, size=len(size)) + rng.uniform(0, 6.3)
    image = image * (1 + 0.15 * np.sin(phase))
    image = image + rng.normal(scale=_NOISE, size=label.shape)
    return np.clip(np.rint(image), 0, 4095).astype(np.int16)
