"""`medloss nnunet` where nnU-Net is not installed: names, the folder, checkpoints, and data sets by links."""

import doctest
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from cli_call import call_medloss
from faults import cut, resaved_from_float
from small_files import affine_of, array_of, rewrite
from tiny import tiny_manifest

import medloss
from medloss.errors import InputError
from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import load_manifest
from pipelines.data.manifest_writer import with_checksums
from pipelines.nnunet import datasets, losses, trainer_folder
from pipelines.nnunet.losses import TrainerName, create_nnunet_loss, hint, trainer_name
from pipelines.nnunet.run import write_on_label
from pipelines.training.run_config import NnunetSettings, RunConfig


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own folders are not used."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(name, raising=False)


def test_the_folder_holds_one_module_and_needs_no_nnunet() -> None:
    code, out, _ = call_medloss("nnunet", "path")
    assert code == 0
    folder = Path(out.strip())
    assert folder == trainer_folder()
    assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == ["medloss_trainers.py"]


@pytest.mark.slow
def test_nnunet_is_imported_on_demand_only() -> None:
    code = "import sys, medloss, pipelines.cli, pipelines.cli.data; print('nnunetv2' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("epochs", [None, 1, 250])
@pytest.mark.parametrize(
    "loss",
    [
        *medloss.LOSSES,
        "dice+binary_cross_entropy",
        "0.25*focal+1.5*dice",
        "10*dice+focal",
        "2*dice@nnunet_nosmooth+focal@monai",
    ],
)
def test_a_name_has_the_loss_and_the_epochs(loss: str, epochs: int | None) -> None:
    name = str(TrainerName(loss, epochs))
    assert name.isidentifier()
    assert trainer_name(name) == TrainerName(loss, epochs)


def test_the_example_runs() -> None:
    assert doctest.testmod(losses) == (0, 2)


@pytest.mark.parametrize(
    "name",
    [
        "nnUNetTrainer", "nnUNetTrainerMedloss", "nnUNetTrainerMedloss_", "nnUNetTrainerMedloss_nothing",
        "nnUNetTrainerMedloss_dice_0epochs", "nnUNetTrainerMedloss_dice_plus_",
        "nnUNetTrainerMedloss_dice_plus_nothing", "nnUNetTrainerMedloss_0_times_dice",
        "nnUNetTrainerMedloss_dice_mine", "nnUNetTrainerMedloss_focal_at_nnunet", "__path__",
    ],
)  # fmt: skip
def test_other_names_are_none_of_ours(name: str) -> None:
    assert trainer_name(name) is None


def test_what_cannot_be_a_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"'monai.losses.DiceLoss' is no registered loss"):
        str(TrainerName("monai.losses.DiceLoss"))
    with pytest.raises(InputError, match="too many digits"):
        str(TrainerName("0.123456789123*dice+focal"))
    assert "no loss 'focl'; did you mean 'focal'?" in hint("nnUNetTrainerMedloss_dice_plus_0p5_times_focl_3epochs")
    assert "did you mean 'dice_plus_binary_cross_entropy'?" in hint("nnUNetTrainerMedloss_dice_ce")
    assert "no preset 'mona' of dice; expected one of survey, monai" in hint("nnUNetTrainerMedloss_dice_at_mona")
    assert hint("nnUNetTrainerMedloss_0_times_dice").endswith(": expected weights above 0, such as 0p5_times_dice")


def checkpoint(path: Path, **changes: Any) -> Path:
    """What nnU-Net's trainer saves, with its kinds of numbers."""
    content = {
        "network_weights": {"seg.weight": torch.ones(2, 3)},
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2, 3)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"train_losses": [np.float32(0.5)], "lrs": [0.01], "mean_fg_dice": [np.float64(0.1)]},
        "_best_ema": np.float32(0.25),
        "current_epoch": 2,
        "init_args": {"configuration": "2d", "fold": 0, "device": torch.device("cpu"), "plans": {}},
        "trainer_name": "nnUNetTrainerMedloss_dice_2epochs",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(content | changes, path)
    return path


def test_an_exported_checkpoint_differs_by_the_trainers_name_alone(tmp_path: Path) -> None:
    state = [{"weights": [1.0, 0.5]}]
    log = {"train_losses": [np.float32(0.5)], "mean_fg_dice": [np.float64(0.1)]}
    path = checkpoint(tmp_path / "checkpoint_final.pth", logging=log | {"medloss_loss_state": state})
    assert call_medloss("nnunet", "export", path) == (0, f"written to {tmp_path / 'checkpoint_stock.pth'}\n", "")
    before, after = (torch.load(p, weights_only=False) for p in (path, tmp_path / "checkpoint_stock.pth"))
    assert after["trainer_name"] == "nnUNetTrainer"
    assert torch.equal(after["network_weights"]["seg.weight"], before["network_weights"]["seg.weight"])
    assert after["init_args"] == before["init_args"]
    assert after["logging"] == log
    assert after.keys() == before.keys()
    named = tmp_path / "shared.pth"
    assert call_medloss("nnunet", "export", path, "--out", named)[0] == 0
    assert named.is_file()


