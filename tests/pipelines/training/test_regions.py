"""Runs on overlapping regions, with two channels and ignored voxels: losses, label maps, metrics and probabilities."""

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from cli_call import call_medloss
from monai.engines import IterationEvents
from small_files import array_of, rewrite
from tiny import TinySet, listed, tiny_manifest, tiny_regions

import medloss
from medloss.registry import LOSSES
from pipelines.data.data_root import resolve_data
from pipelines.data.label_scheme import IGNORED, LabelScheme
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.nifti import read_image
from pipelines.evaluation.metrics.base import default_metrics
from pipelines.inference.predict import Settings, predict
from pipelines.inference.sources import Source
from pipelines.preprocessing.resampling import resampled
from pipelines.training.auto_config import create_loss, refuse_misfit
from pipelines.training.checkpoint import load_checkpoint
from pipelines.training.engines import loss_target
from pipelines.training.run import Progress, train_run
from pipelines.training.run_config import RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.training.saved_model import label_map, load_model
from pipelines.utils import UserError

CPU = torch.device("cpu")
#: One per family in `make test`; the others in `make test-all`.
QUICK = ("binary_cross_entropy", "dice", "hausdorff_dt", "combo")


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    folder = tmp_path_factory.mktemp("regions")
    return TinySet(tiny_regions(folder), folder / "data")


def _config(made: TinySet, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "levels": 2, "base_channels": 4, "patch_size": (8, 8, 8), "spacing": (2.0, 1.5, 3.0), "learning_rate": 1e-2,
        "cache_dir": str(made.data / "cache"), "val_interval": 2,
    }  # fmt: skip
    return made.config(**(settings | changes))


def _training_state(run: Path) -> dict[str, Any]:
    state = load_checkpoint(run)
    assert state is not None
    training: dict[str, Any] = state["training"]
    return training


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return bool(torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _stop(_: Progress) -> None:
    raise InterruptedError


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in LOSSES
        if not LOSSES[name].cls.categorical_only
    ],
)
def test_every_loss_trains_and_resumes_to_the_same_bits(regions: TinySet, tmp_path: Path, loss: str) -> None:
    config = _config(regions, loss=loss)
    with pytest.raises(InterruptedError):
        train_run(config, tmp_path / "resumed", report=_stop)
    before = _training_state(tmp_path / "resumed")
    train_run(config, tmp_path / "resumed", resume=True)
    train_run(config, tmp_path / "whole")
    resumed, whole = (_training_state(tmp_path / name) for name in ("resumed", "whole"))
    assert _equal(resumed, whole)
    assert not _equal(before["network"], whole["network"])
    first, last = RunFolder(tmp_path / "whole").epochs
    assert np.isfinite([first["train_loss"], last["train_loss"]]).all()
    rows = RunFolder(tmp_path / "whole").cases
    assert [row["class"] for row in rows] == ["whole", "core", "centre"] * 2
    assert str(rows) == str(RunFolder(tmp_path / "resumed").cases)


