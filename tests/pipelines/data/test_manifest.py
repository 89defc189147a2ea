"""Manifests are validated completely: all broken rules are reported at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.data_root import resolve_data
from pipelines.data.layouts import path_problem
from pipelines.data.manifest import Manifest, ManifestError, load_manifest
from pipelines.utils import UserError
from pipelines.utils.files import shipped_manifests

Content = dict[str, Any]


def listed() -> Content:
    """A manifest that lists its files: four cases in two folds."""
    return {
        "name": "liver",
        "description": "Livers.",
        "task": "Segment the liver",
        "license": "CC0-1.0",
        "citation": "none",
        "source": "https://example.org/liver.tar",
        "modality": "CT",
        "dimensions": 3,
        "spacing": [1.0, 1.0, 2.5],
        "classes": {0: "background", 1: "liver", 4: "tumour"},
        "cases": [
            {
                "id": f"case_{index}",
                "patient": f"p{index}",
                "fold": index % 2,
                "image": f"imagesTr/case_{index}.nii.gz",
                "label": f"labelsTr/case_{index}.nii.gz",
                "image_sha256": f"{index:064x}",
                "label_sha256": f"{index + 100:064x}",
            }
            for index in range(4)
        ],
    }


def generated() -> Content:
    content = listed()
    del content["cases"]
    content["classes"] = {0: "background", 1: "organ", 2: "shell", 3: "lesions"}
    content["generator"] = {"name": "phantom", "cases": 4, "folds": 2, "shape": [12, 12, 12]}
    return content


def written(content: Any, folder: Path) -> Path:
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def offences(content: Content, folder: Path) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        load_manifest(written(content, folder))
    return caught.value.offences


Change = Callable[[Content], object]


def put(*path: Any, to: Any) -> Change:
    """Set the value at a path of keys and indices."""

    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        content[path[-1]] = to

    return change


def drop(*path: Any) -> Change:
    def change(content: Any) -> None:
        for part in path[:-1]:
            content = content[part]
        del content[path[-1]]

    return change


def both(*changes: Change) -> Change:
    return lambda content: [change(content) for change in changes]


def regions(order: list[int], **named: list[int]) -> Change:
    return both(put("regions", to=named), put("region_order", to=order))


REFUSALS: list[tuple[Change, str]] = [
    (drop("name"), "name: missing"),
    (put("name", to="two words"), "name: should match pattern"),
    (put("name", to="../up"), "name: should match pattern"),
    (drop("license"), "license: missing"),
    (put("licence", to="MIT"), "licence: unknown field; did you mean 'license'?"),
    (put("qqqq", to=1), "qqqq: unknown field"),
    (put("description", to=7), "description: should be a valid string; got 7"),
    (put("dimensions", to=4), "dimensions: should be 2 or 3; got 4"),
    (put("spacing", to=[1.0, 1.0]), "spacing: 2 numbers for 3 dimensions"),
    (put("spacing", to=[1.0, 0.0, 1.0]), "spacing[1]: should be greater than 0; got 0.0"),
    (put("spacing", to=[1.0, -2.0, 1.0]), "spacing[1]: should be greater than 0; got -2.0"),
    (put("spacing", to=[1.0, float("nan"), 1.0]), "spacing[1]: should be"),
    (put("spacing", to=[1.0, float("inf"), 1.0]), "spacing[1]: should be a finite number; got inf"),
    (put("spacing", to="wide"), "spacing: should be a valid tuple; got 'wide'"),
    (put("spacing_tolerance", to=-0.1), "spacing_tolerance: should be greater than or equal to 0; got -0.1"),
    (put("nsd_tolerance", to=-1), "nsd_tolerance: should be greater than or equal to 0; got -1"),
    (put("nsd_tolerance", to="1 mm"), "nsd_tolerance: should be a valid number; got '1 mm'"),
    (put("metrics", to="nsd"), "metrics: should be a valid tuple; got 'nsd'"),
    (put("lesions", to={"overlap": 1}), "lesions.overlap: should be less than 1; got 1"),
    (put("lesions", to={"connectivity": 5}), "lesions.connectivity: should be 4, 6, 8, 18 or 26; got 5"),
    (put("lesions", to={"connectivity": 8}), "lesions.connectivity: got 8; expected one of 6, 18, 26 in 3D"),
    (put("lesions", to={"conectivity": 6}), "lesions.conectivity: unknown field; did you mean 'connectivity'?"),
    (put("classes", to={0: "background"}), "classes: no foreground class"),
    (put("classes", to={1: "liver", 2: "tumour"}), "classes: class 0 is missing; expected 0: background"),
    (put("classes", 4, to="liver"), "classes: name 'liver' appears 2 times"),
    (put("classes", 4, to=""), "classes[4]: should have at least 1 character; got ''"),
    (put("classes", -1, to="nothing"), "should be greater than or equal to 0; got -1"),
    (put("classes", 1.5, to="half"), "got 1.5"),
    (put("classes", "two", to="second"), "got 'two'"),
    (put("classes", to=["background", "liver"]), "classes: should be a valid dictionary; got ['background', 'liver']"),
    (put("folder", to="/data"), "folder: '/data' is absolute; expected a path relative to the data root"),
    (put("folder", to="a/../../b"), "folder: 'a/../../b' leaves the data root"),
    (put("cases", to=[]), "cases: none listed"),
    (drop("cases"), "cases: none listed"),
    (put("cases", 1, to=3), "cases[1]: should be a valid dictionary; got 3"),
    (put("cases", 1, "image", to=7), "cases[1] (case_1).image: should be a valid string; got 7"),
    (put("cases", 1, "image", to=["a.nii", 3]), "cases[1] (case_1).image[1]: should be a valid string; got 3"),
    (put("cases", to={"a": 1}), "cases: should be a valid list; got {'a': 1}"),
    (put("cases", 2, to="case_2"), "cases[2]:"),
    (drop("cases", 1, "label"), "cases[1] (case_1).label: missing"),
    (put("cases", 1, "lable", to="x"), "cases[1] (case_1).lable: unknown field; did you mean 'label'?"),
    (put("cases", 1, "id", to="case_0"), "cases: id 'case_0' appears 2 times"),
    (put("cases", 1, "id", to="a/b"), "cases[1] (a/b).id: should match pattern"),
    (put("cases", 1, "image", to="imagesTr/case_0.nii.gz"), "cases: file 'imagesTr/case_0.nii.gz' appears 2 times"),
    (put("cases", 1, "image", to="imagesTr/./case_0.nii.gz"), "cases: file 'imagesTr/case_0.nii.gz' appears 2 times"),
    (put("cases", 1, "label", to="labelsTr/case_0.nii.gz"), "cases: file 'labelsTr/case_0.nii.gz' appears 2 times"),
    (put("cases", 1, "label", to="imagesTr/case_1.nii.gz"), "cases: file 'imagesTr/case_1.nii.gz' appears 2 times"),
    (put("cases", 1, "image", to="/etc/a.nii"), "cases[1] (case_1).image: '/etc/a.nii' is absolute"),
    (put("cases", 1, "image", to="../a.nii"), "cases[1] (case_1).image: '../a.nii' leaves the data root"),
    (put("cases", 1, "label", to="x/../../a.nii"), "cases[1] (case_1).label: 'x/../../a.nii' leaves the data root"),
    (put("cases", 1, "image", to="C:/a.nii"), "cases[1] (case_1).image: 'C:/a.nii' is absolute"),
    (
        put("cases", 1, "image", to="a\\b.nii"),
        r"cases[1] (case_1).image: 'a\\b.nii' is not a path with forward slashes",
    ),
    (
        put("cases", 1, "image", to="a\nb.nii"),
        r"cases[1] (case_1).image: 'a\nb.nii' is not a path with forward slashes",
    ),
    (put("cases", 1, "image", to=""), "cases[1] (case_1).image: '' is not a path"),
    (put("cases", 1, "image", to="a.png"), "cases[1] (case_1).image: 'a.png' is not a NIfTI file (.nii or .nii.gz)"),
    (put("cases", 1, "fold", to=-1), "cases[1] (case_1).fold: should be greater than or equal to 0; got -1"),
    (put("cases", 1, "fold", to=0.5), "cases[1] (case_1).fold: should be a valid integer; got 0.5"),
    (put("cases", 1, "fold", to="1"), "cases[1] (case_1).fold: should be a valid integer; got '1'"),
    (put("cases", 1, "fold", to=5), "cases: the folds are [0, 1, 5]; expected 0, 1, 2, ... without gaps"),
    (put("cases", 1, "patient", to=""), "cases[1] (case_1).patient: should have at least 1 character; got ''"),
    (put("cases", 1, "patient", to="p0"), "cases: patient 'p0' is in folds [0, 1]: in both training and validation"),
    (put("cases", 1, "label_sha256", to="abc"), "cases[1] (case_1).label_sha256: should match pattern"),
    (put("cases", 1, "label_sha256", to="A" * 64), "cases[1] (case_1).label_sha256: should match pattern"),
    (put("channels", to=[{"nme": "T1"}]), "channels[0].nme: unknown field; did you mean 'name'?"),
    (put("channels", to=[{"name": "T1", "intensity": "log"}]), "channels[0].intensity: should be '"),
    (put("channels", to=[{"name": "T1"}] * 2), "channels: name 'T1' appears 2 times"),
    (
        both(put("channels", to=[{"name": n} for n in "abc"]), put("cases", 1, "image", to=["a.nii", "b.nii"])),
        "cases: 'case_1' has 2 images for 3 channels; expected one per channel",
    ),
    (put("cases", 1, "image", to=["a.nii", "b.nii"]), "cases: 'case_1' has 2 images for 1 channels"),
    (
        both(
            put("channels", to=[{"name": "a"}, {"name": "b"}]),
            put("cases", 1, "image", to=["a.nii", "b.nii"]),
            put("cases", 1, "image_sha256", to=["0" * 64]),
        ),
        "cases: 'case_1': image_sha256: expected one per image",
    ),
    (put("cases", 1, "image", to=[]), "cases[1] (case_1).image: expected a file, or one per channel"),
    (put("cases", 1, "image", to=["a.nii", "../b.nii"]), "cases[1] (case_1).image: '../b.nii' leaves the data root"),
    (put("ignore", to=4), "ignore: 4 is also the class 'tumour'; expected a label value that no class has"),
    (put("ignore", to=-1), "ignore: should be greater than or equal to 0; got -1"),
    (put("ignore", to=[]), "ignore: should be a valid integer; got []"),
    (regions([1], all=[1, 7]), "regions: 'all' has the label 7; the foreground labels are 1, 4"),
    (regions([1], all=[0, 1]), "regions: 'all' has the label 0; the foreground labels are 1, 4"),
    (regions([1], all=[]), "regions: 'all' has no label; expected one or more"),
    (regions([1, 4], all=[1, 4], same=[4, 1]), "regions: 'same' is the same as 'all'"),
    (regions([1], all=[1, 4], core=[4]), "region_order: 1 labels for 2 regions; expected the label that each region's"),
    (regions([1, 1], all=[1, 4], core=[4]), "region_order: 1 for 'core', which consists of 4"),
    (regions([4, 4], all=[1, 4], core=[4]), "region_order: [4, 4]; expected a different label for each region"),
    (put("region_order", to=[1]), "region_order: given without regions"),
    (put("cases", 1, "labelled", to=[]), "cases: 'case_1' labels nothing; leave it out, or 'labelled' if it labels"),
    (put("cases", 1, "labelled", to=["livr"]), "'case_1': labelled: no foreground class 'livr'; did you mean 'liver'?"),
    (put("cases", 1, "labelled", to=["background"]), "'case_1': labelled: no foreground class 'background'"),
    (put("excluded", to=[{"file": "x.nii"}]), "excluded[0].reason: missing"),
    (put("excluded", to=[{"file": "x.nii", "reason": ""}]), "excluded[0].reason: should have at least 1 character"),
    (put("excluded", to=[{"file": "imagesTr/case_0.nii.gz", "reason": "x"}]), "is also a case's file"),
]

GENERATOR_REFUSALS: list[tuple[Change, str]] = [
    (put("generator", "name", to="blobs"), "generator.name: should be 'phantom' or 'phantom_regions'; got 'blobs'"),
    (put("generator", "shape", to=[12, 12]), "generator.shape: 2 axes for 3 dimensions"),
    (put("generator", "shape", to=[12, 4, 12]), "expected 2 or 3 axes of 12 voxels or more"),
    (put("generator", "folds", to=9), "generator: 9 folds of 4 cases"),
    (put("generator", "folds", to=1), "generator.folds: should be greater than or equal to 2; got 1"),
    (put("generator", "cases", to=1), "generator.cases: should be greater than or equal to 2; got 1"),
    (put("generator", "seed", to=-1), "generator.seed: should be greater than or equal to 0; got -1"),
    (put("generator", "shape", to=[2000, 2000, 2000]), "expected at most 2e9 voxels in total"),
    (put("generator", "sede", to=1), "generator.sede: unknown field; did you mean 'seed'?"),
    (drop("generator", "shape"), "generator.shape: missing"),
    (put("cases", to=listed()["cases"]), "cases: the generator creates the cases; expected none to be listed"),
    (drop("classes", 3), "classes: 3 for a phantom; expected 4, background included"),
]


def test_a_valid_manifest_is_read(tmp_path: Path) -> None:
    manifest = load_manifest(written(listed(), tmp_path))
    assert manifest.scheme.names == ["liver", "tumour"]
    assert manifest.label_values == [0, 1, 4]
    assert manifest.scheme.channels == 3
    assert manifest.spacing == (1.0, 1.0, 2.5)
    assert manifest.folds() == [0, 1]
    assert [case.id for case in manifest.cases] == ["case_0", "case_1", "case_2", "case_3"]


@pytest.mark.parametrize(("change", "message"), REFUSALS, ids=[message[:60] for _, message in REFUSALS])
def test_each_broken_rule_is_reported(change: Change, message: str, tmp_path: Path) -> None:
    content = listed()
    change(content)
    assert any(message in line for line in offences(content, tmp_path)), offences(content, tmp_path)


@pytest.mark.parametrize(("change", "message"), GENERATOR_REFUSALS, ids=[message for _, message in GENERATOR_REFUSALS])
def test_each_broken_rule_of_generated_data_is_reported(change: Change, message: str, tmp_path: Path) -> None:
    content = generated()
    change(content)
    assert any(message in line for line in offences(content, tmp_path)), offences(content, tmp_path)


#: Rules that can be broken together, of single fields and between fields.
TOGETHER: list[tuple[Change, str]] = [
    (drop("name"), "name: missing"),
    (put("licence", to="MIT"), "licence: unknown field"),
    (put("spacing", to=[1.0]), "spacing: 1 numbers for 3 dimensions"),
    (put("spacing_tolerance", to=-1), "spacing_tolerance: should be"),
    (put("classes", 4, to="liver"), "classes: name 'liver' appears 2 times"),
    (put("folder", to="/data"), "folder: '/data' is absolute"),
    (put("cases", 0, "label_sha256", to="abc"), "cases[0] (case_0).label_sha256: should match"),
    (put("cases", 1, "image", to="../a.nii"), "cases[1] (case_1).image: '../a.nii' leaves the data root"),
    (put("cases", 2, "id", to="case_0"), "cases: id 'case_0' appears 2 times"),
    (put("cases", 2, "label", to="labelsTr/case_0.nii.gz"), "cases: file 'labelsTr/case_0.nii.gz' appears 2 times"),
    (put("cases", 3, "patient", to="p0"), "cases: patient 'p0' is in folds [0, 1]"),
    (put("excluded", to=[{"file": "x.nii"}]), "excluded[0].reason: missing"),
]


@given(st.sets(st.integers(0, len(TOGETHER) - 1), min_size=1))
def test_exactly_the_broken_rules_are_reported(tmp_path_factory: pytest.TempPathFactory, chosen: set[int]) -> None:
    content = listed()
    for index in chosen:
        TOGETHER[index][0](content)
    lines = offences(content, tmp_path_factory.getbasetemp())
    assert len(lines) == len(chosen)
    for index in chosen:
        assert any(TOGETHER[index][1] in line for line in lines)


def test_the_message_has_the_path_the_count_and_a_line_per_error(tmp_path: Path) -> None:
    content = listed()
    content["cases"][3]["patient"] = "p0"
    content["spacing"] = [1.0]
    content["modality"] = None
    path = written(content, tmp_path)
    with pytest.raises(UserError) as caught:
        load_manifest(path)
    assert str(caught.value).splitlines() == [
        f"{path}: 3 errors",
        "  modality: should be a valid string; got None",
        "  spacing: 1 numbers for 3 dimensions",
        "  cases: patient 'p0' is in folds [0, 1]: in both training and validation",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("", "not a manifest: expected a mapping"),
        ("- a\n- b", "not a manifest: expected a mapping"),
        ("!!python/object/apply:os.system ['touch owned']", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("a: &a [*a]", "not valid YAML"),
    ],
)
def test_files_that_are_not_manifests_are_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_manifest(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.yaml"
    path.write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match="not valid YAML"):
        load_manifest(path)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(
    field=st.sampled_from([*Manifest.model_fields, "cases.0", "cases.0.fold", "cases.0.image", "cases.0.id"]),
    value=json_like,
)
def test_any_value_of_a_field_is_accepted_or_refused_with_a_message(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: Any
) -> None:
    content = listed()
    put(*(int(part) if part.isdigit() else part for part in field.split(".")), to=value)(content)
    path = written(content, tmp_path_factory.getbasetemp())
    try:
        manifest = load_manifest(path)
    except UserError as error:
        assert str(error).startswith(str(path))
    else:
        assert Manifest.model_validate(manifest.model_dump()) == manifest


def test_shipped_manifests_are_complete_and_found_by_name() -> None:
    assert {"phantom", "phantom_2d", "msd_task04_hippocampus"} <= set(shipped_manifests())
    for name in shipped_manifests():
        manifest = load_manifest(name)
        assert manifest.name == name
        assert load_manifest(f"{name}.yaml") == manifest
        assert all((manifest.description, manifest.task, manifest.license, manifest.citation, manifest.source))


def test_the_hippocampus_manifest_describes_the_data() -> None:
    manifest = load_manifest("msd_task04_hippocampus")
    assert len(manifest.cases) == 260
    assert [sum(case.fold == fold for case in manifest.cases) for fold in manifest.folds()] == [52] * 5
    assert manifest.classes == {0: "background", 1: "anterior", 2: "posterior"}
    assert manifest.license == "CC BY-SA 4.0"
    assert "10.1038/s41467-022-30695-9" in manifest.citation
    assert "1902.09063" in manifest.citation
    assert "http://medicaldecathlon.com" in manifest.source
    assert "Task04_Hippocampus.tar" in manifest.source
    assert {entry.file for entry in manifest.excluded} == {
        "imagesTr/hippocampus_118.nii.gz",
        "labelsTr/hippocampus_010.nii.gz",
        "labelsTr/hippocampus_281.nii.gz",
    }


def test_the_sarcoma_manifest_describes_the_data() -> None:
    manifest = load_manifest("tcia_sts_pet")
    assert len({case.patient for case in manifest.cases}) == len(manifest.cases) == 51
    assert sorted(sum(case.fold == fold for case in manifest.cases) for fold in manifest.folds()) == [10] * 4 + [11]
    assert (manifest.modality, manifest.license) == ("PT", "CC BY 3.0")
    assert "10.1088/0031-9155/60/14/5471" in manifest.citation
    assert "10.7937/K9/TCIA.2015.7GO2GSKS" in manifest.source


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'phantom'"):
        load_manifest("phantm")
    with pytest.raises(UserError, match=r"shipped manifests: .*phantom_2d"):
        load_manifest("zzzzzzzz")


def test_a_split_holds_out_one_fold(tmp_path: Path) -> None:
    manifest = load_manifest(written(listed(), tmp_path))
    training, validation = manifest.split(1)
    assert [case.id for case in training] == ["case_0", "case_2"]
    assert [case.id for case in validation] == ["case_1", "case_3"]
    with pytest.raises(UserError, match=r"fold: got 2; 'liver' has folds 0, 1"):
        manifest.split(2)


def test_the_checksum_depends_on_the_content_only(tmp_path: Path) -> None:
    content = listed()
    first = load_manifest(written(content, tmp_path)).sha256
    other = tmp_path / "other.yaml"
    other.write_text(
        "# a remark\n" + yaml.safe_dump(dict(reversed(content.items())), sort_keys=False, default_flow_style=True)
    )
    assert load_manifest(other).sha256 == first
    content["cases"][0]["label_sha256"] = "f" * 64
    assert load_manifest(written(content, tmp_path)).sha256 != first


@pytest.mark.parametrize(
    ("field", "default", "other"),
    [
        ("metrics", [], ["lesion_f1"]),
        ("primary_metric", None, "nsd"),
        ("nsd_tolerance", None, 0),
        ("lesions", {"overlap": 0.5}, {"overlap": 0}),
        ("lesions", {}, {"connectivity": 6}),
    ],
)
def test_fields_that_older_versions_did_not_have_do_not_change_the_checksum(
    field: str, default: Any, other: Any, tmp_path: Path
) -> None:
    content = listed()
    first = load_manifest(written(content, tmp_path)).sha256
    assert load_manifest(written(content | {field: default}, tmp_path)).sha256 == first
    assert load_manifest(written(content | {field: other}, tmp_path)).sha256 != first


@given(st.text(st.sampled_from("ab./\\C: \n~é"), max_size=12))
def test_a_valid_path_stays_inside_any_root(path: str) -> None:
    if path_problem(path) is None:
        root = Path("/some/root")
        joined = Path(*(part for part in (root / path).parts if part != "."))
        assert ".." not in joined.parts
        assert joined.is_relative_to(root)


# Data roots.


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_manifest(written(listed() | {"folder": "Liver"}, tmp_path))


def test_the_manifests_folder_is_preferred_to_the_root(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert resolve_data(manifest, root) == root
    (root / "Liver").mkdir()
    assert resolve_data(manifest, root) == root / "Liver"
    monkeypatch.setenv("MEDLOSS_DATA", str(root))
    assert resolve_data(manifest) == root / "Liver"
    assert resolve_data(manifest, tmp_path) == tmp_path


def test_without_data_the_message_says_where_they_are_available(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MEDLOSS_DATA", raising=False)
    with pytest.raises(UserError, match=r"--data-root or set MEDLOSS_DATA.*https://example.org/liver.tar"):
        resolve_data(manifest)
    with pytest.raises(UserError, match=r"none is not a folder.*https://example.org/liver.tar"):
        resolve_data(manifest, tmp_path / "none")
