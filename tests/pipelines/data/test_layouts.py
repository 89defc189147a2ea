"""Each layout becomes a manifest that passes the check; where nothing is found, one line says why."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cli_call import call_medloss
from hypothesis import given
from hypothesis import strategies as st
from made_layouts import AFFINE, MADE, SHAPE, write_card, write_files, write_image, write_label

from pipelines.data.checks import check_data
from pipelines.data.dataset_json import read_card
from pipelines.data.known_layouts import LAYOUTS, FolderOptions, _assembled, find_cases
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.manifest_writer import guess_modality, manifest_text
from pipelines.utils import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def manifest_of(folder: Path, *options: object, folds: int | None = 3) -> tuple[Manifest, str]:
    """The written manifest, which passes the check, and what the command printed."""
    out = folder.parent / "made.yaml"
    number = () if folds is None else ("--folds", folds)
    code, printed, err = call_medloss("manifest", folder, "--out", out, "--force", *number, *options)
    assert (code, err) == (0, ""), err
    loaded = load_manifest(out)
    resample = "--resample-channels" in options
    assert check_data(loaded, folder, resample_channels=resample).offences == []
    return loaded, printed


def names(manifest: Manifest) -> list[str]:
    return [channel.name for channel in manifest.channels]


#: Layout to the options, what is printed of it, the first case's patient, images and label, and the channels.
EXPECTED: dict[str, tuple[tuple[str, ...], str, str, tuple[str, ...], str, list[str]]] = {
    "decathlon": (
        (),
        "Medical Segmentation Decathlon",
        "liver_0",
        ("imagesTr/liver_0.nii.gz",),
        "labelsTr/liver_0.nii.gz",
        [],
    ),
    "decathlon_4d": (
        (),
        "Medical Segmentation Decathlon",
        "brain_0",
        ("imagesTr/brain_0.nii.gz",),
        "labelsTr/brain_0.nii.gz",
        ["FLAIR", "T1w"],
    ),
    "nnunet_v1": (
        (),
        "nnU-Net",
        "h_0",
        ("imagesTr/h_0_0000.nii.gz", "imagesTr/h_0_0001.nii.gz"),
        "labelsTr/h_0.nii.gz",
        ["CT", "PET"],
    ),
    "nnunet_v2": (
        (),
        "nnU-Net",
        "h_0",
        ("imagesTr/h_0_0000.nii.gz", "imagesTr/h_0_0001.nii.gz"),
        "labelsTr/h_0.nii.gz",
        ["T2", "ADC"],
    ),
    "images_and_labels": ((), "images and labels", "a", ("images/a.nii.gz",), "labels/a.nii.gz", []),
    "side_by_side": ((), "pairs side by side", "a", ("a.nii.gz",), "a_seg.nii.gz", []),
    "brats": (
        (),
        "one folder per case",
        "BraTS-0",
        tuple(f"BraTS-0/BraTS-0-{kind}.nii.gz" for kind in ("t1c", "t1n", "t2f", "t2w")),
        "BraTS-0/BraTS-0-seg.nii.gz",
        ["t1c", "t1n", "t2f", "t2w"],
    ),
    "kits": ((), "one folder per case", "case_0", ("case_0/imaging.nii.gz",), "case_0/segmentation.nii.gz", []),
    "lits": ((), "LiTS", "volume-0", ("batch/volume-0.nii",), "batch/segmentation-0.nii", []),
    "acdc": (
        (),
        "ACDC",
        "patient001",
        ("training/patient001/patient001_frame01.nii.gz",),
        "training/patient001/patient001_frame01_gt.nii.gz",
        [],
    ),
    "bids": (
        ("--channels", "T1w,FLAIR"),
        "BIDS",
        "sub-01",
        tuple(f"sub-01/ses-1/anat/sub-01_ses-1_{suffix}.nii.gz" for suffix in ("T1w", "FLAIR")),
        "derivatives/manual/sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz",
        ["T1w", "FLAIR"],
    ),
}


@pytest.mark.parametrize("made", MADE)
def test_a_layout_becomes_a_manifest_that_passes(made: str, folder: Path) -> None:
    MADE[made](folder)
    options, layout, patient, images, label, channels = EXPECTED[made]
    manifest, printed = manifest_of(folder, *options)
    assert printed.startswith(f"layout: {layout}")
    first = manifest.cases[0]
    assert (first.patient, first.images, first.label) == (patient, images, label)
    assert names(manifest) == channels
    assert len(manifest.cases) == (6 if made in ("acdc", "bids") else 3)
    assert len(manifest.folds()) == 3
    code, out, _ = call_medloss("check", folder, *options)
    assert f"layout: {layout}" in out
    assert code == (1 if made in ("acdc", "bids") else 0)  # files that are left out are listed


def test_every_layout_has_a_folder_here(folder: Path) -> None:
    found = set()
    for name, make in MADE.items():
        make(folder / name)
        found.add(find_cases(folder / name, FolderOptions()).layout)
    assert found == set(LAYOUTS)


def test_nnunets_regions_ignored_label_and_folds(folder: Path) -> None:
    MADE["nnunet_v2"](folder)
    manifest, printed = manifest_of(folder, folds=None)
    assert manifest.classes == {0: "background", 1: "class_1", 2: "core"}
    assert manifest.regions == {"whole": (1, 2), "core": (2,)}
    assert (manifest.region_order, manifest.ignore) == ((1, 2), 3)
    assert manifest.task == "Segment whole, core"
    assert {case.id: case.fold for case in manifest.cases} == {"h_0": 0, "h_1": 1, "h_2": 2}
    assert "channels: T2 (MR), ADC (MR)\n" in printed and "folds: as in " in printed


def test_the_time_series_of_acdc_is_left_out_and_frames_of_a_patient_stay_together(folder: Path) -> None:
    MADE["acdc"](folder)
    manifest, printed = manifest_of(folder)
    assert "left out: 3 files, such as training/patient001/patient001_4d.nii.gz: the time series" in printed
    assert len({(case.patient, case.fold) for case in manifest.cases}) == 3


def test_a_case_without_a_channel_is_left_out(folder: Path) -> None:
    MADE["nnunet_v1"](folder)
    for file in ("h_0_0001", "h_1_0000"):
        shutil.copy(folder / f"imagesTr/{file}.nii.gz", folder.parent / f"{file}.nii.gz")
        (folder / f"imagesTr/{file}.nii.gz").unlink()
    write_files(folder, "imagesTr/h_3_0000.nii.gz", "imagesTr/h_3_0001.nii.gz", "labelsTr/h_3.nii.gz")
    manifest, printed = manifest_of(folder, folds=2)
    assert [case.id for case in manifest.cases] == ["h_2", "h_3"]
    assert {entry.file: entry.reason for entry in manifest.excluded} == {
        "imagesTr/h_0_0000.nii.gz": "channel 1 (PET) is missing",
        "labelsTr/h_0.nii.gz": "channel 1 (PET) is missing",
        "imagesTr/h_1_0001.nii.gz": "channel 0 (CT) is missing",
        "labelsTr/h_1.nii.gz": "channel 0 (CT) is missing",
    }
    assert [line for line in printed.splitlines() if line.startswith("left out")] == [
        "left out: 2 files, such as imagesTr/h_0_0000.nii.gz: channel 1 (PET) is missing",
        "left out: 2 files, such as imagesTr/h_1_0001.nii.gz: channel 0 (CT) is missing",
    ]
    code, out, _ = call_medloss("check", folder)
    assert code == 1 and "imagesTr/h_0_0000.nii.gz: channel 1 (PET) is missing\n" in out


def test_a_suffix_of_few_cases_is_no_channel(folder: Path) -> None:
    MADE["brats"](folder)
    write_image(folder / "BraTS-1/BraTS-1-extra.nii.gz")
    (folder / "BraTS-2/BraTS-2-t2f.nii.gz").unlink()
    manifest, printed = manifest_of(folder, folds=2)
    assert names(manifest) == ["t1c", "t1n", "t2f", "t2w"]
    assert [case.id for case in manifest.cases] == ["BraTS-0", "BraTS-1"]
    assert "BraTS-1-extra.nii.gz: not one of the channels t1c, t1n, t2f, t2w\n" in printed
    assert "BraTS-2-seg.nii.gz: channel 2 (t2f) is missing\n" in printed
    assert names(manifest_of(folder, "--channels", "t2w,t1c")[0]) == ["t2w", "t1c"]


def test_channels_without_names_are_asked_for(folder: Path) -> None:
    MADE["nnunet_v1"](folder)
    (folder / "dataset.json").unlink()
    manifest, printed = manifest_of(folder)
    assert names(manifest) == ["channel_0", "channel_1"]
    assert "channels: channel_0, channel_1; pass --channels to name them\n" in printed
    assert "modality of channel_0, channel_1 is not known: pass --modality, one per channel such as MR,MR" in printed
    manifest, printed = manifest_of(folder, "--channels", "native,FDG-PET", "--modality", "CT,PET")
    assert [(channel.name, channel.modality) for channel in manifest.channels] == [("native", "CT"), ("FDG-PET", "PET")]
    assert manifest.modality == "CT + PET" and "is not known" not in printed


def test_volumes_of_one_file_are_channels_and_many_a_time_series(folder: Path) -> None:
    MADE["decathlon_4d"](folder)
    (folder / "dataset.json").unlink()
    assert names(manifest_of(folder)[0]) == ["channel_0", "channel_1"]
    write_image(folder / "imagesTr/brain_0.nii.gz", (*SHAPE, 3))
    manifest, printed = manifest_of(folder, folds=2)
    assert "left out: imagesTr/brain_0.nii.gz: 3 volumes; the other cases have 2\n" in printed
    for n in range(3):
        write_image(folder / f"imagesTr/brain_{n}.nii.gz", (*SHAPE, 9))
    code, _, err = call_medloss("manifest", folder, "--out", folder.parent / "x.yaml")
    assert code == 2 and "9 volumes in one file, which may be a time series" in err and "name them: --channels" in err
    manifest, _ = manifest_of(folder, "--channels", ",".join(f"phase_{n}" for n in range(9)), "--modality", "MR")
    assert len(manifest.channels) == 9


def test_a_single_suffix_may_have_several_channels(folder: Path) -> None:
    MADE["kits"](folder)
    for n in range(3):
        write_image(folder / f"case_{n}/imaging.nii.gz", (*SHAPE, 2))
    assert names(manifest_of(folder)[0]) == ["channel_0", "channel_1"]
    code, _, err = call_medloss("manifest", folder, "--channels", "imaging", "--out", folder.parent / "x.yaml")
    assert code == 2 and "--channels: 1 name for 2 channels" in err


def test_channels_on_different_grids(folder: Path) -> None:
    MADE["nnunet_v1"](folder)
    for n in range(3):
        write_image(folder / f"imagesTr/h_{n}_0001.nii.gz", (3, 5, 4), AFFINE @ np.diag([2, 1, 1, 1]))
    code, _, err = call_medloss("manifest", folder, "--out", folder.parent / "x.yaml")
    assert code == 2 and "3 x 5 x 4 voxels, but its first channel imagesTr/h_0_0000.nii.gz has 6 x 5 x 4" in err
    assert "--resample-channels brings all channels to the label's grid" in err
    assert call_medloss("check", folder)[0] == 1
    manifest_of(folder, "--resample-channels")
    for target in ((folder,), (folder.parent / "made.yaml", "--data-root", folder)):
        assert call_medloss("check", *target)[0] == 1
        assert call_medloss("check", *target, "--resample-channels")[0] == 0


def test_nested_and_linked_folders_are_found_once(folder: Path) -> None:
    MADE["lits"](folder.parent / "elsewhere")
    (folder / "linked").symlink_to(folder.parent / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / ".hidden").mkdir()
    write_files(folder / ".hidden", "volume-9.nii", "segmentation-9.nii")
    assert [case.images[0] for case in find_cases(folder, FolderOptions()).cases] == [
        f"linked/batch/volume-{n}.nii" for n in range(3)
    ]


#: Paths of which any layout can make something.
PATHS = st.from_regex(
    r"((imagesTr|labelsTr|images|labels|c[12]|sub-[12]/anat|derivatives/x/sub-[12]/anat|patient1)/)?"
    r"(a|b|sub-1|patient1|volume-1|segmentation-1)(_0000|_0001|_0002|_T1w|_FLAIR|_frame01|_4d|-t1)?"
    r"(_gt|_seg|_mask|_label|_image)?\.nii(\.gz)?",
    fullmatch=True,
)


@given(paths=st.lists(PATHS, unique=True, max_size=12), names=st.sampled_from([(), ("T1",), ("T1", "T2")]))
def test_each_file_is_in_one_case_or_left_out(paths: list[str], names: tuple[str, ...]) -> None:
    for layout in LAYOUTS.values():
        if (groups := layout(paths, ())) is None:
            continue
        found = _assembled("", groups, names, chosen=False, files=paths)
        used = Counter(file for case in found.cases for file in (*case.images, case.label))
        left_out = dict(found.left_out)
        assert not used or set(used.values()) == {1}
        assert used.keys() | left_out.keys() <= set(paths) and not used.keys() & left_out.keys()
        folders = {file.rpartition("/")[0] for file in used}
        assert {path for path in paths if path.rpartition("/")[0] in folders} <= used.keys() | left_out.keys()
        assert len({len(case.images) for case in found.cases}) <= 1


def test_folders_of_cases_with_similar_paths_are_not_mixed(folder: Path) -> None:
    complete = [f"{case}/{file}.nii.gz" for case in ("w", "z/y") for file in ("image", "seg")]
    write_files(folder, "x_y/image.nii.gz", "x/y/seg.nii.gz", *complete)
    found = find_cases(folder, FolderOptions())
    assert [file for case in found.cases for file in (*case.images, case.label)] == complete


# The user names the files.


@pytest.fixture
def odd(folder: Path) -> Path:
    """Patients' folders with scans, and masks elsewhere."""
    for n in range(3):
        write_files(folder, f"scans/p{n}/t1 pre.nii.gz", f"scans/p{n}/pet.nii.gz", f"truth/p{n}-mask-final.nii.gz")
    return folder


