"""The check reports every bad file with the reason; one broken file never hides another."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from cli_call import call_medloss
from faults import (
    FAULTS,
    IMAGE,
    LABEL,
    Fault,
    cut,
    moved,
    padded,
    resaved_from_float,
    reshaped,
    sheared,
    stretched,
    with_trailing_axes,
    with_voxel,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_files import CANONICAL_SHAPE, CANONICAL_SPACING, SHAPE, affine_of, array_of, rewrite, small_folder
from tiny import tiny_manifest

from pipelines.data.checks import check_data, count_values, refuse_bad_data
from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.manifest_writer import FoldSettings, check_folder, make_manifest, manifest_text
from pipelines.utils.files import sha256


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = small_folder(tmp_path_factory.mktemp("small"))
    return folder, make_manifest(folder, folds=FoldSettings(2))


@pytest.fixture
def root(template: tuple[Path, Manifest], tmp_path: Path) -> Path:
    return Path(shutil.copytree(template[0], tmp_path / "data"))


@pytest.fixture
def manifest(template: tuple[Path, Manifest]) -> Manifest:
    return template[1]


def with_actual_checksums(manifest: Manifest, root: Path) -> Manifest:
    """With the files' checksums, faults are found by their content."""
    content = manifest.model_dump()
    for case in content["cases"]:
        for role in ("image", "label"):
            if (root / case[role]).is_file():
                case[f"{role}_sha256"] = sha256(root / case[role])
    return Manifest.model_validate(content)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_is_reported_once_with_file_and_reason(fault: Fault, root: Path, manifest: Manifest) -> None:
    fault.make(root)
    report = check_data(manifest if fault.old_checksums else with_actual_checksums(manifest, root), root)
    assert [offence.file for offence in report.offences] == [fault.file]
    assert re.search(fault.reason, report.offences[0].reason), report.offences[0].reason
    assert not report.ok


def test_intact_data_pass(root: Path, manifest: Manifest) -> None:
    seen: list[tuple[int, int]] = []
    report = check_data(manifest, root, lambda done, total: seen.append((done, total)))
    assert report.ok
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_volumes_match_the_files(root: Path, manifest: Manifest) -> None:
    report = check_data(manifest, root)
    for index, case in enumerate(manifest.cases):
        label = array_of(root / case.label)
        for value, name in manifest.classes.items():
            assert report.voxels[name][index] == (label == value).sum()
            assert report.volumes[name][index] == pytest.approx((label == value).sum() * 6.0 / 1000)  # 3 x 1 x 2 mm
    assert report.shapes == [CANONICAL_SHAPE] * 4
    assert report.spacings == [CANONICAL_SPACING] * 4


def test_broken_files_do_not_hide_others(root: Path, manifest: Manifest) -> None:
    cut(root / "images/a.nii.gz", 0.5)
    cut(root / "labels/a.nii.gz", 0)
    with_voxel(root / "labels/b.nii.gz", 9, np.uint8)
    (root / "labels/c.nii.gz").unlink()
    sheared(root / "images/d.nii")
    (root / "labels/stray.nii.gz").write_bytes(b"")
    report = check_data(with_actual_checksums(manifest, root), root)
    assert {offence.file for offence in report.offences} == {
        "images/a.nii.gz",
        "labels/a.nii.gz",
        "labels/b.nii.gz",
        "labels/c.nii.gz",
        "images/d.nii",
        "labels/stray.nii.gz",
    }
    assert report.shapes == [CANONICAL_SHAPE]  # only both files of b can be read


def test_two_faults_of_one_file_are_both_reported(root: Path, manifest: Manifest) -> None:
    array = array_of(root / LABEL).astype(np.float32)
    array.flat[:2] = (1.5, 8)
    rewrite(root / LABEL, array)
    reasons = [offence.reason for offence in check_data(manifest, root).offences]
    assert [reason.split(" ")[0] for reason in reasons] == ["label", "its", "label"]  # fraction, checksum, class


