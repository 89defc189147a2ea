"""The phantom: volumes of an organ, a thin shell and small lesions, as arrays and as a data set that is generated."""

import tempfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipelines.data.manifest import Manifest
from pipelines.utils import UserError
from pipelines.utils.files import sha256

#: Changed together with the drawing, so that data sets of other versions are kept apart.
VERSION = 3

#: Mean intensities of background, organ, shell and lesions; standard deviation of the noise.
_INTENSITIES = np.array([100.0, 148.0, 178.0, 240.0])
_NOISE = 15.0
#: Upper bound of the lesions' share of the voxels.
_MAX_LESION_SHARE = 0.005


def phantom_case(
    shape: tuple[int, ...], spacing: tuple[float, ...], seed: int, index: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """One case: image and label (0 background, 1 organ, 2 shell, 3 lesions), arrays of `shape`.

    Args:
        shape: voxels, 2 or 3 axes.
        spacing: mm per axis.
        seed: seed of the data set.
        index: number of the case.
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
    """An ellipsoid, deformed by a smooth wave."""
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
    """Distance from the origin relative to a wavy surface around it: 1 on the surface."""
    radius = np.linalg.norm(scaled, axis=-1)
    direction = scaled / np.maximum(radius, 1e-6)[..., None]
    waves = sum(
        rng.normal() * np.sin(direction @ rng.normal(scale=2.0, size=scaled.shape[-1]) + rng.uniform(0, 6.3))
        for _ in range(3)
    )
    return np.asarray(radius * (1 + wave * waves / 2))


def _add_lesions(rng: np.random.Generator, label: NDArray[np.uint8], grid: NDArray, spacing: tuple[float, ...]) -> None:
    """Scatter small balls over the background, up to the largest share of lesions."""
    from scipy import ndimage  # imported late, since commands that generate no phantom need not wait for it

    free = np.argwhere(ndimage.binary_erosion(label == 0))
    if not len(free):
        free = np.argwhere(label == 0)
    room = int(_MAX_LESION_SHARE * (label.size - 1))
    for _ in range(rng.integers(6, 12)):
        centre = np.array(spacing) * free[rng.integers(len(free))]
        radius = max(spacing) * rng.uniform(*((0.5, 0.95) if label.ndim == 3 else (0.8, 1.3)))
        distance = np.where(label == 0, np.linalg.norm(grid - centre, axis=-1), np.inf).ravel()
        voxels = np.count_nonzero(distance <= radius)
        if voxels > room and np.any(label == 3):
            continue
        # In a tiny volume even the first ball does not fit, so the voxels nearest to its centre are taken.
        ball = np.argsort(distance, kind="stable")[: min(voxels, room)]
        label.ravel()[ball] = 3
        room -= len(ball)


def _image(
    rng: np.random.Generator, label: NDArray[np.uint8], grid: NDArray, size: NDArray, spacing: tuple[float, ...]
) -> NDArray[np.int16]:
    from scipy import ndimage

    intensities = _INTENSITIES * rng.normal(1, 0.04, len(_INTENSITIES))
    # Partial volume effect: a blur as wide as a voxel along the finest axis.
    image = ndimage.gaussian_filter(intensities[label], [0.6 * min(spacing) / s for s in spacing])
    texture = ndimage.gaussian_filter(rng.normal(size=label.shape), [2.0 * min(spacing) / s for s in spacing])
    image = image + 8 * texture / texture.std()
    phase = grid / size @ rng.normal(scale=2.5, size=len(size)) + rng.uniform(0, 6.3)
    image = image * (1 + 0.15 * np.sin(phase))
    image = image + rng.normal(scale=_NOISE, size=label.shape)
    return np.clip(np.rint(image), 0, 4095).astype(np.int16)


# The phantom of regions: two channels, nested regions, and a rim of ignored voxels.

#: Mean intensities per channel (PET as uptake, CT in Hounsfield units) of background, rim, core and centre of a tumour.
#: Neither channel alone shows all of them. Standard deviations of the noise.
_TWO_CHANNELS = np.array([[1.0, 4.0, 4.2, 7.0], [-60.0, -50.0, 40.0, 45.0]])
_TWO_NOISES = (0.8, 25.0)


def regions_case(
    shape: tuple[int, ...], spacing: tuple[float, ...], seed: int, index: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """One case: image `[2, *shape]` and label (0 background, 1 rim, 2 core, 3 centre, 4 ignored).

    A tumour of three nested parts, and voxels at the volume's border that nobody annotated.

    Args:
        shape: voxels, 2 or 3 axes.
        spacing: mm per axis.
        seed: seed of the data set.
        index: number of the case.
    """
    from scipy import ndimage

    rng = np.random.default_rng([seed, index, 2])
    size = np.array(shape) * np.array(spacing)
    grid = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"), -1)
    centre = size * (0.5 + rng.uniform(-0.1, 0.1, len(size)))
    radius = _radius(rng, (grid - centre) / (size * rng.uniform(0.24, 0.34, len(size))), wave=0.12)
    label = np.select([radius < 0.45, radius < 0.72, radius < 1], [3, 2, 1], 0).astype(np.uint8)
    channels = []
    for means, noise in zip(_TWO_CHANNELS, _TWO_NOISES, strict=True):
        blurred = ndimage.gaussian_filter(means[label], [0.6 * min(spacing) / s for s in spacing])
        channels.append(blurred * rng.normal(1, 0.04) + rng.normal(scale=noise, size=shape))
    unknown = np.ones(shape, bool)
    unknown[tuple(slice(max(1, n // 12), n - max(1, n // 12)) for n in shape)] = False
    label[unknown] = 4
    return np.stack(channels).astype(np.float32), label


# The phantoms' files.

#: File of checksums in the data set's folder, in the format of `sha256sum`.
CHECKSUMS = "SHA256SUMS"


def make_phantom(manifest: Manifest, folder: Path) -> None:
    """Generate the phantom's files in `folder`, unless they exist.

    The folder appears complete, in one step; if several processes generate it at the same time, one wins.

    Raises:
        UserError: the folder exists without its checksums, so it is damaged or not the phantom's.
    """
    if is_generated(folder):
        return
    assert manifest.generator is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        complete = Path(temporary) / "complete"
        _write(manifest, complete)
        try:
            complete.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    if not is_generated(folder):
        raise UserError(f"{folder} is not a complete data set: it has no {CHECKSUMS}; remove it to generate it again")


def is_generated(folder: Path) -> bool:
    """Whether the folder is a complete generated data set."""
    return (folder / CHECKSUMS).is_file()


def recorded_checksums(folder: Path) -> dict[str, str]:
    """The checksums of a generated data set: path to SHA-256; empty if there are none."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {name: digest for digest, name in pairs}


def _write(manifest: Manifest, folder: Path) -> None:
    assert manifest.generator is not None
    generator, ignore = manifest.generator, manifest.ignore
    written = [*manifest.label_values, 0 if ignore is None else ignore]
    values = np.array(written, np.uint8 if max(written) < 256 else np.int32)
    lines = []
    for index, case in enumerate(manifest.cases):
        spacing = manifest.spacing
        if generator.name == "phantom":
            image, label = phantom_case(generator.shape, spacing, generator.seed, index)
            channels: NDArray[Any] = image[None]
        else:
            # Every other case has voxels a quarter as large again, all its axes alike.
            spacing = tuple(round(s * (1, 1.25)[index % 2], 6) for s in spacing)
            channels, label = regions_case(generator.shape, spacing, generator.seed, index)
        affine = _affine(spacing)
        for path, array in zip(case.files, [*channels, values[label]], strict=True):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            nib.save(_nifti(array, affine, spacing), folder / path)
            lines.append(f"{sha256(folder / path)}  {path}\n")
    (folder / CHECKSUMS).write_text("".join(lines))


def _affine(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Array axes to superior, posterior and left: an affine that is not diagonal, like those of scanners."""
    affine = np.zeros((4, 4))
    three = (*spacing, 1.0)[:3]
    for axis, (world, sign) in enumerate(((2, 1.0), (1, -1.0), (0, -1.0))):
        affine[world, axis] = sign * three[axis]
    affine[:3, 3] = (25.0, 30.0, -40.0)
    affine[3, 3] = 1.0
    return affine


def _nifti(array: NDArray, affine: NDArray[np.float64], spacing: tuple[float, ...]) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_zooms(spacing)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    return image