@pytest.fixture(scope="module")
def trained(regions: TinySet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    network = {"network": "dynunet", "levels": 3, "deep_supervision": 1}
    train_run(_config(regions, **network, loss="dice+binary_cross_entropy", epochs=6), run)
    return run


def test_metrics_of_regions_are_those_of_the_kept_label_maps(regions: TinySet, trained: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    where = ("--manifest", regions.manifest, "--data-root", regions.data, "--fold", 0, "--out", table)
    code, _, err = call_medloss("evaluate", trained / "predictions", *where)
    assert (code, err) == (0, "")
    with table.open(newline="") as file:
        evaluated = list(csv.DictReader(file))
    rows = RunFolder(trained).cases
    assert [(row["case"], row["class"]) for row in evaluated] == [(row["case"], row["class"]) for row in rows]
    for one, other in zip(evaluated, rows, strict=True):
        values = [[float(row[name] or "nan") for name in default_metrics()] for row in (one, other)]
        assert values[0] == pytest.approx(values[1], rel=1e-12, nan_ok=True)
    assert any(0 < float(row["dice"] or 0) < 1 for row in rows)


def test_dice_of_a_region_counts_all_of_its_labels_and_no_ignored_voxel(regions: TinySet, trained: Path) -> None:
    manifest = load_manifest(regions.manifest)
    root = resolve_data(manifest, regions.data)
    rows = {(row["case"], row["class"]): row for row in RunFolder(trained).cases}
    for case in manifest.split(0)[1]:
        maps = (RunFolder(trained).prediction(case.id), root / case.label)
        predicted, reference = (np.asanyarray(nib.load(path).dataobj) for path in maps)
        counted = reference != 255
        assert not counted.all() and set(np.unique(predicted)) <= {0, 1, 2, 3}
        for name, members in manifest.regions.items():
            one, other = (np.isin(labels, members) & counted for labels in (predicted, reference))
            expected = 2 * (one & other).sum() / (one.sum() + other.sum())
            assert float(rows[case.id, name]["dice"]) == pytest.approx(expected)


def test_predictions_and_probabilities_of_regions(regions: TinySet, trained: Path, tmp_path: Path) -> None:
    manifest, model = load_manifest(regions.manifest), load_model(trained, CPU)
    assert model.scheme == manifest.scheme.model_copy(update={"ignore": None})
    assert model.channels == ("PET", "CT")
    root = resolve_data(manifest, regions.data)
    case = manifest.split(0)[1][0]
    paths = [root / file for file in case.images]
    source = Source(paths[0], case.id, others=tuple(paths[1:]))
    assert predict(model, [source], tmp_path, Settings(probabilities=True, regions=True)) == []
    labels = nib.load(tmp_path / f"{case.id}.nii.gz")
    assert np.array_equal(labels.dataobj, nib.load(RunFolder(trained).prediction(case.id)).dataobj)
    volumes = read_image(paths, 2, {3})
    image = model.preprocessing.image(model.preprocessing.intensities(volumes), volumes[0].spacing)
    logits = resampled(model.logits(image), volumes[0].shape)
    probabilities = nib.load(tmp_path / f"{case.id}_probabilities.nii.gz")
    assert probabilities.shape == (*labels.shape, 3)
    in_file = volumes[0].orientation.stored(logits.sigmoid().numpy())
    assert np.allclose(np.moveaxis(np.asanyarray(probabilities.dataobj), -1, 0), in_file, atol=1e-6)
    sums = np.asanyarray(probabilities.dataobj).sum(-1)
    assert sums.max() > 1.01 or sums.min() < 0.99  # each is for itself, unlike those of classes
    for number, name in enumerate(manifest.regions):
        inside = np.asanyarray(nib.load(tmp_path / f"{case.id}_{name}.nii.gz").dataobj)
        assert np.array_equal(inside, in_file[number] > 0.5)


def test_one_file_with_all_channels_is_predicted_as_one_file_per_channel(
    regions: TinySet, trained: Path, tmp_path: Path
) -> None:
    manifest, model = load_manifest(regions.manifest), load_model(trained, CPU)
    root = resolve_data(manifest, regions.data)
    case = manifest.split(0)[1][1]
    files = [nib.load(root / file) for file in case.images]
    joined = nib.Nifti1Image(np.stack([file.dataobj for file in files], -1), files[0].affine)
    nib.save(joined.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]], float)), tmp_path / "joined.nii.gz")
    sources = [Source(tmp_path / "joined.nii.gz", "joined")]
    assert predict(model, sources, tmp_path / "out", Settings(probabilities=True)) == []
    stored, kept = nib.load(tmp_path / "joined.nii.gz"), nib.load(RunFolder(trained).prediction(case.id))
    labels = nib.load(tmp_path / "out" / "joined.nii.gz")
    assert labels.shape == stored.shape[:3] and np.array_equal(labels.affine, stored.affine)
    one, other = (np.asanyarray(nib.as_closest_canonical(image).dataobj) for image in (labels, kept))
    assert np.array_equal(one, other)
    assert nib.load(tmp_path / "out" / "joined_probabilities.nii.gz").shape == (*stored.shape[:3], 3)


def test_slices_of_several_channels(tmp_path: Path) -> None:
    path = tiny_regions(tmp_path, (28, 36), dims=2, spacing=[1.5, 1.0])
    made = TinySet(path, tmp_path / "data")
    config = _config(made, patch_size=(16, 16), spacing=(1.2, 1.4), epochs=4, flip_axes=(1,))
    train_run(config, tmp_path / "run")
    manifest = load_manifest(path)
    root = resolve_data(manifest, made.data)
    case = manifest.split(0)[1][0]
    files = [nib.load(root / file) for file in case.images]
    joined = nib.Nifti1Image(np.stack([file.dataobj for file in files], -1), files[0].affine)
    nib.save(joined, tmp_path / "joined.nii.gz")
    model = load_model(tmp_path / "run", CPU)
    assert predict(model, [Source(tmp_path / "joined.nii.gz", "joined")], tmp_path / "out", Settings()) == []
    labels = nib.load(tmp_path / "out" / "joined.nii.gz")
    kept = nib.load(RunFolder(tmp_path / "run").prediction(case.id))
    assert kept.shape == (28, 36) and len(np.unique(kept.dataobj)) > 1
    assert np.array_equal(np.asanyarray(labels.dataobj).reshape(kept.shape), kept.dataobj)