def test_only_spacing_beyond_the_tolerance_is_reported(root: Path, manifest: Manifest) -> None:
    stretched(root / IMAGE)
    stretched(root / LABEL)
    strict = with_actual_checksums(manifest, root)
    (offence,) = check_data(strict, root).offences
    assert offence == (IMAGE, "spacing 2.4 x 1.2 x 3.6 mm; expected 2 x 1 x 3 mm within 5 %")
    assert check_data(strict.model_copy(update={"spacing_tolerance": 0.2}), root).ok


def test_spacing_below_the_tolerance_is_reported(root: Path, manifest: Manifest) -> None:
    coarse = manifest.model_copy(update={"spacing": (3.6, 1.2, 2.4)})
    offences = check_data(coarse, root).offences
    assert {offence.file for offence in offences} == {case.image for case in manifest.cases}
    assert all("expected 3.6 x 1.2 x 2.4 mm within 5 %" in offence.reason for offence in offences)


def test_hidden_files_and_other_extensions_are_ignored(root: Path, manifest: Manifest) -> None:
    for name in ("images/.DS_Store", "images/._b.nii.gz", "labels/.x.nii.gz", "images/readme.txt", "x.nii.gz"):
        (root / name).write_bytes(b"")
    assert check_data(manifest, root).ok


def test_both_files_of_an_unlisted_pair_are_reported(root: Path, manifest: Manifest) -> None:
    shutil.copy(root / IMAGE, root / "images/x.nii.gz")
    shutil.copy(root / LABEL, root / "labels/x.nii.gz")
    assert check_data(manifest, root).offences == [
        ("images/x.nii.gz", "image that belongs to no case; the manifest neither lists nor excludes it"),
        ("labels/x.nii.gz", "label that belongs to no case; the manifest neither lists nor excludes it"),
    ]


@pytest.mark.parametrize("pattern", ["images/x[1].nii.gz", "images/*", "*[1].nii.gz", "images/x?1?.nii.gz"])
def test_excluded_files_and_patterns_are_ignored(pattern: str, root: Path, manifest: Manifest) -> None:
    (root / "images/x[1].nii.gz").write_bytes(b"")
    excluded = manifest.model_dump() | {"excluded": [{"file": pattern, "reason": "a try"}]}
    expected = pattern != "*[1].nii.gz"  # there the brackets are a set of characters, so it is another name
    assert check_data(Manifest.model_validate(excluded), root).ok is expected


def test_links_inside_the_root_are_followed(root: Path, manifest: Manifest) -> None:
    (root / "images/b.nii.gz").rename(root / "b-image.nii.gz")
    (root / "images/b.nii.gz").symlink_to("../b-image.nii.gz")
    assert check_data(manifest, root).ok


def test_links_to_anywhere_are_followed(root: Path, manifest: Manifest, tmp_path: Path) -> None:
    """Many users keep their data as folders of links into a store, whose names and paths are arbitrary."""
    store = tmp_path / "store"
    store.mkdir()
    for number, file in enumerate(sorted(root.rglob("*.nii*"))):
        shutil.move(file, store / str(number))
        file.symlink_to(store / str(number))
    (tmp_path / "link").symlink_to(root)
    for folder in (root, tmp_path / "link"):
        assert check_data(manifest, folder).ok
        assert check_folder(folder).ok
    out = tmp_path / "made.yaml"
    code, shown, err = call_medloss("manifest", root, "--out", out, "--folds", 2)
    assert (code, err) == (0, "") and "4 cases in 2 folds" in shown
    assert load_manifest(out).cases == manifest.cases


