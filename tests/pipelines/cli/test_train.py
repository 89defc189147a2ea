"""`medloss train`: its output and its exit code."""

import gzip
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from cli_call import call_medloss
from forked import run_module
from tiny import tiny_manifest
from torch import Tensor, nn

from pipelines.cli import main
from pipelines.evaluation.metrics.base import default_metrics
from pipelines.training.run_folder import RunFolder
from pipelines.utils.files import read_json
from pipelines.utils.locks import held_lock

EPOCH = re.compile(r"epoch (\d)/(\d): train loss \d+\.\d{4}, val dice \d\.\d{4}, \d+\.\d s, about \d+ s left")


@dataclass
class _Command:
    folder: Path
    manifest: Path
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, *options: str, manifest: str | None = None) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a run in this process."""
        settings = ["--data-root", str(self.folder / "data"), "--threads", "1", "--batch-size", "2"]
        words = ["medloss", "train", manifest or str(self.manifest), *settings, *options]
        self.patch.setattr(sys, "argv", words)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        else:
            code = 0
        out, err = self.capture.readouterr()
        assert "Traceback" not in out + err
        return code, out, err


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> _Command:
    return _Command(tmp_path, tiny_manifest(tmp_path, 2, cases=3), monkeypatch, capsys)


def test_one_line_per_epoch_and_the_metrics(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, 3, cases=3)
    command = ["train", manifest, "--data-root", tmp_path / "data"]
    done = run_module("pipelines.cli", *command, "--epochs", 2, "--threads", 1, "--out", tmp_path / "run")
    assert done.returncode == 0
    assert done.stderr == ""  # no library's warnings, either
    *lines, written = done.stdout.splitlines()
    names = default_metrics()
    epochs, metrics = lines[: -len(names)], lines[-len(names) :]
    assert [match.groups() for match in map(EPOCH.fullmatch, epochs) if match] == [("1", "2"), ("2", "2")]
    assert len(epochs) == 2
    result = RunFolder(tmp_path / "run").result
    assert result is not None
    assert tuple(result["metrics"]) == names
    for line, name in zip(metrics, names, strict=True):
        assert line.split() == [name, f"{result['metrics'][name]:.4f}"]
    assert written == f"written to {tmp_path / 'run'}"


def test_resume_and_what_lies_there_already(train: _Command) -> None:
    run = str(train.folder / "run")
    code, _, err = train("--epochs", "1", "--out", run, "--resume")
    assert (code, err) == (2, f"error: --resume: {run} holds no checkpoint; start the run without --resume\n")
    assert not Path(run).exists()
    assert train("--epochs", "1", "--out", run)[0] == 0
    code, _, err = train("--epochs", "1", "--out", run)
    assert code == 2
    assert re.fullmatch(r"error: --out: .* holds a run; pass --resume .*\n", err)
    code, out, _ = train("--epochs", "1", "--out", run, "--resume")
    assert code == 0
    assert "epoch" not in out
    code, _, err = train("--epochs", "2", "--out", run, "--resume")
    assert code == 2
    assert "made with another epochs" in err


def test_resume_from_the_one_before(train: _Command) -> None:
    run = train.folder / "run"
    assert train("--epochs", "2", "--out", str(run))[0] == 0
    (run / "checkpoint.pt").unlink()
    code, out, _ = train("--epochs", "2", "--out", str(run), "--resume")
    assert code == 0
    assert [line[:9] for line in out.splitlines() if line.startswith("epoch")] == ["epoch 2/2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--fold", "9"], "fold: got 9; 'tiny_2d' has folds 0, 1, 2"),
        (["--fold", "-1"], "fold: got -1"),
        (["--loss", "dise"], "no loss 'dise'; did you mean 'dice'?"),
        (["--loss", "0.2*focal+"], "focal"),
        (["--loss", "torch.nn.functional.relu"], "is no torch.nn.Module class"),
        (["--epochs", "0"], "epochs: got 0"),
        (["--seed", "-1"], "seed: got -1"),
        (["--seed", "99999999999999999999"], "seed: got 99999999999999999999"),
        (["--lr", "nan"], "learning_rate: got nan"),
        (["--batch-size", "0"], "batch_size: got 0"),
        (["--patch", "5,5"], "patch size: got (5, 5); 'unet' on 'tiny_2d' needs 2 numbers divisible by 4"),
        (["--patch", "8,8,8"], "patch size: got (8, 8, 8)"),
        (["--patch", "8x8"], "--patch: got '8x8'; expected whole numbers"),
        (["--patch", "-8,8"], "patch_size.0: got -8"),
        (["--flip-axes", "2"], "flip axes: got (2,); 'tiny_2d' has axes 0 to 1"),
        (["--flip-axes", "x"], "--flip-axes: got 'x'"),
        (["--device", "toaster"], "device: got 'toaster'; expected cpu, cuda or auto"),
    ],
)
def test_bad_options_are_one_line(train: _Command, options: list[str], expected: str) -> None:
    run = train.folder / "run"
    code, out, err = train("--epochs", "1", "--out", str(run), *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1
    assert not run.exists()  # so that the corrected command can use it


def test_unknown_manifest(train: _Command) -> None:
    code, _, err = train("--out", str(train.folder / "run"), manifest="phantm")
    assert code == 2
    assert "did you mean 'phantom" in err


def test_usage(train: _Command) -> None:
    assert train()[0] == 2
    code, _, err = train("--out", "x", "--network", "resnet")
    assert code == 2
    assert "'unet', 'vnet'" in err


def test_bad_files_are_refused_before_training(train: _Command) -> None:
    assert train("--epochs", "1", "--out", str(train.folder / "run"))[0] == 0
    (image,) = train.folder.glob("data/*/images/phantom_001.nii.gz")
    image.write_bytes(image.read_bytes()[:-50])
    other = train.folder / "other"
    code, out, err = train("--epochs", "1", "--out", str(other))
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "images/phantom_001.nii.gz: truncated: its gzip stream ends early",
        "error: 'tiny_2d' has 1 bad file: repair or exclude them, or pass --no-check to train anyway",
    ]
    assert not other.exists()
    code, out, err = train("--epochs", "1", "--out", str(other), "--no-check")
    assert code == 2
    assert "case 'phantom_001': images/phantom_001.nii.gz" in err
    assert err.count("\n") == 1


def test_a_flipped_byte_that_readers_let_pass_is_refused(train: _Command) -> None:
    assert train("--epochs", "1", "--out", str(train.folder / "run"))[0] == 0
    (image,) = train.folder.glob("data/*/images/phantom_001.nii.gz")
    content = bytearray(gzip.decompress(image.read_bytes()))
    content[-7] ^= 1
    image.write_bytes(gzip.compress(bytes(content)))
    code, _, err = train("--epochs", "1", "--out", str(train.folder / "other"))
    assert code == 2
    assert "phantom_001.nii.gz: its SHA-256 is not the recorded one" in err


def test_what_a_run_killed_in_its_first_epoch_leaves_is_no_hindrance(train: _Command) -> None:
    run = train.folder / "run"
    unfinished = ("checkpoint.new.pt", "checkpoint.pt.sha256", ".checkpoint.new.pt.abc.partial", ".config.json.partial")
    assert train("--epochs", "1", "--out", str(run))[0] == 0
    for left in ((), unfinished):
        for path in (*run.glob("checkpoint*"), *(run / name for name in ("result.json", "model.pt", "cases.csv"))):
            path.unlink()
        for name in left:
            (run / name).touch()
        assert train("--epochs", "1", "--out", str(run))[0] == 0
    (run / "notes.txt").touch()
    for path in run.glob("checkpoint*"):
        path.unlink()
    code, _, err = train("--epochs", "1", "--out", str(run))
    assert (code, err) == (2, f"error: --out: {run} is not empty; name another folder\n")


def test_a_second_process_on_the_folder_is_refused(train: _Command) -> None:
    run = train.folder / "run"
    with held_lock(run / "lock") as mine:
        assert mine
        code, _, err = train("--epochs", "1", "--out", str(run))
    assert (code, err) == (2, f"error: --out: another process trains in {run}; name another folder\n")
    assert sorted(path.name for path in run.iterdir()) == ["lock"]


def test_recipes(train: _Command) -> None:
    recipe = train.folder / "mine.yaml"
    recipe.write_text("network: dynunet\nlevels: 3\nbase_channels: 4\nema: 0.9\nepochs: 2\n")
    code, _, err = train("--recipe", str(recipe), "--epochs", "1", "--optimizer", "sgd", "--loss-lr", "dice=0.02",
                         "--out", str(train.folder / "run"))  # fmt: skip
    assert (code, err) == (0, "")
    config = RunFolder(train.folder / "run").config
    assert config is not None
    assert (config.network, config.levels, config.base_channels, config.ema) == ("dynunet", 3, 4, 0.9)
    assert (config.epochs, config.optimizer, config.learning_rate) == (1, "sgd", 0.02)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "recipe: got"),
        ("just text", "has no settings; expected lines such as `epochs: 20`"),
        ("a: [", "is not valid YAML"),
        ("[" * 2000, "is not valid YAML: maximum recursion depth"),
        ("epochs: 2024-99-99", "is not valid YAML: month must be in 1..12"),
        ("epochz: 3", "epochz: no such setting; did you mean epochs?"),
        ("loss: my.Loss", "sets loss, which is set per run; remove it"),
        ("epochs: $__import__('os').system('touch PWNED')", "refused: epochs is an expression ($__import__"),
        ("augmentation: {_target_: os.system, command: touch PWNED}", "refused: augmentation._target_ is an import"),
        ("imports: [$import os]", "refused: imports is an import"),
        ("epochs: !!python/object/apply:os.system ['touch PWNED']", "is not valid YAML"),
    ],
)
def test_bad_recipes(train: _Command, monkeypatch: pytest.MonkeyPatch, content: str | None, expected: str) -> None:
    monkeypatch.chdir(train.folder)
    if content is not None:
        Path("recipe.yaml").write_text(content)
    code, _, err = train("--recipe", "recipe.yaml", "--out", "run")
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1
    assert not Path("run").exists() and not Path("PWNED").exists()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_rate_of_a_loss_that_is_not_trained_is_refused(tmp_path: Path, command: str) -> None:
    option = ("--loss", "focal") if command == "train" else ("--losses", "focal")
    code, _, err = call_medloss(
        command, "phantom", *option, "--loss-lr", "focle=1", "--out", tmp_path / "out", "--device", "cpu"
    )
    assert code == 2
    assert err == "error: --loss-lr: focle is none of the losses that are trained; did you mean focal?\n"


def test_a_loss_from_elsewhere_that_cannot_take_the_shapes(train: _Command) -> None:
    code, _, err = train("--epochs", "1", "--loss", "torch.nn.NLLLoss", "--out", str(train.folder / "run"))
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: the loss NLLLoss cannot take logits (")


def test_a_place_that_cannot_be_written(train: _Command) -> None:
    (train.folder / "file").touch()
    code, _, err = train("--epochs", "1", "--out", str(train.folder / "file"))
    assert code == 2
    assert err.startswith("error: --out: ")
    code, _, err = train("--epochs", "1", "--out", str(train.folder / "file" / "run"))
    assert code == 2
    assert err.startswith("error: --out: ")


class NanLoss(nn.Module):
    """NaN from the first step on."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.mean() * float("nan")


