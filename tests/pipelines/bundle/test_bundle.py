"""The repository's root is a MONAI bundle: MONAI's own commands train, evaluate, predict, verify and export with it."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from cli_call import call_medloss
from forked import LIMIT_S, Ended, Ranks, run_module
from monai.bundle import ConfigParser, ConfigWorkflow
from tiny import tiny_manifest
from torch import Tensor, nn

from pipelines.bundle import workflow as bundle
from pipelines.bundle.inference import ReadImage, ToLabels, sources
from pipelines.data.data_root import resolve_data
from pipelines.data.label_scheme import LabelScheme
from pipelines.data.manifest import load_manifest
from pipelines.preprocessing.resampling import Preprocessing
from pipelines.training.run import train_run
from pipelines.training.run_config import INCIDENTAL, RunConfig
from pipelines.training.run_folder import RunFolder
from pipelines.training.saved_model import Model, load_model, save_model
from pipelines.utils.files import read_json, resource_folder, sha256

CONFIGS = resource_folder("configs")
CPU = torch.device("cpu")
#: Losses need nothing else of this project: all but the loss is MONAI's and torch's.
ALONE = """
imports: [$import sys]
network: {_target_: UNet, spatial_dims: 2, in_channels: 1, out_channels: 2, channels: [4, 8], strides: [2]}
loss: {_target_: medloss.FocalTverskyLoss, softmax: true, alpha: 0.3, beta: 0.7}
image: "$torch.linspace(-1, 1, 512).reshape(2, 1, 16, 16)"
label: "$(@image > 0).long()"
trainer:
  _target_: SupervisedTrainer
  device: cpu
  max_epochs: 20
  train_data_loader: '$[{"image": @image, "label": @label}]'
  network: "@network"
  optimizer: {_target_: torch.optim.Adam, params: $@network.parameters(), lr: 0.01}
  loss_function: "@loss"
run:
  - $print("loss", @loss(@network(@image), @label).item())
  - $@trainer.run()
  - $print("loss", @loss(@network(@image), @label).item())
  - $print("of this project", sorted(m for m in sys.modules if m.split(".")[0] == "pipelines"))
"""


def configs(*names: str) -> list[str]:
    return [str(CONFIGS / f"{name}.yaml") for name in names]


def words(verb: str, *names: str, **values: object) -> list[str]:
    files = configs(*names)
    given = {"config_file": files[0] if len(files) == 1 else repr(files)} | values
    return [verb, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def command(cwd: Path, verb: str, *names: str, **values: object) -> Ended:
    """MONAI's command in a separate process, in a folder other than the repository."""
    return run_module("monai.bundle", *words(verb, *names, **values), cwd=cwd)


