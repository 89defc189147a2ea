"""The benchmarks' machinery, on tiny tensors: that it runs and counts aright, never how fast anything is."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

# They belong to the checkout, not to the wheel. `python -m pytest` finds them in the folder where it was started.
pytest.importorskip("benchmarks.losses", reason="benchmarks/ is not here: these tests run in the checkout")

from benchmarks import distance_maps, goals, losses, regimes, report_predictions, selections
from benchmarks.cases import (
    FRESH,
    RECYCLED,
    Case,
    Contender,
    Row,
    case_from_json,
    case_to_json,
    row,
    row_from_json,
)
from benchmarks.contenders import ELSEWHERE, build, installed, kernel_sets, sides_of
from benchmarks.memory import peak_memory
from benchmarks.profile import main as profile_main
from benchmarks.report import write_report
from benchmarks.results import measured_now, write_results
from benchmarks.scenes import scene
from benchmarks.worker import run_case

_TINY = {"warmup": 1, "rounds": 2, "least": 1, "seconds": 0.0}


def _case(group: str, contenders: tuple[Contender, ...], size: tuple[int, ...] = (8, 8, 8), classes: int = 3) -> Case:
    return Case(group, contenders, size, classes, **_TINY)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "classes"), [((16, 16, 16), 3), ((24, 32), 14), ((16, 16, 16), 1)])
def test_a_scene_has_structures_and_a_prediction_that_nearly_hits_them(size: tuple[int, ...], classes: int) -> None:
    logits, label = scene(size, classes, batch=2)
    assert logits.shape == (2, classes, *size)
    assert label.shape == (2, 1, *size)
    predicted = (logits > 0).to(torch.uint8) if classes == 1 else logits.argmax(1, keepdim=True)
    assert 0.6 < (predicted == label).float().mean() < 1
    assert 0.01 < (label > 0).float().mean() < 0.9
    assert torch.equal(scene(size, classes, batch=2)[0], logits)


@pytest.mark.parametrize("library", ["MONAI", "torch", "kornia"])
def test_both_sides_of_a_comparison_do_the_same_work(library: str) -> None:
    if not installed(library):
        pytest.skip(f"{library} is not installed")
    for loss in ELSEWHERE[library]:
        logits, label = scene((16, 16, 16), 3)
        sides = [Contender("medloss", loss), Contender(library, loss)]
        ours, theirs = (build(side, label, 3).function(logits).item() for side in sides)
        if loss == "focal":
            # MONAI and kornia divide by C besides, and we do not.
            theirs *= 3
        # What is left: smoothing, classes that are absent, thresholds instead of an argmax, a mean by weights.
        assert ours == pytest.approx(theirs, rel=0.35), loss


def test_peak_memory_counts_what_is_allocated() -> None:
    size = 64 * 2**20
    peak = peak_memory(lambda: torch.ones(size, dtype=torch.uint8), torch.device("cpu"))
    if peak is None:
        pytest.skip("peak memory is not available on this system: no /proc/self/clear_refs")
    assert peak == pytest.approx(size, rel=0.2)


def test_a_case_survives_json() -> None:
    case = selections.hausdorff("cpu")[0]
    assert case_from_json(json.loads(json.dumps(case_to_json(case)))) == case


def test_every_side_of_a_case_gets_a_row() -> None:
    sides = (*sides_of("dice", "cpu", "float32"), Contender("medloss", "distance_penalty", "eager", cached_map=True))
    rows = run_case(_case("goals", sides), RECYCLED)
    assert [(r.library, r.loss) for r in rows] == [(side.library, side.loss) for side in sides]
    assert all(r.total and r.forward and r.backward and r.rounds >= 1 for r in rows)


def test_the_group_of_a_gpu_runs_on_any_device() -> None:
    rows = run_case(_case("transform", (Contender("medloss", "signed_distance_map"),)), FRESH)
    assert [r.library for r in rows] == ["medloss", "SimpleITK", "copy"]


@pytest.mark.slow
def test_a_case_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = regimes.run_everywhere(_case("goals", sides_of("dice", "cpu", "float32")[:1]))
    assert [(r.regime, r.note) for r in rows] == [(FRESH, ""), (RECYCLED, "")]
    assert all(r.total for r in rows)


def test_a_process_that_fails_leaves_rows_that_say_so() -> None:
    rows = regimes.run_in_regime(_case("goals", (Contender("MONAI", "shape_aware"),)), FRESH)
    assert [r.note for r in rows] == ["failed: ValueError: MONAI has no shape_aware"]


def _made_rows() -> list[Row]:
    """Rows of all groups with made numbers: numba takes half of MONAI's time and one logits' size."""
    rows = []
    for case in [case for make in selections.GROUPS.values() for case in make("cpu")]:
        for number, side in enumerate(case.contenders):
            seconds = case.numbers * 1e-9 * (2 if side.library == "MONAI" else 1)
            for regime in (FRESH, RECYCLED):
                measured = {"forward": seconds / 2, "backward": seconds / 2, "total": seconds}
                spread = {"low": 0.9 * seconds, "high": 1.1 * seconds, "rounds": 3, "peak": 1 + number / 10}
                rows.append(row(case, side, regime, **measured, **spread))
    return rows


def test_verdicts_take_the_worst_case() -> None:
    found = {verdict.what: verdict for verdict in goals.verdicts(_made_rows())}
    share = found["dice, tversky, focal, eager: time relative to MONAI's, fresh"]
    assert (share.value, share.text) == (pytest.approx(0.5), "met")
    missed = found[f"hausdorff_dt, {kernel_sets('cpu', 'float32')[0]}, both maps, 64^3: time relative to MONAI's"]
    assert missed.text == "**missed by 150 %**"
    assert found["growth with voxels: slope in a log-log plot"].value == pytest.approx(1)
    assert found["growth with classes: slope in a log-log plot"].value == pytest.approx(1)


def test_the_report_is_made_of_the_results_alone(tmp_path: Path) -> None:
    rows = _made_rows()
    groups = {name: measured_now([r for r in rows if r.group == name], "cpu") for name in selections.FULL}
    write_results(tmp_path / "cpu.json", groups)
    outcome = CliRunner().invoke(losses.main, ["--report-only", "--device", "cpu", "--out", str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    text = (tmp_path / "cpu.md").read_text()
    for group in ("goals", "others", "growth", "grid"):
        assert f"(cpu-{group}.png)" in text
        assert (tmp_path / f"cpu-{group}.png").stat().st_size > 5000
    assert "Not measured on a GPU" in (tmp_path / "gpu.md").read_text()


def test_the_report_names_what_was_not_measured(tmp_path: Path) -> None:
    case = _case("goals", sides_of("dice", "cpu", "float32"))
    rows = [row(case, side, FRESH, note="would need some 99 GiB") for side in case.contenders]
    write_results(tmp_path / "cpu.json", {"goals": measured_now(rows, "cpu")})
    text = write_report("cpu", tmp_path).read_text()
    assert "would need some 99 GiB" in text
    assert "| not measured |" in text


def test_gpu_goals_are_computed_from_the_measured_copy() -> None:
    side = Contender("medloss", "dice", "triton")
    big = Case("gpu", (side,), (128,) * 3, 14, 2, "bfloat16", "cuda")
    copied = Case("transform", (side,), (256,) * 3, 14, 1, "float32", "cuda")
    logits = big.numbers * 2
    bytes_copied = copied.numbers * 4
    rows = [
        row(big, side, "caching", total=3 * logits / 1e12 * 3),
        row(copied, Contender("copy", "copy"), "caching", total=2 * bytes_copied / 1e12),
        row(copied, Contender("medloss", "medloss"), "caching", total=0.01),
        row(copied, Contender("SimpleITK", "SimpleITK"), "caching", total=0.4),
    ]
    dice, *_, transform = goals.gpu_verdicts(rows)
    assert (dice.value, dice.text) == (pytest.approx(3), "**missed by 50 %**")
    assert (transform.value, transform.text) == (pytest.approx(40), "**missed by 25 %**")


def test_profile_shows_operators_and_memory() -> None:
    outcome = CliRunner().invoke(profile_main, ["dice", "--size", "8", "--rounds", "1", "--lines", "3"])
    assert outcome.exit_code == 0, outcome.output
    assert "Self CPU" in outcome.output
    assert "memory" in outcome.output


def test_distance_maps_agree_with_scipy() -> None:
    lines = distance_maps.measure(24, 1)
    names = ["scipy", "MONAI", *(["edt"] if installed("edt") else []), "medloss"]
    rows = [line.split("|") for line in lines if line.startswith("| ")][1:]
    rows = [cells for cells in rows if "---" not in cells[1]]
    assert [cells[1].strip() for cells in rows] == names
    assert all(float(cells[4]) < 1e-3 for cells in rows)


def test_rows_survive_json() -> None:
    made = _made_rows()[0]
    assert row_from_json(json.loads(json.dumps(dataclasses.asdict(made)))) == made


@pytest.mark.slow
def test_a_report_of_made_predictions_is_timed() -> None:
    call = CliRunner().invoke(report_predictions.main, ["--cases", "3", "--rounds", "1"], catch_exceptions=False)
    shown = call.output
    assert "3 methods, 3 cases of 40 x 56 x 40 voxels, 2 classes" in shown
    assert "| 3 folders, 3 cases, 2 classes: 9 pairs evaluated, 0 read from the cache |" in shown
    assert "| 3 folders, 3 cases, 2 classes: 0 pairs evaluated, 9 read from the cache |" in shown
