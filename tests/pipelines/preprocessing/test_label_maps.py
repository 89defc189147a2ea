"""Maps of labels: computed once per case, cut out with the patch, computed again where the patch changes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from tiny import tiny_manifest

import medloss
from medloss.distance import signed_distance_map
from medloss.maps import InstanceMapd, SkeletonMapd
from pipelines.data.data_root import resolve_data
from pipelines.data.label_scheme import IGNORED, LabelScheme
from pipelines.data.manifest import load_manifest
from pipelines.preprocessing import Augmentation, case_store
from pipelines.preprocessing.case_store import CaseStore, EntryCache
from pipelines.preprocessing.label_maps import channel_masks, label_maps, wanted_maps
from pipelines.preprocessing.patches import PatchDataset
from pipelines.training.components import Training
from pipelines.training.run_config import RunConfig

SCHEME = LabelScheme(classes={0: "background", 1: "organ", 2: "shell", 3: "lesion"})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CaseStore:
    folder = tmp_path_factory.mktemp("maps")
    manifest = load_manifest(tiny_manifest(folder))
    root = resolve_data(manifest, folder)
    return CaseStore(manifest, manifest.cases, root, maps=("distance_map",))


def test_masks_of_classes_and_of_regions() -> None:
    label = torch.tensor([[[[0, 1, 2, IGNORED]]]], dtype=torch.uint8)
    plain = LabelScheme(classes={0: "b", 1: "x", 2: "y"})
    assert channel_masks(label, plain)[0, :, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    regions = plain.model_copy(update={"regions": {"both": (1, 2), "y": (2,)}, "region_order": (1, 2)})
    assert channel_masks(label, regions)[0, :, 0].int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 0]]


def test_tubes_and_instances_are_those_of_the_transforms() -> None:
    pytest.importorskip("skimage")
    label = torch.zeros(1, 12, 12, 12, dtype=torch.uint8)
    label[0, 2:10, 5:7, 5:7], label[0, 1, 1, 1] = 1, 1
    label[0, 4:8, 9:11, 2:4] = 2
    scheme, spacing = LabelScheme(classes={0: "b", 1: "x", 2: "y"}), (3.0, 1.0, 1.0)
    made = label_maps(("skeleton_map", "instance_map"), label, spacing, scheme)
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    item = {"label": MetaTensor(label, affine=affine)}
    tubes = SkeletonMapd("label", num_classes=3)(item)["label_skeleton"]
    cells = InstanceMapd("label", num_classes=3)(item)["label_instances"]
    assert torch.equal(made["skeleton_map"], tubes.as_tensor())
    assert torch.equal(made["instance_map"], cells.as_tensor())


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("dice", ()),
        ("hausdorff_dt", ("distance_map",)),
        ("distance_penalty", ("distance_map",)),
        ("dice+0.1*hausdorff_dt", ("distance_map",)),
        ("boundary", ("distance_map",)),
        ("skeleton_recall", ("skeleton_map",)),
        ("instance_wise", ("instance_map",)),
        ("dice+instance_wise+skeleton_recall", ("skeleton_map", "instance_map")),
    ],
)
def test_which_losses_read_maps(spec: str, expected: tuple[str, ...]) -> None:
    loss = medloss.create_training_loss(spec, num_classes=3)
    assert wanted_maps(loss) == wanted_maps(medloss.DeepSupervision(loss)) == expected


def test_a_cut_patch_has_the_map_of_the_whole_case(store: CaseStore) -> None:
    patches = PatchDataset(store, (8, 8, 8), 0, flip_axes=(0, 2), scheme=SCHEME)
    for epoch in range(4):
        item = patches[epoch, 0]
        whole = store[0]
        masks = channel_masks(whole["label"][None], SCHEME)
        assert torch.equal(whole["distance_map"], signed_distance_map(masks, whole["spacing"].tolist())[0])
        found = 0
        # Wherever the label of the patch occurs in the case, in either direction, so does its map.
        for flips in ((), (1,), (3,), (1, 3)):
            label, distances = item["label"].flip(flips), item["distance_map"].flip(flips)
            for start in np.ndindex(*(n - 7 for n in whole["label"].shape[1:])):
                box = (slice(None), *(slice(s, s + 8) for s in start))
                if torch.equal(whole["label"][box], label) and torch.equal(whole["distance_map"][box], distances):
                    found += 1
        assert found


def test_a_turned_scaled_or_padded_patch_has_the_map_of_its_label(store: CaseStore) -> None:
    turned = Augmentation(rotation=30, scaling=(0.8, 1.2), spatial_share=1.0)
    for patch, augmentation in (((8, 8, 8), turned), ((40, 40, 40), Augmentation())):
        item = PatchDataset(store, patch, 0, augmentation=augmentation, flip_axes=(1,), scheme=SCHEME)[0, 1]
        expected = label_maps(("distance_map",), item["label"], item["spacing"].tolist(), SCHEME)
        assert torch.equal(item["distance_map"], expected["distance_map"])


def test_maps_have_cache_entries_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(tiny_manifest(tmp_path))
    root, cache = resolve_data(manifest, tmp_path), EntryCache(tmp_path / "cache")
    plain = CaseStore(manifest, manifest.cases[:2], root, cache=cache).prepare()
    assert "distance_map" not in plain[0] and len(list(cache.folder.glob("*.pt"))) == 2
    with_maps = CaseStore(manifest, manifest.cases[:2], root, cache=cache, maps=("distance_map",)).prepare()
    assert len(list(cache.folder.glob("*.pt"))) == 4
    monkeypatch.setattr(case_store, "label_maps", None)  # what is cached is not computed again
    again = CaseStore(manifest, manifest.cases[:2], root, cache=cache, maps=("distance_map",))
    assert torch.equal(again[1]["distance_map"], with_maps[1]["distance_map"])


def test_the_loss_gets_the_maps_of_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    call = medloss.call_loss

    def recorded(loss: Any, logits: Any, target: Any, **extras: Any) -> Any:
        given.append(extras)
        return call(loss, logits, target, **extras)

    monkeypatch.setattr(medloss, "call_loss", recorded)
    manifest = tiny_manifest(tmp_path, dims=2)
    for loss, expected in (("hausdorff_dt", {"spacing", "distance_map"}), ("dice", {"spacing"})):
        config = RunConfig(
            manifest=str(manifest), data_root=str(tmp_path), loss=loss, epochs=1, device="cpu", precision="float32",
            patch_size=(16, 16), threads=1,
        )  # fmt: skip
        training = Training(config)
        training.trainer.run()
        assert {name for extras in given for name in extras} == expected
        given.clear()
    assert "distance_map" not in training.validation_cases[0]
