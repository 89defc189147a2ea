"""The phantom: reproducible, as its manifest describes it, and generated completely or not at all."""

import multiprocessing
import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from tiny import tiny_manifest

from pipelines.data import data_root, phantom
from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.phantom import is_generated, make_phantom, phantom_case, recorded_checksums
from pipelines.utils import UserError
from pipelines.utils.files import sha256

SMALL = {"shape": [12, 16, 14]}


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_manifest(tiny_manifest(tmp_path / "manifest", cases=3, generator=SMALL))


def all_files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_bytes_are_the_same_each_time(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_phantom(manifest, tmp_path / "one")
    # gzip would write the time into its header.
    monkeypatch.setattr("time.time", lambda: 2e9)
    make_phantom(manifest, tmp_path / "two")
    assert all_files(tmp_path / "one") == all_files(tmp_path / "two")


def test_content_depends_on_seed_and_case(manifest: Manifest) -> None:
    arguments = ((12, 16, 14), (3.0, 1.0, 2.0))
    image, label = phantom_case(*arguments, seed=0, index=0)
    for seed, index in ((0, 1), (1, 0)):
        other_image, other_label = phantom_case(*arguments, seed, index)
        assert (image != other_image).any()
        assert (label != other_label).any()


def test_the_file_of_checksums_matches_the_files(manifest: Manifest, tmp_path: Path) -> None:
    make_phantom(manifest, tmp_path / "made")
    checksums = recorded_checksums(tmp_path / "made")
    files = all_files(tmp_path / "made")
    assert checksums == {name: digest for name, digest in files.items() if name != "SHA256SUMS"}
    assert set(checksums) == {file for case in manifest.cases for file in (case.image, case.label)}
    # The format is that of sha256sum.
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=tmp_path / "made", check=True, stdout=-3)


@pytest.mark.parametrize("name", ["phantom", "phantom_2d"])
def test_the_shipped_phantoms_have_all_classes_and_small_lesions(name: str) -> None:
    manifest = load_manifest(name)
    assert manifest.generator is not None
    assert len(manifest.cases) == 40
    assert [sum(case.fold == fold for case in manifest.cases) for fold in manifest.folds()] == [8] * 5
    for index in range(0, 40, 5):
        image, label = phantom_case(manifest.generator.shape, manifest.spacing, manifest.generator.seed, index)
        assert image.dtype == np.int16
        assert np.unique(label).tolist() == [0, 1, 2, 3]
        share = np.bincount(label.ravel()) / label.size
        assert share[1] > 0.02, "the organ is large"
        assert share[3] < 0.005, "the lesions are small"
        assert ndimage.label(label == 3)[1] >= 3, "the lesions are scattered"
        depth = ndimage.distance_transform_edt(label == 2, sampling=manifest.spacing).max()
        assert depth <= 3 * min(manifest.spacing), "the shell is thin"


@given(
    shape=st.lists(st.integers(12, 24), min_size=2, max_size=3),
    spacing=st.tuples(*[st.floats(0.3, 4.0)] * 3),
    seed=st.integers(0, 10_000),
)
def test_any_shape_and_spacing_has_all_classes_and_few_lesions(
    shape: list[int], spacing: tuple[float, ...], seed: int
) -> None:
    image, label = phantom_case(tuple(shape), spacing[: len(shape)], seed, 0)
    assert image.shape == label.shape == tuple(shape)
    assert image.min() >= 0
    assert (label == 1).any()
    # In tiny images, where 0.5 % is less than a pixel, there are none.
    assert 0 <= (label == 3).mean() < 0.005