def test_nifti_2_and_big_endian_files_pass(root: Path, manifest: Manifest) -> None:
    old = nib.load(root / IMAGE)
    array = np.asanyarray(old.dataobj)
    nib.save(nib.Nifti2Image(array, old.affine), root / IMAGE)
    big = nib.Nifti1Image(array_of(root / "images/d.nii"), old.affine, nib.Nifti1Header(endianness=">"))
    (root / "images/d.nii").write_bytes(big.to_bytes())
    assert (root / "images/d.nii").read_bytes()[:4] == (348).to_bytes(4, "big")
    assert check_data(with_actual_checksums(manifest, root), root).ok


def test_whole_numbers_stored_as_floats_are_labels(root: Path, manifest: Manifest) -> None:
    rewrite(root / LABEL, array_of(root / LABEL).astype(np.float64))
    assert check_data(with_actual_checksums(manifest, root), root).ok


def test_labels_saved_again_from_floats_are_the_same_labels(root: Path, manifest: Manifest) -> None:
    before = check_data(manifest, root)
    for case in manifest.cases:
        resaved_from_float(root / case.label)
    after = check_data(with_actual_checksums(manifest, root), root)
    assert after == before and after.ok
    assert check_folder(root).ok
    with_voxel(root / LABEL, 3.001, np.float64)
    assert check_data(with_actual_checksums(manifest, root), root).ok


def test_trailing_axes_of_length_1_and_padding_are_ignored(root: Path, manifest: Manifest) -> None:
    before = check_data(manifest, root)
    with_trailing_axes(root / IMAGE)
    with_trailing_axes(root / "labels/a.nii.gz", 2)
    with_trailing_axes(root / "images/d.nii")
    for file, count in (("labels/d.nii", 16), (LABEL, 16), ("images/a.nii.gz", 512)):
        padded(root / file, count)
    assert check_data(with_actual_checksums(manifest, root), root) == before
    assert check_folder(root).ok


def test_a_single_slice_is_a_2d_image_of_a_2d_manifest(tmp_path: Path) -> None:
    manifest = load_manifest(tiny_manifest(tmp_path, dims=2, cases=3))
    root = resolve_data(manifest, tmp_path / "root")
    with_trailing_axes(root / manifest.cases[0].image)
    with_trailing_axes(root / manifest.cases[0].label, 2)
    report = check_data(manifest.model_copy(update={"generator": None, "cases": [
        case.model_copy(update={"image_sha256": None, "label_sha256": None}) for case in manifest.cases
    ]}), root)  # fmt: skip
    assert report.ok and {len(shape) for shape in report.shapes} == {2}