def test_label_maps_follow_the_regions_order() -> None:
    scheme = LabelScheme(
        classes={0: "background", 1: "edema", 4: "core", 9: "enhancing"},
        regions={"core": (4, 9), "whole": (1, 4, 9), "enhancing": (9,)},
        region_order=(4, 1, 9),
    )
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 6, 4, generator=generator)
    expected = torch.zeros(5, 6, 4, dtype=torch.uint8)
    for channel, index in enumerate((2, 1, 3)):  # later ones over earlier ones
        expected[logits[channel] > 0] = index
    assert torch.equal(label_map(logits, (5, 6, 4), scheme), expected)
    assert expected.unique().tolist() == [0, 1, 2, 3]
    finer = resampled(logits, (7, 9, 8))
    assert torch.equal(label_map(logits, (7, 9, 8), scheme), label_map(finer, (7, 9, 8), scheme))


REGIONS = LabelScheme(
    classes={0: "background", 1: "rim", 2: "core", 3: "centre"},
    regions={"whole": (1, 2, 3), "core": (2, 3), "centre": (3,)},
    region_order=(1, 2, 3),
    ignore=255,
)


def test_the_target_of_regions_and_its_mask() -> None:
    label = torch.tensor([[0, 1, 2, 3, IGNORED]], dtype=torch.uint8).view(1, 1, 5, 1)
    target, extras = loss_target(label, torch.ones(1, 3, dtype=torch.bool), REGIONS)
    assert target.dtype == torch.uint8
    assert target[0, :, :, 0].tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]
    assert list(extras) == ["mask"] and extras["mask"].flatten().tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("scheme", [REGIONS, REGIONS.model_copy(update={"regions": {}, "region_order": ()})])
@pytest.mark.parametrize("loss", LOSSES)
def test_no_loss_depends_on_ignored_voxels(loss: str, scheme: LabelScheme) -> None:
    if scheme.regions and LOSSES[loss].cls.categorical_only:
        with pytest.raises(medloss.InputError, match="of classes that exclude each other"):
            create_loss(RunConfig(manifest="none", loss=loss), scheme)
        return
    generator = torch.Generator().manual_seed(0)
    label = torch.zeros(2, 1, 8, 9, 10, dtype=torch.uint8)
    label[:, :, 2:6, 2:7, 3:8], label[:, :, 3:5, 3:6, 4:7], label[0, :, 4, 4, 5] = 1, 2, 3
    label[0, :, :3], label[1, :, :, :, 6:] = IGNORED, IGNORED
    target, extras = loss_target(label, torch.ones(2, scheme.channels, dtype=torch.bool), scheme)
    hidden = (label == IGNORED).expand(-1, scheme.channels, -1, -1, -1)
    plain = torch.randn(2, scheme.channels, 8, 9, 10, generator=generator)
    results = []
    for there in (0.0, 50.0, -3.0, torch.nan):
        logits = torch.where(hidden, torch.tensor(there), plain).requires_grad_()
        # Made each time, since balanced sums remember the values of earlier batches.
        function = create_loss(RunConfig(manifest="none", loss=loss), scheme)
        value = medloss.call_loss(function, logits, target, spacing=torch.tensor([[3.0, 1, 2]] * 2), **extras)
        (gradient,) = torch.autograd.grad(value, logits)
        results.append((value.detach(), gradient))
    assert results[0][0].isfinite() and results[0][1].abs().max() > 0
    for value, gradient in results:
        assert torch.equal(value, results[0][0]) and torch.equal(gradient, results[0][1])
        assert not gradient[hidden].any()


# Partial labels.


def _partial(folder: Path, regions: bool = False, **changes: Any) -> tuple[Manifest, RunConfig]:
    """A data set in which some cases annotate two of three classes, or one: they have voxels of no other class."""
    fields = {"regions": {"both": [1, 2], "shell": [2], "lesion": [3]}, "region_order": [1, 2, 3]} if regions else {}
    path, data = listed(tiny_manifest(folder, **fields), folder / "data")
    content = yaml.safe_load(path.read_text())
    for number, labelled in {0: ["organ", "lesion"], 1: ["shell"], 4: ["organ", "shell"]}.items():
        case = content["cases"][number]
        case["labelled"] = labelled
        label = array_of(data / case["label"])
        kept = [value for value, name in content["classes"].items() if name in labelled]
        rewrite(data / case["label"], np.where(np.isin(label, kept), label, 0).astype(np.uint8))
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    config = TinySet(path, data).config(patch_size=(8, 16, 16), levels=2, base_channels=4, **changes)
    return load_manifest(path), config


