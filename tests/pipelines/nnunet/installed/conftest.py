"""Tests with the real nnU-Net, in the environment that `make test-nnunet` makes; elsewhere they are skipped."""

import contextlib
import importlib.util
import warnings
from pathlib import Path

import pytest

if importlib.util.find_spec("nnunetv2") is not None:
    with warnings.catch_warnings():
        # Of other packages, at their import.
        warnings.simplefilter("ignore")
        from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

        # A search imports all that nnU-Net has.
        with contextlib.suppress(RuntimeError):
            recursive_find_trainer_class_by_name("none")


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where trainers that are made in a test write."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    return tmp_path / "results"
