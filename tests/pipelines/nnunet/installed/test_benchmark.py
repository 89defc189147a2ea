"""The benchmarks of nnU-Net, on what nnU-Net itself plans and does; never how fast anything is."""

import json
from pathlib import Path

import pytest

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: `make test-nnunet` makes an environment for it")
pytest.importorskip("benchmarks.nnunet_loss", reason="benchmarks/ is not here: these tests run in the checkout")

import medloss
from benchmarks import step_run
from benchmarks.nnunet_loss import NAMES, SAME, STOCK, peaks, table, times
from benchmarks.nnunet_plan import Setting
from benchmarks.step_settings import NNUNET, NNUNETS
from benchmarks.step_settings import Setting as StepSetting


@pytest.mark.parametrize("regions", [False, True])
def test_the_table_has_a_row_per_loss_next_to_nnunets_own(regions: bool, results: Path) -> None:
    assert (STOCK, SAME, *medloss.LOSSES) == NAMES
    setting = Setting((16, 16, 16), 3, 2, 2, regions, ignore=True, batch_dice=True, device="cpu")
    names = (STOCK, SAME, "shape_aware")
    measured = times(setting, 2, names)
    assert {len(rounds) for work in measured.values() for rounds in work.values()} == {2}
    lines = table(measured, measured, peaks(setting, names))
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in names]
    assert lines[2].split(" | ")[2] == "1.00"


@pytest.mark.parametrize("network", NNUNETS)
@pytest.mark.parametrize("size", [(64, 64, 64), (128, 128, 64)])
def test_the_network_of_the_training_step_is_the_one_that_nnunet_plans(
    network: str, size: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as planners
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import (
        residual_encoder_unet_planners as residual,
    )
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    data = tmp_path / "Dataset001_made"
    (data / "imagesTr").mkdir(parents=True)
    labels = {"background": 0, "a": 1, "b": 2, "c": 3}
    (data / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".gz"})
    )
    (data / "dataset_fingerprint.json").write_text('{"median_relative_size_after_cropping": 1.0}')
    for folder in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setattr(planners, folder, str(tmp_path))
    kind = planners.ExperimentPlanner if network == NNUNET else residual.ResEncUNetPlanner
    plan = kind(data.name).get_plans_for_configuration((1.0, 1.0, 1.0), size, "made", 1e6, {})
    assert tuple(plan["patch_size"]) == size
    described = plan["architecture"]
    arguments = (described["network_class_name"], described["arch_kwargs"], described["_kw_requires_import"])
    expected = get_network_from_plans(*arguments, 1, 4, deep_supervision=True)
    assert str(step_run._network(StepSetting(network, "float32", 4, 2, size))) == str(expected)
