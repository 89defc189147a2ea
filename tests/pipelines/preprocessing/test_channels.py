"""Images with several channels: how they are stored, normalised, planned and augmented."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from small_files import affine_of, array_of, rewrite
from tiny import TinySet, listed, tiny_regions

from pipelines.data.manifest import Manifest, load_manifest
from pipelines.preprocessing import Augmentation, Clip
from pipelines.preprocessing.case_store import CaseStore, take_fingerprint
from pipelines.preprocessing.patches import PatchDataset
from pipelines.preprocessing.resampling import Preprocessing, read_case
from pipelines.training.auto_config import planned, refuse_settings
from pipelines.training.components import Training
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError

CANONICAL = Preprocessing(dimensions=3, orientation="canonical")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("channels")
    return listed(tiny_regions(folder, cases=3), folder / "data")


def _manifest(path: Path, target: Path, **changes: Any) -> Manifest:
    content = yaml.safe_load(path.read_text())
    content = {name: value for name, value in {**content, **changes}.items() if value is not None}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_manifest(target)


def _cases(manifest: Manifest, root: Path, processed: Preprocessing = CANONICAL) -> list[dict[str, Any]]:
    return list(CaseStore(manifest, manifest.cases, root, processed))


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    tensors = ("image", "label", "spacing", "labelled", "counted")
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in tensors
    )


def test_one_file_per_channel_or_one_file_with_all_of_them(made: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = made
    manifest = load_manifest(path)
    expected = _cases(manifest, data)
    assert expected[0]["image"].shape == (2, 16, 14, 12) and expected[0]["image"].is_contiguous()
    cases = []
    for case in manifest.cases:
        channels = np.stack([array_of(data / file) for file in case.images], -1)
        (tmp_path / "images").mkdir(exist_ok=True)
        joined = nib.Nifti1Image(channels, affine_of(data / case.images[0]))
        nib.save(joined, tmp_path / "images" / f"{case.id}.nii.gz")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / case.label).write_bytes((data / case.label).read_bytes())
        entry = case.model_dump(exclude_none=True) | {"image": f"images/{case.id}.nii.gz"}
        cases.append(entry)
    one_file = _manifest(path, tmp_path / "one.yaml", cases=cases)
    for case, other in zip(_cases(one_file, tmp_path), expected, strict=True):
        assert _same(case, other)


def test_a_single_channel_as_a_volume_or_as_the_only_one_of_several(made: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = made
    cases = [case.model_dump(exclude_none=True) | {"image": case.images[1]} for case in load_manifest(path).cases]
    plain = _manifest(path, tmp_path / "plain.yaml", channels=None, modality="CT", cases=cases)
    named = _manifest(path, tmp_path / "named.yaml", channels=[{"name": "CT"}], cases=cases)
    for case, other in zip(_cases(plain, data), _cases(named, data), strict=True):
        assert _same(case, other)
    for case in plain.cases:
        for file in case.files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            array = array_of(data / file)
            nib.save(nib.Nifti1Image(array[..., None], affine_of(data / file)), tmp_path / file)
    for case, other in zip(_cases(plain, tmp_path), _cases(plain, data), strict=True):
        assert _same(case, other)


def test_channels_in_different_orientations_are_one_image(made: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = made
    manifest = load_manifest(path)
    turn = np.array([[1, -1], [2, 1], [0, -1]], float)
    for case in manifest.cases:
        for file in case.files:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            image = nib.load(data / file)
            nib.save(image.as_reoriented(turn) if file == case.images[1] else image, tmp_path / file)
    for case, other in zip(_cases(manifest, tmp_path), _cases(manifest, data), strict=True):
        assert _same(case, other)


@pytest.mark.parametrize("processed", [CANONICAL, Preprocessing(dimensions=3)], ids=["canonical", "file"])
def test_a_channel_on_another_grid(made: tuple[Path, Path], tmp_path: Path, processed: Preprocessing) -> None:
    path, data = made
    manifest = load_manifest(path)
    case = manifest.cases[0]
    for file in case.files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes((data / file).read_bytes())
    coarse, affine = tmp_path / case.images[0], affine_of(data / case.images[0])
    scale = np.diag([2.0, 2, 2, 1])
    scale[:3, 3] = 0.5
    ramp = np.arange(6.0)[:, None, None] * 2 + 0.5 + np.zeros((6, 7, 8))  # of the fine grid's first index
    rewrite(coarse, ramp.astype(np.float32), affine @ scale)
    with pytest.raises(UserError, match=r"case 'phantom_regions_000': images/.*: channel 1: .* --resample-channels"):
        read_case(manifest, case, tmp_path, processed)
    allowed = processed.model_copy(update={"resample_channels": True})
    both = read_case(manifest, case, tmp_path, allowed)["image"]
    before = read_case(manifest, case, data, processed)["image"]
    assert torch.equal(both[1], before[1])
    along = both[0] if processed.orientation == "file" else both[0].permute(2, 1, 0)
    if processed.orientation == "canonical":  # the file's axes run to the superior, posterior and left
        along = along.flip(1, 2)
    expected = torch.arange(12.0)[:, None, None].expand(12, 14, 16)
    assert torch.allclose(along[1:11, 1:13, 1:15], expected[1:11, 1:13, 1:15], atol=1e-4)


def test_ct_is_clipped_and_pet_normalised_per_image(made: tuple[Path, Path]) -> None:
    path, data = made
    manifest = load_manifest(path)
    fingerprint = take_fingerprint(manifest, manifest.cases, data, CANONICAL)
    config = planned(RunConfig(manifest=str(path)), manifest, fingerprint, torch.device("cpu"))
    assert config.intensity is None and isinstance(config.intensity_clip, tuple)
    pet, ct = config.intensity_clip
    assert pet is None and ct == fingerprint.clip(1)
    # A plan is planned no further, and survives its file.
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert planned(again, manifest, fingerprint, torch.device("cpu")) == config
    values = np.concatenate(
        [array_of(data / case.images[1])[np.isin(array_of(data / case.label), (1, 2, 3))] for case in manifest.cases]
    )
    assert (ct.low, ct.high) == pytest.approx(np.percentile(values, [0.5, 99.5]), abs=3)
    processed = Preprocessing(dimensions=3, orientation="canonical", clip=config.intensity_clip)
    for case, item in zip(manifest.cases, _cases(manifest, data, processed), strict=True):
        raw = read_case(manifest, case, data, CANONICAL)["image"]
        assert torch.allclose(item["image"][1], (raw[1].clamp(ct.low, ct.high) - ct.mean) / ct.std)
        assert torch.allclose(item["image"][0], (raw[0] - raw[0].mean()) / raw[0].std(correction=0), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"intensity": "clip"}, (True, True)),
        ({"intensity": "zscore"}, (False, False)),
        ({"intensity": "zscore", "intensity_clip": Clip(low=0, high=1, mean=0, std=1)}, (False, False)),
    ],
)
def test_intensity_of_all_channels(
    made: tuple[Path, Path], changes: dict[str, Any], expected: tuple[bool, bool]
) -> None:
    path, data = made
    manifest = load_manifest(path)
    fingerprint = take_fingerprint(manifest, manifest.cases, data, CANONICAL)
    config = planned(RunConfig(manifest=str(path), **changes), manifest, fingerprint, torch.device("cpu"))
    clips = config.intensity_clip if isinstance(config.intensity_clip, tuple) else (config.intensity_clip,) * 2
    assert tuple(clip is not None for clip in clips) == expected
    assert config.intensity == changes["intensity"]


def test_a_manifest_may_say_how_a_channel_is_scaled(made: tuple[Path, Path], tmp_path: Path) -> None:
    path, data = made
    channels = [{"name": "PET", "intensity": "clip"}, {"name": "CT", "intensity": "zscore"}]
    manifest = _manifest(path, tmp_path / "set.yaml", channels=channels)
    fingerprint = take_fingerprint(manifest, manifest.cases, data, CANONICAL)
    config = planned(RunConfig(manifest=str(path)), manifest, fingerprint, torch.device("cpu"))
    assert config.intensity_clip == (fingerprint.clip(0), None)


def test_what_does_not_fit_the_channels_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = load_manifest(made[0])
    clip = Clip(low=0, high=1, mean=0, std=1)
    with pytest.raises(UserError, match="intensity clip: got 3 entries; expected one per channel of 'tiny_regions'"):
        refuse_settings(RunConfig(manifest="x", intensity_clip=(clip, None, clip)), manifest)
    names = [{"name": name} for name in ("T1", "T2", "FLAIR")]
    cases = [case.model_dump(exclude_none=True) | {"image": case.images[0]} for case in manifest.cases]
    three = _manifest(made[0], tmp_path / "three.yaml", channels=names, cases=cases)
    with pytest.raises(UserError, match="network: 'vnet' cannot take the 3 channels of 'tiny_regions', only a divisor"):
        refuse_settings(RunConfig(manifest="x", network="vnet"), three)
    refuse_settings(RunConfig(manifest="x", network="vnet"), manifest)


VARIED = {
    "brightness": Augmentation(brightness=0.3, brightness_share=1),
    "noise": Augmentation(brightness_share=0, noise=0.3, noise_share=1),
    "gamma": Augmentation(brightness_share=0, gamma=(0.5, 2.0), gamma_share=1),
    "blur": Augmentation(brightness_share=0, blur=(0.3, 2.0), blur_share=1),
    "low resolution": Augmentation(brightness_share=0, low_resolution=0.3, low_resolution_share=1),
}


@pytest.mark.parametrize("name", VARIED)
def test_intensities_are_augmented_per_channel(made: tuple[Path, Path], name: str) -> None:
    path, data = made
    (item, *_) = _cases(load_manifest(path), data)
    twins = item | {"image": item["image"][:1].repeat(2, 1, 1, 1)}
    patches = PatchDataset([twins], (8, 8, 8), 0, augmentation=VARIED[name])
    plain = PatchDataset([twins], (8, 8, 8), 0, augmentation=Augmentation(brightness_share=0))
    for epoch in range(4):
        one, other = patches[epoch, 0]["image"]
        assert not torch.allclose(one, other, atol=1e-3)
        assert torch.equal(*plain[epoch, 0]["image"])
        assert torch.equal(patches[epoch, 0]["image"], torch.stack([one, other]))  # the same again


def test_channels_are_moved_together(made: tuple[Path, Path]) -> None:
    path, data = made
    (item, *_) = _cases(load_manifest(path), data)
    twins = item | {"image": item["image"][:1].repeat(2, 1, 1, 1)}
    moved = Augmentation(rotation=40, scaling=(0.7, 1.4), spatial_share=1, brightness_share=0)
    patches = PatchDataset([twins], (8, 8, 8), 0, (0, 1, 2), moved)
    seen = [patches[epoch, 0]["image"] for epoch in range(4)]
    assert all(torch.equal(*image) for image in seen)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("network", ["unet", "vnet", "dynunet"])
def test_networks_take_all_channels(made: tuple[Path, Path], network: str) -> None:
    config = TinySet(*made).config(network=network, base_channels=4, patch_size=(16, 16, 16))
    training = Training(config)
    logits = training.network(next(iter(training.loader))["image"])
    assert logits.shape == (2, 3, 16, 16, 16)
    changed = next(iter(training.loader))["image"].clone()
    changed[:, 1] += 1
    assert not torch.equal(training.network.eval()(changed), training.network(changed - 1))