def test_patterns_pair_by_what_their_stars_match(odd: Path) -> None:
    manifest, printed = manifest_of(
        odd, "--images", "scans/*/t1 pre.nii.gz", "--images", "scans/*/pet.nii.gz",
        "--labels", "truth/*-mask-final.nii.gz", "--channels", "T1,PET",
    )  # fmt: skip
    assert printed.startswith("layout: as matched by --images and --labels\nchannels: T1 (MR), PET\n")
    assert [case.id for case in manifest.cases] == ["p0", "p1", "p2"]
    assert manifest.cases[1].images == ("scans/p1/t1 pre.nii.gz", "scans/p1/pet.nii.gz")
    one, printed = manifest_of(odd, "--images", "scans/*/pet.nii.gz", "--labels", "truth/*-mask-final.nii.gz")
    assert one.cases[0].images == ("scans/p0/pet.nii.gz",)
    assert "left out: 3 files, such as scans/p0/t1 pre.nii.gz: belongs to no case\n" in printed


def test_labels_may_match_the_images_pattern_too(folder: Path) -> None:
    MADE["side_by_side"](folder)
    manifest, _ = manifest_of(folder, "--images", "*.nii.gz", "--labels", "*_seg.nii.gz")
    assert [case.images for case in manifest.cases] == [("a.nii.gz",), ("b.nii.gz",), ("c.nii.gz",)]


