"""Folders in the layouts that data sets are distributed in, each with three or four small cases."""

import json
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

#: Right, anterior, superior.
AFFINE = np.diag([0.8, 1.2, 2.5, 1.0])
SHAPE = (6, 5, 4)


def write_image(path: Path, shape: tuple[int, ...] = SHAPE, affine: Any = AFFINE) -> None:
    """An image whose content depends on its path, since equal images are refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32(str(path).encode()))
    nib.save(nib.Nifti1Image(rng.integers(0, 1000, shape).astype(np.int16), affine), path)


def write_label(path: Path, values: Iterable[int] = (0, 1, 2), affine: Any = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.resize(np.array([*values], np.uint8), SHAPE), affine), path)


def write_files(folder: Path, *names: str) -> Path:
    """Images and labels, told apart by their names."""
    for name in names:
        is_label = re.search(r"labels|derivatives|seg|gt|mask", name)
        (write_label if is_label else write_image)(folder / name)
    return folder


def write_card(folder: Path, **content: Any) -> None:
    (folder / "dataset.json").write_text(json.dumps(content))


def decathlon(folder: Path) -> None:
    write_files(folder, *(f"labelsTr/liver_{n}.nii.gz" for n in range(3)))
    for n in range(3):
        write_image(folder / f"imagesTr/liver_{n}.nii.gz")
    write_card(folder, name="Liver", modality={"0": "CT"}, labels={"0": "background", "1": "liver", "2": "cancer"})


def decathlon_4d(folder: Path) -> None:
    write_files(folder, *(f"labelsTr/brain_{n}.nii.gz" for n in range(3)))
    for n in range(3):
        write_image(folder / f"imagesTr/brain_{n}.nii.gz", (*SHAPE, 2))
    write_card(folder, modality={"0": "FLAIR", "1": "T1w"}, labels={"0": "background", "1": "oedema", "2": "tumour"})


def _nnunet(folder: Path) -> None:
    write_files(folder, *(f"imagesTr/h_{n}_000{k}.nii.gz" for n in range(3) for k in range(2)))
    write_files(folder, *(f"labelsTr/h_{n}.nii.gz" for n in range(3)))


def nnunet_v1(folder: Path) -> None:
    _nnunet(folder)
    write_card(folder, modality={"0": "CT", "1": "PET"}, labels={"0": "background", "1": "lesion", "2": "node"})


def nnunet_v2(folder: Path) -> None:
    _nnunet(folder)
    for n in range(3):
        write_label(folder / f"labelsTr/h_{n}.nii.gz", (0, 1, 2, 3))
    write_card(
        folder,
        channel_names={"0": "T2", "1": "ADC"},
        labels={"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
        regions_class_order=[1, 2],
        file_ending=".nii.gz",
    )
    splits = [{"train": [f"h_{m}" for m in range(3) if m != n], "val": [f"h_{n}"]} for n in range(3)]
    (folder / "splits_final.json").write_text(json.dumps(splits))


def images_and_labels(folder: Path) -> None:
    write_files(folder, *(f"{kind}/{n}.nii.gz" for kind in ("images", "labels") for n in "abc"))


def side_by_side(folder: Path) -> None:
    write_files(folder, *(f"{n}{ending}.nii.gz" for n in "abc" for ending in ("", "_seg")))


def brats(folder: Path) -> None:
    for n in range(3):
        write_files(folder, *(f"BraTS-{n}/BraTS-{n}-{kind}.nii.gz" for kind in ("t1c", "t1n", "t2f", "t2w", "seg")))


def kits(folder: Path) -> None:
    write_files(folder, *(f"case_{n}/{kind}.nii.gz" for n in range(3) for kind in ("imaging", "segmentation")))


def lits(folder: Path) -> None:
    write_files(folder, *(f"batch/{kind}-{n}.nii" for n in range(3) for kind in ("volume", "segmentation")))


def acdc(folder: Path) -> None:
    for n in range(1, 4):
        stem = f"training/patient00{n}/patient00{n}"
        write_files(folder, *(f"{stem}_frame{frame}{gt}.nii.gz" for frame in ("01", "12") for gt in ("", "_gt")))
        write_image(folder / f"{stem}_4d.nii.gz", (*SHAPE, 12))


def bids(folder: Path) -> None:
    for subject in ("sub-01", "sub-02", "sub-03"):
        for session in ("ses-1", "ses-2"):
            anat = f"{subject}/{session}/anat/{subject}_{session}"
            write_files(folder, *(f"{anat}_{suffix}.nii.gz" for suffix in ("T1w", "FLAIR", "acq-fast_T1w")))
            write_image(folder / f"{subject}/{session}/func/{subject}_{session}_bold.nii.gz", (*SHAPE, 9))
            write_files(folder, f"derivatives/manual/{anat}_label-lesion_mask.nii.gz")


MADE: dict[str, Callable[[Path], None]] = {
    made.__name__: made
    for made in (
        decathlon,
        decathlon_4d,
        nnunet_v1,
        nnunet_v2,
        images_and_labels,
        side_by_side,
        brats,
        kits,
        lits,
        acdc,
        bids,
    )
}
