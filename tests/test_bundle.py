"""MONAI's own command trains from the repository's configs."""

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_manifest

from pipelines.resources import resource_folder
from pipelines.run_folder import RunFolder


@pytest.mark.slow
def test_monais_bundle_command_trains_any_loss(tmp_path: Path) -> None:
    overrides = {
        "loss_name": "focal_tversky",
        "max_epochs": "1",
        "manifest": str(tiny_manifest(tmp_path)),
        "data_root": str(tmp_path),
        "output_dir": str(tmp_path / "run"),
    }
    command = [
        sys.executable,
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str(resource_folder("configs") / "train.yaml"),
    ]
    for name, value in overrides.items():
        command += [f"--{name}", value]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = RunFolder(tmp_path / "run")
    assert folder.result is not None
    assert folder.result["state"] == "done"
    assert folder.config is not None
    assert folder.config.loss == "focal_tversky"