def test_files_are_paired_by_all_that_the_patterns_match(folder: Path) -> None:
    """`1/1/2` and `1/2/2` are two cases, and so are `a_b/c/d` and `a/b_c/d`, never mixed up."""
    cases = ("1/1/2", "1/2/2", "a_b/c/d", "a/b_c/d", "p/p/p")
    for case in cases:
        write_image(folder / f"i/{case}.nii.gz")
        write_label(folder / f"l/{case}.nii.gz")
    manifest, _ = manifest_of(folder, "--images", "i/*/*/*.nii.gz", "--labels", "l/*/*/*.nii.gz")
    found = {case.image: (case.label, case.id) for case in manifest.cases}
    assert {image: label for image, (label, _) in found.items()} == {
        f"i/{case}.nii.gz": f"l/{case}.nii.gz" for case in cases
    }
    assert (found["i/1/2/2.nii.gz"][1], found["i/p/p/p.nii.gz"][1]) == ("1_2_2", "p")


def test_a_table_lists_the_cases(odd: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    rows = [
        f"c{n};q{n // 2};scans/p{n}/pet.nii.gz;scans/p{n}/t1 pre.nii.gz;truth/p{n}-mask-final.nii.gz" for n in range(3)
    ]
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(["case;patient;image;image2;label", *rows, ""]).encode())
    manifest, printed = manifest_of(odd, "--pairs", table, "--channels", "PET,T1", folds=2)
    assert printed.startswith(f"layout: as listed in {table}\n")
    assert [(case.id, case.patient) for case in manifest.cases] == [("c0", "q0"), ("c1", "q0"), ("c2", "q1")]
    assert manifest.cases[0].images == ("scans/p0/pet.nii.gz", "scans/p0/t1 pre.nii.gz")
    table.write_text("case, image, image2, label\n" + "\n".join(
        f"c{n},scans/p{n}/pet.nii.gz,{'' if n == 1 else f'scans/p{n}/t1 pre.nii.gz'},truth/p{n}-mask-final.nii.gz"
        for n in range(3)
    ))  # fmt: skip
    manifest, printed = manifest_of(odd, "--pairs", table, "--channels", "PET,T1", folds=2)
    assert [case.id for case in manifest.cases] == ["c0", "c2"]
    assert "channel 1 (T1) is missing" in printed


