"""The benchmark of a training step, on tiny networks: what it measures and reports, never how fast anything is."""

import dataclasses
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

import medloss

# They belong to the checkout, not to the wheel. `python -m pytest` finds them in the folder where it was started.
pytest.importorskip("benchmarks.training_step", reason="benchmarks/ is not here: these tests run in the checkout")

from benchmarks import regimes, step_run, training_step
from benchmarks.cases import EXACT, FRESH, RECYCLED, Contender
from benchmarks.contenders import build
from benchmarks.plain_torch import PLAIN
from benchmarks.scenes import scene
from benchmarks.step_page import page
from benchmarks.step_results import COMPILED, Found, Group, Groups, not_measured, read_groups, write_groups
from benchmarks.step_run import TrainingStep, nnunet_strides
from benchmarks.step_settings import DISTANCE_LOSSES, NNUNET, Setting, setting_from_json, settings
from benchmarks.step_timing import run_setting

_TINY: dict[str, Any] = {"size": (16, 16, 16), "batch": 1, "rounds": 2, "losses": ("dice",), "compiled": False}


def _run(out: Path, *words: str) -> Result:
    return CliRunner().invoke(training_step.main, [*words, "--out", str(out)], catch_exceptions=False)


def _group(*rows: Found) -> Group:
    return Group(rows, "a digest", "a machine", 0.25)


def test_every_side_of_a_setting_gets_a_row() -> None:
    rows = run_setting(Setting("dynunet", "bfloat16", 2, 1, **_TINY), FRESH)
    assert [r.side for r in rows] == [f"medloss, {medloss.kernels.in_use()}", "MONAI"]
    assert all(r.place > 0 and r.step > 0 and r.low <= r.added <= r.high for r in rows)
    assert rows[0].setting == "dynunet, 1 coarser head, bfloat16, 1 x 2 x 16 x 16 x 16"
    text = page({(rows[0].setting, FRESH): _group(*rows)})
    assert f"| {rows[0].place / rows[1].place:.2f} |" in text
    assert "| a machine | 1 | 25% to 25% |" in text


def test_the_network_takes_no_part_in_the_time_of_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    step = TrainingStep(Setting("dynunet", "float32", 2, 1, **_TINY))
    events: list[str] = []

    def clock() -> float:
        events.append("clock")
        return 0.0

    for parameter in step._network.parameters():
        parameter.register_hook(lambda _: events.append("network"))
    monkeypatch.setattr(step_run, "time", SimpleNamespace(perf_counter=clock))
    supervised = medloss.DeepSupervision(medloss.DiceLoss(softmax=True))
    step.run(lambda outputs: supervised(outputs, step.target))
    # Start, loss begins, loss ends, step ends.
    assert events[:3] == ["clock"] * 3 and "network" in events[3:] and events[-1] == "clock"


@pytest.mark.parametrize("loss", PLAIN)
def test_plain_torch_computes_the_same_loss(loss: str) -> None:
    logits, label = scene((16, 16, 16), 3)
    ours = build(Contender("medloss", loss), label, 3).function(logits)
    assert PLAIN[loss](logits, label).item() == pytest.approx(ours.item(), rel=1e-4)


@pytest.mark.slow
def test_memory_and_distances_are_measured(tmp_path: Path) -> None:
    distances, memory = settings("tiny")[3:]
    rows = run_setting(distances, FRESH) + run_setting(memory, EXACT)
    assert {r.loss for r in rows} == {"dice", *DISTANCE_LOSSES}
    assert [r.side for r in rows if r.loss == "hausdorff_dt"][1:] == ["MONAI"]
    assert rows[-1].memory is not None or rows[-1].note
    text = page({(r.setting, r.regime): _group(*(x for x in rows if x.setting == r.setting)) for r in rows})
    assert "| hausdorff_cv, relative to hausdorff_dt | ≤ 3 |" in text and "## Memory" in text


def test_nnunets_planner_halves_axes_down_to_four_voxels() -> None:
    assert nnunet_strides((64, 64, 64)) == [(1, 1, 1)] + [(2, 2, 2)] * 4
    assert nnunet_strides((40, 12, 7)) == [(1, 1, 1), (2, 2, 1), (2, 1, 1), (2, 1, 1)]


@pytest.mark.skipif(importlib.util.find_spec(step_run.NNUNET_PACKAGE) is None, reason=step_run.NNUNET_PACKAGE)
@pytest.mark.parametrize("network", ["nnunet", "nnunet_resenc"])
def test_a_step_of_nnunets_networks_is_measured(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_run, "_CHANNELS", 4)
    rows = run_setting(Setting(network, "float32", 2, 1, **_TINY | {"size": (32, 32, 32)}), FRESH)
    assert [r.side for r in rows] == [f"medloss, {medloss.kernels.in_use()}", "MONAI"]
    assert all(r.place > 0 for r in rows)


