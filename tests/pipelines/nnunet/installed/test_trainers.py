"""The trainers' classes: found by name from outside, made of any name, and what they carry from epoch to epoch."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: `make test-nnunet` makes an environment for it")

import torch
from made_trainer import Task, made_batch, make_trainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import medloss
from pipelines.nnunet import trainer_folder, trainers
from pipelines.nnunet.trainers import trainer_class


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(trainer_folder()))


@pytest.mark.parametrize(
    ("name", "loss", "epochs"),
    [
        ("nnUNetTrainerMedloss_dice", "dice", 1000),
        ("nnUNetTrainerMedloss_focal_tversky_7epochs", "focal_tversky", 7),
        ("nnUNetTrainerMedloss_hausdorff_dt_1epoch", "hausdorff_dt", 1),
        ("nnUNetTrainerMedloss_dice_plus_binary_cross_entropy_250epochs", "dice+binary_cross_entropy", 250),
        ("nnUNetTrainerMedloss_0p2_times_focal_plus_0p8_times_dice", "0.2*focal+0.8*dice", 1000),
    ],
)
def test_nnunet_finds_the_classes_by_name(name: str, loss: str, epochs: int) -> None:
    found: Any = recursive_find_trainer_class_by_name(name)
    assert issubclass(found, nnUNetTrainer)
    assert (found.__name__, found.loss_spec) == (name, loss)
    trainer = make_trainer(found, Task())
    assert trainer.num_epochs == epochs
    assert Path(trainer.output_folder).parent.name == f"{name}__nnUNetPlans__made"
    # The search drops the module that it imported; the class must not hang on it.
    assert recursive_find_trainer_class_by_name(name) is found
    assert pickle.loads(pickle.dumps(found)) is found


def test_every_registered_loss_is_there_at_import() -> None:
    for name in medloss.LOSSES:
        assert f"nnUNetTrainerMedloss_{name}" in vars(trainers)
        assert trainer_class(name) is getattr(trainers, f"nnUNetTrainerMedloss_{name}")


def test_nnunet_refuses_an_unknown_name_and_the_nearest_loss_is_named(capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(
        RuntimeError, match="Could not find requested nnunet trainer nnUNetTrainerMedloss_dicee_5epochs"
    ):
        recursive_find_trainer_class_by_name("nnUNetTrainerMedloss_dicee_5epochs")
    assert "no loss 'dicee'; did you mean 'dice'?" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="Could not find"):
        recursive_find_trainer_class_by_name("nnUNetTrainerOfSomebodyElse")
    assert capfd.readouterr().err == ""


def test_another_folders_trainers_may_build_on_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from pipelines.nnunet.trainers import trainer_class\n"
        "class nnUNetTrainerMedloss_dice_mine(trainer_class('dice')):\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(trainer_folder()), str(tmp_path)]))
    found: Any = recursive_find_trainer_class_by_name("nnUNetTrainerMedloss_dice_mine")
    assert found.loss_spec == "dice"


def test_a_spawned_process_finds_the_class_by_its_name_too() -> None:
    """As nnU-Net's data-parallel processes do: the name travels, or a pickle of the class."""
    data = pickle.dumps(trainer_class("dice+0.5*focal", 3))
    code = f"import pickle; made = pickle.loads({data!r}); print(made.loss_spec, made.epochs)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["dice+0.5*focal", "3"]


def _initialized(loss: str) -> Any:
    trainer = make_trainer(trainer_class(loss), Task())
    trainer.save_every = 1
    # What nnU-Net's `initialize` does, without the data set that it looks for.
    trainer.num_input_channels = 1
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, trainer.label_manager.num_segmentation_heads, True
    )
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.loss = trainer._build_loss()
    trainer.was_initialized = True
    return trainer


def _epoch(trainer: Any, steps: int) -> list[float]:
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    losses = []
    for step in range(steps):
        seed = 10 * trainer.current_epoch + step
        batch = made_batch(Task(), seed=seed)
        image = torch.randn(2, 1, *batch.targets[0].shape[2:], generator=torch.Generator().manual_seed(seed))
        losses.append(trainer.train_step({"data": image, "target": batch.targets}))
    trainer.on_train_epoch_end(losses)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        batch = made_batch(Task(), seed=99)
        image = torch.randn(2, 1, *batch.targets[0].shape[2:], generator=torch.Generator().manual_seed(99))
        trainer.on_validation_epoch_end([trainer.validation_step({"data": image, "target": batch.targets})])
    trainer.on_epoch_end()
    return [float(loss["loss"]) for loss in losses]


def test_a_resumed_training_has_the_weights_of_its_terms(tmp_path: Path) -> None:
    """Hausdorff's recipe updates the weight of its own term each epoch: also after nnU-Net's `--c`, to the last bit."""
    torch.manual_seed(0)
    whole = _initialized("hausdorff_dt")
    _epoch(whole, 2)
    assert float(whole.loss.loss.weights[0]) != 1
    assert float(whole.loss.loss.weights[1]) == 1  # Dice is what the other term is scaled to
    before = whole.loss.loss.sums.clone()
    whole.loss.eval()
    batch = made_batch(Task())
    whole.loss([z.detach() for z in batch.outputs], batch.targets)
    assert torch.equal(whole.loss.loss.sums, before)  # validation does not count
    checkpoint = shutil.copy(Path(whole.output_folder) / "checkpoint_latest.pth", tmp_path)
    losses = [_epoch(whole, 2), _epoch(whole, 2)]

    torch.manual_seed(1)
    resumed = _initialized("hausdorff_dt")
    resumed.load_checkpoint(str(checkpoint))
    assert resumed.current_epoch == whole.current_epoch - 2
    assert [_epoch(resumed, 2), _epoch(resumed, 2)] == losses
    assert torch.equal(resumed.loss.loss.weights, whole.loss.loss.weights)
    assert bool(resumed.loss.loss.settled)


def test_a_checkpoint_of_before_is_continued_without_a_state() -> None:
    stock = _initialized("dice")
    _epoch(stock, 1)
    assert "medloss_loss_state" not in stock.logger.get_checkpoint()
    resumed = _initialized("hausdorff_dt")
    resumed.load_checkpoint(str(Path(stock.output_folder) / "checkpoint_latest.pth"))
    _epoch(resumed, 1)
    entries = resumed.logger.get_checkpoint()["medloss_loss_state"]
    assert entries[0] is None
    assert len(entries) == 2


def test_nnunets_network_compiled_around_the_loss() -> None:
    """nnU-Net compiles its network, on GPUs alone; the loss stays outside, as nnU-Net's cross entropy does."""
    results = {}
    for compiled in (False, True):
        torch.manual_seed(0)
        trainer = _initialized("dice+binary_cross_entropy")
        if compiled:
            trainer.network = torch.compile(trainer.network, backend="aot_eager")
        batch = made_batch(Task(), seed=1)
        image = torch.randn(2, 1, *batch.targets[0].shape[2:], generator=torch.Generator().manual_seed(1))
        values = [float(trainer.train_step({"data": image, "target": batch.targets})["loss"]) for _ in range(3)]
        results[compiled] = values
    assert results[True] == pytest.approx(results[False], rel=1e-4)
    assert results[True][2] < results[True][0]
