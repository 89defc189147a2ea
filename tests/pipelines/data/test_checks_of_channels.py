"""Faults of data sets with several channels, regions, an ignored label and partial labels."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from cli_call import call_medloss
from made_layouts import AFFINE, MADE, SHAPE, write_image, write_label
from small_files import array_of

from pipelines.data.checks import check_data
from pipelines.data.known_layouts import FolderOptions
from pipelines.data.manifest import Manifest
from pipelines.data.manifest_writer import FoldSettings, check_folder, make_manifest

THREE_FOLDS = FoldSettings(3)
#: A grid of the same place, coarser along one axis.
COARSE = AFFINE @ np.diag([2, 1, 1, 1])


def _without_checksums(content: dict[str, Any]) -> None:
    for case in content["cases"]:
        case["image_sha256"] = case["label_sha256"] = None


def _missing(root: Path, content: dict[str, Any]) -> None:
    (root / "imagesTr/h_1_0001.nii.gz").unlink()


def _not_listed(root: Path, content: dict[str, Any]) -> None:
    content["cases"][1]["image"] = "imagesTr/h_1_0000.nii.gz"
    content["excluded"] = [{"file": "imagesTr/h_1_0001.nii.gz", "reason": "not used"}]


def _swapped(root: Path, content: dict[str, Any]) -> None:
    content["cases"][1]["image"] = content["cases"][1]["image"][::-1]


def _all_swapped(root: Path, content: dict[str, Any]) -> None:
    for case in content["cases"]:
        case["image"] = case["image"][::-1]


def _volumes(root: Path, content: dict[str, Any]) -> None:
    write_image(root / "imagesTr/brain_1.nii.gz", (*SHAPE, 3))


def _one_volume(root: Path, content: dict[str, Any]) -> None:
    write_image(root / "imagesTr/brain_1.nii.gz")


def _other_grid(root: Path, content: dict[str, Any]) -> None:
    write_image(root / "imagesTr/h_1_0001.nii.gz", affine=COARSE)


def _other_shape(root: Path, content: dict[str, Any]) -> None:
    write_image(root / "imagesTr/h_1_0001.nii.gz", (3, 5, 4), COARSE)


def _channel_of_several_volumes(root: Path, content: dict[str, Any]) -> None:
    write_image(root / "imagesTr/h_1_0001.nii.gz", (*SHAPE, 2))


def _same_channel_twice(root: Path, content: dict[str, Any]) -> None:
    shutil.copy(root / "imagesTr/h_1_0000.nii.gz", root / "imagesTr/h_1_0001.nii.gz")


def _complex(root: Path, content: dict[str, Any]) -> None:
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.complex64), AFFINE), root / "imagesTr/h_1_0001.nii.gz")


def _nan(root: Path, content: dict[str, Any]) -> None:
    image = array_of(root / "imagesTr/brain_1.nii.gz").astype(np.float32)
    image[1, 1, 1, 1] = np.nan
    nib.save(nib.Nifti1Image(image, AFFINE), root / "imagesTr/brain_1.nii.gz")


def _all_ignored(root: Path, content: dict[str, Any]) -> None:
    write_label(root / "labelsTr/h_1.nii.gz", (3,))


def _empty_region(root: Path, content: dict[str, Any]) -> None:
    for n in range(3):
        write_label(root / f"labelsTr/h_{n}.nii.gz", (0, 1))


def _unlisted_channel(root: Path, content: dict[str, Any]) -> None:
    write_image(root / "imagesTr/h_1_0002.nii.gz")


def _labels_what_it_does_not_label(root: Path, content: dict[str, Any]) -> None:
    content["cases"][1]["labelled"] = ["class_1"]


@dataclass(frozen=True)
class Broken:
    """A fault of a layout's folder or of its manifest, the file that is reported, and the reason."""

    layout: str
    make: Callable[[Path, dict[str, Any]], None]
    file: str
    reason: str