def test_the_images_of_a_table_are_in_the_order_of_their_numbers(odd: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    rows = [f"truth/p{n}-mask-final.nii.gz,scans/p{n}/t1 pre.nii.gz,c{n},scans/p{n}/pet.nii.gz" for n in (2, 0, 1)]
    for second, first in (("image2", "image"), ("image10", "image9")):
        table.write_text("\n".join([f"label,{second},case,{first}", *rows]))
        manifest, _ = manifest_of(odd, "--pairs", table, "--channels", "PET,T1", folds=2)
        assert [case.id for case in manifest.cases] == ["c0", "c1", "c2"]
        assert manifest.cases[0].images == ("scans/p0/pet.nii.gz", "scans/p0/t1 pre.nii.gz")


def test_bids_labels_lie_in_any_folder_of_derivatives_or_next_to_the_image(folder: Path) -> None:
    MADE["bids"](folder)
    (folder / "derivatives/manual/sub-01").rename(folder / "derivatives/sub-01")
    for file in sorted((folder / "derivatives/manual/sub-02").rglob("*.nii.gz")):
        file.rename(folder / file.relative_to(folder / "derivatives/manual"))
    for file in sorted(folder.glob("sub-03/ses-2/anat/*")):
        file.unlink()
    manifest, printed = manifest_of(folder, "--channels", "T1w,FLAIR", folds=2)
    assert [case.label.rpartition("/")[0] for case in manifest.cases] == [
        "derivatives/sub-01/ses-1/anat", "derivatives/sub-01/ses-2/anat", "sub-02/ses-1/anat", "sub-02/ses-2/anat",
        "derivatives/manual/sub-03/ses-1/anat",
    ]  # fmt: skip
    assert "sub-03_ses-2_label-lesion_mask.nii.gz: label without an image\n" in printed


def _pairs(*lines: str) -> tuple[Callable[[Path], object], list[str]]:
    return lambda folder: (folder / "p.csv").write_text("\n".join(lines)), ["--pairs", "{folder}/p.csv"]


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (None, ["--images", "*.nii.gz"], "--images: patterns of both images and labels are needed"),
        (None, ["--labels", "*.nii.gz"], "--images: patterns of both images and labels are needed"),
        (None, ["--images", "a.nii.gz", "--labels", "*_seg.nii.gz"], "--images: 'a.nii.gz' has 0 *, and --"),
        (None, ["--images", "*.nii.gz", "--labels", "a_seg.nii.gz"], "--labels: 'a_seg.nii.gz' has 0 *"),
        (
            None,
            ["--images", "x*.nii.gz", "--labels", "*_seg.nii.gz"],
            "--images: 'x*.nii.gz' matches none of 6 NIfTI files, such as a.nii.gz",
        ),
        (None, ["--pairs", "{folder}/none.csv"], "none.csv cannot be read: No such file or directory"),
        (*_pairs("case,label", "a,a_seg.nii.gz"), "has the columns case, label; expected case, image, label"),
        (*_pairs("case,image,label,fold"), "has the columns case, image, label, fold; expected"),
        (*_pairs(""), "has the columns none; expected"),
        (*_pairs("case,image,label", ",a.nii.gz,a_seg.nii.gz"), "p.csv, line 2: case '', patient ''"),
        (*_pairs("case,image,label", *["a,a.nii.gz,a_seg.nii.gz"] * 2), "p.csv, line 3: 'a' is listed twice"),
        (*_pairs("case,image,image,label", "a,a.nii.gz,b.nii.gz,a_seg.nii.gz"), "image, image, label; expected case"),
        (*_pairs("case,patient,image,label", "a,p\a,a.nii.gz,a_seg.nii.gz"), "line 2: case 'a', patient 'p\\x07'"),
        (*_pairs("case,image,label", "a,/etc/a.nii.gz,a_seg.nii.gz"), "'/etc/a.nii.gz' is absolute"),
        (*_pairs("case,image,label", "a,../a.nii.gz,a_seg.nii.gz"), "'../a.nii.gz' leaves the data root"),
        (*_pairs("case,image,label", "a,a.nrrd,a_seg.nii.gz"), "'a.nrrd' is not a NIfTI file"),
        (*_pairs("case,image,label", "a,x.nii.gz,a_seg.nii.gz"), "none of 1 pairs can be used; the first: x.nii.gz: m"),
        (None, ["--channels", "T1,T2"], "a.nii.gz: one volume (6 x 5 x 4 voxels); expected 2, one per channel"),
        (None, ["--modality", "CT,PET"], "--modality: got 2 for 1 channel; expected one for all, or one per channel"),
    ],
)  # fmt: skip
def test_wrong_names_of_files_are_refused_in_one_line(
    prepare: Callable[[Path], object] | None, options: list[str], message: str, folder: Path
) -> None:
    MADE["side_by_side"](folder)
    if prepare is not None:
        prepare(folder)
    options = [option.format(folder=folder) for option in options]
    code, out, err = call_medloss("manifest", folder, "--out", folder.parent / "x.yaml", "--folds", 3, *options)
    assert (code, out, err.count("\n")) == (2, "", 1), (out, err)
    assert message in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "phantom", "--channels", "T1", "--data-root", "x"), "--channels: for a folder without a manifest"),
        (("manifest", "phantom", "--hash", "--resample-channels"), "--resample-channels is for a folder"),
        (("manifest", "phantom", "--hash", "--out", "x.yaml", "--data-root", "."), "'phantom' is generated"),
        (("manifest", ".", "--data-root", "x"), "--data-root: for --hash"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    arguments: tuple[str, ...], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    code, _, err = call_medloss(*arguments)
    assert code == 2 and message in err


# Nothing found: the true cause, in one line.


def empty(folder: Path) -> None:
    pass


def files(*paths: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(b"x")

    return make


def dicom(folder: Path) -> None:
    for n in range(3):
        (folder / f"IM{n}").write_bytes(bytes(128) + b"DICM")


def a_file(folder: Path) -> None:
    folder.rmdir()
    folder.write_bytes(b"")


def half_converted(folder: Path) -> None:
    write_files(folder, "labels/a.nii.gz")
    files("images/a.mha")(folder)


def niftis(*paths: str) -> Callable[[Path], object]:
    return lambda folder: write_files(folder, *paths)


def of(layout: str, change: Callable[[Path], Iterable[Any] | None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        MADE[layout](folder)
        list(change(folder) or ())

    return make


def unlinked(pattern: str) -> Callable[[Path], Iterator[None]]:
    return lambda folder: (file.unlink() for file in folder.glob(pattern))


NOTHING: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: folder.rmdir(), "data: no such folder"),
    (a_file, "data: no such folder"),
    (empty, "data: holds no files"),
    (files(".hidden.nii.gz"), "data: holds no files"),
    (files("readme.txt", "b.txt"), "no NIfTI file (.nii or .nii.gz), but 2 others, such as b.txt"),
    (files(*(f"{n}.nrrd" for n in "abcdef")), "but 6 .nrrd files: only NIfTI is read; SimpleITK converts: sitk.Write"),
    (files("a.mha", "b.mha"), '2 .mha files: only NIfTI is read; SimpleITK converts: sitk.WriteImage(sitk.ReadIma'),
    (files("p/1.dcm", "p/2.dcm"), "but 2 DICOM files: only NIfTI is read; SimpleITK converts: sitk.Wri"),
    (dicom, "but 3 DICOM files: only NIfTI is read"),
    (files("a.nii.zip", "a_seg.nii.zip"), "but 2 .nii.zip files: only NIfTI is read; unpack them"),
    (of("images_and_labels", unlinked("labels/*")), "images but no labels: 3 images, such as images/a.nii.gz; ex"),
    (of("images_and_labels", unlinked("images/*")), "labels but no images: 3 labels, such as labels/a.nii.gz"),
    (of("decathlon", unlinked("labelsTr/*")), "images but no labels: 3 images, such as imagesTr/liver_0.nii.gz"),
    (of("side_by_side", unlinked("?_seg.nii.gz")), "images but no labels: 3 images, such as a.nii.gz"),
    (of("side_by_side", unlinked("?.nii.gz")), "labels but no images: 3 labels, such as a_seg.nii.gz"),
    (of("brats", unlinked("*/*-seg.nii.gz")), "12 NIfTI files, such as BraTS-0/BraTS-0-t1c.nii.gz, in no known layout"),
    (of("bids", unlinked("derivatives/*/*/*/*/*")), "images but no labels: 18 images, such as sub-01/ses-1/anat/"),
    (of("bids", unlinked("sub-*/*/*/*")), "labels but no images: 6 labels, such as derivatives/manual/sub-01/ses-1/"),
    (
        niftis("images/a.nii.gz", "images/b.nii.gz", "labels/1.nii.gz", "labels/2.nii.gz"),
        "names that do not match: no image has a label's name, for example images/a.nii.gz and labels/1.nii.gz",
    ),
    (
        niftis(*(f"images/{case}.{ending}" for case in ("c0", "c1") for ending in ("nii", "nii.gz")), "labels/c0.nii"),
        "no case can be used; the first: 'c0' has 2 images: images/c0.nii, images/c0.nii.gz",
    ),
    (
        of("nnunet_v1", unlinked("imagesTr/*_0001.nii.gz")),
        "no case can be used; the first: channel 1 (PET) is missing: imagesTr/h_0_0000.nii.gz",
    ),
    (niftis("scans/a.nii.gz", "masks/a.nii.gz"), "2 NIfTI files, such as masks/a.nii.gz, in no known layout: pass"),
    (
        half_converted,
        "labels but no images: 1 label, such as labels/a.nii.gz: pass --images and --labels, or --pairs (1 .mha file",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), NOTHING, ids=[message[:50] for _, message in NOTHING])
def test_where_nothing_is_found_one_line_says_why(make: Callable[[Path], object], message: str, folder: Path) -> None:
    make(folder)
    code, out, err = call_medloss("manifest", folder, "--out", folder.parent / "x.yaml", "--folds", 2)
    assert (code, out, err.count("\n")) == (2, "", 1), (out, err)
    assert message in err
    assert not (folder.parent / "x.yaml").exists()


def test_an_unreadable_folder_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MADE["decathlon"](folder)
    scandir = os.scandir

    def denied(path: Any) -> Any:
        if str(path).endswith("labelsTr"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)  # root may read everything
    with pytest.raises(UserError, match=r"labelsTr: cannot be read: Permission denied"):
        find_cases(folder, FolderOptions())


@pytest.mark.parametrize(
    ("layout", "channels", "message"),
    [
        ("brats", "t1c,t1x", "--channels: no image is named 't1x'; the folder has t1c, t1n, t2f, t2w"),
        ("nnunet_v1", "a,b,c", "no case can be used; the first: channel 2 (c) is missing"),
    ],
)
def test_channels_that_are_not_there_are_refused(layout: str, channels: str, message: str, folder: Path) -> None:
    MADE[layout](folder)
    code, _, err = call_medloss("check", folder, "--channels", channels)
    assert code == 2 and message in err


# dataset.json


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"labels": {"0": "background", "1": "liver"}}, {"classes": {0: "background", 1: "liver"}}),
        ({"labels": {"background": 0, "liver": 1}}, {"classes": {0: "background", 1: "liver"}}),
        ({"labels": {"liver": [1]}, "regions_class_order": [1]}, {"regions": {"liver": (1,)}, "region_order": (1,)}),
        ({"labels": {"liver": 1, "ignore": 2}}, {"classes": {0: "background", 1: "liver"}, "ignore": 2}),
        ({"labels": {"1": "liver", "2": "ignore"}}, {"classes": {0: "background", 1: "liver"}, "ignore": 2}),
        ({"modality": {"1": "PET", "0": "CT"}}, {"channels": ("CT", "PET")}),
        ({"channel_names": {"0": "MRI", "1": "MRI"}}, {"channels": ("MRI_0", "MRI_1")}),
        ({"modality": "CT"}, {"channels": ("CT",)}),
    ],
)
def test_fields_of_dataset_json(content: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    write_card(folder, **content)
    read = read_card(folder).model_dump()
    assert {key: read[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"modality": {"zero": "CT"}}, "modality: got"),
        ({"channel_names": {"0": ""}}, "channel_names: got"),
        ({"labels": {"a": [1, "x"]}}, "labels: got"),
        ({"labels": {"a": []}}, "labels: got"),
        ({"labels": {"a": [1, 2], "b": 2}}, "regions_class_order: got None; expected the label that each region's"),
        ({"labels": {"a": [1, 2]}, "regions_class_order": "1"}, "regions_class_order: got '1'"),
        ({"file_ending": ".nrrd"}, "file_ending: got '.nrrd'; only NIfTI is read"),
    ],
)
def test_a_wrong_dataset_json_is_refused(content: dict[str, Any], message: str, folder: Path) -> None:
    write_card(folder, **content)
    with pytest.raises(UserError) as caught:
        read_card(folder)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        *(
            (name, "MR")
            for name in ("MRI", "T1", "t1w", "t1gd", "T1ce", "T2_FLAIR", "FLAIR", "ADC", "dwi", "ce-gad_T1w")
        ),
        *((name, "CT") for name in ("CT", "ct", "CTA", "CT native")),
        *((name, "PET") for name in ("PET", "FDG-PET", "SUV")),
        *((name, None) for name in ("", "channel_0", "imaging", "pre", "PET/CT", "T10", "contrast")),
    ],
)
def test_a_modality_is_guessed_only_from_names_that_say_it(name: str, modality: str | None) -> None:
    assert guess_modality(name) == modality


