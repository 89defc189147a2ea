"""What goes wrong with files, each made for real on a small data set, and how the check tells it."""

import gzip
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from small_files import SHAPE, affine_of, array_of, rewrite

# The case b is compressed, d is not.
IMAGE, LABEL = "images/b.nii.gz", "labels/b.nii.gz"


def cut(path: Path, keep: float | int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x10
    path.write_bytes(content)


def repack(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def repack_as_plain(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes()))


def with_voxel(path: Path, value: float, dtype: type = np.float32, count: int = 1) -> None:
    array: np.ndarray = array_of(path).astype(dtype)
    array.flat[:count] = value
    rewrite(path, array)


def with_colours(path: Path) -> None:
    """NIfTI's RGB24: three numbers per voxel."""
    colours = np.zeros(array_of(path).shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, affine_of(path)), path)


def resaved_from_float(path: Path) -> None:
    """As a script does that computes in float64: nibabel scales the values, and 3 is read as 3.00000006."""
    image = nib.Nifti1Image(array_of(path).astype(np.float64), affine_of(path))
    nib.save(image, path, dtype=np.uint8)
    values = np.unique(array_of(path))
    assert (values != np.rint(values)).any()


def moved(path: Path, axis: int, mm: float) -> None:
    affine = affine_of(path)
    affine[axis, 3] += mm
    rewrite(path, affine=affine)


def sheared(path: Path, share: float = 0.1) -> None:
    affine = affine_of(path)
    affine[:3, 1] += share * affine[:3, 0]
    rewrite(path, affine=affine, zooms=tuple(np.linalg.norm(affine[:3, :3], axis=0)))


def singular(path: Path) -> None:
    affine = affine_of(path)
    affine[:3, 1] = affine[:3, 2] / 2
    # Such a matrix can only be kept in the rows of the sform.
    raw = {f"srow_{row}": affine[index] for index, row in enumerate("xyz")}
    rewrite(path, raw={**raw, "sform_code": 1, "qform_code": 0})


def with_header(path: Path, fields: dict[str, object]) -> None:
    rewrite(path, raw=fields)


def with_zooms(path: Path, zooms: tuple[float, ...]) -> None:
    rewrite(path, zooms=zooms)


def mirrored(path: Path) -> None:
    rewrite(path, affine=affine_of(path) @ np.diag([1, -1, 1, 1]))


def stretched(path: Path, factor: float = 1.2) -> None:
    affine = affine_of(path)
    affine[:3, :3] *= factor
    rewrite(path, affine=affine)