@pytest.mark.parametrize("dims", [2, 3])
def test_the_files_are_nifti_with_the_manifests_geometry(dims: int, tmp_path: Path) -> None:
    changes = {"classes": {0: "background", 2: "organ", 5: "shell", 300: "lesion"}}
    manifest = load_manifest(tiny_manifest(tmp_path, dims=dims, cases=3, **changes))
    assert manifest.generator is not None
    root = resolve_data(manifest, tmp_path / "root")
    for case in manifest.cases:
        image, label = nib.load(root / case.image), nib.load(root / case.label)
        assert image.shape == label.shape == manifest.generator.shape
        assert np.array_equal(image.affine, label.affine)
        assert image.header.get_xyzt_units()[0] == "mm"
        for volume in (image, label):
            assert volume.header.get_zooms() == pytest.approx(manifest.spacing)
            assert np.linalg.norm(volume.affine[:3, :dims], axis=0) == pytest.approx(manifest.spacing)
            assert volume.header["qform_code"] == volume.header["sform_code"] == 1
            assert np.allclose(volume.get_qform(), volume.get_sform())
        assert set(np.unique(np.asanyarray(label.dataobj)).tolist()) <= {0, 2, 5, 300}
        # Axes of the array and of the world differ, so that code that confuses them fails.
        assert np.count_nonzero(np.diag(image.affine)[:3]) <= 1


def test_the_contrast_is_low() -> None:
    image, label = phantom_case((20, 56, 56), (3.0, 1.0, 1.0), seed=0, index=0)
    means = [image[label == value].mean() for value in range(4)]
    spread = image[label == 0].std()
    assert means[0] < means[1] < means[2]
    assert means[1] - means[0] < 3 * spread


def test_generated_data_are_cached_by_their_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDLOSS_DATA", raising=False)
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    one = load_manifest(tiny_manifest(tmp_path / "a", cases=3, generator=SMALL))
    other = load_manifest(tiny_manifest(tmp_path / "b", cases=3, generator={**SMALL, "seed": 1}))
    folders = {resolve_data(one), resolve_data(other)}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {tmp_path / "cache"}
    assert len({tuple(all_files(folder).values()) for folder in folders}) == 2
    monkeypatch.setattr(data_root, "VERSION", data_root.VERSION + 1)
    assert resolve_data(one) not in folders


def test_existing_data_are_not_generated_again(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = resolve_data(manifest, tmp_path)
    before = all_files(root)
    monkeypatch.setattr(phantom, "phantom_case", None)  # drawing would fail
    assert resolve_data(manifest, tmp_path) == root
    monkeypatch.setenv("MEDLOSS_DATA", str(tmp_path))
    assert resolve_data(manifest) == root
    assert all_files(root) == before


def test_a_shared_data_folder_without_the_phantom_is_not_changed(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setenv("MEDLOSS_DATA", str(shared))
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    assert resolve_data(manifest).parent == tmp_path / "cache"
    assert list(shared.iterdir()) == []


def test_a_failed_generation_leaves_no_files(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = phantom.phantom_case

    def full_disk(shape: tuple[int, ...], spacing: tuple[float, ...], seed: int, index: int) -> object:
        if index == 2:
            raise OSError(28, "No space left on device")
        return real(shape, spacing, seed, index)

    monkeypatch.setattr(phantom, "phantom_case", full_disk)
    with pytest.raises(UserError, match="No space left on device; pass --data-root or set MEDLOSS_CACHE"):
        resolve_data(manifest, tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
    monkeypatch.undo()
    assert is_generated(resolve_data(manifest, tmp_path / "root"))


def test_an_unrelated_folder_is_refused_and_not_changed(manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="is not a complete data set: it has no SHA256SUMS; remove it"):
        make_phantom(manifest, folder)
    assert all_files(folder).keys() == {"thesis.txt"}


def test_a_file_at_the_folders_path_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(UserError, match="cannot generate 'tiny_3d' in"):
        resolve_data(manifest, tmp_path / "root")


def _make(path: Path, root: Path, barrier: "multiprocessing.synchronize.Barrier") -> None:
    manifest = load_manifest(path)
    barrier.wait()
    assert is_generated(resolve_data(manifest, root))
    os._exit(0)


def test_concurrent_processes_generate_one_data_set(tmp_path: Path) -> None:
    path = tiny_manifest(tmp_path, cases=4)
    root = tmp_path / "root"
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(3)
    makers = [context.Process(target=_make, args=(path, root, barrier)) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(60)
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    (folder,) = root.iterdir()
    assert recorded_checksums(folder) == {n: d for n, d in all_files(folder).items() if n != "SHA256SUMS"}
