"""The benchmark of a comparison's own cost, on tiny data: that it runs and counts aright, never how long it takes."""

from pathlib import Path

import pytest
from tiny import TinySet, tiny_manifest

pytest.importorskip("benchmarks.comparison_overhead", reason="benchmarks/ is not here: these tests run in the checkout")

from benchmarks.comparison_overhead import Row, measure, report, train_alone
from pipelines.utils.files import read_json, write_json


def test_goals_are_of_the_sum_and_of_its_share() -> None:
    text = report(
        [
            Row(jobs=1, threads=2, runs=17, bare=100, bare_cpu=180, compare=104, compare_cpu=190, inside=102),
            Row(jobs=2, threads=1, runs=17, bare=120, bare_cpu=120, compare=72, compare_cpu=130, inside=128),
            Row(jobs=1, threads=2, runs=17, bare=100, bare_cpu=180, compare=120, compare_cpu=190, inside=104),
            Row(jobs=1, threads=2, runs=17, bare=100, bare_cpu=180, compare=103, compare_cpu=190, inside=100),
        ]
    )
    assert "| 1 | 2 | 100.0 | 100.0 | 104.0 | 1.040 | 1.05: met | 102.0 | 1.030 |" in text
    assert "| 2 | 1 | 120.0 | 60.0 | 72.0 | 1.200 | 1.15: **missed** | 128.0 | 1.125 |" in text
    assert "| 1 | 180.0 | 190.0 | 1.056 |" in text


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy")
def test_trainings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    tiny = TinySet(tiny_manifest(tmp_path, dims=2), tmp_path / "data")
    configs = [tiny.config(data_root=None, loss=loss, epochs=1) for loss in ("dice", "focal")]
    write_json(tmp_path / "configs.json", [config.model_dump(mode="json") for config in configs])
    train_alone(tmp_path)
    seconds = read_json(tmp_path / "seconds.json")
    assert all(value > 0 for value in seconds.values())
    assert [read_json(tmp_path / number / "result.json")["state"] for number in "01"] == ["done", "done"]


@pytest.mark.slow
def test_a_comparison_beside_its_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "cache"))
    arguments = [str(tiny_manifest(tmp_path, dims=2)), "--losses", "dice", "--reference", "none", "--epochs", "2"]
    row = measure(arguments, 2, tmp_path / "made")
    assert (row.jobs, row.runs) == (2, 1)
    assert row.compare > row.bare > 0
    assert row.compare_cpu > 0 and row.bare_cpu > 0
    assert 0 < row.inside < row.compare
    assert row.ratio == pytest.approx(2 * row.compare / row.bare)
