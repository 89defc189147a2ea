"""Written manifests can be loaded and pass the check, and list every file that they exclude."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_call import call_medloss
from faults import cut, sheared, with_voxel
from hypothesis import given
from hypothesis import strategies as st
from small_files import CANONICAL_SPACING, affine_of, array_of, rewrite, small_folder

from pipelines.data.checks import check_data
from pipelines.data.data_root import resolve_data
from pipelines.data.layouts import pair_by_name
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.manifest_writer import FoldSettings, _folds, make_manifest, manifest_text
from pipelines.utils import UserError
from pipelines.utils.files import sha256


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("small"))


@pytest.fixture
def paired(template: Path, tmp_path: Path) -> Path:
    """`images` and `labels`."""
    return Path(shutil.copytree(template, tmp_path / "paired"))


@pytest.fixture
def msd(paired: Path) -> Path:
    """`imagesTr` and `labelsTr`."""
    (paired / "images").rename(paired / "imagesTr")
    (paired / "labels").rename(paired / "labelsTr")
    return Path(paired.rename(paired.parent / "Task99_Thing"))


@pytest.fixture
def side_by_side(paired: Path) -> Path:
    """Images and labels in one folder."""
    for kind in ("image", "label"):
        for file in sorted((paired / f"{kind}s").iterdir()):
            case, ending = file.name.split(".", 1)
            file.rename(paired / f"{case}_{kind}.{ending}")
        (paired / f"{kind}s").rmdir()
    return paired


TWO_FOLDS = FoldSettings(2)


def round_trip(folder: Path, folds: FoldSettings = TWO_FOLDS) -> Manifest:
    """Write, load and check."""
    made = make_manifest(folder, folds=folds)
    path = folder.parent / "written.yaml"
    path.write_text(manifest_text(made))
    loaded = load_manifest(path)
    assert loaded == made
    for root in (folder, folder.parent):
        assert check_data(loaded, resolve_data(loaded, root)).offences == []
    return loaded


def reasons(manifest: Manifest) -> dict[str, str]:
    return {entry.file: entry.reason for entry in manifest.excluded}


def test_msd_folder_without_dataset_json(msd: Path) -> None:
    manifest = round_trip(msd)
    assert manifest.name == manifest.folder == "Task99_Thing"
    assert manifest.classes == {0: "background", 1: "class_1", 2: "class_2", 3: "class_3"}
    assert manifest.spacing == CANONICAL_SPACING
    assert (manifest.modality, manifest.dimensions, manifest.spacing_tolerance) == ("MR", 3, 0.05)
    assert [case.id for case in manifest.cases] == ["a", "b", "c", "d"]
    first = manifest.cases[0]
    assert (first.image, first.label) == ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    assert first.image_sha256 == sha256(msd / first.image)
    assert first.label_sha256 == sha256(msd / first.label)
    assert manifest.excluded == []


DECATHLON = {
    "name": "Thing",
    "description": "Things, large: and small",
    "reference": "A hospital",
    "licence": "CC-BY-SA 4.0",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "organ", "2": "shell", "3": "lesions"},
}
NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "lesions": 3, "shell": 2, "organ": 1},
    "numTraining": 4,
    "file_ending": ".nii.gz",
}


def test_a_decathlon_dataset_json_is_used(msd: Path) -> None:
    (msd / "dataset.json").write_text(json.dumps(DECATHLON))
    manifest = round_trip(msd)
    assert manifest.name == "Thing"
    assert manifest.description == "Things, large: and small"
    assert manifest.license == "CC-BY-SA 4.0"
    assert manifest.citation == "A hospital"
    assert manifest.modality == "MR"
    assert manifest.classes == {0: "background", 1: "organ", 2: "shell", 3: "lesions"}
    assert manifest.task == "Segment organ, shell, lesions"


def test_an_nnunet_folder_with_channels(msd: Path) -> None:
    (msd / "dataset.json").write_text(json.dumps(NNUNET))
    for file in sorted((msd / "imagesTr").iterdir()):
        case, ending = file.name.split(".", 1)
        file.rename(file.with_name(f"{case}_0000.{ending}"))
    shutil.copy(msd / "imagesTr/a_0000.nii.gz", msd / "imagesTr/a_0001.nii.gz")
    manifest = round_trip(msd)
    assert manifest.classes == {0: "background", 1: "organ", 2: "shell", 3: "lesions"}
    assert manifest.modality == "CT"
    assert [case.id for case in manifest.cases] == ["a", "b", "c", "d"]
    assert manifest.cases[0].image == "imagesTr/a_0000.nii.gz"
    assert reasons(manifest) == {"imagesTr/a_0001.nii.gz": "not one of the channels CT"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "dataset.json: not valid JSON"),
        ("[]", "dataset.json: expected an object with labels and other fields; got list"),
        ('{"labels": ["a"]}', "labels: got .'a'.; expected values with names"),
        ('{"labels": {"one": "two"}}', "labels: got"),
        ('{"labels": {"whole": [1, 2]}}', "regions_class_order: got None"),
        ('{"labels": {"all": [1, 2]}, "regions_class_order": [1, 2]}', "region_order: 2 labels for 1 regions"),
        ('{"labels": {"a": [1, 2], "b": [2, 1]}, "regions_class_order": [1, 2]}', "'b' is the same as 'a'"),
        ('{"labels": {"1": ""}}', "labels: got"),
        ('{"labels": {"a": 1, "b": 1}}', "labels: got"),
        ('{"labels": {"-1": "a"}}', "labels: got"),
        ('{"labels": {"1": "a", "2": "a"}}', "classes: name 'a' appears 2 times"),
    ],
)
def test_an_invalid_dataset_json_is_refused(content: str, message: str, msd: Path) -> None:
    with_voxel(msd / "labelsTr/a.nii.gz", 3, np.uint8)
    for file in (msd / "labelsTr").iterdir():
        rewrite(file, np.minimum(array_of(file), 1))
    (msd / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        make_manifest(msd, folds=TWO_FOLDS)
    assert "\n" not in str(caught.value)


def test_labels_not_in_dataset_json_are_excluded(msd: Path) -> None:
    (msd / "dataset.json").write_text(json.dumps(DECATHLON))
    with_voxel(msd / "labelsTr/b.nii.gz", 9, np.uint8)
    manifest = round_trip(msd)
    assert [case.id for case in manifest.cases] == ["a", "c", "d"]
    assert reasons(manifest) == {
        "imagesTr/b.nii.gz": "its label cannot be used",
        "labelsTr/b.nii.gz": "label values without a class: 9 (1 voxels); the classes are 0, 1, 2, 3",
    }


def test_paired_folders(paired: Path) -> None:
    manifest = round_trip(paired)
    assert [(case.image, case.label) for case in manifest.cases][::3] == [
        ("images/a.nii.gz", "labels/a.nii.gz"),
        ("images/d.nii", "labels/d.nii"),
    ]


def test_files_side_by_side(side_by_side: Path) -> None:
    (side_by_side / "e_image.nii.gz").write_bytes(b"")
    (side_by_side / "c_label.nii.gz").rename(side_by_side / "c_seg.nii.gz")
    (side_by_side / "b_image.nii.gz").rename(side_by_side / "b.nii.gz")
    manifest = round_trip(side_by_side)
    assert [(case.id, case.image, case.label) for case in manifest.cases] == [
        ("a", "a_image.nii.gz", "a_label.nii.gz"),
        ("b", "b.nii.gz", "b_label.nii.gz"),
        ("c", "c_image.nii.gz", "c_seg.nii.gz"),
        ("d", "d_image.nii", "d_label.nii"),
    ]
    assert reasons(manifest) == {"e_image.nii.gz": "image without a label"}


def test_unpaired_and_duplicate_files_are_excluded_with_a_reason(paired: Path) -> None:
    (paired / "labels/a.nii.gz").unlink()
    shutil.copy(paired / "labels/d.nii", paired / "labels/x.nii")
    shutil.copy(paired / "images/d.nii", paired / "images/b.nii")
    (paired / "images/.DS_Store").write_bytes(b"")
    manifest = round_trip(paired)
    assert [case.id for case in manifest.cases] == ["c", "d"]
    assert reasons(manifest) == {
        "images/a.nii.gz": "image without a label",
        "images/b.nii": "duplicate: 'b' has 2 images",
        "images/b.nii.gz": "duplicate: 'b' has 2 images",
        "labels/b.nii.gz": "duplicate: 'b' has 2 images",
        "labels/x.nii": "label without an image",
    }


def test_broken_pairs_are_excluded_with_a_reason(paired: Path) -> None:
    cut(paired / "images/a.nii.gz", 0.5)
    sheared(paired / "labels/b.nii.gz")
    manifest = round_trip(paired)
    assert [case.id for case in manifest.cases] == ["c", "d"]
    excluded = reasons(manifest)
    assert excluded["images/a.nii.gz"].startswith("truncated")
    assert excluded["labels/a.nii.gz"] == "its image cannot be used"
    assert excluded["images/b.nii.gz"] == "its label cannot be used"
    assert "sheared" in excluded["labels/b.nii.gz"]


def test_names_that_tables_do_not_accept_are_changed(paired: Path) -> None:
    for kind in ("images", "labels"):
        (paired / kind / "a.nii.gz").rename(paired / kind / "left knee (1).nii.gz")
        (paired / kind / "b.nii.gz").rename(paired / kind / "left_knee_[1].nii.gz")
        (paired / kind / "c.nii.gz").rename(paired / kind / "-007.nii.gz")
        shutil.copy(paired / kind / "d.nii", paired / kind / "two\nlines.nii")
    manifest = round_trip(paired)
    assert [case.id for case in manifest.cases] == ["case-007", "d", "left_knee__1_", "left_knee__1__2"]
    assert manifest.cases[2].image == "images/left knee (1).nii.gz"
    assert "not a path with forward slashes" in reasons(manifest)["images/two?lines.nii"]


def test_names_that_yaml_would_read_as_numbers_stay_names(paired: Path) -> None:
    names = {"a": "007", "b": "1e3", "c": "true", "d": "2020-01-01"}
    for kind in ("images", "labels"):
        for old, new in names.items():
            (file,) = (paired / kind).glob(f"{old}.nii*")
            file.rename(file.with_name(file.name.replace(old, new, 1)))
    assert {case.id for case in round_trip(paired).cases} == set(names.values())


def test_differing_spacings_widen_the_tolerance(paired: Path) -> None:
    for kind in ("images", "labels"):
        affine = affine_of(paired / kind / "a.nii.gz")
        affine[:3, :3] *= 1.5
        rewrite(paired / kind / "a.nii.gz", affine=affine)
    manifest = round_trip(paired)
    assert manifest.spacing == CANONICAL_SPACING
    assert manifest.spacing_tolerance == pytest.approx(0.5, abs=2e-3)


def test_2d_images(paired: Path) -> None:
    for file in sorted(paired.rglob("*.nii*")):
        rewrite(file, array_of(file)[6])
    manifest = round_trip(paired)
    assert (manifest.dimensions, manifest.spacing) == (2, CANONICAL_SPACING[1:])


def test_a_folder_that_contains_one_of_the_same_name_is_the_root(paired: Path) -> None:
    (paired / paired.name).mkdir()
    manifest = make_manifest(paired, folds=TWO_FOLDS)
    assert manifest.folder is None
    assert check_data(manifest, resolve_data(manifest, paired)).ok


def test_real_images_on_anisotropic_voxels(data_root: Path) -> None:
    folder = data_root / "anisotropic"
    if not folder.is_dir():
        pytest.skip(f"no anisotropic in {data_root}")
    manifest = make_manifest(folder, folds=TWO_FOLDS)
    assert [case.id for case in manifest.cases] == ["breast1", "prostate_phantom"]
    assert sorted(manifest.classes) == [0, 1, 7, 8, 9]
    assert check_data(manifest, folder).ok


def test_the_real_hippocampus_folder_is_written_as_shipped(hippocampus_root: Path, tmp_path: Path) -> None:
    manifest = make_manifest(hippocampus_root)
    shipped = load_manifest("msd_task04_hippocampus")
    assert manifest.cases == shipped.cases
    assert set(reasons(manifest)) == set(reasons(shipped))
    text = manifest_text(manifest)
    assert sum(line.startswith("  - {id: ") for line in text.splitlines()) == 260
    (tmp_path / "hippocampus.yaml").write_text(text)
    assert load_manifest(tmp_path / "hippocampus.yaml") == manifest


# Names and folds.


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a.nii", "labels/a.nii.gz"),
        ("images/a_0000.nii.gz", "labels/a.nii.gz"),
        ("images/a_0000.nii.gz", "labels/a_seg.nii.gz"),
        ("images/a_0003.nii.gz", "labels/a_0003.nii.gz"),
        ("images/a_image.nii.gz", "labels/a_Mask.nii.gz"),
        ("images/a_img.nii.gz", "labels/a.nii.gz"),
        ("images/a_seg.nii.gz", "labels/a_seg.nii.gz"),
        ("a-image.nii", "a-labels.nii"),
    ],
)
def test_names_that_are_paired(image: str, label: str) -> None:
    ((_, *files),) = pair_by_name([image], [label]).pairs
    assert files == [image, label]


@pytest.mark.parametrize("image", ["a.nii.gz", "a_image.nii.gz", "a_0000.nii.gz"])
def test_a_label_that_matches_two_images_belongs_to_neither(image: str) -> None:
    """For example, if a label map is among the images, with exactly the name of the label."""
    pairing = pair_by_name([image, "a_seg.nii.gz"], ["a_seg.nii.gz"])
    assert pairing.pairs == []
    assert {reason for _, reason in pairing.unpaired} == {"duplicate: 'a' has 2 images"}
    # If each has a label, they are two cases.
    two = pair_by_name([image, "a_seg.nii.gz"], ["a.nii.gz", "a_seg.nii.gz"])
    assert [label for _, _, label in two.pairs] == ["a.nii.gz", "a_seg.nii.gz"]


@given(
    images=st.lists(st.from_regex(r"[ab1]{1,2}(_image|_0000|_0001)?\.nii(\.gz)?", fullmatch=True), unique=True),
    labels=st.lists(st.from_regex(r"[ab1]{1,2}(_label|_seg)?\.nii(\.gz)?", fullmatch=True), unique=True),
)
def test_each_file_is_in_one_pair_or_reported(images: list[str], labels: list[str]) -> None:
    images = [f"images/{name}" for name in images]
    labels = [f"labels/{name}" for name in labels]
    pairing = pair_by_name(images, labels)
    in_pairs = [file for _, image, label in pairing.pairs for file in (image, label)]
    assert Counter(in_pairs + [file for file, _ in pairing.unpaired]) == Counter(images + labels)
    assert all(image in images and label in labels for _, image, label in pairing.pairs)


@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=40),
    folds=st.integers(2, 8),
    seed=st.integers(0, 1000),
)
def test_folds_keep_patients_together_and_have_similar_sizes(counts: list[int], folds: int, seed: int) -> None:
    patients = {f"p{p}_{n}": f"p{p}" for p, count in enumerate(counts) for n in range(count)}
    if folds > len(counts):
        with pytest.raises(UserError, match=rf"folds: got {folds} for {len(counts)} patients"):
            _folds(patients, folds, seed)
        return
    fold_of = _folds(patients, folds, seed)
    assert fold_of.keys() == set(patients.values())
    assert fold_of == _folds(dict(reversed(patients.items())), folds, seed)
    sizes = Counter(fold_of[patient] for patient in patients.values())
    assert sorted(sizes) == list(range(folds))
    assert max(sizes.values()) - min(sizes.values()) <= max(counts)


@pytest.mark.parametrize("seed", range(5))
def test_a_patient_with_many_cases_gets_a_fold_alone(seed: int) -> None:
    patients = {f"big_{n}": "big" for n in range(6)} | {f"p{n}": f"p{n}" for n in range(6)}
    fold_of = _folds(patients, 2, seed)
    assert {fold for patient, fold in fold_of.items() if patient != "big"} == {1 - fold_of["big"]}


def test_another_seed_gives_other_folds() -> None:
    patients = {f"p{n}": f"p{n}" for n in range(40)}
    assert _folds(patients, 5, 0) == _folds(patients, 5, 0) != _folds(patients, 5, 1)


def test_cases_of_one_patient_are_in_one_fold(paired: Path) -> None:
    for kind in ("images", "labels"):
        for old, new in {"a": "p1_left", "b": "p1_right", "c": "p2_left", "d": "p2_right"}.items():
            (file,) = (paired / kind).glob(f"{old}.nii*")
            file.rename(file.with_name(file.name.replace(old, new, 1)))
    manifest = round_trip(paired, FoldSettings(2, patient=r"p\d+"))
    assert [case.patient for case in manifest.cases] == ["p1", "p1", "p2", "p2"]
    folds = [case.fold for case in manifest.cases]
    assert folds[0] == folds[1] != folds[2] == folds[3]
    with pytest.raises(UserError, match="folds: got 3 for 2 patients"):
        make_manifest(paired, folds=FoldSettings(3, patient=r"p\d+"))


# The command.


def test_the_command_writes_a_manifest_that_passes(msd: Path, tmp_path: Path) -> None:
    (msd / "labelsTr/a.nii.gz").unlink()
    out = tmp_path / "deep/thing.yaml"
    code, printed, err = call_medloss(
        "manifest", msd, "--out", out, "--name", "thing", "--modality", "CT", "--folds", 3
    )
    assert (code, err) == (0, "")
    assert printed == (
        "layout: Medical Segmentation Decathlon (imagesTr, labelsTr)\n"
        f"left out: imagesTr/a.nii.gz: image without a label\n3 cases in 3 folds: written to {out}\n"
    )
    manifest = load_manifest(out)
    assert (manifest.name, manifest.modality) == ("thing", "CT")
    assert call_medloss("check", out, "--data-root", msd)[0] == 0
    assert len(re.findall(r"^  - \{id: .*\}$", out.read_text(), re.MULTILINE)) == 3
    # An existing file is not overwritten.
    before = out.read_bytes()
    code, _, err = call_medloss("manifest", msd, "--out", out, "--folds", 2)
    assert code == 2
    assert "is there already; pass --force" in err
    assert out.read_bytes() == before
    assert call_medloss("manifest", msd, "--out", out, "--folds", 2, "--force")[0] == 0
    assert out.read_bytes() != before


@pytest.mark.parametrize(
    ("classes", "names", "regions", "order", "ignore"),
    [
        ("1=organ, 2=shell, 3=lesions", ["background", "organ", "shell", "lesions"], {}, (), None),
        ("1=organ,2=shell,3=ignore", ["background", "organ", "shell"], {}, (), 3),
        (
            "1+2+3=whole,1+3=core,3=enhancing",
            ["background", "class_1", "class_2", "enhancing"],
            {"whole": (1, 2, 3), "core": (1, 3), "enhancing": (3,)},
            (2, 1, 3),
            None,
        ),
    ],
)
def test_classes_are_named_as_in_other_commands(
    classes: str, names: list[str], regions: dict[str, Any], order: tuple[int, ...], ignore: int | None,
    msd: Path, tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "thing.yaml"
    code, _, err = call_medloss("manifest", msd, "--out", out, "--folds", 2, "--classes", classes)
    assert (code, err) == (0, "")
    manifest = load_manifest(out)
    assert (list(manifest.classes.values()), manifest.regions) == (names, regions)
    assert (manifest.region_order, manifest.ignore, len(manifest.cases)) == (order, ignore, 4)
    assert call_medloss("check", out, "--data-root", msd)[0] == 0
    code, printed, _ = call_medloss("check", msd, "--classes", classes)
    assert code == 0 and names[-1] in printed
    # A label that has no name is no class: its cases are excluded, as with a dataset.json.
    code, _, err = call_medloss("manifest", msd, "--out", tmp_path / "few.yaml", "--folds", 2, "--classes", "1=organ")
    assert code == 2 and "label values without a class: 2" in err


def test_the_commands_default_is_a_file_here_by_the_folders_name(
    msd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert call_medloss("manifest", msd, "--folds", 2)[0] == 0
    assert [path.name for path in Path().iterdir()] == ["Task99_Thing.yaml"]
    code, _, err = call_medloss("manifest", msd, "--folds", 2)
    assert code == 2
    assert "Task99_Thing.yaml is there already" in err


def test_differing_spacings_are_reported(msd: Path, tmp_path: Path) -> None:
    for kind in ("imagesTr", "labelsTr"):
        affine = affine_of(msd / kind / "a.nii.gz")
        affine[:3, :3] *= 1.5
        rewrite(msd / kind / "a.nii.gz", affine=affine)
    _, printed, _ = call_medloss("manifest", msd, "--folds", 2, "--out", tmp_path / "x.yaml")
    assert re.search(r"^spacings differ: spacing_tolerance is 0\.50?1?,", printed, re.MULTILINE)


def _empty(folder: Path) -> None:
    for file in folder.rglob("*.nii*"):
        file.unlink()


def _all_broken(folder: Path) -> None:
    for file in folder.rglob("*.nii*"):
        file.write_bytes(b"")


def _one_patient(folder: Path) -> None:
    for kind in ("imagesTr", "labelsTr"):
        content = (folder / kind / "a.nii.gz").read_bytes()
        for file in (folder / kind).iterdir():
            file.unlink()
        for name in "abcd":
            (folder / kind / f"{name}.nii.gz").write_bytes(content)


def _nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (_nothing, ["{msd}/none"], "none: no such folder"),
        (_nothing, ["{msd}/imagesTr/a.nii.gz"], "a.nii.gz: no such folder"),
        (_nothing, ["{msd}/imagesTr"], "images but no labels: 4 images, such as a.nii.gz; expected labelsTr"),
        (_empty, ["{msd}"], "holds no files"),
        (_all_broken, ["{msd}"], "none of 4 pairs can be used; the first: imagesTr/a.nii.gz: 0 bytes"),
        (
            _nothing,
            ["{msd}", "--folds", "5"],
            "folds: got 5 for 4 patients; expected at most one per patient: --folds 4",
        ),
        (
            _one_patient,
            ["{msd}"],
            "folds: got 5 for 1 patient; training and validation need different patients, so 2 are the "
            "minimum; files that cannot be used: 6, the first: imagesTr/b.nii.gz: duplicate: its bytes are those of ",
        ),
        (_nothing, ["{msd}", "--folds", "1"], "Invalid value for '--folds'"),
        (_nothing, ["{msd}", "--folds", "2", "--name", "two words"], "name: got 'two words'; expected letters"),
        (_nothing, ["{msd}", "--classes", "1:organ"], "--classes: got '1:organ'; expected labels with names, such as"),
        (_nothing, ["{msd}", "--classes", "1=a,1=b"], "--classes: the label 1 has two names; expected one"),
        (_nothing, ["{msd}", "--classes", "1=a,1+2=b"], "all labels of a are in later regions; expected larger"),
        (_nothing, ["{msd}", "--folds", "2", "--name", ""], "name: got ''; expected letters"),
        (_nothing, ["{msd}", "--folds", "2", "--patient", "("], "patient: '(' is not a valid regular expression"),
        (_nothing, ["{msd}", "--folds", "2", "--patient", r"\d+"], r"patient: '\d+' matches nothing in 'a'"),
        (_nothing, ["{msd}", "--folds", "2", "--out", "{msd}"], "is a folder; expected a file to write"),
        (_nothing, ["{msd}", "--folds", "2", "--out", "{msd}/imagesTr/a.nii.gz/x.yaml"], "cannot be written"),
    ],
)
def test_invalid_arguments_exit_with_2_and_one_line(
    prepare: Callable[[Path], None], arguments: list[str], message: str, msd: Path, tmp_path: Path
) -> None:
    prepare(msd)
    arguments = [argument.format(msd=msd) for argument in arguments]
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out.yaml")]
    code, printed, err = call_medloss("manifest", *arguments)
    assert (code, printed) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert err.startswith("Usage") or err.count("\n") == 1
    assert not (tmp_path / "out.yaml").exists()