def test_a_loss_that_is_nan_ends_with_1(train: _Command) -> None:
    code, out, err = train("--out", str(train.folder / "run"), "--loss", f"{__name__}.NanLoss")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: the loss is nan in epoch 1, on the cases phantom_\d+, phantom_\d+; .*\n", err)
    code, _, err = train("--out", str(train.folder / "run"), "--loss", f"{__name__}.NanLoss", "--resume")
    assert code == 2
    assert "holds no checkpoint" in err


def test_channels_on_another_grid_are_refused_unless_they_are_resampled(train: _Command) -> None:
    images, labels = train.folder / "data/images", train.folder / "data/labels"
    for folder in (images, labels):
        folder.mkdir(parents=True)
    affine, random = np.diag([2.0, 2, 2, 1]), np.random.default_rng(0)
    cases = []
    for name in ("a", "b"):
        label = np.zeros((16, 16, 16), np.uint8)
        label[4:10, 5:11, 3:12] = 1
        nib.save(nib.Nifti1Image(label, affine), labels / f"{name}.nii.gz")
        for channel, step in (("PET", 2), ("CT", 1)):
            coarse = np.diag([2.0 * step, 2.0 * step, 2.0 * step, 1])
            noise = random.normal(size=(16 // step,) * 3).astype(np.float32)
            nib.save(nib.Nifti1Image(noise, coarse), images / f"{name}_{channel}.nii.gz")
        files = [f"images/{name}_{channel}.nii.gz" for channel in ("CT", "PET")]
        case = {"id": name, "patient": name, "fold": len(cases), "image": files, "label": f"labels/{name}.nii.gz"}
        cases.append(case)
    changes = {"modality": None, "generator": None, "channels": [{"name": "CT"}, {"name": "PET"}], "cases": cases}
    path = train.folder / "pair.yaml"
    about = yaml.safe_load(tiny_manifest(train.folder, 3).read_text())
    about |= changes | {"spacing": [2.0] * 3, "classes": {0: "background", 1: "organ"}}
    path.write_text(yaml.safe_dump({name: value for name, value in about.items() if value is not None}))
    short = ("--epochs", "1", "--set", "levels=2", "--set", "base_channels=2", "--patch", "8,8,8")
    out = train.folder / "run"
    code, _, err = train(*short, "--out", str(out), manifest=str(path))
    assert (code, err.count("--resample-channels brings all channels to the label's grid")) == (2, 2)
    # Without the check, training itself refuses the first of them.
    code, _, err = train(*short, "--no-check", "--out", str(out), manifest=str(path))
    assert (code, err.count("\n"), "train with --resample-channels" in err) == (2, 1, True)
    code, _, err = train(*short, "--resample-channels", "--out", str(out), manifest=str(path))
    assert code == 0, err
    assert read_json(out / "config.json")["resample_channels"]
    words = ["--run", out, "--manifest", path, "--data-root", train.folder / "data", "--fold", 0, "--device", "cpu"]
    code, _, err = call_medloss("predict", *words, "--out", train.folder / "predicted")
    assert code == 0, err
    assert nib.load(train.folder / "predicted/a.nii.gz").shape == (16, 16, 16)
