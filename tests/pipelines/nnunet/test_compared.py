"""`medloss compare --trainer nnunet` without nnU-Net: refusals, and such runs in tables and MLflow."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest
import torch
from cli_call import call_medloss
from made_comparison import made_comparison
from mirrored import leave_run, small_plan, stored, synced
from tiny import tiny_manifest

from pipelines.nnunet.run import refuse_damaged
from pipelines.report.collect import from_folder
from pipelines.report.write import write_report
from pipelines.runs.comparison_folder import adopt_plan, keep_plan, run_folder
from pipelines.runs.plan import PlannedRun, make_plan
from pipelines.tracking.mlflow_store import local_uri
from pipelines.training.run_config import NNUNET_PLANS, NnunetSettings, RunConfig
from pipelines.utils import TrainingError, UserError

_NNUNET = ("--trainer", "nnunet")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((*_NNUNET, "--network", "unet"), "--network: nnU-Net plans that itself"),
        ((*_NNUNET, "--recipe", "quick"), "--recipe: nnU-Net plans that itself"),
        ((*_NNUNET, "--no-compile"), "--compile: nnU-Net plans that itself"),
        ((*_NNUNET, "--lr", "0.1"), "--lr: nnU-Net plans that itself"),
        ((*_NNUNET, "--budget", "9"), "--budget: goes with --trainer engines"),
        ((*_NNUNET, "--dry-run"), "--dry-run: goes with --trainer engines"),
        ((*_NNUNET, "--register-model", "best"), "--register-model: goes with --trainer engines"),
        (("--nnunet-iterations", "3"), "--nnunet-iterations: goes with --trainer nnunet"),
        (("--nnunet-planner", "nnUNetPlannerResEncM"), "--nnunet-planner: goes with --trainer nnunet"),
        ((*_NNUNET, "--nnunet-iterations", "0"), "--nnunet-iterations"),
        ((*_NNUNET, "--nnunet-configuration", "3d_cascade_fullres"), "--nnunet-configuration"),
    ],
)  # fmt: skip
def test_options_of_another_trainer_are_refused(tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    code, _, err = call_medloss("compare", tiny_manifest(tmp_path), "--out", tmp_path / "out", *options)
    assert code == 2
    assert expected in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is not None, reason="nnU-Net is installed")
def test_a_missing_nnunet_is_reported_with_how_to_install_it(tmp_path: Path) -> None:
    code, _, err = call_medloss("compare", tiny_manifest(tmp_path), "--out", tmp_path / "out", *_NNUNET)
    assert (code, err.count("\n")) == (2, 1)
    assert "nnU-Net is not installed here" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is not None, reason="nnU-Net is installed")
def test_a_worker_without_nnunet_leaves_the_runs_alone(tmp_path: Path) -> None:
    plan = small_plan()
    keep_plan(tmp_path, plan := plan.model_copy(update={"runs": [_by_nnunet(run) for run in plan.runs]}))
    code, _, err = call_medloss("worker", tmp_path, "--trust")
    assert (code, err.count("\n"), "nnU-Net is not installed here" in err) == (2, 1, True)
    assert not (tmp_path / "runs").exists()
    assert all(run_folder(tmp_path, run).result is None for run in plan.runs)


def test_data_that_nnunet_cannot_take_are_refused_first(tmp_path: Path) -> None:
    flat = tiny_manifest(tmp_path, dims=2)
    code, _, err = call_medloss(
        "compare", flat, "--out", tmp_path / "out", *_NNUNET, "--nnunet-configuration", "3d_fullres"
    )
    assert (code, "'tiny_2d' is 2D, and has 2d alone" in err) == (2, True)
    named = tiny_manifest(tmp_path, name="named", classes={0: "background", 1: "organ", 2: "shell", 3: "ignore"})
    code, _, err = call_medloss("compare", named, "--out", tmp_path / "out", *_NNUNET)
    assert (code, "which has a special meaning in nnU-Net" in err) == (2, True)


def test_settings_are_those_that_count() -> None:
    ours = RunConfig(manifest="m").settings()
    assert ours.keys() >= {"optimizer", "network", "loss"}
    assert "nnunet" not in ours and "threads" not in ours
    theirs = RunConfig(manifest="m", batch_size=2, nnunet=NnunetSettings(iterations=7)).settings()
    assert theirs["nnunet"] == {"configuration": "3d_fullres", "iterations": 7}
    assert theirs["batch_size"] == 2
    assert not theirs.keys() & (NNUNET_PLANS - {"batch_size"})
    assert set(RunConfig.model_fields) > NNUNET_PLANS


def _by_nnunet(run: PlannedRun) -> PlannedRun:
    return run.model_copy(update={"config": run.config.model_copy(update={"nnunet": NnunetSettings(iterations=7)})})


def test_another_trainer_is_another_comparison(tmp_path: Path) -> None:
    configs = [RunConfig(manifest="made", loss=loss) for loss in ("dice", "focal")]
    plan = make_plan(configs, [0], [0], "made data", "ab" * 32)
    adopt_plan(tmp_path, plan)
    with pytest.raises(UserError, match="holds another comparison: its nnunet is the default"):
        adopt_plan(tmp_path, plan.model_copy(update={"runs": [_by_nnunet(run) for run in plan.runs]}))


def test_the_report_names_nnunet_and_draws_its_pseudo_dice(tmp_path: Path) -> None:
    plan = made_comparison(tmp_path, ["dice", "focal"])
    keep_plan(tmp_path, plan := plan.model_copy(update={"runs": [_by_nnunet(run) for run in plan.runs]}))
    for run in plan.runs:
        run_dir = run_folder(tmp_path, run)
        run_dir.write_config(run.config.model_copy(update={"patch_size": (12, 24, 24)}))
        rows = [
            {"epoch": n, "train_loss": 1.0, "pseudo_dice": 0.2 * n, "epoch_s": 2.0, "time": 60.0 * n} for n in (1, 2)
        ]
        run_dir.write_epochs([*rows, {"epoch": 3, "train_loss": 1.0, "pseudo_dice": 0.6, "val_dice": 0.8}])
    facts = dict(from_folder(tmp_path).facts)
    assert facts["trainer"] == "nnU-Net, 3d_fullres, 7 steps per epoch"
    assert facts["patch, voxels"] == "12 x 24 x 24"
    assert "network" not in facts and "optimizer" not in facts
    page, _ = write_report(from_folder(tmp_path), tmp_path / "report")
    assert "pseudo Dice (on patches)" in page.with_name("plots").joinpath("learning_curves.svg").read_text()
    curves = pd.read_csv(tmp_path / "report" / "tables" / "learning_curves.csv")
    assert curves["pseudo_dice"].tolist() == pytest.approx([0.2, 0.4, 0.6] * 2)


def test_mlflow_has_the_pseudo_dice_and_no_setting_of_our_engines(tmp_path: Path) -> None:
    plan = small_plan()
    plan = plan.model_copy(update={"runs": [_by_nnunet(run) for run in plan.runs]})
    leave_run(tmp_path, plan, 0, 3, "done")
    run_dir = run_folder(tmp_path, plan.runs[0])
    run_dir.write_epochs([row | {"pseudo_dice": 0.25} for row in run_dir.epochs])
    synced(tmp_path, plan)
    run = stored(local_uri(tmp_path))[plan.runs[0].id]
    assert run.data.metrics["val/pseudo_dice"] == 0.25
    assert "iterations" in run.data.params["nnunet"]
    assert not run.data.params.keys() & {"optimizer", "learning_rate", "network"}


@pytest.mark.parametrize("content", [b"half of one", None], ids=["damaged", "with code"])
def test_a_checkpoint_that_nnunet_must_not_read_fails_the_run_in_a_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    if content is None:
        torch.save({"network_weights": {}, "trainer_name": "x", "init_args": Path("code")}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(TrainingError) as caught:
        refuse_damaged(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert message.endswith("; remove it, and train the run again with --retry-failed")
