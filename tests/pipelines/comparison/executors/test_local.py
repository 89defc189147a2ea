"""Workers that import before there is anything to do: told once, and never left behind."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from cli_call import call_medloss
from tiny import tiny_manifest
from waiting import PROCESS_S

from pipelines.comparison.executors import local
from pipelines.comparison.executors.local import end_ready, make_ready, take_ready
from pipelines.utils.machine import available_cores


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    yield
    end_ready()


@pytest.mark.slow
def test_one_carries_out_a_command_line_and_is_gone(tmp_path: Path) -> None:
    make_ready(1)
    log = tmp_path / "worker.log"
    process = take_ready(available_cores(), ["--version"], log)
    assert process is not None
    assert take_ready(available_cores(), ["--version"], log) is None
    assert process.wait(PROCESS_S) == 0
    assert version("medloss") in log.read_text()


def test_errors_of_its_command_line_are_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")  # and none of other packages' warnings ends it before
    make_ready(1)
    log = tmp_path / "worker.log"
    log.write_text("before\n")
    process = take_ready(available_cores(), ["worker", str(tmp_path / "nothing")], log)
    assert process is not None
    assert take_ready(available_cores(), ["--version"], log) is None
    assert process.wait(PROCESS_S) == 2
    before, told = log.read_text().splitlines()
    assert (before, told.split(":")[0]) == ("before", "error")


def test_as_many_as_this_process_leaves_cores_for() -> None:
    make_ready(100)
    assert len(local._ready) == max(1, available_cores() - 1)
    assert {threads for threads, _ in local._ready} == {1}


def test_one_with_other_threads_or_that_died_is_none(tmp_path: Path) -> None:
    make_ready(1)
    assert take_ready(available_cores() + 1, ["--version"], tmp_path / "log") is None
    ((_, process),) = local._ready
    process.kill()
    process.wait()
    assert take_ready(available_cores(), ["--version"], tmp_path / "log") is None
    assert local._ready == []


def test_what_is_not_needed_ends() -> None:
    make_ready(1)
    ((_, process),) = local._ready
    end_ready()
    assert process.poll() is not None
    assert local._ready == []


def test_a_refused_comparison_leaves_none(tmp_path: Path) -> None:
    code, _, _ = call_medloss("compare", tiny_manifest(tmp_path), "--losses", "dyce", "--out", tmp_path / "out")
    assert code == 2
    assert local._ready == []
