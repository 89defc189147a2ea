"""From files to patches: labels, spacing, intensities, the cache, and randomness."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from faults import padded, with_trailing_axes
from small_files import array_of, rewrite
from tiny import tiny_manifest

from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import Case, Manifest, load_manifest
from pipelines.preprocessing import Clip, case_store
from pipelines.preprocessing.case_store import CaseStore, EntryCache
from pipelines.preprocessing.patches import EpochBatches, PatchDataset, start_epoch, training_loader, validation_loader
from pipelines.preprocessing.resampling import Preprocessing, read_case
from pipelines.utils import UserError

CANONICAL = Preprocessing(dimensions=3, orientation="canonical")


def decode_cases(
    manifest: Manifest, cases: list[Case], root: Path, cache: Path | None = None, **settings: Any
) -> list[dict[str, Any]]:
    return list(CaseStore(manifest, cases, root, cache=None if cache is None else EntryCache(cache), **settings))


# Array axes to world axes 2, 0, 1, with signs, so that the diagonal is 0.
TURNED = np.array([[0, -1, 0], [0, 0, 1], [1, 0, 0]], float)


def _write(path: Path, array: Any, spacing: tuple[float, ...]) -> None:
    affine = np.eye(4)
    affine[:3, :3] = TURNED * np.array([*spacing, 1.0][:3])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def _set(
    folder: Path, spacings: list[tuple[float, ...]], *, values: tuple[int, ...] = (0, 3, 7), modality: str = "MR"
) -> tuple[Manifest, Path]:
    """A data set of random volumes, one per spacing."""
    dims = len(spacings[0])
    shape = (6, 8, 7)[:dims]
    cases = []
    for index, spacing in enumerate(spacings):
        rng = np.random.default_rng(index)
        _write(folder / f"image{index}.nii.gz", rng.normal(50, 20, shape).astype(np.float32), spacing)
        _write(folder / f"label{index}.nii.gz", rng.choice(values, shape).astype(np.int16), spacing)
        case = {"id": f"case{index}", "patient": f"p{index}", "fold": index % 2}
        cases.append(case | {f"{role}_sha256": "0" * 64 for role in ("image", "label")})
        cases[-1] |= {role: f"{role}{index}.nii.gz" for role in ("image", "label")}
    manifest = Manifest(
        name="made", description="d", task="t", license="l", citation="c", source="s", modality=modality,
        dimensions=dims, spacing=spacings[0], classes={v: f"class{v}" if v else "background" for v in values},
        cases=[Case(**case) for case in cases],
    )  # fmt: skip
    return manifest, folder


SPACINGS: list[tuple[float, ...]] = [(3.0, 1.0, 0.6), (0.5, 2.0, 1.5)]


def test_cases_stay_in_memory_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, root = _set(tmp_path, [*SPACINGS, *SPACINGS])
    decoded: list[str] = []
    monkeypatch.setattr(
        case_store, "read_case", lambda m, case, *rest: decoded.append(case.id) or read_case(m, case, *rest)
    )
    one_mb = case_store._bytes(decode_cases(manifest, manifest.cases, root)[0]) / 2**20
    for allowed, again in ((0, 4), (2.5 * one_mb, 2), (10 * one_mb, 0)):
        cases = CaseStore(manifest, manifest.cases, root, memory_mb=allowed)
        list(cases)
        decoded.clear()
        list(cases)
        assert len(decoded) == again


def test_label_values_are_mapped_by_order(tmp_path: Path) -> None:
    manifest, root = _set(tmp_path, SPACINGS)
    for index, item in enumerate(decode_cases(manifest, manifest.cases, root)):
        raw = np.asarray(nib.load(root / f"label{index}.nii.gz").dataobj)
        assert item["label"].dtype == torch.uint8
        np.testing.assert_array_equal(item["label"][0].numpy(), np.searchsorted([0, 3, 7], raw))
        assert set(np.unique(raw)) == {0, 3, 7}


def test_labels_saved_again_from_floats_are_the_same_labels(tmp_path: Path) -> None:
    manifest, root = _set(tmp_path, SPACINGS)
    before = read_case(manifest, manifest.cases[0], root, CANONICAL)["label"]
    path = root / "label0.nii.gz"
    values = array_of(path)
    rewrite(path, np.where(values == 3, 2.9992, np.where(values == 7, 7.00000006, values)))
    assert torch.equal(read_case(manifest, manifest.cases[0], root, CANONICAL)["label"], before)


@pytest.mark.parametrize("spacings", [[(3.0, 1.0, 0.6), (1.0, 1.0, 1.0)], [(1.5, 0.8), (1.0, 1.0)]])
def test_trailing_axes_of_length_1_are_dropped(tmp_path: Path, spacings: list[tuple[float, ...]]) -> None:
    manifest, root = _set(tmp_path, spacings)
    before = read_case(manifest, manifest.cases[0], root, CANONICAL)
    with_trailing_axes(root / "image0.nii.gz")
    with_trailing_axes(root / "label0.nii.gz", 2)
    padded(root / "label0.nii.gz")
    after = read_case(manifest, manifest.cases[0], root, CANONICAL)
    for name in ("image", "label", "spacing"):
        assert torch.equal(after[name], before[name])


def test_spacing_is_per_case(tmp_path: Path) -> None:
    manifest, root = _set(tmp_path, SPACINGS)
    decoded = decode_cases(manifest, manifest.cases, root)
    for item, spacing in zip(decoded, SPACINGS, strict=True):
        assert item["spacing"].tolist() == pytest.approx(list(spacing))
    (batch,) = training_loader(PatchDataset(decoded, (4, 4, 4), 0), batch_size=2, workers=0)
    expected = dict(zip(("case0", "case1"), SPACINGS, strict=True))
    for name, spacing in zip(batch["case"], batch["spacing"].tolist(), strict=True):
        assert spacing == pytest.approx(list(expected[name]))


def test_on_another_grid_each_axis_keeps_its_size_in_mm(tmp_path: Path) -> None:
    manifest, root = _set(tmp_path, SPACINGS)  # 6 x 8 x 7 voxels of three sizes
    grid = Preprocessing(dimensions=3, spacing=(1.0, 0.7, 1.3))
    for item, spacing in zip(decode_cases(manifest, manifest.cases, root, preprocessing=grid), SPACINGS, strict=True):
        shape = item["image"].shape[1:]
        assert shape == item["label"].shape[1:] == grid.shape((6, 8, 7), spacing)
        sizes = [n * s for n, s in zip(shape, item["spacing"].tolist(), strict=True)]
        assert sizes == pytest.approx([n * s for n, s in zip((6, 8, 7), spacing, strict=True)])
        assert item["spacing"].tolist() == pytest.approx([1.0, 0.7, 1.3], rel=0.35)  # numbers of voxels are rounded
        assert item["reference"].shape[1:] == (6, 8, 7)
        assert item["reference_spacing"].tolist() == pytest.approx(list(spacing))


def test_2d_spacing_has_two_numbers(tmp_path: Path) -> None:
    manifest, root = _set(tmp_path, [(1.5, 0.8), (0.7, 2.0)])
    decoded = decode_cases(manifest, manifest.cases, root)
    assert [item["spacing"].tolist() for item in decoded] == [pytest.approx([1.5, 0.8]), pytest.approx([0.7, 2.0])]
    assert decoded[0]["image"].shape == decoded[0]["label"].shape == (1, 6, 8)


def test_axes_keep_the_files_order(tmp_path: Path) -> None:
    manifest, root = _set(tmp_path, SPACINGS)
    raw = np.asarray(nib.load(root / "image0.nii.gz").dataobj)
    image = decode_cases(manifest, manifest.cases[:1], root)[0]["image"][0].numpy()
    np.testing.assert_allclose(image, (raw - raw.mean()) / raw.std(), rtol=1e-4, atol=1e-5)


def _equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = ("image", "label", "spacing")
    return (
        one.keys() == other.keys()
        and one["case"] == other["case"]
        and all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in tensors)
    )


def test_cached_or_not_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, root = _set(tmp_path / "data", SPACINGS)
    plain = decode_cases(manifest, manifest.cases, root)
    cold = decode_cases(manifest, manifest.cases, root, tmp_path / "cache")
    monkeypatch.setattr("pipelines.preprocessing.case_store.read_case", None)  # what is cached is not decoded again
    warm = decode_cases(manifest, manifest.cases, root, tmp_path / "cache")
    for three in zip(plain, cold, warm, strict=True):
        assert _equal(three[0], three[1])
        assert _equal(three[0], three[2])
        assert type(three[2]["image"]) is torch.Tensor
    assert len(list((tmp_path / "cache").iterdir())) == len(plain)


def _truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _flipped(content: bytes) -> bytes:
    # In the middle of a tensor, which torch would load without an error.
    return content[:1500] + bytes([content[1500] ^ 64]) + content[1501:]


@pytest.mark.parametrize("damage", [_truncated, _flipped, lambda _: b"", lambda _: b"garbage " * 50])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    manifest, root = _set(tmp_path / "data", SPACINGS)
    cache = tmp_path / "cache"
    (good,) = decode_cases(manifest, manifest.cases[:1], root, cache)
    (entry,) = cache.iterdir()
    content = entry.read_bytes()
    entry.write_bytes(damage(content))
    with pytest.warns(UserWarning, match=f"damaged cache entry .*{entry.name} is computed again"):
        (again,) = decode_cases(manifest, manifest.cases[:1], root, cache)
    assert _equal(good, again)
    (healed,) = decode_cases(manifest, manifest.cases[:1], root, cache)  # and without a warning
    assert _equal(good, healed)
    assert [path.name for path in cache.iterdir()] == [entry.name]


def test_the_cache_follows_the_files_content(tmp_path: Path) -> None:
    manifest, root = _set(tmp_path / "data", SPACINGS)
    cache = tmp_path / "cache"
    (old,) = decode_cases(manifest, manifest.cases[:1], root, cache)
    raw = np.asarray(nib.load(root / "label0.nii.gz").dataobj)
    _write(root / "label0.nii.gz", raw[::-1].copy(), SPACINGS[0])
    (new,) = decode_cases(manifest, manifest.cases[:1], root, cache)
    assert torch.equal(new["label"], old["label"].flip(1))
    assert not torch.equal(new["label"], old["label"])
    _write(root / "image0.nii.gz", np.zeros((6, 8, 7), np.float32) + raw, SPACINGS[0])
    (newer,) = decode_cases(manifest, manifest.cases[:1], root, cache)
    assert not torch.equal(newer["image"], old["image"])


def test_the_cache_follows_the_manifests_rules(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    manifest, root = _set(tmp_path / "data", SPACINGS)
    decode_cases(manifest, manifest.cases[:1], root, cache)
    clip = Preprocessing(dimensions=3, clip=Clip(low=10, high=60, mean=40, std=5), spacing=(1, 1, 1))
    cached, plain = (
        decode_cases(manifest, manifest.cases[:1], root, folder, preprocessing=clip)[0] for folder in (cache, None)
    )
    assert _equal(cached, plain)
    assert plain["image"].shape != decode_cases(manifest, manifest.cases[:1], root)[0]["image"].shape
    more = manifest.model_copy(update={"classes": {0: "background", 1: "x", 3: "a", 7: "b"}})
    assert _equal(decode_cases(more, more.cases[:1], root, cache)[0], decode_cases(more, more.cases[:1], root)[0])


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    manifest, root = _set(tmp_path / "data", SPACINGS)
    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning, match="cannot be written: No space left"):
        cached = decode_cases(manifest, manifest.cases[:1], root, tmp_path / "cache")
    assert _equal(cached[0], decode_cases(manifest, manifest.cases[:1], root)[0])
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cache: cannot create"):
        decode_cases(manifest, manifest.cases[:1], root, tmp_path / "file" / "cache")


def _break(root: Path, how: str) -> None:
    image, label = root / "image0.nii.gz", root / "label0.nii.gz"
    pixels, values = (np.asarray(nib.load(path).dataobj).copy() for path in (image, label))
    if how == "missing":
        label.unlink()
    elif how == "empty":
        image.write_bytes(b"")
    elif how == "truncated":
        image.write_bytes(image.read_bytes()[:-300])
    elif how == "no NIfTI":
        image.write_bytes(b"no NIfTI at all")
    elif how == "other shape":
        _write(label, values[:-1], SPACINGS[0])
    elif how == "4D":
        _write(image, np.stack([pixels, pixels], -1), SPACINGS[0])
    elif how == "unnamed value":
        _write(label, np.where(values == 3, 5, values).astype(np.int16), SPACINGS[0])
    elif how == "fraction":
        _write(label, np.where(values == 3, 3.0010002, values).astype(np.float32), SPACINGS[0])
    elif how == "NaN":
        pixels[1, 2, 3] = np.nan
        _write(image, pixels, SPACINGS[0])


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"label0\.nii\.gz(: missing| cannot be read: No such file)"),
        ("empty", r"image0\.nii\.gz: 0 bytes"),
        ("truncated", r"image0\.nii\.gz: truncated: its gzip stream ends early"),
        ("no NIfTI", r"image0\.nii\.gz: not a gzip file, though its name ends in \.gz"),
        ("other shape", r"label0\.nii\.gz: 5 x 8 x 7 voxels, but its image has 6 x 8 x 7"),
        ("4D", r"image0\.nii\.gz: 4 axes \(6 x 8 x 7 x 2 voxels\); expected 3, one volume per file"),
        ("unnamed value", r"label0\.nii\.gz: holds 5; the manifest names 0, 3, 7"),
        ("fraction", r"label0\.nii\.gz: holds 3\.0010002;"),
        ("NaN", r"image0\.nii\.gz: NaN, Inf, or too large for float32, in 1 voxel;"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, how: str, message: str, cached: bool) -> None:
    manifest, root = _set(tmp_path / "data", SPACINGS)
    _break(root, how)
    with pytest.raises(UserError, match=message) as error:
        decode_cases(manifest, manifest.cases, root, tmp_path / "cache" if cached else None)
    assert "case 'case0'" in str(error.value)
    assert "medloss check" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tiny")
    manifest = load_manifest(tiny_manifest(folder))
    return decode_cases(manifest, manifest.cases, resolve_data(manifest, folder / "data"))


def _patches(decoded: list[dict[str, Any]], seed: int, epochs: list[int], workers: int = 0) -> list[Any]:
    loader = training_loader(PatchDataset(decoded, (8, 16, 16), seed, (0, 2)), batch_size=2, workers=workers)
    passes = []
    for epoch in epochs:
        start_epoch(loader, epoch)
        passes.append([(*batch["case"], batch["image"], batch["label"]) for batch in loader])
    return passes


def _same(one: Any, other: Any) -> bool:
    return all(
        a[:2] == b[:2] and torch.equal(a[2], b[2]) and torch.equal(a[3], b[3]) for a, b in zip(one, other, strict=True)
    )


def test_patches_depend_only_on_seed_epoch_and_case(tiny: list[dict[str, Any]]) -> None:
    first, second, third = _patches(tiny, 0, [1, 2, 3])
    (alone,) = _patches(tiny, 0, [3])
    assert _same(third, alone)
    assert not _same(first, second)
    assert not _same(first, _patches(tiny, 1, [1])[0])
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    for with_workers, without in zip(_patches(tiny, 0, [1, 2, 3], workers=2), (first, second, third), strict=True):
        assert _same(with_workers, without)
    dataset = PatchDataset(tiny, (8, 16, 16), 0, (0, 2))
    backwards = {tiny[i]["case"]: dataset[1, i]["image"] for i in reversed(range(len(tiny)))}
    for left, right, images, _ in first:
        assert torch.equal(torch.stack([backwards[left], backwards[right]]), images)


def test_each_epoch_has_every_case_once_in_another_order(tiny: list[dict[str, Any]]) -> None:
    orders = [[name for batch in one for name in batch[:2]] for one in _patches(tiny, 0, [1, 2, 3, 4])]
    assert all(sorted(order) == sorted(item["case"] for item in tiny) for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_image_and_label_are_cropped_together(tiny: list[dict[str, Any]]) -> None:
    # Image and label are the same map, so they must agree after cropping, padding and flipping.
    twins = [item | {"image": item["label"].float() * 10} for item in tiny]
    dataset = PatchDataset(twins, (16, 16, 32), 3, (0, 1, 2))
    for epoch in range(4):
        for index in range(len(dataset)):
            item = dataset[epoch, index]
            assert item["image"].shape == item["label"].shape == (1, 16, 16, 32)
            order = [item["image"][item["label"] == c].mean().item() for c in item["label"].unique()]
            assert order == sorted(order)
            for c in item["label"].unique():
                assert item["image"][item["label"] == c].std(unbiased=False).item() < 1e-4


def test_only_the_given_axes_are_flipped(tiny: list[dict[str, Any]]) -> None:
    ramp = torch.arange(12.0).view(1, 12, 1, 1) * 100 + torch.arange(24.0).view(1, 1, 24, 1)
    image = (ramp + torch.zeros(1, 12, 24, 24)).contiguous()
    item = tiny[0] | {"image": image}

    def signs(flip_axes: tuple[int, ...]) -> set[tuple[bool, bool]]:
        dataset = PatchDataset([item], (12, 24, 24), 0, flip_axes)
        seen = set()
        for epoch in range(12):
            made = dataset[epoch, 0]["image"][0]
            seen.add((bool(made[1, 0, 0] < made[0, 0, 0]), bool(made[0, 1, 0] < made[0, 0, 0])))
        return seen

    assert signs(()) == {(False, False)}
    assert signs((0,)) == {(False, False), (True, False)}
    assert signs((0, 1)) == {(False, False), (True, False), (False, True), (True, True)}


def test_share_of_patches_centred_on_foreground() -> None:
    label = torch.zeros(1, 16, 16, 16, dtype=torch.uint8)
    label[0, 10, 6, 8] = 1
    centres = [label.flatten().nonzero()[:, 0].to(torch.int32)]
    item = {"case": "a", "image": label.float(), "label": label, "spacing": torch.ones(3), "centres": centres}
    item["labelled"] = torch.tensor([True, True])

    def found(foreground: float) -> list[bool]:
        patches = PatchDataset([item], (4, 4, 4), seed=0, foreground=foreground)
        return [bool(patches[epoch, 0]["label"][0, 2, 2, 2]) for epoch in range(60)]

    assert all(found(1.0))
    assert sum(found(0.0)) < 10
    assert 25 < sum(found(2 / 3)) < 55


def test_a_case_without_foreground_is_cropped(tiny: list[dict[str, Any]]) -> None:
    for value in (0, 1):
        item = tiny[0] | {"label": torch.full_like(tiny[0]["label"], value), "centres": []}
        assert PatchDataset([item], (8, 8, 8), 0)[0, 0]["label"].unique().tolist() == [value]


def test_processes_share_each_batch() -> None:
    whole, *shares = (list(EpochBatches(9, 0, 4, *rank)) for rank in ((), (0, 2), (1, 2)))
    assert [one + other for one, other in zip(*shares, strict=True)] == whole
    assert [len(batch) for batch in shares[0]] == [2, 2]


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 6), (4, [4]), (6, [6]), (50, [6])])
def test_batches(tiny: list[dict[str, Any]], batch_size: int, sizes: list[int]) -> None:
    loader = training_loader(PatchDataset(tiny, (8, 8, 8), 0), batch_size, workers=0)
    assert [len(batch["case"]) for batch in loader] == sizes
    whole = list(validation_loader(tiny))
    assert [batch["case"] for batch in whole] == [[item["case"]] for item in tiny]
    assert whole[0]["image"].shape == (1, *tiny[0]["image"].shape)
