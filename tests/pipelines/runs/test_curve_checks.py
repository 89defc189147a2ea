"""What curves say against scores: runs whose optimizer stood still, and losses that were still improving."""

from pathlib import Path

import pandas as pd
import pytest
from cli_call import call_medloss
from made_comparison import made_comparison
from page_reader import read_page
from tiny import TinySet, tiny_manifest

from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.curve_checks import (
    StoodStill,
    still_improving,
    still_improving_note,
    stood_still,
    stood_still_notes,
)
from pipelines.runs.plan import Plan, PlannedRun, make_plan
from pipelines.runs.summary import comparison_table, formatted_rows, write_table
from pipelines.training.run import train_run
from pipelines.training.run_config import RunConfig
from pipelines.utils.files import read_json, write_json

REFERENCE = "dice+binary_cross_entropy"
LOSSES = [REFERENCE, "hausdorff_dt", "focal"]


def _ratio(config: RunConfig, epoch: int) -> float:
    """The Hausdorff loss stands still from the second epoch on, with seed 1; the rate falls for all."""
    still = config.loss == "hausdorff_dt" and config.seed == 1 and epoch > 1
    return 0.02 / epoch * (0.004 if still else 0.5 if config.loss == "focal" else 1.0)


def _found(plan: Plan, folder: Path) -> list[tuple[str, int, tuple[int, ...]]]:
    return [(one.run.config.loss, one.run.config.seed, one.epochs) for one in stood_still(folder, plan)]


def test_a_run_far_below_the_reference_of_its_epoch_fold_and_seed(tmp_path: Path) -> None:
    plan = made_comparison(tmp_path, LOSSES, seeds=(0, 1), ratio=_ratio)
    named = plan.model_copy(update={"reference": REFERENCE})
    assert _found(named, tmp_path) == [("hausdorff_dt", 1, (2, 3))]
    # Without a reference it is the median of the losses.
    assert _found(plan, tmp_path) == [("hausdorff_dt", 1, (2, 3))]
    lost = plan.model_copy(update={"reference": "tversky"})  # which has not been trained yet
    assert _found(lost, tmp_path) == []
    (note,) = stood_still_notes(named, stood_still(tmp_path, named))
    assert note.startswith("hausdorff_dt fold 0 seed 1: the optimizer stood still in epochs 2 to 3")
    assert f"below a hundredth of that of {REFERENCE}" in note


def test_spans_of_epochs() -> None:
    run = PlannedRun(id="a", config=RunConfig(manifest="made"))
    words = {(3,): "epoch 3", (1, 2): "epochs 1 to 2", (2, 6, 7, 8, 20): "epochs 2, 6 to 8, 20"}
    assert {epochs: StoodStill(run, epochs).when for epochs in words} == words


def test_it_is_named_in_table_terminal_and_page(tmp_path: Path) -> None:
    plan = made_comparison(tmp_path, LOSSES, seeds=(1,), ratio=_ratio)
    content = read_json(tmp_path / "plan.json")
    write_json(tmp_path / "plan.json", content | {"reference": REFERENCE})
    plan = plan.model_copy(update={"reference": REFERENCE})
    table = comparison_table(tmp_path, plan)
    head, *rows = formatted_rows(table)
    assert head[-1] == "stood still"
    # People read the loss as it was given, and once what it is trained as.
    assert {row[0]: row[-1] for row in rows} == {REFERENCE: "", "hausdorff_dt": "epochs 2 to 3", "focal": ""}
    assert table.trained == ("Trained by their recipes: hausdorff_dt as hausdorff_dt+dice, balanced.",)
    csv, markdown = write_table(tmp_path, table)
    assert table.trained[0] in markdown.read_text()
    kept = pd.read_csv(csv, keep_default_na=False).set_index("loss")
    assert kept.loc["hausdorff_dt", ["trained_as", "stood_still"]].tolist() == [
        "hausdorff_dt+dice, balanced", "epochs 2 to 3",
    ]  # fmt: skip
    code, _, err = call_medloss("report", tmp_path)
    assert code == 0, err
    page = read_page(tmp_path / "report" / "report.html").text
    assert page.count("hausdorff_dt+dice, balanced") == page.count("trained as hausdorff_dt+dice, balanced") == 1
    assert "stood still, fold 0 seed 1: epochs 2 to 3" in page
    assert "hausdorff_dt fold 0 seed 1: the optimizer stood still in epochs 2 to 3" in page
    analysis = read_json(tmp_path / "report" / "analysis.json")
    assert analysis is not None
    assert analysis["stood_still"] == [{"loss": "hausdorff_dt", "fold": 0, "seed": 1, "epochs": [2, 3]}]
    assert analysis["relative_steps"] == pytest.approx({REFERENCE: 1.0, "hausdorff_dt": 0.004, "focal": 0.5})
    assert f"Steps: the ratio of update to weights, divided by that of {REFERENCE}; median over the epochs" in page
    assert analysis["trained_as"]["hausdorff_dt"] == "hausdorff_dt+dice, balanced"
    assert {own["loss"] for own in analysis["primary"]["ranking"]} == set(LOSSES)
    assert "the optimizer stood still in epochs 2 to 3" in " ".join(call_medloss("status", tmp_path)[1].split())