class Hidden:
    """Code that a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("ran",))


def test_bad_checkpoints_are_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = checkpoint(Path("whole.pth")).read_bytes()
    checkpoint(Path("code.pth"), logging=Hidden())
    Path("pickle.pth").write_bytes(pickle.dumps(Hidden()))
    Path("cut.pth").write_bytes(whole[: len(whole) // 2])
    Path("empty.pth").write_bytes(b"")
    torch.save({"model": 1}, "other.pth")
    checkpoint(Path("stock.pth"), trainer_name="nnUNetTrainer")
    checkpoint(Path("foreign.pth"), trainer_name="nnUNetTrainerUMambaBot")
    expected = {
        "code.pth": "refused: it holds more than tensors, numbers and text",
        "pickle.pth": "refused: it holds more than tensors, numbers and text",
        "cut.pth": "is no checkpoint, or damaged",
        "empty.pth": "is no checkpoint, or damaged",
        "missing.pth": "cannot be read: No such file or directory",
        "other.pth": "is no checkpoint of nnU-Net",
        "stock.pth": "names nnUNetTrainer already",
        "foreign.pth": "is of the trainer 'nnUNetTrainerUMambaBot'",
        ".": "cannot be read: Is a directory",
    }
    for name, message in expected.items():
        code, out, err = call_medloss("nnunet", "export", name, "--out", "out.pth")
        assert (code, out) == (2, "")
        assert re.fullmatch(rf"error: {re.escape(name)}: .*{re.escape(message)}.*\n", err), (name, err)
    assert not Path("out.pth").exists()
    assert not Path("ran").exists()
    # A file that is there stays.
    code, _, err = call_medloss("nnunet", "export", "whole.pth", "--out", "stock.pth")
    assert code == 2
    assert "is there already" in err


def make_dataset(folder: Path, raw: Path, *options: object, **settings: Any) -> tuple[int, str, str]:
    manifest = tiny_manifest(folder, **settings)
    return call_medloss("nnunet", "dataset", manifest, "--raw", raw, "--data-root", folder, *options)


def test_a_manifest_becomes_a_raw_data_set_of_links(tmp_path: Path) -> None:
    code, out, err = make_dataset(tmp_path / "made", tmp_path / "raw")
    assert (code, err) == (0, "")
    made = tmp_path / "raw" / "Dataset001_tiny_3d"
    assert str(made) in out
    assert "nnUNetv2_plan_and_preprocess -d 1" in out
    card = json.loads((made / "dataset.json").read_text())
    assert card["labels"] == {"background": 0, "organ": 1, "shell": 2, "lesion": 3}
    assert (card["channel_names"], card["numTraining"], card["file_ending"]) == ({"0": "MR"}, 6, ".nii.gz")
    manifest = load_manifest(tmp_path / "made" / "tiny_3d.yaml")
    (root,) = (path for path in (tmp_path / "made").iterdir() if path.is_dir())
    for case in manifest.cases:
        assert (made / f"imagesTr/{case.id}_0000.nii.gz").samefile(root / case.image)
        assert (made / f"labelsTr/{case.id}.nii.gz").samefile(root / case.label)
    splits = json.loads((made / "splits_final.json").read_text())
    assert [split["val"] for split in splits] == [
        ["phantom_000", "phantom_003"], ["phantom_001", "phantom_004"], ["phantom_002", "phantom_005"],
    ]  # fmt: skip
    assert [sorted(split["train"] + split["val"]) for split in splits] == [sorted(c.id for c in manifest.cases)] * 3


def test_labels_that_nnunet_would_cut_to_other_numbers_are_written_and_not_linked(tmp_path: Path) -> None:
    """nnU-Net truncates labels: 1.9999 would be 1."""
    manifest = load_manifest(tiny_manifest(tmp_path / "made", cases=3))
    root = resolve_data(manifest, tmp_path / "made")
    plain, scaled, odd = (root / case.label for case in manifest.cases)
    before = [array_of(path) for path in (scaled, odd)]
    resaved_from_float(scaled)
    rewrite(odd, before[1] - 0.0009 * (before[1] > 0))
    assert call_medloss("nnunet", "dataset", tmp_path / "made" / "tiny_3d.yaml", "--raw", tmp_path / "raw",
                        "--data-root", tmp_path / "made")[0] == 0  # fmt: skip
    written = [tmp_path / "raw/Dataset001_tiny_3d/labelsTr" / f"{case.id}.nii.gz" for case in manifest.cases]
    assert written[0].samefile(plain)
    for path, source, expected in zip(written[1:], (scaled, odd), before, strict=True):
        assert nib.load(path).get_data_dtype() == np.uint8
        np.testing.assert_array_equal(array_of(path), expected)
        np.testing.assert_array_equal(affine_of(path), affine_of(source))


def test_channels_regions_and_the_ignore_label(tmp_path: Path) -> None:
    """The ignored label gets the highest value, and of a file with all channels each is written."""
    made = load_manifest(tiny_manifest(
        tmp_path / "made", cases=3, modality=None, channels=[{"name": "PET"}, {"name": "CT"}], ignore=255,
        classes={0: "background", 1: "rim", 2: "core", 3: "centre"}, generator={"name": "phantom_regions"},
    ))  # fmt: skip
    root = resolve_data(made, tmp_path / "made")
    labels = [array_of(root / case.label) for case in made.cases]
    assert any((label == 255).any() for label in labels)
    content = made.model_dump(mode="json", exclude={"generator"}) | {
        "classes": made.classes, "regions": {"whole": [1, 2, 3], "core": [2, 3], "centre": [3]},
        "region_order": [1, 2, 3], "channels": [{"name": "PET", "intensity": "clip"}, {"name": "noNorm"}],
    }  # fmt: skip
    channels = [array_of(root / file) for file in made.cases[1].images]
    affine = affine_of(root / made.cases[1].images[0])
    nib.save(nib.Nifti1Image(np.stack(channels, -1), affine), root / "images/joined.nii.gz")
    content["cases"][1]["image"] = "images/joined.nii.gz"
    path = tmp_path / "regions.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    call = ("nnunet", "dataset", path, "--raw", tmp_path / "raw", "--data-root", root)
    code, _, err = call_medloss(*call, "--id", 7)
    assert (code, err) == (0, "")
    folder = tmp_path / "raw" / "Dataset007_tiny_3d"
    card = json.loads((folder / "dataset.json").read_text())
    assert card["labels"] == {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "centre": [3], "ignore": 4}
    assert card["regions_class_order"] == [1, 2, 3]
    # By these names nnU-Net clips the first channel by percentiles, and z-scores the second.
    assert card["channel_names"] == {"0": "CT", "1": "zscore"}
    for number, (case, label) in enumerate(zip(made.cases, labels, strict=True)):
        for channel, file in enumerate(case.images):
            linked = folder / f"imagesTr/{case.id}_{channel:04d}.nii.gz"
            assert linked.samefile(root / file) == (number != 1)
            np.testing.assert_array_equal(array_of(linked), array_of(root / file))
            np.testing.assert_array_equal(affine_of(linked), affine_of(root / file))
        written = folder / f"labelsTr/{case.id}.nii.gz"
        np.testing.assert_array_equal(array_of(written), np.where(label == 255, 4, label))
        np.testing.assert_array_equal(affine_of(written), affine_of(root / case.label))

    nib.save(nib.Nifti1Image(np.stack([*channels, channels[0]], -1), affine), root / "images/joined.nii.gz")
    code, _, err = call_medloss(*call)
    assert (code, err.count("\n"), "expected 2 channels along the last axis" in err) == (2, 1, True)
    cut(root / "images/joined.nii.gz", 500)
    code, _, err = call_medloss(*call)
    assert (code, err.count("\n"), f"error: {root / 'images/joined.nii.gz'}: " in err) == (2, 1, True)
    content["cases"][0]["labelled"] = ["rim"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    code, _, err = call_medloss(*call)
    assert (code, "cases that label some classes only, such as phantom_regions_000" in err) == (2, True)
    assert [entry.name for entry in (tmp_path / "raw").iterdir()] == [folder.name]


def test_labels_are_written_along_their_images_axes(tmp_path: Path) -> None:
    """nnU-Net compares the arrays as they are stored, and would learn a mirrored label without an error."""
    made = load_manifest(tiny_manifest(tmp_path / "made"))
    root = resolve_data(made, tmp_path / "made")
    case = made.cases[0]
    label, content = root / case.label, array_of(root / case.label)
    turned = nib.load(label).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]], float))
    nib.save(turned, label)
    call = ("nnunet", "dataset", tmp_path / "made/tiny_3d.yaml", "--raw", tmp_path / "raw", "--data-root")
    code, _, err = call_medloss(*call, tmp_path / "made")
    assert (code, err) == (0, "")
    written = tmp_path / f"raw/Dataset001_tiny_3d/labelsTr/{case.id}.nii.gz"
    assert not np.array_equal(array_of(label), content)
    np.testing.assert_array_equal(array_of(written), content)
    np.testing.assert_array_equal(affine_of(written), affine_of(root / case.images[0]))
    # What nnU-Net predicts is along the image's axes, and evaluated along the label's.
    write_on_label(written, written, label, tmp_path / "predicted.nii.gz", 3)
    np.testing.assert_array_equal(array_of(tmp_path / "predicted.nii.gz"), array_of(label))
    np.testing.assert_array_equal(affine_of(tmp_path / "predicted.nii.gz"), affine_of(label))


def test_channels_along_different_axes_are_refused(tmp_path: Path) -> None:
    made = load_manifest(tiny_manifest(
        tmp_path, modality=None, channels=[{"name": "PET"}, {"name": "CT"}], ignore=255,
        classes={0: "background", 1: "rim", 2: "core", 3: "centre"}, generator={"name": "phantom_regions"},
    ))  # fmt: skip
    second = resolve_data(made, tmp_path) / made.cases[2].images[1]
    nib.save(nib.load(second).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]], float)), second)
    call = ("nnunet", "dataset", tmp_path / "tiny_3d.yaml", "--raw", tmp_path / "raw", "--data-root", tmp_path)
    code, _, err = call_medloss(*call)
    assert (code, err.count("\n"), f"{second}: stored along other axes than images/" in err) == (2, 1, True)


def test_2d_channels_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    array = np.random.default_rng(0).integers(0, 100, (8, 9, 2), np.int16)
    cases = []
    for number, shape in enumerate(((8, 9, 2), (8, 9, 1, 2))):
        nib.save(nib.Nifti1Image(array.reshape(shape), np.eye(4)), tmp_path / f"data/i{number}.nii.gz")
        nib.save(nib.Nifti1Image((array[..., 0] > 50).astype(np.uint8), np.eye(4)), tmp_path / f"data/l{number}.nii.gz")
        names = {"id": f"c{number}", "patient": f"c{number}", "fold": number}
        cases.append(names | {"image": f"i{number}.nii.gz", "label": f"l{number}.nii.gz"})
    path = tiny_manifest(
        tmp_path, dims=2, modality=None, channels=[{"name": "T1"}, {"name": "T2"}], spacing=[1, 1],
        classes={0: "background", 1: "organ"},
    )  # fmt: skip
    content = {name: value for name, value in yaml.safe_load(path.read_text()).items() if name != "generator"}
    path.write_text(yaml.safe_dump(content | {"cases": cases}))
    code, _, err = call_medloss("nnunet", "dataset", path, "--raw", tmp_path / "raw", "--data-root", tmp_path / "data")
    assert (code, err) == (0, "")
    for case in ("c0", "c1"):
        for channel in (0, 1):
            image = nib.load(tmp_path / f"raw/Dataset001_tiny_2d/imagesTr/{case}_{channel:04d}.nii.gz")
            np.testing.assert_array_equal(np.asanyarray(image.dataobj).reshape(8, 9), array[..., channel])


def test_and_a_raw_data_set_the_manifest_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_dataset(tmp_path / "made", tmp_path / "raw")[0] == 0
    monkeypatch.chdir(tmp_path)
    code, out, err = call_medloss("manifest", tmp_path / "raw" / "Dataset001_tiny_3d", "--out", "back.yaml")
    assert (code, err) == (0, "")
    assert "folds: as in" in out
    before, after = load_manifest(tmp_path / "made" / "tiny_3d.yaml"), load_manifest("back.yaml")
    assert [(case.id, case.fold) for case in after.cases] == [(case.id, case.fold) for case in before.cases]
    for field in ("name", "description", "license", "citation", "modality", "dimensions", "classes"):
        assert getattr(after, field) == getattr(before, field)
    assert after.spacing == before.spacing[::-1]  # along the canonical axes, which are those of the files reversed
    code, out, _ = call_medloss("check", "back.yaml", "--data-root", tmp_path / "raw")
    assert (code, "6 cases: no bad files" in out) == (0, True)


def test_numbers_are_free_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "preprocessed" / "Dataset002_other").mkdir(parents=True)
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    manifest = tiny_manifest(tmp_path / "made")
    call = ("nnunet", "dataset", manifest, "--data-root", tmp_path / "made")
    for number in (1, 3):
        assert call_medloss(*call)[0] == 0
        assert (tmp_path / "raw" / f"Dataset{number:03d}_tiny_3d").is_dir()
    for number in (2, 3):
        code, _, err = call_medloss(*call, "--id", number)
        assert code == 2
        assert f"--id: {number} is taken by" in err
    assert call_medloss(*call, "--id", 77)[0] == 0
    assert (tmp_path / "raw" / "Dataset077_tiny_3d").is_dir()


def test_data_sets_that_nnunet_cannot_take_are_refused_and_leave_no_files(tmp_path: Path) -> None:
    gaps = {0: "background", 1: "organ", 3: "shell", 7: "lesion"}
    ignore = {0: "background", 1: "organ", 2: "ignore", 3: "lesion"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"classes": gaps}, "nnU-Net requires 0, 1, 2 and so on without gaps"),
        ({"classes": ignore}, "a class named 'background' or 'ignore'"),
    ]
    for number, (settings, message) in enumerate(cases):
        code, _, err = make_dataset(tmp_path / f"made{number}", tmp_path / "raw", **settings)
        assert code == 2
        assert message in err
    code, _, err = call_medloss("nnunet", "dataset", tiny_manifest(tmp_path / "unset"))
    assert code == 2
    assert "--raw: pass the folder" in err
    assert not (tmp_path / "raw").exists() or not list((tmp_path / "raw").iterdir())


def test_2d_images_are_those_that_nnunet_reads(tmp_path: Path) -> None:
    """SimpleITK refuses a 2D image whose axes are not the patient's first two, as the phantom's are not."""
    code, _, err = make_dataset(tmp_path / "made", tmp_path / "raw", dims=2)
    assert code == 2
    assert re.search(r"phantom_000.nii.gz: SimpleITK, .* cannot read it: Bad direction, determinant is 0", err)
    assert not (tmp_path / "raw").exists()
    (root,) = (path for path in (tmp_path / "made").iterdir() if path.is_dir())
    for path in [*(root / "images").iterdir(), *(root / "labels").iterdir()]:
        rewrite(path, affine=np.diag([1.5, 0.8, 1.0, 1.0]))
    assert call_medloss("manifest", root, "--out", tmp_path / "flat.yaml", "--name", "flat", "--folds", 3)[0] == 0
    options = ("--raw", tmp_path / "raw", "--data-root", root)
    assert call_medloss("nnunet", "dataset", tmp_path / "flat.yaml", *options)[0] == 0
    assert (tmp_path / "raw" / "Dataset001_flat" / "imagesTr" / "phantom_005_0000.nii.gz").is_file()


def test_links_are_symbolic_where_there_are_no_hard_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no hard links across file systems")

    monkeypatch.setattr(os, "link", refuse)
    assert make_dataset(tmp_path / "made", tmp_path / "raw")[0] == 0
    image = tmp_path / "raw" / "Dataset001_tiny_3d" / "imagesTr" / "phantom_000_0000.nii.gz"
    assert image.is_symlink()
    assert image.is_file()
    # What was written with links to another file system is a data set for every other command, too.
    made = tmp_path / "again.yaml"
    assert call_medloss("manifest", image.parents[1], "--out", made)[0] == 0
    code, shown, _ = call_medloss("check", made, "--data-root", image.parents[1])
    assert (code, shown.splitlines()[-1]) == (0, "6 cases: no bad files")


def test_voxels_of_the_ignore_label_are_not_trained() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 4, 4, 4, generator=generator)
    label = torch.randint(2, (2, 1, 4, 4, 4), generator=generator)
    ignored = label.clone()
    ignored[..., 0] = 2
    loss = create_nnunet_loss(
        "tversky", heads=2, regions=False, ignore_label=2, batch_dice=False, weights=[1.0], spacing=(1.0, 1.0, 1.0)
    )
    expected = medloss.TverskyLoss(softmax=True)(logits, label, mask=ignored != 2)
    assert torch.isclose(loss([logits], [ignored]), expected)


def test_cases_without_checksums_are_prepared_again_when_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "version", lambda package: "2")
    made = load_manifest(tiny_manifest(tmp_path / "made"))
    root = resolve_data(made, tmp_path / "made")
    content = made.model_dump(mode="json", exclude={"generator"}) | {"classes": made.classes}
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    plain = load_manifest(path)
    config = RunConfig(manifest=str(path), data_root=str(root), nnunet=NnunetSettings())
    first = datasets._place(config, plain, tmp_path)
    assert datasets._place(config, with_checksums(plain, root), tmp_path) == first
    rewrite(root / plain.cases[0].label, array=np.zeros_like(array_of(root / plain.cases[0].label)))
    assert datasets._place(config, plain, tmp_path) != first
