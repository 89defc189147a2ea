"""Plans: which runs there are, and which folders a plan is carried out in."""

from pathlib import Path

import pytest
from cli_call import call_medloss

from pipelines.runs.comparison_folder import adopt_plan, read_plan, refuse_foreign, require_plan, run_folder
from pipelines.runs.plan import Plan, file_name, make_plan
from pipelines.runs.summary import tolerance_of
from pipelines.training.run_config import RunConfig
from pipelines.utils import UserError


def _plan(
    losses: tuple[str, ...] = ("dice", "focal"),
    folds: tuple[int, ...] = (0,),
    seeds: tuple[int, ...] = (0,),
    sha256: str = "0" * 64,
    name: str = "phantom",
    **config: object,
) -> Plan:
    configs = [RunConfig.model_validate({"manifest": "phantom", "loss": loss, **config}) for loss in losses]
    return make_plan(configs, list(folds), list(seeds), name, sha256)


def test_every_loss_on_every_fold_with_every_seed_a_fold_after_another() -> None:
    plan = _plan(folds=(1, 0), seeds=(3, 7))
    assert [run.id for run in plan.runs] == [
        "dice-fold1-seed3", "focal-fold1-seed3", "dice-fold1-seed7", "focal-fold1-seed7",
        "dice-fold0-seed3", "focal-fold0-seed3", "dice-fold0-seed7", "focal-fold0-seed7",
    ]  # fmt: skip
    assert all(run.id == f"{run.config.loss}-fold{run.config.fold}-seed{run.config.seed}" for run in plan.runs)
    assert plan.losses == ["dice", "focal"]
    assert len({_plan().id for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ("dice", "focal", "dice")}, "--losses: one is repeated in dice, focal, dice"),
        ({"folds": (0, 1, 0)}, "--folds: one is repeated in 0, 1, 0"),
        ({"seeds": (2, 2)}, "--seeds: one is repeated in 2, 2"),
        ({"seeds": (0, -1)}, "--seeds: got -1; expected 0 or more"),
    ],
)
def test_what_is_repeated_or_negative_is_refused(changes: dict[str, tuple], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        _plan(**changes)
    assert str(refusal.value) == message


def test_file_names_of_losses() -> None:
    assert file_name("dice") == "dice"
    assert file_name("0.2*focal+dice") == "0.2xfocal_plus_dice"
    assert file_name("dice@nnunet+focal") == "dice_at_nnunet_plus_focal"
    assert file_name("monai.losses.DiceLoss") == "monai.losses.DiceLoss"
    assert file_name("../../etc/passwd") == "etc_passwd"
    assert file_name("...") == "loss"
    long = "+".join(["hausdorff_dt"] * 20)
    assert len(file_name(long)) < 120
    assert file_name(long) != file_name(f"{long}+dice")


def test_the_same_plan_is_taken_up_again(tmp_path: Path) -> None:
    first = adopt_plan(tmp_path, _plan(patch_size=(16, 16, 16)))
    again = adopt_plan(tmp_path, _plan(patch_size=(16, 16, 16)))
    assert again == first == read_plan(tmp_path) == require_plan(tmp_path)


def test_data_that_were_moved_are_found_where_they_are_now(tmp_path: Path) -> None:
    first = adopt_plan(tmp_path, _plan(data_root="/before"))
    moved = adopt_plan(tmp_path, _plan(data_root="/now", workers=3))
    assert moved.id == first.id
    assert {run.config.data_root for run in moved.runs} == {"/now"}
    assert require_plan(tmp_path) == moved  # which the workers read


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ("dice",)}, "it has the run focal-fold0-seed0"),
        ({"losses": ("dice", "focal", "tversky")}, "it does not have the run tversky-fold0-seed0"),
        ({"folds": (0, 1)}, "it does not have the run dice-fold1-seed0"),
        ({"seeds": (1,)}, "it has the run dice-fold0-seed0"),
        ({"epochs": 9}, "its epochs is 8, and 9 was asked for"),
        ({"network": "vnet"}, "its network is unet, and vnet was asked for"),
        ({"patch_size": (16, 16, 16)}, "its patch_size is the default, and (16, 16, 16) was asked for"),
        ({"learning_rate": 0.1}, "its learning_rate is the default, and 0.1 was asked for"),
        ({"sha256": "1" * 64}, "its data set is 'phantom' as it was then, and the manifest has changed since"),
        ({"name": "liver", "sha256": "1" * 64}, "its data set is 'phantom', and 'liver' was asked for"),
    ],
)
def test_another_plan_is_refused_with_its_difference(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    kept = adopt_plan(tmp_path, _plan())
    with pytest.raises(UserError) as refusal:
        adopt_plan(tmp_path, _plan(**changes))  # type: ignore[arg-type]
    assert str(refusal.value) == f"--out: {tmp_path} holds another comparison: {message}; name another folder"
    assert read_plan(tmp_path) == kept


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.tex"
    thesis.write_text("years of work")
    for refuse in (refuse_foreign, lambda folder: adopt_plan(folder, _plan())):
        with pytest.raises(UserError, match="is not empty and holds no comparison"):
            refuse(tmp_path)
        with pytest.raises(UserError, match=r"thesis\.tex is no folder"):
            refuse(thesis)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    refuse_foreign(tmp_path / "new")


def test_a_lock_alone_makes_no_folder_foreign(tmp_path: Path) -> None:
    (tmp_path / "compare.lock").touch()
    adopt_plan(tmp_path, _plan())
    assert read_plan(tmp_path) is not None


def test_no_plan_and_a_damaged_one(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    with pytest.raises(UserError, match=r"holds no comparison \(no plan\.json\)"):
        require_plan(tmp_path)
    adopt_plan(tmp_path, _plan())
    plan = tmp_path / "plan.json"
    whole = plan.read_text()
    for damaged in (whole[: len(whole) // 2], whole.replace('"epochs": 8', '"epochs": -8')):
        plan.write_text(damaged)
        with pytest.raises(UserError, match=r"plan\.json is damaged"):
            require_plan(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"state": "odd"}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    adopt_plan(tmp_path, plan := _plan())
    run_dir = run_folder(tmp_path, plan.runs[0])
    run_dir.write_progress(1, 2, None, None)
    (run_dir.path / "result.json").write_text(content)
    code, shown, err = call_medloss("status", tmp_path)
    expected = f"error: {run_dir.path / 'result.json'} is damaged; remove it, and run the same command again\n"
    assert (code, shown, err) == (2, "", expected)


@pytest.mark.parametrize("content", ["{", "[]", '"config"', '{"epochs": -8}'])
def test_a_damaged_config_of_a_run_leaves_its_tolerance_unknown(tmp_path: Path, content: str) -> None:
    adopt_plan(tmp_path, plan := _plan(("dice",)))
    run_dir = run_folder(tmp_path, plan.runs[0])
    run_dir.begin(plan.runs[0].config.model_copy(update={"nsd_tolerance": 2.0}))
    assert tolerance_of(tmp_path, plan) == 2.0
    (run_dir.path / "config.json").write_text(content)
    assert tolerance_of(tmp_path, plan) is None