def test_folders_of_an_earlier_version_have_no_ratios(tmp_path: Path) -> None:
    plan = made_comparison(tmp_path, LOSSES)
    for run in plan.runs:
        path = run_folder(tmp_path, run).path / "epochs.csv"
        frame = pd.read_csv(path).drop(columns=["grad_norm", "update_ratio"])
        frame.to_csv(path, index=False)
    assert stood_still(tmp_path, plan) == ()
    assert formatted_rows(comparison_table(tmp_path, plan))[0][-1] == "runs"
    code, _, err = call_medloss("report", tmp_path)
    assert code == 0, err
    page = read_page(tmp_path / "report" / "report.html").text
    assert "stood still" not in page and "Steps:" not in page


@pytest.mark.parametrize(("weight", "still"), [("1e-13*", True), ("", False)])
def test_a_real_training_whose_gradients_vanish(tmp_path: Path, weight: str, still: bool) -> None:
    """Far below AdamW's epsilon of 1e-8 nothing moves; a weight that only rescales would not be noticed."""
    tiny = TinySet(tiny_manifest(tmp_path, 2, cases=3), tmp_path / "data")
    losses = ["dice", f"{weight}tversky"]
    configs = [tiny.config(loss=loss, keep_predictions=False, levels=2, base_channels=4) for loss in losses]
    plan = make_plan(configs, [0], [0], "tiny", "0" * 64, reference="dice")
    for run in plan.runs:
        train_run(run.config, run_folder(tmp_path, run).path)
    assert [one.epochs for one in stood_still(tmp_path, plan)] == ([(1, 2)] if still else [])


def _with_curves(folder: Path, curves: dict[str, dict[int, float]], epochs: int = 20, margin: float = 0.01) -> Plan:
    """A comparison with these validations: loss -> epoch -> Dice."""
    configs = [RunConfig(manifest="made", loss=loss, epochs=epochs) for loss in curves]
    plan = make_plan(configs, [0], [0], "made", "ab" * 32, margin=margin)
    for run in plan.runs:
        run_dir = run_folder(folder, run)
        run_dir.begin(run.config)
        run_dir.write_epochs(
            [{"epoch": e, "val_dice": curves[run.config.loss].get(e, "")} for e in range(1, epochs + 1)]
        )
        run_dir.write_result({"state": "done"})
    return plan


def test_losses_that_were_still_improving(tmp_path: Path) -> None:
    plan = _with_curves(
        tmp_path,
        {
            "dice": {5: 0.5, 10: 0.8, 15: 0.900, 20: 0.905},  # by less than the margin
            "focal": {5: 0.1, 10: 0.3, 15: 0.400, 20: 0.450},
            "tversky": {5: 0.1, 10: 0.3, 15: 0.400, 20: 0.300},  # worse
            "combo": {20: 0.8},  # nothing to compare with
        },
    )
    gains = still_improving(tmp_path, plan)
    assert gains == {"focal": pytest.approx(0.05)}
    (note,) = still_improving_note(plan, gains)
    assert "by more than the margin of 0.0100 or 5 % of the last value: focal 0.0500. With more epochs" in note
    assert still_improving_note(plan, {}) == ()
    run_folder(tmp_path, plan.runs[1]).write_result({"state": "failed", "error": "x"})
    assert still_improving(tmp_path, plan) == {}


def test_one_validation_of_many_does_not_decide(tmp_path: Path) -> None:
    flat = {epoch: 0.7 + 0.005 * (-1) ** epoch for epoch in range(1, 101)}
    rising = {epoch: 0.5 + 0.002 * epoch + 0.005 * (-1) ** epoch for epoch in range(1, 101)}
    plan = _with_curves(tmp_path, {"dice": flat | {75: 0.65}, "focal": rising | {100: 0.6}}, epochs=100)
    gains = still_improving(tmp_path, plan)
    assert gains.keys() == {"focal"}
    assert gains["focal"] == pytest.approx(0.05, abs=0.02)


def test_distances_improve_downwards(tmp_path: Path) -> None:
    plan = _with_curves(tmp_path, {"dice": {15: 0.0, 20: 0.0}}).model_copy(update={"metric": "hd95_mm", "margin": 1.0})
    (run,) = plan.runs
    for last, expected in ((5.0, {"dice": 4.0}), (13.0, {}), (8.5, {})):
        rows = [{"epoch": 15, "val_hd95_mm": 9.0}, {"epoch": 20, "val_hd95_mm": last}]
        run_folder(tmp_path, run).write_epochs(rows)
        assert still_improving(tmp_path, plan) == expected


def test_a_low_score_that_rises_by_less_than_the_margin_is_named_too(tmp_path: Path) -> None:
    plan = _with_curves(tmp_path, {"dice": {15: 0.90, 20: 0.909}, "generalized_dice": {15: 0.080, 20: 0.088}})
    assert still_improving(tmp_path, plan) == {"generalized_dice": pytest.approx(0.008)}
