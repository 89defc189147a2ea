"""The embedded data set: organs, shells and small lesions, on anisotropic voxels, as real NIfTI files.

Each case holds a large smooth organ, a shell a voxel or two thin elsewhere, and lesions of a few voxels. Noise, a bias
field and little contrast keep losses from all doing well.
"""

import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pipelines.files import sha256
from pipelines.manifest import Manifest

CHECKSUMS = "SHA256SUMS"

#: Mean intensities of background, organ, shell and lesions, and the noise's standard deviation.
_INTENSITIES = np.array([100.0, 150.0, 160.0, 195.0])
_NOISE = 18.0
#: The lesions' share of the voxels stays below this.
_MOST_LESION = 0.005


def make_phantom(manifest: Manifest, folder: Path) -> None:
    """Make the phantom's files in `folder`, unless they are there.

    The folder appears at once, whole; of several processes that make it at the same time one wins, and the others'
    work is dropped. `SHA256SUMS` beside the files holds their checksums, as `sha256sum` writes them.
    """
    if (folder / CHECKSUMS).is_file():
        return
    assert manifest.generator is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = Path(temporary) / "made"
        for name in ("images", "labels"):
            (made / name).mkdir(parents=True)
        affine = _affine(manifest.spacing)
        lines = []
        for index, case in enumerate(manifest.cases):
            image, label = phantom_case(manifest.generator.shape, manifest.spacing, manifest.generator.seed, index)
            for path, array in ((case.image, image), (case.label, label)):
                nib.save(_nifti(array, affine, manifest.spacing), made / path)
                lines.append(f"{sha256(made / path)}  {path}\n")
        (made / CHECKSUMS).write_text("".join(lines))
        made.chmod(0o755)
        try:
            made.rename(folder)
        except OSError:
            if not (folder / CHECKSUMS).is_file():
                # An earlier, broken folder without checksums: never a finished one.
                shutil.rmtree(folder, ignore_errors=True)
                made.rename(folder)


def recorded_checksums(folder: Path) -> dict[str, str]:
    """The checksums of a made data set: path to SHA-256; empty where there are none."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {name: digest for digest, name in pairs}


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
    label[_shell(rng, grid, size, max(spacing))] = 2
    _add_lesions(rng, label, grid, spacing)
    return _image(rng, label, grid, size, spacing), label


def _organ(rng: np.random.Generator, grid: NDArray, size: NDArray) -> NDArray[np.bool_]:
    """An ellipsoid, bent by a smooth wave."""
    centre = size * (np.array([0.5] * (len(size) - 1) + [0.32]) + rng.uniform(-0.06, 0.06, len(size)))
    radii = size * rng.uniform(0.2, 0.3, len(size))
    return _radius(rng, grid, centre, radii, wave=0.15) < 1


def _shell(rng: np.random.Generator, grid: NDArray, size: NDArray, thickness: float) -> NDArray[np.bool_]:
    """A thin closed surface, about one of the coarsest voxels thick."""
    centre = size * (np.array([0.5] * (len(size) - 1) + [0.74]) + rng.uniform(-0.05, 0.05, len(size)))
    radii = size * rng.uniform([0.2] * (len(size) - 1) + [0.13], [0.3] * (len(size) - 1) + [0.18])
    radius = _radius(rng, grid, centre, radii, wave=0.08)
    return np.abs(radius - 1) * radii.min() < thickness / 2


def _radius(rng: np.random.Generator, grid: NDArray, centre: NDArray, radii: NDArray, wave: float) -> NDArray:
    """1 on the surface of an ellipsoid whose radius waves with the direction."""
    scaled = (grid - centre) / radii
    radius = np.sqrt((scaled**2).sum(-1))
    direction = scaled / np.maximum(radius, 1e-6)[..., None]
    waves = sum(
        rng.normal() * np.sin(direction @ rng.normal(scale=2.0, size=len(centre)) + rng.uniform(0, 6.3))
        for _ in range(3)
    )
    return np.asarray(radius * (1 + wave * waves / 2))


def _add_lesions(rng: np.random.Generator, label: NDArray[np.uint8], grid: NDArray, spacing: tuple[float, ...]) -> None:
    """Scatter small balls over the background, until they are as many as wanted, or would be too large a share."""
    free = np.argwhere(ndimage.binary_erosion(label == 0, iterations=1))
    room = int(_MOST_LESION * label.size) - 1
    for _ in range(rng.integers(4, 8)):
        centre = np.array(spacing) * free[rng.integers(len(free))]
        radius = max(spacing) * rng.uniform(*((0.5, 0.95) if label.ndim == 3 else (0.8, 1.3)))
        ball = ((grid - centre) ** 2).sum(-1) <= radius**2
        ball &= label == 0
        if np.count_nonzero(label == 3) + np.count_nonzero(ball) <= room:
            label[ball] = 3


def _image(
    rng: np.random.Generator, label: NDArray[np.uint8], grid: NDArray, size: NDArray, spacing: tuple[float, ...]
) -> NDArray[np.int16]:
    intensities = _INTENSITIES * rng.normal(1, 0.04, 4)
    image = intensities[label]
    # Partial volume: the scanner's blur is as wide as a voxel of the finest axis.
    image = ndimage.gaussian_filter(image, [0.6 * min(spacing) / s for s in spacing])
    texture = ndimage.gaussian_filter(rng.normal(size=label.shape), [2.0 * min(spacing) / s for s in spacing])
    image = image + 8 * texture / texture.std()
    phase = grid / size @ rng.normal(scale=2.5, size=len(size)) + rng.uniform(0, 6.3)
    image = image * (1 + 0.2 * np.sin(phase))
    image = image + rng.normal(scale=_NOISE, size=label.shape)
    return np.clip(np.rint(image), 0, 4095).astype(np.int16)


def _affine(spacing: tuple[float, ...]) -> NDArray:
    """Array axes to superior, posterior and left: an affine that is no diagonal, as scanners write them."""
    affine = np.zeros((4, 4))
    three = (*spacing, 1.0)[:3]
    for axis, (world, sign) in enumerate(((2, 1.0), (1, -1.0), (0, -1.0))):
        affine[world, axis] = sign * three[axis]
    affine[:3, 3] = (40.0, 30.0, -25.0)
    affine[3, 3] = 1.0
    return affine


def _nifti(array: NDArray, affine: NDArray, spacing: tuple[float, ...]) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header.set_zooms(spacing)
    image.set_qform(affine, code="scanner")
    image.set_sform(affine, code="scanner")
    return image