def test_a_setting_survives_json() -> None:
    for setting in settings():
        assert setting_from_json(dataclasses.asdict(setting) | {"size": list(setting.size)}) == setting


def test_names_of_settings_are_unique_per_regime() -> None:
    names = [(s.key, regime) for s in settings() for regime in s.regimes]
    assert len(set(names)) == len(names)


def test_settings_are_chosen_by_name_or_by_its_beginning() -> None:
    def chosen(*names: str) -> list[str]:
        return [s.key for s in training_step.named(settings("quick"), names)]

    assert chosen("unet, bfloat16, 2 x 4 x") == ["unet, bfloat16, 2 x 4 x 64 x 64 x 64, prepared maps"]
    assert chosen("dynunet", "dynunet, 1") == ["dynunet, 1 coarser head, bfloat16, 2 x 14 x 64 x 64 x 64"]
    maps = settings()[-3]
    assert maps.key.endswith(", prepared maps") and maps.key.removesuffix(", prepared maps") in {
        s.key for s in settings()
    }
    assert [s.key for s in training_step.named(settings(), [maps.key.removesuffix(", prepared maps")])] == [
        maps.key.removesuffix(", prepared maps")
    ]
    assert chosen() == [s.key for s in settings("quick")]


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    outcome = _run(tmp_path, "--setting", "resnet")
    assert outcome.exit_code == 1 and "--setting resnet: no such setting" in outcome.output


@pytest.mark.parametrize("option", [("--rounds", "2"), ("--kernels", "eager")])
def test_a_record_is_not_replaced_by_a_poorer_one(option: tuple[str, str], tmp_path: Path) -> None:
    setting = settings("tiny")[0]
    recorded: Groups = {(setting.key, FRESH): _group(Found(setting.key, FRESH, "dice", "MONAI", place=1.0))}
    write_groups(tmp_path / "step.json", recorded)
    outcome = _run(tmp_path, "--tiny", "--setting", setting.key, "--regime", "fresh", "--write", *option)
    assert outcome.exit_code == 1 and f"--write: got {option[0]}; expected" in outcome.output
    assert read_groups(tmp_path / "step.json") == recorded


def test_quick_keeps_a_record_of_more_rounds() -> None:
    quick = settings("quick")[0]
    (full,) = (s for s in settings() if s.key == quick.key)
    assert full.rounds > quick.rounds
    row = Found(quick.key, FRESH, "dice", "MONAI")
    by_full, by_quick = (Group((row,), training_step._digest(s), "a machine") for s in (full, quick))
    assert training_step._is_current(by_full, quick, "a machine")
    assert not training_step._is_current(by_full, quick, "another machine")
    assert not training_step._is_current(by_quick, full, "a machine")


def test_a_setting_that_is_measured_later_joins_those_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_process(work: dict[str, Any], regime: str, seconds: float) -> tuple[list[dict[str, Any]] | None, str]:
        setting = setting_from_json(work)
        if setting.precision == "bfloat16":
            return None, "took more than 1 s"
        return [dataclasses.asdict(Found(setting.key, regime, "dice", "medloss, eager", place=1.2349999, step=2.0))], ""

    monkeypatch.setattr(training_step, "in_process", in_process)
    unet, dynunet = ("unet, float32, 1 x 2 x 16 x 16 x 16", "dynunet, 1 coarser head, bfloat16, 1 x 3 x 16 x 16 x 16")
    words = ["--tiny", "--regime", "fresh", "--write", "--setting"]
    earlier: Groups = {
        ("unet, float32, 9 x 9", RECYCLED): _group(Found("unet, float32, 9 x 9", RECYCLED, "dice", "MONAI"))
    }
    write_groups(tmp_path / "step.json", earlier)
    first = _run(tmp_path, *words, unet)
    assert "1 measurement, about" in first.output and "1 of 1, about 0 s left" in first.output
    assert _run(tmp_path, *words, dynunet).exit_code == 0
    groups = read_groups(tmp_path / "step.json")
    assert list(groups) == [*earlier, (unet, FRESH), (dynunet, FRESH)]
    assert groups[unet, FRESH].rows[0].place == 1.235 and not groups[dynunet, FRESH].complete
    assert "fresh: about 15 s; recorded\n" in _run(tmp_path, *words[:3], "--setting", unet, "--list").output
    # What failed is measured again, what is there is not.
    assert f"{unet}, fresh: measured before" in _run(tmp_path, *words, unet).output
    assert "measured before" not in _run(tmp_path, *words, dynunet).output
    text = (tmp_path / "step.md").read_text()
    assert "Not measured: took more than 1 s." in text and f"## {unet}, fresh memory" in text
    _run(tmp_path, "--report-only")
    assert (tmp_path / "step.md").read_text() == text


