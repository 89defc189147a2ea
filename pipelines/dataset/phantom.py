"""The embedded data set's files: NIfTI images and labels with their checksums, made whole or not at all."""

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.manifest import Manifest
from pipelines.dataset.phantom_shapes import phantom_case
from pipelines.errors import UserError
from pipelines.files import sha256

#: The checksums' file, in the data set's folder, as `sha256sum` writes and checks it.
CHECKSUMS = "SHA256SUMS"


def make_phantom(manifest: Manifest, folder: Path) -> None:
    """Make the phantom's files in `folder`, unless they are there.

    The folder appears at once, whole; of several processes that make it at the same time one wins, and the others'
    work is dropped.

    Raises:
        UserError: the folder is there without its checksums, so somebody else's or damaged.
    """
    if is_made(folder):
        return
    assert manifest.generator is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        made = Path(temporary) / "made"
        _write(manifest, made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    if not is_made(folder):
        raise UserError(f"{folder} is no whole data set: it has no {CHECKSUMS}; remove it to have it made anew")


def is_made(folder: Path) -> bool:
    """Whether a made data set lies there."""
    return (folder / CHECKSUMS).is_file()


def recorded_checksums(folder: Path) -> dict[str, str]:
    """The checksums of a made data set: path to SHA-256; empty where there are none."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    return {name: digest for digest, name in pairs}


def _write(manifest: Manifest, folder: Path) -> None:
    assert manifest.generator is not None
    affine = _affine(manifest.spacing)
    values = np.array(manifest.label_values, np.uint8 if max(manifest.label_values) < 256 else np.int32)
    lines = []
    for index, case in enumerate(manifest.cases):
        image, label = phantom_case(manifest.generator.shape, manifest.spacing, manifest.generator.seed, index)
        for path, array in ((case.image, image), (case.label, values[label])):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            nib.save(_nifti(array, affine, manifest.spacing), folder / path)
            lines.append(f"{sha256(folder / path)}  {path}\n")
    (folder / CHECKSUMS).write_text("".join(lines))


def _affine(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Array axes to superior, posterior and left: an affine that is no diagonal, as scanners write them."""
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