SECOND, LABEL = "imagesTr/h_1_0001.nii.gz", "labelsTr/h_1.nii.gz"
BROKEN = [
    Broken("nnunet_v2", _missing, SECOND, "^missing$"),
    Broken(
        "nnunet_v2",
        _not_listed,
        "imagesTr/h_1_0000.nii.gz",
        r"^one volume \(6 x 5 x 4 voxels\); expected 2, one per channel$",
    ),
    Broken(
        "nnunet_v2",
        _swapped,
        SECOND,
        "^channels in another order: by its name it is channel 1, but 'h_1' lists it as channel 0$",
    ),
    Broken("nnunet_v2", _other_grid, SECOND, r"^spacing 1.6 x 1.2 x 2.5 mm, but its first channel \S+_0000\S+ has"),
    Broken("nnunet_v2", _other_shape, SECOND, r"^3 x 5 x 4 voxels, but its first channel \S+_0000\S+ has 6 x 5 x 4;"),
    Broken("nnunet_v2", _channel_of_several_volumes, SECOND, r"^4 axes \(6 x 5 x 4 x 2 voxels\); expected 3, one vol"),
    Broken("nnunet_v2", _same_channel_twice, SECOND, r"^duplicate: its bytes are those of imagesTr/h_1_0000.nii.gz$"),
    Broken("nnunet_v2", _complex, SECOND, "^holds complex64; expected one integer or real number per voxel$"),
    Broken("nnunet_v2", _unlisted_channel, "imagesTr/h_1_0002.nii.gz", "^channel 2 of 'h_1', which is not among its"),
    Broken("decathlon_4d", _volumes, "imagesTr/brain_1.nii.gz", "^3 volumes in one file; expected 2, one per channel$"),
    Broken("decathlon_4d", _one_volume, "imagesTr/brain_1.nii.gz", "^one volume .*; expected 2, one per channel$"),
    Broken("decathlon_4d", _nan, "imagesTr/brain_1.nii.gz", "^NaN in 1 voxel$"),
    Broken("nnunet_v2", _all_ignored, LABEL, "^all voxels have the ignored label 3; exclude the case$"),
    Broken("nnunet_v2", _empty_region, "the manifest", "^regions: 'core' is empty in all cases; remove it, or correct"),
    Broken(
        "nnunet_v2",
        _labels_what_it_does_not_label,
        LABEL,
        "^has 30 voxels of 'core', which is not among the case's 'labelled'$",
    ),
]  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: f"{broken.layout}{broken.make.__name__}")
def test_each_fault_is_reported_once_with_file_and_reason(broken: Broken, tmp_path: Path) -> None:
    MADE[broken.layout](tmp_path)
    content = make_manifest(tmp_path, folds=THREE_FOLDS).model_dump()
    _without_checksums(content)
    broken.make(tmp_path, content)
    (offence,) = check_data(Manifest.model_validate(content), tmp_path).offences
    assert offence.file == broken.file
    assert re.search(broken.reason, offence.reason), offence.reason


def test_an_order_that_all_cases_share_is_wrong_only_if_names_say_so(tmp_path: Path) -> None:
    MADE["nnunet_v2"](tmp_path / "numbers")
    MADE["brats"](tmp_path / "names")
    for folder, expected in (("numbers", 0), ("names", 3)):
        content = make_manifest(tmp_path / folder, folds=THREE_FOLDS).model_dump()
        _without_checksums(content)
        _all_swapped(tmp_path, content)
        assert len(check_data(Manifest.model_validate(content), tmp_path / folder).offences) == expected


@pytest.mark.parametrize("change", [_other_grid, _other_shape])
def test_channels_on_other_grids_pass_on_request(
    change: Callable[[Path, dict[str, Any]], None], tmp_path: Path
) -> None:
    MADE["nnunet_v2"](tmp_path)
    content = make_manifest(tmp_path, folds=THREE_FOLDS).model_dump()
    _without_checksums(content)
    change(tmp_path, content)
    report = check_data(Manifest.model_validate(content), tmp_path, resample_channels=True)
    assert report.ok and report.shapes == [SHAPE] * 3
    assert not check_folder(tmp_path).ok
    assert check_folder(tmp_path, options=FolderOptions(resample_channels=True)).ok


def test_a_channel_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    MADE["nnunet_v2"](tmp_path)
    moved = COARSE.copy()
    moved[1, 3] = 8.0  # 5 voxels of 1.2 mm are 6 mm long
    write_image(tmp_path / SECOND, affine=moved)
    assert check_folder(tmp_path, options=FolderOptions(resample_channels=True)).offences == [
        (SECOND, "lies elsewhere: the centre of its label's grid is outside of it")
    ]


def test_a_folders_regions_and_ignored_voxels_are_checked(tmp_path: Path) -> None:
    MADE["nnunet_v2"](tmp_path)
    assert check_folder(tmp_path).ok
    _empty_region(tmp_path, {})
    assert [offence.reason.split(";")[0] for offence in check_folder(tmp_path).offences] == [
        "regions: 'core' is empty in all cases"
    ]
    _, printed, _ = call_medloss("manifest", tmp_path, "--out", tmp_path / "made.yaml")
    assert "note: regions: 'core' is empty in all cases; remove it, or correct its labels\n" in printed
    _all_ignored(tmp_path, {})
    assert "all voxels have the ignored label 3; exclude the case" in [
        offence.reason for offence in check_folder(tmp_path).offences
    ]


def test_files_of_different_orientations_pass_with_a_note(tmp_path: Path) -> None:
    MADE["decathlon"](tmp_path)
    for kind in ("images", "labels"):
        path = tmp_path / f"{kind}Tr/liver_1.nii.gz"
        old = nib.load(path)
        nib.save(old.as_reoriented(nib.orientations.axcodes2ornt("PSL")), path)
    out = tmp_path / "made.yaml"
    code, printed, _ = call_medloss("manifest", tmp_path, "--folds", 3, "--out", out)
    assert code == 0
    (line,) = (line for line in printed.splitlines() if line.startswith("note: orientations"))
    found = "".join(nib.aff2axcodes(nib.load(tmp_path / "imagesTr/liver_1.nii.gz").affine))
    assert line.startswith(
        f"note: orientations differ (2 x RAS, 1 x {found}); all are brought to the closest canonical"
    )
    code, printed, _ = call_medloss("check", out, "--data-root", tmp_path)
    assert code == 0 and line in printed
    assert re.search(r"^spacing, mm, right +0.8 +0.8 +0.8$", printed, re.MULTILINE)
