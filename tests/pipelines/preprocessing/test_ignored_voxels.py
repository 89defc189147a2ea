"""Ignored voxels in prepared cases, patches and the fingerprint, and what cases annotate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from small_files import array_of, rewrite
from tiny import listed, tiny_manifest, tiny_regions

from pipelines.data.label_scheme import IGNORED
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.preprocessing import Augmentation, Clip
from pipelines.preprocessing.case_store import CaseStore, EntryCache, take_fingerprint
from pipelines.preprocessing.patches import PatchDataset
from pipelines.preprocessing.resampling import Preprocessing, read_case
from pipelines.utils import UserError

CANONICAL = Preprocessing(dimensions=3, orientation="canonical")
CLIP = Clip(low=-200, high=200, mean=1.5, std=4)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Manifest, Path]:
    path, data = listed(tiny_regions(tmp_path, cases=3), tmp_path / "data")
    return load_manifest(path), data


def _case(manifest: Manifest, root: Path, processed: Preprocessing = CANONICAL) -> dict[str, Any]:
    item: dict[str, Any] = CaseStore(manifest, manifest.cases[:1], root, processed)[0]
    return item


@pytest.mark.parametrize("spacing", [None, (1.1, 1.9, 2.3)], ids=["one grid", "resampled"])
def test_ignored_voxels_have_an_index_that_no_class_has(
    made: tuple[Manifest, Path], spacing: tuple[float, ...] | None
) -> None:
    manifest, root = made
    item = _case(manifest, root, CANONICAL.model_copy(update={"spacing": spacing}))
    assert item["label"].dtype == torch.uint8
    assert item["label"].unique().tolist() == [0, 1, 2, 3, IGNORED]
    flat = item["label"].flatten()
    assert (flat[item["counted"].long()] != IGNORED).all()
    for voxels, members in zip(item["centres"], manifest.scheme.members, strict=True):
        assert set(flat[voxels.long()].tolist()) == set(members)
    assert item["labelled"].tolist() == [True] * 3


def test_the_fingerprint_leaves_them_out(made: tuple[Manifest, Path]) -> None:
    manifest, root = made
    before = take_fingerprint(manifest, manifest.cases, root, CANONICAL)
    for case in manifest.cases:
        label = array_of(root / case.label)
        for file in case.images:
            rewrite(root / file, np.where(label == 255, 1e6, array_of(root / file)).astype(np.float32))
    after = take_fingerprint(manifest, manifest.cases, root, CANONICAL)
    assert np.array_equal(before.intensities, after.intensities)
    assert before.intensities.shape[1] > 0 and np.abs(after.intensities).max() < 1e5
    assert (before.shapes, before.spacings) == (after.shapes, after.spacings)


def test_intensities_there_change_nothing_but_the_normalisation(made: tuple[Manifest, Path]) -> None:
    manifest, root = made
    case, clipped = manifest.cases[0], CANONICAL.model_copy(update={"clip": CLIP})
    before = [_case(manifest, root, processed) for processed in (CANONICAL, clipped)]
    label = array_of(root / case.label)
    for file in case.images:
        rewrite(root / file, np.where(label == 255, 300.0, array_of(root / file)).astype(np.float32))
    after = [_case(manifest, root, processed) for processed in (CANONICAL, clipped)]
    counted = before[0]["label"][0] != IGNORED
    for one, other in zip(before, after, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("label", "spacing", "counted", "labelled"))
        assert all(map(torch.equal, one["centres"], other["centres"]))
    assert torch.equal(before[1]["image"][:, counted], after[1]["image"][:, counted])
    for one, other in zip(before[0]["image"], after[0]["image"], strict=True):
        scaled = [(voxels - voxels.mean()) / voxels.std() for voxels in (one[counted], other[counted])]
        assert torch.allclose(*scaled, atol=1e-4)


def _island(shape: tuple[int, ...], counted: tuple[int, ...], foreground: bool) -> dict[str, Any]:
    """A case in which a single voxel is counted."""
    label = torch.full((1, *shape), IGNORED, dtype=torch.uint8)
    label[(0, *counted)] = int(foreground)
    flat = torch.tensor([np.ravel_multi_index(counted, shape)], dtype=torch.int32)
    return {
        "case": "a", "image": torch.zeros(1, *shape), "label": label, "spacing": torch.tensor([1.0, 2.0, 3.0]),
        "centres": [flat] if foreground else [], "counted": flat, "labelled": torch.tensor([True, True]),
    }  # fmt: skip


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("counted", [(0, 0, 0), (15, 17, 19), (7, 9, 11), (0, 9, 19)])
def test_every_patch_has_a_counted_voxel(counted: tuple[int, int, int], foreground: bool) -> None:
    moved = Augmentation(rotation=180, scaling=(0.5, 2.0), spatial_share=0.9)
    item = _island((16, 18, 20), counted, foreground)
    patches = PatchDataset([item], (6, 8, 10), 0, (0, 1, 2), moved, foreground=0.5)
    for epoch in range(60):
        assert (patches[epoch, 0]["label"] != IGNORED).any()


def test_patches_outside_the_foreground_are_spread_over_the_counted_voxels(made: tuple[Manifest, Path]) -> None:
    manifest, root = made
    item = _case(manifest, root)
    patches = PatchDataset([item], (4, 4, 4), 0, foreground=0)
    labels = torch.stack([patches[epoch, 0]["label"] for epoch in range(100)])
    assert (labels[:, 0, 2, 2, 2] != IGNORED).float().mean() > 0.9
    assert {0, 1, 2, 3, IGNORED} == set(labels.unique().tolist())


def test_maps_without_a_counted_voxel_are_refused(made: tuple[Manifest, Path]) -> None:
    manifest, root = made
    path = root / manifest.cases[0].label
    label = np.full_like(array_of(path), 255)
    label[5, 5, 5] = 1
    rewrite(path, label)
    assert _case(manifest, root)["counted"].numel() == 1
    message = "^case 'phantom_regions_000': all voxels are ignored on the training grid of 9 x 9 x 9 mm; pass a finer"
    with pytest.raises(UserError, match=message):
        _case(manifest, root, CANONICAL.model_copy(update={"spacing": (9.0, 9.0, 9.0)}))
    rewrite(path, np.full_like(label, 255))
    with pytest.raises(UserError, match=r"labels/.*: all voxels have the ignored label 255; `medloss check`"):
        _case(manifest, root)


# Partial labels.


def _partial(folder: Path, labelled: list[str], **changes: Any) -> tuple[Manifest, Path]:
    path, data = listed(tiny_manifest(folder, cases=3, **changes), folder / "data")
    content = yaml.safe_load(path.read_text())
    content["cases"][0]["labelled"] = labelled
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_manifest(path), data


def _without(root: Path, manifest: Manifest, *values: int) -> None:
    path = root / manifest.cases[0].label
    rewrite(path, np.where(np.isin(array_of(path), values), 0, array_of(path)).astype(np.uint8))


def test_what_a_case_annotates(tmp_path: Path) -> None:
    manifest, root = _partial(tmp_path, ["organ", "lesion"])
    with pytest.raises(UserError, match=r"has voxels of 'shell', which is not among the case's 'labelled'; "):
        _case(manifest, root)
    _without(root, manifest, 2)
    assert _case(manifest, root)["labelled"].tolist() == [True, True, False, True]
    assert CaseStore(manifest, manifest.cases, root, CANONICAL)[1]["labelled"].tolist() == [True] * 4


def test_a_region_is_annotated_if_all_of_its_classes_are(tmp_path: Path) -> None:
    regions = {"regions": {"both": [1, 2], "shell": [2], "lesion": [3]}, "region_order": [1, 2, 3]}
    manifest, root = _partial(tmp_path, ["organ", "lesion"], **regions)
    _without(root, manifest, 2)
    assert _case(manifest, root)["labelled"].tolist() == [False, False, True]


def test_the_cache_follows_what_a_case_annotates(tmp_path: Path) -> None:
    manifest, root = _partial(tmp_path, ["organ", "lesion"])
    _without(root, manifest, 2)
    whole = manifest.model_copy(
        update={"cases": [case.model_copy(update={"labelled": None}) for case in manifest.cases]}
    )
    cache = EntryCache(tmp_path / "cache")
    rows = [CaseStore(one, one.cases[:1], root, CANONICAL, cache)[0]["labelled"].tolist() for one in (manifest, whole)]
    assert rows == [[True, True, False, True], [True] * 4]


def test_labels_without_whole_annotation_are_read_like_others(tmp_path: Path) -> None:
    manifest, root = _partial(tmp_path, ["organ", "shell", "lesion"])
    named = read_case(manifest, manifest.cases[0], root, CANONICAL)
    plain = manifest.cases[0].model_copy(update={"labelled": None})
    assert torch.equal(named["label"], read_case(manifest, plain, root, CANONICAL)["label"])