def test_what_is_annotated_reaches_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, config = _partial(tmp_path, epochs=1, fold=2)
    seen: dict[str, list[bool]] = {}
    plain = medloss.call_loss

    def call(loss: Any, logits: Any, target: Any, **given: Any) -> Any:
        rows = given["labelled_classes"]
        assert rows.dtype == torch.bool and rows.shape == logits.shape[:2]
        seen.update(zip(batch["case"], rows.tolist(), strict=True))
        return plain(loss, logits, target, **given)

    batch: dict[str, Any] = {}
    monkeypatch.setattr(medloss, "call_loss", call)

    def attach(trainer: Any, _: Any) -> None:
        trainer.add_event_handler(IterationEvents.FORWARD_COMPLETED, lambda: batch.update(trainer.state.batch))

    train_run(config, tmp_path / "run", attach=attach)
    expected = {
        case.id: [True, *(case.labelled is None or name in case.labelled for name in ("organ", "shell", "lesion"))]
        for case in manifest.split(2)[0]
    }
    assert seen == {case: expected[case] for case in seen}
    assert any(not all(row) for row in seen.values())


def test_classes_without_annotation_have_no_row_and_no_gradient(tmp_path: Path) -> None:
    manifest, config = _partial(tmp_path, fold=0, loss="dice")
    result = train_run(config, tmp_path / "run")
    rows = RunFolder(tmp_path / "run").cases
    expected = [
        (case.id, name)
        for case in manifest.split(0)[1]
        for name in manifest.scheme.names
        if case.labelled is None or name in case.labelled
    ]
    assert [(row["case"], row["class"]) for row in rows] == expected
    assert 0 < len(expected) < 6
    assert set(result["per_class"]) == {"organ", "shell", "lesion"}
    table = tmp_path / "table.csv"
    where = ("--manifest", config.manifest, "--data-root", config.data_root, "--fold", 0, "--out", table)
    code, _, err = call_medloss("evaluate", tmp_path / "run" / "predictions", *where)
    assert (code, err) == (0, "")
    with table.open(newline="") as file:
        assert [(row["case"], row["class"]) for row in csv.DictReader(file)] == expected


def test_regions_whose_classes_are_not_all_annotated_are_unknown(tmp_path: Path) -> None:
    manifest, config = _partial(tmp_path, regions=True, fold=0, loss="dice+binary_cross_entropy")
    assert manifest.cases[0].labelled == ("organ", "lesion")
    train_run(config, tmp_path / "run")  # the organ of case 0 is part of `both`, which is not annotated there
    rows = RunFolder(tmp_path / "run").cases
    assert [(row["case"], row["class"]) for row in rows] == [
        ("phantom_000", "lesion"), *(("phantom_003", name) for name in ("both", "shell", "lesion"))
    ]  # fmt: skip


def test_the_target_of_regions_that_are_not_annotated_is_empty() -> None:
    label = torch.tensor([1, 2, 3, 0], dtype=torch.uint8).view(1, 1, 4, 1).repeat(2, 1, 1, 1)
    labelled = torch.tensor([[True, True, True], [False, False, True]])
    target, extras = loss_target(label, labelled, REGIONS.model_copy(update={"ignore": None}))
    assert target.dtype == torch.uint8
    assert target[0, :, :, 0].tolist() == [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    assert target[1, :, :, 0].tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert list(extras) == ["labelled_classes"] and torch.equal(extras["labelled_classes"], labelled)


class Maskless(torch.nn.Module):
    """A loss from elsewhere that knows nothing of what counts."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.square().mean()


@pytest.mark.parametrize("loss", [f"{__name__}.Maskless", f"dice+{__name__}.Maskless"])
def test_a_loss_that_would_count_everything_is_refused_before_a_case_is_read(
    regions: TinySet, tmp_path: Path, loss: str
) -> None:
    config = _config(regions, loss=loss, data_root=str(tmp_path / "none"))
    message = "^loss: Maskless takes no mask, which 'tiny_regions' needs for an ignored label; expected a loss of medlo"
    with pytest.raises(UserError, match=message):
        train_run(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    manifest, partial = _partial(tmp_path, loss=loss)
    with pytest.raises(UserError, match="Maskless takes no labelled_classes, which 'tiny_3d' needs for partial labels"):
        refuse_misfit(partial, manifest)
