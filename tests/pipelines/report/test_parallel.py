"""Plots and pictures drawn at the same time: the same as one after the other, also if the other process dies."""

import os
from pathlib import Path

import pytest
from made_pictures import pictured_comparison
from tiny import tiny_manifest

from pipelines.data.data_root import resolve_data
from pipelines.data.manifest import load_manifest
from pipelines.report import write
from pipelines.report.collect import Collected, from_folder
from pipelines.report.overlays import every_overlay
from pipelines.statistics.analysis import analyse
from pipelines.statistics.results import Analysis

LOSSES = ["focal", "dice", "tversky"]


@pytest.fixture
def drawn_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Analysis, Collected]:
    monkeypatch.setattr(write, "available_cores", lambda: 2)
    monkeypatch.setattr(write, "_MANY", len(LOSSES))
    manifest = tiny_manifest(tmp_path, cases=9)
    resolve_data(load_manifest(manifest), tmp_path / "data")
    pictured_comparison(tmp_path / "c", LOSSES, manifest, tmp_path / "data")
    collected = from_folder(tmp_path / "c")
    return analyse(collected.table, reference="dice", bootstraps=10), collected


def test_the_same_as_one_after_the_other(drawn_of: tuple[Analysis, Collected], monkeypatch: pytest.MonkeyPatch) -> None:
    plots, overlays = write.draw_all(*drawn_of)
    monkeypatch.setattr(write, "available_cores", lambda: 1)
    alone, pictures = write.draw_all(*drawn_of)
    assert plots == alone
    assert overlays.pictures == pictures.pictures and len(overlays.pictures) == 1 + len(LOSSES)
    assert overlays.notes == pictures.notes
    assert overlays.table is not None and overlays.table.equals(pictures.table)


def _die(*_: object) -> None:
    os._exit(9)


def test_the_death_of_the_process_changes_nothing(
    drawn_of: tuple[Analysis, Collected], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def in_this_process(analysis: Analysis, collected: Collected) -> object:
        calls.append(os.getpid())
        return every_overlay(analysis, collected)

    # The other process imports the function by its name.
    in_this_process.__module__, in_this_process.__qualname__ = _die.__module__, _die.__qualname__
    monkeypatch.setattr(f"{__name__}._die", in_this_process)
    monkeypatch.setattr(write, "every_overlay", in_this_process)
    _, overlays = write.draw_all(*drawn_of)
    assert calls == [os.getpid()]
    assert len(overlays.pictures) == 1 + len(LOSSES)