# Checksums of a manifest that was written by hand.


def test_checksums_are_added_to_a_manifest(folder: Path, tmp_path: Path) -> None:
    MADE["nnunet_v2"](folder)
    made, _ = manifest_of(folder)
    by_hand = tmp_path / "hand.yaml"
    content = yaml.safe_load(manifest_text(made))
    for case in content["cases"]:
        del case["image_sha256"], case["label_sha256"]
    by_hand.write_text(yaml.safe_dump(content, sort_keys=False))
    assert load_manifest(by_hand).cases[0].checksums == {}
    arguments = ("manifest", by_hand, "--hash", "--data-root", folder)
    code, _, err = call_medloss(*arguments)
    assert code == 2 and "hand.yaml is there already; pass --force" in err
    code, out, _ = call_medloss(*arguments, "--out", tmp_path / "hashed.yaml")
    assert (code, out) == (0, f"9 checksums added: written to {tmp_path / 'hashed.yaml'}\n")
    assert load_manifest(tmp_path / "hashed.yaml") == made
    assert call_medloss(*arguments, "--force")[0] == 0
    assert load_manifest(by_hand) == made
    write_label(folder / made.cases[1].label, (0, 1))
    code, _, err = call_medloss(*arguments, "--force")
    assert code == 2 and "'h_1': labelsTr/h_1.nii.gz: its SHA-256 is not the recorded one" in err
    (folder / made.cases[0].images[1]).unlink()
    code, _, err = call_medloss(*arguments, "--force")
    assert code == 2 and "'h_0': imagesTr/h_0_0001.nii.gz: missing" in err