def started(cwd: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> Ended:
    """The same in a fresh interpreter, which has to import everything."""
    line = [sys.executable, *launcher, "-m", "monai.bundle", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=LIMIT_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set's manifest, and with a run that MONAI's command trained there."""
    folder = tmp_path_factory.mktemp("bundle")
    manifest = tiny_manifest(folder)
    values = {"manifest": manifest.name, "data_root": "data", "output_dir": "run", "settings": "{threads: 1}"}
    done = started(folder, *words("run", "train", loss_name="focal_tversky", max_epochs=2, **values))
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("epoch")] == [
        "epoch 1/2", "epoch 2/2",
    ]  # fmt: skip
    assert "unet on tiny_3d with focal_tversky: fold 0, seed 0, 2 epochs" in done.stdout
    return folder


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ConfigWorkflow]:
    """MONAI's workflow in this process, which is left as it was."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "path", sys.path[:])

    def made(*names: str, kind: str = "train", **values: Any) -> ConfigWorkflow:
        result = ConfigWorkflow(configs(*names), workflow_type=kind, logging_file=False, **values)
        result.initialize()
        return result

    return made


@pytest.fixture
def reported(
    folder: Path, workflow: Callable[..., ConfigWorkflow], capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The one line that a failing workflow prints."""

    def line(*names: str, **values: Any) -> str:
        given = {"manifest": str(folder / "tiny_3d.yaml"), "data_root": str(folder / "data")}
        given = given | values if names[-1] == "train" else values
        with pytest.raises(Exception) as caught:
            workflow(*names, **given).run()
        capsys.readouterr()
        sys.excepthook(caught.type, caught.value, caught.tb)
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        return err.strip()

    return line


def test_monais_command_trains_as_medloss_train_does(folder: Path, workflow: Callable[..., ConfigWorkflow]) -> None:
    run = RunFolder(folder / "run")
    assert run.result is not None
    assert run.result["state"] == "done"
    assert run.config is not None
    assert run.config.loss == "focal_tversky"
    asked = RunConfig(
        manifest=str(folder / "tiny_3d.yaml"), data_root=str(folder / "data"), loss="focal_tversky", epochs=2, threads=1
    )
    train_run(asked, folder / "again")
    # Either command resumes the run of the other.
    again = RunFolder(folder / "again").config
    assert again is not None
    assert again.model_dump(exclude=INCIDENTAL) == run.config.model_dump(exclude=INCIDENTAL)
    one, other = (load_model(folder / name, CPU).network.state_dict() for name in ("run", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    workflow(
        "train",
        loss_name="focal_tversky",
        max_epochs=2,
        manifest=asked.manifest,
        data_root=asked.data_root,
        output_dir=str(folder / "again"),
        resume=True,
    ).run()
    assert [row["train_loss"] for row in RunFolder(folder / "again").epochs] == [r["train_loss"] for r in run.epochs]


def test_monais_command_evaluates_a_run_as_training_did(folder: Path, tmp_path: Path) -> None:
    done = command(tmp_path, "run", "train", "evaluate", output_dir=folder / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    run, evaluated = RunFolder(folder / "run"), RunFolder(folder / "run" / "evaluation")
    assert run.cases
    assert evaluated.cases == run.cases
    assert run.result is not None
    assert read_json(evaluated.path / "metrics.json") == run.result["metrics"]
    assert re.search(r"^dice +0\.\d{4}$", done.stdout, re.MULTILINE)


def test_monais_command_predicts_what_medloss_predict_does(folder: Path, tmp_path: Path) -> None:
    images = next((folder / "data").glob("*/images"))
    done = command(
        tmp_path, "run", "inference", model_file=folder / "run", dataset_dir=images, output_dir="predictions"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert call_medloss("predict", "--run", folder / "run", "--out", tmp_path / "other", images)[0] == 0
    names = sorted(path.name for path in images.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "predictions").iterdir())
    for name in names:
        assert (tmp_path / "predictions" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_channels_and_regions(tmp_path: Path, workflow: Callable[..., ConfigWorkflow]) -> None:
    classes = {0: "background", 1: "rim", 2: "core", 3: "centre"}
    manifest = tiny_manifest(
        tmp_path, 3, cases=3, modality=None, channels=[{"name": "PET"}, {"name": "CT"}], classes=classes, ignore=255,
        regions={"whole": [1, 2, 3], "core": [2, 3], "centre": [3]}, region_order=[1, 2, 3],
        generator={"name": "phantom_regions"}, spacing_tolerance=0.25,
    )  # fmt: skip
    values = {"manifest": str(manifest), "data_root": str(tmp_path / "data"), "output_dir": str(tmp_path / "run")}
    settings = {"threads": 1, "levels": 2, "base_channels": 2, "patch_size": [8, 16, 16]}
    workflow("train", max_epochs=1, settings=settings, **values).run()
    assert (RunFolder(tmp_path / "run").result or {})["state"] == "done"

    # MONAI's check of the network, with the metadata that the run has left.
    meta = tmp_path / "run" / "metadata.json"
    described = json.loads(meta.read_text())["network_data_format"]
    image, pred = described["inputs"]["image"], described["outputs"]["pred"]
    assert (image["num_channels"], image["channel_def"], image["modality"]) == (2, {"0": "PET", "1": "CT"}, "PET + CT")
    assert (pred["num_channels"], pred["channel_def"]) == (3, {"0": "whole", "1": "core", "2": "centre"})
    schema = CONFIGS / "schema" / "meta_schema_20240725.json"
    monai.bundle.verify_metadata(meta_file=str(meta), filepath=str(schema), hash_val=sha256(schema), hash_type="sha256")
    config_file = configs("inference")[0]
    monai.bundle.verify_net_in_out(
        net_id="network_def", meta_file=str(meta), config_file=config_file, model_file=str(tmp_path / "run")
    )

    evaluated = tmp_path / "evaluated"
    workflow("train", "evaluate", **values, evaluation_dir=str(evaluated)).run()
    assert (evaluated / "cases.csv").read_bytes() == (tmp_path / "run" / "cases.csv").read_bytes()
    images = next((tmp_path / "data").glob("*/images"))
    given = {"model_file": str(tmp_path / "run"), "dataset_dir": str(images), "output_dir": str(tmp_path / "out")}
    workflow("inference", kind="inference", **given).run()
    assert call_medloss("predict", "--run", tmp_path / "run", "--out", tmp_path / "other", images)[0] == 0
    names = sorted(path.name for path in (tmp_path / "other").iterdir())
    assert names == [f"phantom_regions_{number:03d}.nii.gz" for number in range(3)]
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_volume_in_time_is_predicted_as_a_volume(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 1), np.float32), np.eye(4))
    image.to_filename(tmp_path / "x.nii.gz")
    model = Model(
        torch.nn.Identity(),
        None,
        Preprocessing(dimensions=3),
        LabelScheme(classes={0: "background", 7: "organ"}),
        (),
        CPU,
    )  # type: ignore[arg-type]
    (source,) = sources(str(tmp_path))
    read = ReadImage(model)({"image": source})
    assert read["image"].shape == (1, 4, 5, 6)
    logits = torch.stack([torch.zeros(4, 5, 6), torch.ones(4, 5, 6)])
    assert torch.equal(ToLabels(model)({**read, "pred": logits})["pred"], torch.full((1, 4, 5, 6), 7))


def test_labels_next_to_the_images_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a_image", "a_label", "b"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert [source.name for source in sources(str(tmp_path))] == ["a_image", "b"]
    assert capsys.readouterr().err == f"left out, labels by their names: {tmp_path / 'a_label.nii.gz'}\n"


def test_monais_command_exports_a_network_with_the_same_logits(folder: Path, tmp_path: Path) -> None:
    done = command(
        tmp_path, "ckpt_export", "inference",
        net_id="network_def", filepath="exported.ts", ckpt_file=folder / "run" / "model.pt", key_in_ckpt="network",
        meta_file=CONFIGS / "metadata.json", model_file=folder / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    extra = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(tmp_path / "exported.ts", _extra_files=extra)
    assert json.loads(extra["metadata.json"])["name"] == "medloss"
    assert "network_def" in json.loads(extra["inference.json"])
    image = torch.linspace(-1, 1, 16 * 24 * 24).reshape(1, 1, 16, 24, 24)
    with torch.inference_mode():
        torch.testing.assert_close(exported(image), load_model(folder / "run", CPU).network(image))


def test_monais_command_verifies_the_network_against_the_metadata(tmp_path: Path) -> None:
    values = {"net_id": "network_def", "meta_file": CONFIGS / "metadata.json"}
    done = command(tmp_path, "verify_net_in_out", "inference", **values)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "verified with no error" in done.stdout + done.stderr


@pytest.mark.parametrize("network", ["unet", "vnet", "dynunet"])
def test_every_network_takes_the_metadatas_shapes(network: str, workflow: Callable[..., ConfigWorkflow]) -> None:
    inference = workflow("inference", kind="inference", network_name=network)
    shape = [int(str(size).removesuffix("*n")) for size in inference.spatial_shape]
    with torch.inference_mode():
        logits = inference.network_def(torch.zeros(1, 1, *shape))
    assert logits.shape == (1, len(inference.channel_def), *shape)
    assert inference.channel_def == {str(k): v for k, v in load_manifest("phantom").classes.items()}


@pytest.mark.parametrize("launch", ["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_together(folder: Path, tmp_path: Path, launch: str) -> None:
    values = {"manifest": folder / "tiny_3d.yaml", "data_root": folder / "data", "output_dir": tmp_path / "run"}
    line = words("run", "train", "multi_gpu_train", **values, max_epochs=1, device="cpu")
    if launch == "forked":
        done = Ranks.of_module("monai.bundle", *line).join()
    else:
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        done = started(tmp_path, *line, launcher=torchrun)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("epoch 1/1") == 1
    run = RunFolder(tmp_path / "run")
    assert run.result is not None
    assert run.result["state"] == "done"
    cases = [(row["case"], row["class"]) for row in run.cases]
    assert len(cases) == len(set(cases)) == 2 * 3  # two cases of three classes, each evaluated once


def test_processes_that_do_not_know_of_each_other_are_refused(
    reported: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = reported("train", output_dir=str(tmp_path / "run"))
    assert line == "error: started by torchrun: pass configs/multi_gpu_train.yaml after configs/train.yaml"


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["train"], "train"),
        (["train", "multi_gpu_train"], "train"),
        (["train", "evaluate"], "train"),
        (["train", "evaluate"], "evaluation"),
        (["inference"], "inference"),
    ],
)
def test_monais_properties_are_there(
    names: list[str], kind: str, folder: Path, workflow: Callable[..., ConfigWorkflow]
) -> None:
    of_the_run = {"output_dir": str(folder / "run")}
    if names[-1] in ("train", "multi_gpu_train"):
        of_the_run |= {"manifest": str(folder / "tiny_3d.yaml"), "data_root": str(folder / "data")}
    if kind == "inference":
        of_the_run = {"model_file": str(folder / "run"), "dataset_dir": str(next((folder / "data").glob("*/images")))}
    before = (folder / "run" / "result.json").read_bytes()
    made = workflow(*names, kind=kind, **of_the_run)
    assert made.check_properties() == []
    assert made.properties
    for name in made.properties:
        getattr(made, name)
    # Looking at them does not train.
    assert (folder / "run" / "result.json").read_bytes() == before


def test_the_properties_are_the_parts_of_one_training(
    folder: Path, tmp_path: Path, workflow: Callable[..., ConfigWorkflow]
) -> None:
    made = workflow(
        "train",
        manifest=str(folder / "tiny_3d.yaml"),
        data_root=str(folder / "data"),
        output_dir=str(tmp_path / "run"),
    )
    training = made.parser.get_parsed_content("training")
    assert made.trainer is training.trainer
    assert made.evaluator is training.evaluator
    assert made.network_def is training.network
    assert made.train_dataset is training.dataset
    assert made.parser.get_parsed_content("loss") is training.loss
    assert made.parser.get_parsed_content("optimizer") is training.optimizer
    assert made.max_epochs == training.config.epochs == 8
    # The values that are set are used.
    made.max_epochs = 3
    made.initialize()
    assert made.trainer.state.max_epochs == 3
    assert made.parser.get_parsed_content("training").config.epochs == 3


def test_handlers_of_monais_are_taken(folder: Path, tmp_path: Path, workflow: Callable[..., ConfigWorkflow]) -> None:
    saver = {"_target_": "CheckpointSaver", "save_dict": {"net": "@network_def"}, "save_final": True}
    made = workflow(
        "train",
        manifest=str(folder / "tiny_3d.yaml"),
        data_root=str(folder / "data"),
        output_dir=str(tmp_path / "run"),
        max_epochs=1,
        **{f"{part}::handlers": [saver | {"save_dir": str(tmp_path / part)}] for part in ("train", "validate")},
    )
    made.run()
    for part in ("train", "validate"):
        assert len(list((tmp_path / part).glob("*final*.pt"))) == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"loss_name": "dise"}, r"dise.*dice"),
        ({"manifest": "fantom"}, "no manifest 'fantom'.*did you mean 'phantom'"),
        ({"recipe": "slow"}, "recipe: got 'slow'; expected full, quick"),
        ({"network_name": "resnet"}, "network: got 'resnet'; expected 'unet', 'vnet' or 'dynunet'"),
        ({"max_epochs": 0}, "epochs: got 0; expected at least 1"),
        ({"fold": 7}, "fold.*7"),
        ({"settings": {"epoch": 3}}, "epoch: no such setting; did you mean epochs?"),
        ({"device": "tpu"}, "device: got 'tpu'; expected cpu, cuda or auto"),
        ({"patch_size": [15, 24, 24]}, "patch size: .*divisible by"),
    ],
)
def test_a_wrong_value_is_reported_in_one_line(
    values: dict[str, Any], expected: str, reported: Callable[..., str], tmp_path: Path
) -> None:
    assert re.fullmatch(f"error: .*{expected}.*", reported("train", output_dir=str(tmp_path / "run"), **values))
    assert not (tmp_path / "run" / "config.json").exists()


def test_another_run_is_not_overwritten(reported: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    assert reported("train", output_dir=str(folder / "run")).startswith(
        f"error: output_dir: {folder / 'run'} holds a run"
    )
    line = reported("train", output_dir=str(tmp_path), resume=True)
    assert line == f"error: resume: {tmp_path} holds no checkpoint; start the run without --resume"


def test_a_bad_file_is_reported_before_training(reported: Callable[..., str], tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path)
    root = resolve_data(load_manifest(manifest), tmp_path / "data")
    image = next((root / "images").iterdir())
    image.write_bytes(image.read_bytes()[:-20])
    values = {"manifest": str(manifest), "data_root": str(tmp_path / "data"), "output_dir": str(tmp_path / "run")}
    line = reported("train", **values)
    assert line.startswith("error: 'tiny_3d' has 1 bad file: ")
    assert line.endswith("pass --check False to train anyway")
    assert not (tmp_path / "run").exists()


class NanLoss(nn.Module):
    """NaN from the first step on."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.mean() * float("nan")


def test_a_failed_run_is_reported_in_its_folder(reported: Callable[..., str], tmp_path: Path) -> None:
    line = reported("train", loss_name=f"{__name__}.NanLoss", output_dir=str(tmp_path))
    result = RunFolder(tmp_path).result
    assert result is not None
    assert result["state"] == "failed"
    assert line == f"error: {result['error']}"
    assert "NaN" in line or "nan" in line


def test_evaluation_and_prediction_report_what_is_missing(
    reported: Callable[..., str], folder: Path, tmp_path: Path
) -> None:
    assert "no model there" in reported("train", "evaluate", output_dir=str(tmp_path))
    run, images = str(folder / "run"), str(next((folder / "data").glob("*/images")))
    assert reported("inference", dataset_dir=images).startswith("error: model_file: expected a finished run's folder")
    assert reported("inference", model_file=run).startswith("error: dataset_dir: expected a folder of NIfTI files")
    (tmp_path / "phantom_000.nii.gz").touch()
    line = reported("inference", model_file=run, dataset_dir=images, output_dir=str(tmp_path))
    assert line.startswith(f"error: output_dir: there already: {tmp_path / 'phantom_000.nii.gz'}")
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes((Path(images) / "phantom_000.nii.gz").read_bytes()[:-20])
    line = reported("inference", model_file=run, dataset_dir=[str(damaged)], output_dir=str(tmp_path / "out"))
    assert line.startswith(f"error: {damaged}: ")


def test_a_model_is_not_evaluated_on_other_classes(reported: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    other = tiny_manifest(tmp_path, classes={0: "background", 1: "organ", 2: "shell", 3: "metastasis"})
    values = {"manifest": str(other), "data_root": str(tmp_path / "data"), "evaluation_dir": str(tmp_path)}
    line = reported("train", "evaluate", output_dir=str(folder / "run"), **values)
    assert line.startswith("error: 'tiny_3d' has other classes than the model")


def test_the_loss_of_an_untrusted_model_is_not_imported(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder / "run", CPU)
    foreign = model.config.model_copy(update={"loss": "a_strangers.Loss"})
    manifest = load_manifest(folder / "tiny_3d.yaml")
    save_model(tmp_path / "model.pt", model.network, foreign, manifest, model.preprocessing)
    untrusted = load_model(tmp_path / "model.pt", CPU)
    config = bundle.evaluated_config(
        untrusted,
        manifest=str(folder / "tiny_3d.yaml"),
        data_root=str(folder / "data"),
        fold=0,
        device="cpu",
        cache_dir=str(tmp_path),
    )
    trained = bundle.evaluated_training(untrusted, config)
    assert len(trained.validate()) == 2 * 3


def test_the_documented_commands_name_what_is_there() -> None:
    page = Path(__file__).parents[3] / "docs" / "bundle.md"
    if not page.is_file():
        pytest.skip("docs do not travel with the wheel")
    commands = [shlex.split(line) for line in page.read_text().splitlines() if " -m monai.bundle " in line]
    assert len(commands) == 7
    for words in commands:
        given = dict(
            zip(words[words.index("monai.bundle") + 2 :: 2], words[words.index("monai.bundle") + 3 :: 2], strict=True)
        )
        files = re.findall(r"configs/(\w+)\.yaml", given.get("--config_file", ""))
        ids = ConfigParser.load_config_files(configs(*files)).keys() if files else set()
        verb = getattr(monai.bundle, words[words.index("monai.bundle") + 1])
        for name in given:
            assert name.removeprefix("--") in {*ids, *inspect.signature(verb).parameters}, (name, words)


def test_an_error_ends_monais_command_in_one_line(tmp_path: Path) -> None:
    done = command(tmp_path, "run", "train", loss_name="dise", output_dir="run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.fullmatch("error: .*dise.*dice.*", done.stderr.splitlines()[-1])
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_loss_in_a_config_of_monai_alone(tmp_path: Path) -> None:
    (tmp_path / "alone.yaml").write_text(ALONE)
    done = started(tmp_path, "run", "--config_file", str(tmp_path / "alone.yaml"))
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("loss "))
    assert 0 < after < before < 1
    assert "of this project []" in done.stdout
