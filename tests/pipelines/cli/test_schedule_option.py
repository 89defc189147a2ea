"""`--schedule`: how the weights of a sum change, in `train` and in `compare`."""

from pathlib import Path

import pytest
from cli_call import call_medloss
from tiny import TinySet, tiny_manifest

import medloss
from pipelines.runs.comparison_folder import require_plan
from pipelines.training.components import Training
from pipelines.training.run_folder import RunFolder

SUM = "dice+binary_cross_entropy+hausdorff_dt"


def test_the_ramp_takes_the_epochs_of_the_run(tmp_path: Path) -> None:
    tiny = TinySet(tiny_manifest(tmp_path, 2, cases=3), tmp_path / "data")
    loss = Training(tiny.config(loss=SUM, loss_schedule="ramp", epochs=30)).loss
    assert isinstance(loss, medloss.CombinedLoss)
    assert (loss.schedule, loss.ramp, loss.final_weights) == ("ramp", (3.0, 15.0), (1.0, 1.0, 1.0))


def test_train(tmp_path: Path) -> None:
    path = tiny_manifest(tmp_path, 2, cases=3)
    words = ["train", path, "--data-root", tmp_path / "data", "--threads", "1", "--device", "cpu", "--batch-size", "2"]
    code, _, err = call_medloss(*words, "--loss", "dice", "--schedule", "ramp", "--out", tmp_path / "refused")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: schedule: got 'ramp' for 'dice', which is no sum; expected one such as dice+")
    assert not (tmp_path / "refused").exists()
    code, _, err = call_medloss(*words, "--loss", SUM, "--schedule", "ramp", "--epochs", "1", "--out", tmp_path / "run")
    assert code == 0, err
    config = RunFolder(tmp_path / "run").config
    assert config is not None and (config.loss, config.loss_schedule) == (SUM, "ramp")
    assert config.trained_as == f"{SUM}, ramp"


@pytest.mark.parametrize(("losses", "flag"), [("focal,shape_aware", "ramp"), ("dice+focal", "balanced")])
def test_compare_without_any_sum_for_it(tmp_path: Path, losses: str, flag: str) -> None:
    words = ["compare", tiny_manifest(tmp_path, 2), "--losses", losses, "--schedule", flag, "--out", tmp_path / "out"]
    code, _, err = call_medloss(*words)
    assert (code, err.count("\n")) == (2, 1)
    assert f"error: --schedule: got {flag}, and no loss is a sum with a boundary-based term; expected one such" in err
    assert not (tmp_path / "out").exists()


def test_compare_has_it_for_the_sums_with_a_boundary_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLOSS_CACHE", str(tmp_path / "made"))
    words = ["compare", tiny_manifest(tmp_path, 2), "--losses", f"focal,{SUM},hausdorff_er", "--schedule", "ramp"]
    code, _, err = call_medloss(*words, "--device", "cpu", "--executor", "none", "--out", tmp_path / "out")
    assert code == 0, err
    assert [run.config.trained_as for run in require_plan(tmp_path / "out").runs] == [
        "dice+binary_cross_entropy", "focal", f"{SUM}, ramp", "hausdorff_er+dice, ramp",
    ]  # fmt: skip