def test_a_label_within_a_tenth_of_a_voxel_passes_with_a_note(
    root: Path, manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved(root / "labels/a.nii.gz", 1, 0.009)  # as float32 headers round
    assert check_folder(root).notes == []
    moved(root / LABEL, 1, 0.035)
    report = check_data(with_actual_checksums(manifest, root), root)
    message = "labels/b.nii.gz lies 0.035 mm off its image; up to 0.1 voxels count as the same grid"
    assert (report.ok, report.notes) == (True, [message])
    stretched(root / "labels/d.nii", 1.002)  # by 0.08 mm at the corners
    several = r"2 labels lie up to 0.0\d+ mm off their images, most of all labels/d.nii; up to 0.1 voxels count as"
    for command in (("check", root), ("manifest", root, "--folds", 2, "--out", tmp_path / "made.yaml")):
        code, shown, err = call_medloss(*command)
        assert (code, err) == (0, "")
        assert re.search(f"^note: {several}", shown, re.MULTILINE), shown
    refuse_bad_data(str(tmp_path / "made.yaml"), str(root))  # the check before a run
    assert re.match(f"note: {several}", capsys.readouterr().err)


def test_a_scaled_image_is_checked_by_its_scaled_values(root: Path, manifest: Manifest) -> None:
    rewrite(root / IMAGE, raw={"scl_slope": 1e38})
    (offence,) = check_data(with_actual_checksums(manifest, root), root).offences
    assert offence.file == IMAGE
    assert "too large for float32" in offence.reason


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_to_a_file_is_reported_without_ending_the_check(
    data: st.DataObject, root: Path, manifest: Manifest
) -> None:
    file = data.draw(st.sampled_from([IMAGE, LABEL, "images/d.nii", "labels/d.nii"]))
    whole = (root / file).read_bytes()
    # Mostly in the header, where damage has the most effects.
    at = data.draw(st.integers(0, min(len(whole), 400) - 1) | st.integers(0, len(whole) - 1))
    replacement = data.draw(st.binary(min_size=1, max_size=8))
    damaged = whole[:at] + replacement + whole[at + len(replacement) :]
    if data.draw(st.booleans()):
        damaged = damaged[:at]
    (root / file).write_bytes(damaged)
    report = check_data(manifest, root)
    (root / file).write_bytes(whole)
    if damaged == whole:
        assert report.ok
    else:
        case = file.split("/")[1]
        assert report.offences
        assert {offence.file.split("/")[1] for offence in report.offences} == {case}


@given(st.lists(st.integers(-3, 300), min_size=1, max_size=50), st.sampled_from([np.int16, np.float32]))
def test_voxels_are_counted_by_value(values: list[int], dtype: type) -> None:
    counted = count_values(np.array(values, dtype))
    assert counted == {value: values.count(value) for value in set(values)}


# Generated data.


def test_generated_data_are_checked_against_their_checksums(tmp_path: Path) -> None:
    manifest = load_manifest(tiny_manifest(tmp_path, cases=3, generator={"shape": list(SHAPE)}))
    root = resolve_data(manifest, tmp_path / "root")
    assert check_data(manifest, root).ok
    with_voxel(root / manifest.cases[1].image, 17, np.int16)
    assert check_data(manifest, root).offences == [
        (manifest.cases[1].image, "its SHA-256 is not the recorded one: the file is damaged or was replaced")
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "has no checksum of 6 files, such as images/phantom_000.nii.gz"),
        ("abc\n", "cannot be read; remove the data set's folder to generate it again"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_damaged_file_of_checksums_is_reported(content: str, reason: str, tmp_path: Path) -> None:
    manifest = load_manifest(tiny_manifest(tmp_path, cases=3, generator={"shape": list(SHAPE)}))
    root = resolve_data(manifest, tmp_path / "root")
    (root / "SHA256SUMS").write_bytes(content.encode(errors="surrogateescape"))
    offences = check_data(manifest, root).offences
    assert [offence.file for offence in offences] == ["SHA256SUMS"]
    assert offences[0].reason.startswith(reason)


def test_2d_images_are_checked(tmp_path: Path) -> None:
    manifest = load_manifest(tiny_manifest(tmp_path, dims=2, cases=3))
    root = resolve_data(manifest, tmp_path / "root")
    report = check_data(manifest, root)
    assert report.ok
    assert report.spacings == [(0.8, 1.5)] * 3
    assert report.volumes["organ"][0] == pytest.approx(report.voxels["organ"][0] * 1.2)  # mm2
    moved(root / manifest.cases[0].label, 2, 3.0)
    assert "its affine differs from its image's: it lies up to 3 mm off" in [
        offence.reason for offence in check_data(manifest, root).offences
    ]


# A folder without a manifest.


def test_a_folder_is_checked_without_a_manifest(root: Path) -> None:
    assert check_folder(root).ok
    cut(root / "images/a.nii.gz", 0.5)
    with_voxel(root / LABEL, 0.5)
    (root / "labels/c.nii.gz").unlink()
    assert sorted((offence.file, offence.reason.split(":")[0]) for offence in check_folder(root).offences) == [
        ("images/a.nii.gz", "truncated"),
        ("images/c.nii.gz", "image without a label"),
        (LABEL, "label values that are not whole numbers in 1 voxel, such as 0.5"),
    ]


def test_without_a_manifest_the_majority_of_cases_decides_the_axes(root: Path) -> None:
    for file in (IMAGE, LABEL):
        reshaped(root / file, (12, 16))
    assert check_folder(root).offences == [(IMAGE, "2 axes; the other cases have 3")]


def test_the_three_unpaired_files_of_the_real_folder_are_listed(hippocampus_root: Path) -> None:
    report = check_folder(hippocampus_root)
    assert sorted(report.offences) == [
        ("imagesTr/hippocampus_118.nii.gz", "image without a label"),
        ("labelsTr/hippocampus_010.nii.gz", "label without an image"),
        ("labelsTr/hippocampus_281.nii.gz", "label without an image"),
    ]
    assert report.cases == 260


def test_the_real_manifest_passes_only_with_its_exclusions(hippocampus_root: Path) -> None:
    manifest = load_manifest("msd_task04_hippocampus")
    report = check_data(manifest, hippocampus_root)
    assert report.offences == []
    assert len(report.volumes["posterior"]) == 260
    without = manifest.model_copy(update={"excluded": [], "cases": manifest.cases[:2]})
    reported = [
        offence
        for offence in check_data(without, hippocampus_root).offences
        if "that belongs to no case" not in offence[1]
    ]
    assert [(offence.file, offence.reason.split(";")[0]) for offence in reported] == [
        ("imagesTr/hippocampus_118.nii.gz", "image without a label"),
        ("labelsTr/hippocampus_010.nii.gz", "label without an image"),
        ("labelsTr/hippocampus_281.nii.gz", "label without an image"),
    ]


def test_real_files_linked_resaved_from_floats_and_slightly_off(hippocampus_root: Path, tmp_path: Path) -> None:
    manifest = load_manifest("msd_task04_hippocampus")
    manifest = manifest.model_copy(update={"cases": manifest.cases[:3]})
    for case in manifest.cases:
        for file in (case.image, case.label):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).symlink_to((hippocampus_root / file).absolute())
    before = check_data(manifest, tmp_path)
    assert (before.offences, before.notes) == ([], [])
    for case, mm in zip(manifest.cases, (0.0, 0.035, 0.2), strict=True):
        label = tmp_path / case.label
        image = nib.Nifti1Image(3.0 * (array_of(label) == 2) + (array_of(label) == 1), affine_of(label))
        image.affine[0, 3] += mm
        label.unlink()
        nib.save(image, label, dtype=np.uint8)
    after = check_folder(tmp_path)
    assert after.classes == {0: "background", 1: "class_1", 3: "class_3"}
    assert after.voxels["class_3"] == before.voxels["posterior"]
    assert after.offences == [
        (manifest.cases[2].label, "its affine differs from its image's: it lies up to 0.2 mm off")
    ]
    assert [note.split(";")[0] for note in after.notes] == [f"{manifest.cases[1].label} lies 0.035 mm off its image"]


def test_the_real_sarcoma_manifest_passes(data_root: Path) -> None:
    if not (data_root / "sts_pet").is_dir():
        pytest.skip(f"no sts_pet in {data_root}")
    report = check_data(load_manifest("tcia_sts_pet"), data_root / "sts_pet")
    assert report.offences == []
    assert len(report.volumes["tumour"]) == 51


# The command.


@pytest.fixture
def written(manifest: Manifest, tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(manifest_text(manifest))
    return path


def test_the_command_prints_tables_and_exits_with_0(root: Path, written: Path) -> None:
    code, out, err = call_medloss("check", written, "--data-root", root)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "4 cases: no bad files"
    assert re.search(r"^1 class_1 +4 +\d+", out, re.MULTILINE)
    assert re.search(r"^axes: right, anterior, superior +min", out, re.MULTILINE)
    assert re.search(r"^spacing, mm, right +2 +2 +2", out, re.MULTILINE)
    assert re.search(r"^shape, voxels, superior +12 +12 +12", out, re.MULTILINE)
    assert "ml: min" in out


def test_the_command_lists_bad_files_and_exits_with_1(root: Path, written: Path) -> None:
    cut(root / IMAGE, 0)
    (root / "labels/two\nlines.nii").write_bytes(b"")
    code, out, _ = call_medloss("check", written, "--data-root", root)
    assert code == 1
    assert out.splitlines()[:2] == [
        "images/b.nii.gz: 0 bytes",
        "'labels/two\\nlines.nii': label without an image; the manifest neither lists nor excludes it",
    ]
    assert out.splitlines()[-1] == "4 cases: 2 bad files"


def test_the_command_takes_a_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call_medloss("check", root)[0] == 0
    (root / LABEL).unlink()
    code, out, _ = call_medloss("check", root)
    assert code == 1
    assert out.startswith("images/b.nii.gz: image without a label\n")
    # A folder named like a shipped manifest is not used in its place.
    (tmp_path / "phantom_2d").mkdir()
    monkeypatch.chdir(tmp_path)
    assert call_medloss("check", "phantom_2d", "--data-root", tmp_path / "made")[1].endswith("40 cases: no bad files\n")
    assert call_medloss("check", "./phantom_2d")[0] == 2


def test_the_command_lists_all_files_if_all_are_bad(root: Path, written: Path) -> None:
    for file in root.rglob("*.nii*"):
        cut(file, 0)
    for target in ((written, "--data-root", root), (root,)):
        code, out, err = call_medloss("check", *target)
        assert (code, err) == (1, "")
        assert out.count(": 0 bytes\n") == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "no_such"], "error: no manifest 'no_such'"),
        (["check", "phantm"], "did you mean 'phantom'?"),
        (["check", "{tmp}/bad.yaml"], "bad.yaml: not valid YAML"),
        (["check", "{tmp}/empty.yaml"], "empty.yaml: not a manifest"),
        (["check", "{tmp}/small.yaml"], "needs its data: pass --data-root or set MEDLOSS_DATA"),
        (["check", "{tmp}/small.yaml", "--data-root", "{tmp}/none"], "none is not a folder; expected that of 'data'\n"),
        (
            ["check", "msd_task04_hippocampus", "--data-root", "{tmp}"],
            "the data are available at http://medicaldecathlon.com",
        ),
        (
            ["check", "{tmp}/small.yaml", "--data-root", "{tmp}/folder"],
            "folder holds no file of 'data', for example images/a.nii.gz: pass the folder that does as --data-root\n",
        ),
        (["check", "{tmp}/folder"], "folder: holds no files"),
        (["check", "{tmp}/folder", "--data-root", "{tmp}"], "is the folder of the data already"),
    ],
)
def test_invalid_arguments_exit_with_2_and_one_line(
    arguments: list[str], message: str, tmp_path: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDLOSS_DATA", raising=False)
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "folder").mkdir()
    code, out, err = call_medloss(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_an_invalid_manifest_exits_with_1_and_lists_all_errors(written: Path) -> None:
    content = yaml.safe_load(written.read_text())
    content["classes"] = {1: "organ", 2: "shell"}
    content["cases"][1]["patient"] = content["cases"][0]["patient"]
    content["cases"][1]["fold"] = 1 - content["cases"][0]["fold"]
    content["cases"][2]["image"] = "../c.nii.gz"
    written.write_text(yaml.safe_dump(content))
    code, out, err = call_medloss("check", written)
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        f"{written}: cases[2] (c).image: '../c.nii.gz' leaves the data root",
        f"{written}: classes: class 0 is missing; expected 0: background",
        f"{written}: cases: patient 'a' is in folds [0, 1]: in both training and validation",
        "the manifest breaks rules, so no file was read",
    ]


def test_the_same_image_in_two_cases_is_reported(root: Path, manifest: Manifest) -> None:
    shutil.copy(root / "images/a.nii.gz", root / "images/c.nii.gz")
    reason = "duplicate: its bytes are those of images/a.nii.gz"
    assert ("images/c.nii.gz", reason) in check_data(manifest, root).offences
    assert check_folder(root).offences == [("images/c.nii.gz", reason)]
