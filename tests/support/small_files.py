"""Small data sets of real NIfTI files, and ways to write them anew."""

import gzip
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tiny import tiny_manifest

from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import load_manifest

SHAPE = (12, 16, 14)
SPACING = (3.0, 1.0, 2.0)
#: The same along the canonical axes: the files' axes run to the superior, anterior and right.
CANONICAL_SHAPE, CANONICAL_SPACING = SHAPE[::-1], SPACING[::-1]
CASES = ("a", "b", "c", "d")


def small_folder(folder: Path) -> Path:
    """Four cases in `images` and `labels`; the last one's files are not compressed."""
    made = tiny_manifest(folder / "made", cases=len(CASES), generator={"folds": 2, "shape": list(SHAPE)})
    root = resolve_data(load_manifest(made), folder / "made")
    data = folder / "data"
    for index, case in enumerate(CASES):
        for kind in ("images", "labels"):
            (data / kind).mkdir(parents=True, exist_ok=True)
            source = root / kind / f"phantom_{index:03d}.nii.gz"
            if case == "d":
                (data / kind / "d.nii").write_bytes(gzip.decompress(source.read_bytes()))
            else:
                shutil.copy(source, data / kind / f"{case}.nii.gz")
    return data


def rewrite(
    path: Path,
    array: Any = None,
    affine: Any = None,
    zooms: tuple[float, ...] | None = None,
    raw: dict[str, Any] | None = None,
) -> None:
    """Write a file anew with another array, affine, or header; `zooms` are set apart from the affine."""
    old = nib.load(path)
    data = np.asanyarray(old.dataobj) if array is None else array
    image = nib.Nifti1Image(data, old.affine if affine is None else affine)
    if zooms is not None:
        image.header.set_zooms(zooms)
    content = bytearray(image.to_bytes())
    if raw:
        header = nib.Nifti1Header(bytes(content[:348]), check=False)
        for field, value in raw.items():
            header[field] = value
        content[:348] = header.binaryblock
    packed = gzip.compress(content, mtime=0) if path.name.endswith(".gz") else bytes(content)
    path.write_bytes(packed)


def array_of(path: Path) -> np.ndarray:
    """A file's array, a copy that can be changed."""
    return np.asanyarray(nib.load(path).dataobj).copy()


def affine_of(path: Path) -> np.ndarray:
    """A file's affine, a copy that can be changed."""
    return np.array(nib.load(path).affine)