def test_without_nnunets_networks_their_settings_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_run, "NNUNET_PACKAGE", "no_such_package")
    key = next(s.key for s in settings("tiny") if s.network == NNUNET)
    recorded = _group(Found(key, FRESH, "dice", "MONAI", place=1.0))
    write_groups(tmp_path / "step.json", {(key, FRESH): recorded})
    outcome = _run(tmp_path, "--tiny", "--setting", NNUNET, "--write")
    line = "nnunet: skipped, no_such_package is not installed: pip install --no-deps no-such-package\n"
    assert outcome.exit_code == 0 and outcome.output.count(line) == 1
    assert read_groups(tmp_path / "step.json") == {(key, FRESH): recorded}


def test_the_list_shows_names_and_durations(tmp_path: Path) -> None:
    key = settings("quick")[0].key
    write_groups(tmp_path / "step.json", {(key, FRESH): _group(Found(key, FRESH, "dice", "MONAI"))})
    lines = _run(tmp_path, "--quick", "--list").output.splitlines()
    assert lines[0].startswith(f"{key}; fresh: about ") and lines[0].endswith(
        "; recorded with other code or another machine"
    )
    assert "recorded" not in lines[1]
    assert len(lines) == 11 and lines[-1].startswith("10 measurements, about ")


def test_estimates_grow_with_the_work() -> None:
    small = Setting("unet", "float32", 2, 0)
    for change in ({"rounds": 30}, {"classes": 14}, {"network": "dynunet"}, {"kernels": ("", "eager")}):
        assert dataclasses.replace(small, **change).seconds(FRESH) > small.seconds(FRESH)
    assert small.seconds(EXACT) < small.seconds(FRESH)


def test_the_goals_compare_with_the_faster_of_both_others() -> None:
    def found(side: str, place: float, setting: str) -> Found:
        return Found(setting, FRESH, "tversky", side, place=place, step=9.0)

    ours = [found("medloss, numba", 1.0, "a"), found("medloss, numba", 1.0, "b")]
    others = [found("MONAI", 4.0, "a"), found(COMPILED, 0.5, "a"), found("MONAI", 2.0, "b"), found(COMPILED, 8.0, "b")]
    text = page({("a", FRESH): _group(*ours, *others)})
    assert (
        "| dice, tversky, focal, cross entropy: ratio | ≤ 0.9 | 2.00 | tversky: a, fresh memory | **missed by" in text
    )
    assert "geometric mean of the ratios | ≤ 0.5 | 1.00 |" in text
    # Of MONAI's 1/4 and 1/2, of the compiled loss 2 and 1/8.
    assert "| medloss, numba | tversky | 2 | 0.35 (0.50) | 0.50 (2.00) | 1.00 (2.00) | a, fresh memory |" in text
    assert "| tversky | medloss, numba | 0.0 (0.0 to 0.0) | 1.00 | 0.25 | 2.00 |  |" in text
    assert text.index("## Goals") < text.index("## Ratios") < text.index("## How it was measured")


def test_a_process_that_takes_too_long_is_a_note() -> None:
    work = dataclasses.asdict(settings("tiny")[0])
    assert regimes.in_process(work, FRESH, 0.01) == (None, "took more than 0.01 s")
    row = not_measured(settings("tiny")[0], FRESH, "took more than 0.01 s")
    assert not _group(row).complete


@pytest.mark.slow
def test_a_tiny_setting_is_measured_in_its_process(tmp_path: Path) -> None:
    words = ["--tiny", "--setting", "unet, float32, 1 x 2", "--regime", "fresh", "--write"]
    assert _run(tmp_path, *words).exit_code == 0
    text = (tmp_path / "step.md").read_text()
    assert "## unet, float32, 1 x 2 x 16 x 16 x 16, fresh memory" in text and "| tversky | MONAI |" in text
    assert "fresh: measured before" in _run(tmp_path, *words).output and (tmp_path / "step.md").read_text() == text


def test_the_page_needs_results(tmp_path: Path) -> None:
    outcome = _run(tmp_path, "--report-only")
    assert outcome.exit_code == 1 and "step.json: no results" in outcome.output
    assert not (tmp_path / "step.md").exists()
