"""The real data sets."""

import os
from pathlib import Path

import pytest


def _data_root() -> Path | None:
    named = os.environ.get("MEDLOSS_DATA")
    candidates = [Path(named)] if named else [Path(__file__).resolve().parents[4] / "shared" / "data"]
    return next((path for path in candidates if path.is_dir()), None)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets; without it the test is skipped."""
    root = _data_root()
    if root is None:
        pytest.skip("real data not found: set MEDLOSS_DATA to the folder that holds Task04_Hippocampus")
    return root


@pytest.fixture(scope="session")
def hippocampus_root(data_root: Path) -> Path:
    """The folder of the Medical Segmentation Decathlon's Task 04 (imagesTr, labelsTr)."""
    folder = data_root if (data_root / "imagesTr").is_dir() else data_root / "Task04_Hippocampus"
    if not folder.is_dir():
        pytest.skip(f"no Task04_Hippocampus in {data_root}")
    return folder