def linked(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def linked_outside(path: Path) -> None:
    outside = path.parents[2] / "elsewhere.nii.gz"
    shutil.copy(path, outside)
    linked(path, outside)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def padded(path: Path, count: int = 16) -> None:
    """With spare bytes behind the last voxel, as some writers leave them."""
    if path.name.endswith(".gz"):
        repack(path, lambda content: content + bytes(count))
    else:
        path.write_bytes(path.read_bytes() + bytes(count))


def with_trailing_axes(path: Path, count: int = 1) -> None:
    """One volume in time, and of one component: `(x, y, z, 1)`, `(x, y, z, 1, 1)`."""
    reshaped(path, (*array_of(path).shape, *(1,) * count))


def reshaped(path: Path, shape: tuple[int, ...]) -> None:
    rewrite(path, np.resize(array_of(path), shape))


@dataclass(frozen=True)
class Fault:
    """A fault, the one file that it makes an offender, and the reason as a regular expression."""

    name: str
    make: Callable[[Path], object]
    file: str
    reason: str
    #: Whether the manifest keeps its old checksums; else it gets the broken files' own.
    old_checksums: bool = False


def copied(file: str, to: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / file, root / to)


def on(file: str, change: Callable[..., object], *arguments: object) -> Callable[[Path], object]:
    return lambda root: change(root / file, *arguments)


FAULTS = [
    Fault("image missing", on(IMAGE, Path.unlink), IMAGE, "^missing$"),
    Fault("label missing", on(LABEL, Path.unlink), LABEL, "^missing$"),
    Fault("0 bytes", on(IMAGE, cut, 0), IMAGE, "^0 bytes$"),
    Fault("half a .nii.gz", on(IMAGE, cut, 0.5), IMAGE, "^truncated: its gzip stream ends"),
    Fault("half a label", on(LABEL, cut, 0.5), LABEL, "^truncated: its gzip stream ends"),
    Fault("a .nii.gz without its last byte", on(IMAGE, cut, -1), IMAGE, "^truncated: its gzip stream ends"),
    Fault("only gzip's mark", on(IMAGE, cut, 5), IMAGE, "^truncated: its gzip stream ends"),
    Fault(
        "half a volume, packed anew",
        on(IMAGE, repack, lambda content: content[:3000]),
        IMAGE,
        r"^truncated: 3000 bytes; its header says 5728$",
    ),
    Fault(
        "more than the header says",
        on(IMAGE, repack, lambda content: content + bytes(513)),
        IMAGE,
        "^more bytes than the 5728 that its header says and 512 of padding$",
    ),
    Fault(
        "half a .nii", on("images/d.nii", cut, 0.5), "images/d.nii", r"^truncated: 2864 bytes; its header says 5728$"
    ),
    Fault("a .nii named .nii.gz", on(IMAGE, repack_as_plain), IMAGE, "^not a gzip file, though its name"),
    Fault(
        "no NIfTI in it",
        on(IMAGE, repack, lambda _: b"hello" * 200),
        IMAGE,
        "^not a NIfTI file: it has no NIfTI header",
    ),
    Fault("flipped byte, packed", on(IMAGE, flip, 0.6), IMAGE, "^damaged: |SHA-256 is not the recorded", True),
    Fault("flipped byte in gzip's checksum", on(IMAGE, flip, 0.9999), IMAGE, "^damaged: |^truncated|SHA-256"),
    Fault("flipped byte in a .nii", on("images/d.nii", flip, 0.6), "images/d.nii", "its SHA-256 is not", True),
    Fault("another file", on(IMAGE, with_voxel, 17.0), IMAGE, "its SHA-256 is not the recorded one", True),
    Fault("other label", on(LABEL, with_voxel, 1, np.uint8), LABEL, "its SHA-256 is not the recorded one", True),
    Fault("header with no voxels", on(IMAGE, with_header, {"dim": [3, 0, 4, 4, 1, 1, 1, 1]}), IMAGE, "says 0 x"),
    Fault("header with nine axes", on(IMAGE, with_header, {"dim": [9] * 8}), IMAGE, "^(damaged|truncated)"),
    Fault("unknown data type", on(IMAGE, with_header, {"datatype": 999}), IMAGE, "^damaged: "),
    Fault(
        "complex numbers", on(IMAGE, with_voxel, 1j, np.complex64), IMAGE, "^holds complex64; expected one integer or"
    ),
    Fault(
        "colours",
        on(IMAGE, with_colours),
        IMAGE,
        r"^holds \[\('R', 'u?\|?u1'\), .*\]; expected one integer or real number per voxel$",
    ),
    Fault(
        "label of another shape",
        on(LABEL, reshaped, (12, 16, 15)),
        LABEL,
        "^15 x 16 x 12 voxels, but its image has 14 x 16 x 12",
    ),
    Fault(
        "label with axes turned",
        on(LABEL, reshaped, (14, 16, 12)),
        LABEL,
        "^12 x 16 x 14 voxels, but its image has 14 x 16 x 12",
    ),
    Fault(
        "label of other spacing",
        on(LABEL, stretched),
        LABEL,
        r"^spacing 2.4 x 1.2 x 3.6 mm, but its image has 2 x 1 x 3",
    ),
    Fault(
        "label moved", on(LABEL, moved, 1, 0.5), LABEL, "^its affine differs from its image's: it lies up to 0.5 mm off"
    ),
    Fault(
        "label moved by more than a tenth of a voxel",
        on(LABEL, moved, 0, 0.11),
        LABEL,
        "^its affine differs from its image's: it lies up to 0.11 mm off$",
    ),
    Fault(
        "label of a slightly other spacing",
        on(LABEL, stretched, 1.004),
        LABEL,
        r"^spacing 2.008 x 1.004 x 3.012 mm, but its image has 2 x 1 x 3 mm$",
    ),
    Fault(
        "image moved",
        on(IMAGE, moved, 2, -40.0),
        LABEL,
        "^its affine differs from its image's: it lies up to 40 mm off",
    ),
    Fault("label mirrored", on(LABEL, mirrored), LABEL, "affine differs"),
    Fault(
        "sheared image",
        on(IMAGE, sheared),
        IMAGE,
        r"^its direction matrix is sheared: [\d.]+ degrees between axes 0 and 1",
    ),
    Fault("image sheared the other way", on(IMAGE, sheared, -0.1), IMAGE, "^its direction matrix is sheared"),
    Fault("singular image", on(IMAGE, singular), IMAGE, "^its direction matrix is singular"),
    Fault("affine of zeros", on(IMAGE, with_header, {"srow_x": 0, "srow_y": 0, "srow_z": 0}), IMAGE, "is singular"),
    Fault("NaN in the affine", on(IMAGE, with_header, {"srow_x": np.nan}), IMAGE, "^its affine holds NaN or Inf"),
    Fault(
        "lengths in micrometres", on(IMAGE, with_header, {"xyzt_units": 3}), IMAGE, "^its header gives lengths in micr"
    ),
    Fault(
        "zooms against the affine",
        on(IMAGE, with_zooms, (3.0, 1.0, 1.0)),
        IMAGE,
        "^its header says voxels of 3 x 1 x 1 mm",
    ),
    Fault(
        "4D image",
        on(IMAGE, reshaped, (*SHAPE, 2)),
        IMAGE,
        r"^4 axes \(12 x 16 x 14 x 2 voxels\); expected 3, one volume",
    ),
    Fault("5D label of two volumes", on(LABEL, reshaped, (*SHAPE, 1, 2)), LABEL, r"^5 axes \(12 x 16 x 14 x 1 x 2 vo"),
    Fault("2D image", on(IMAGE, reshaped, (12, 16)), IMAGE, r"^2 axes \(12 x 16 voxels\); expected 3"),
    Fault("NaN in an image", on(IMAGE, with_voxel, np.nan, np.float32, 3), IMAGE, "^NaN in 3 voxels$"),
    Fault("Inf in an image", on(IMAGE, with_voxel, np.inf), IMAGE, "^Inf, or too large for float32, in 1 voxel$"),
    Fault(
        "beyond float32",
        on(IMAGE, with_voxel, -1e300, np.float64, 2),
        IMAGE,
        "^Inf, or too large for float32, in 2 voxels$",
    ),
    Fault(
        "unknown label",
        on(LABEL, with_voxel, 7, np.uint8, 5),
        LABEL,
        r"^label values without a class: 7 \(5 voxels\); .* 0, 1, 2, 3$",
    ),
    Fault(
        "negative label", on(LABEL, with_voxel, -1, np.int16), LABEL, r"^label values without a class: -1 \(1 voxels\)"
    ),
    Fault(
        "half a label value",
        on(LABEL, with_voxel, 1.5, np.float32, 2),
        LABEL,
        "^label values that are not whole numbers in 2 voxels, such as 1.5",
    ),
    Fault(
        "more than 1e-3 off a whole number",
        on(LABEL, with_voxel, 2.9989999, np.float64),
        LABEL,
        r"^label values that are not whole numbers in 1 voxel, such as 2\.9989999$",
    ),
    Fault(
        "all digits of float32",
        on(LABEL, with_voxel, 3.0010002),
        LABEL,
        r"not whole numbers in 1 voxel, such as 3\.0010002$",
    ),
    Fault("NaN in a label", on(LABEL, with_voxel, np.nan), LABEL, "not whole numbers in 1 voxel, such as nan"),
    Fault("link to nothing", on(IMAGE, linked, Path("none.nii.gz")), IMAGE, "^a symbolic link to nothing$"),
    Fault("link to itself", on(IMAGE, linked, Path("b.nii.gz")), IMAGE, "symbolic link"),
    Fault("a folder", on(IMAGE, replaced_by_folder), IMAGE, "^is not a regular file$"),
    Fault("a pipe", on(IMAGE, replaced_by_pipe), IMAGE, "^is not a regular file$"),
    Fault(
        "image without a label",
        copied(IMAGE, "images/x.nii.gz"),
        "images/x.nii.gz",
        "^image without a label; the manifest neither lists nor excludes it",
    ),
    Fault(
        "label without an image",
        copied(LABEL, "labels/x.nii"),
        "labels/x.nii",
        "^label without an image; the manifest neither",
    ),
    Fault(
        "second label",
        copied("labels/d.nii", "labels/b.nii"),
        "labels/b.nii",
        "^duplicate: 'b' has 2 labels; the manifest neither",
    ),
]
