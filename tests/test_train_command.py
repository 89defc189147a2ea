"""`medloss train`: what it prints, and with which code it ends."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import tiny_manifest
from torch import Tensor, nn

from pipelines.cli import main
from pipelines.run_folder import RunFolder

EPOCH = re.compile(r"epoch (\d)/(\d): train loss \d+\.\d{4}, val dice \d\.\d{4}, \d+\.\d s, about \d+ s left")


@dataclass
class _Command:
    folder: Path
    manifest: Path
    patch: pytest.MonkeyPatch
    capture: pytest.CaptureFixture[str]

    def __call__(self, *options: str, manifest: str | None = None) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a training in this process."""
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


@pytest.mark.slow
def test_one_line_an_epoch_and_the_measures(tmp_path: Path) -> None:
    manifest = tiny_manifest(tmp_path, 3, cases=3)
    command = [sys.executable, "-m", "pipelines.cli", "train", str(manifest), "--data-root", str(tmp_path / "data")]
    command += ["--epochs", "2", "--threads", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=dict(os.environ))
    assert done.returncode == 0
    assert done.stderr == ""  # no library's warnings, either
    *epochs, dice, sensitivity, specificity, hd95, written = done.stdout.splitlines()
    assert [match.groups() for match in map(EPOCH.fullmatch, epochs) if match] == [("1", "2"), ("2", "2")]
    assert len(epochs) == 2
    result = RunFolder(tmp_path / "run").result
    assert result is not None
    for line, name in zip((dice, sensitivity, specificity, hd95), result["metrics"], strict=True):
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
    assert re.fullmatch(r"error: --out: .* is not empty; pass --resume .*\n", err)
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
    ("options", "told"),
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
def test_bad_options_are_one_line(train: _Command, options: list[str], told: str) -> None:
    run = train.folder / "run"
    code, out, err = train("--epochs", "1", "--out", str(run), *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err
    assert err.count("\n") == 1
    assert not run.exists()  # so that the command, put right, finds an empty place


def test_unknown_manifest(train: _Command) -> None:
    code, _, err = train("--out", str(train.folder / "run"), manifest="phantm")
    assert code == 2
    assert "did you mean 'phantom" in err


def test_usage(train: _Command) -> None:
    assert train()[0] == 2
    code, _, err = train("--out", "x", "--network", "resnet")
    assert code == 2
    assert "'unet', 'vnet'" in err


def test_data_that_cannot_be_read(train: _Command) -> None:
    assert train("--epochs", "1", "--out", str(train.folder / "run"))[0] == 0
    (image,) = train.folder.glob("data/*/images/phantom_001.nii.gz")
    image.write_bytes(image.read_bytes()[:-50])
    code, _, err = train("--epochs", "1", "--out", str(train.folder / "other"))
    assert code == 2
    assert "case 'phantom_001': images/phantom_001.nii.gz" in err
    assert err.count("\n") == 1


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
