"""Data-parallel training: two real processes, with nnU-Net's network under DDP and its own loss next to ours.

nnU-Net's `-num_gpus` is for CUDA alone; here the same parts run on the CPU, with gloo.
"""

import datetime
import warnings
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nnunetv2", reason="nnU-Net is not installed: `make test-nnunet` makes an environment for it")

import torch
import torch.distributed as dist
import torch.multiprocessing
from made_trainer import Batch, Task, made_batch, make_trainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn.parallel import DistributedDataParallel

from pipelines.nnunet.trainers import trainer_class

TASKS = {
    f"{'regions' if regions else 'labels'}-{'batch' if batch else 'item'}": Task(regions=regions, batch_dice=batch)
    for regions in (False, True)
    for batch in (False, True)
}
LOSSES = {"stock": nnUNetTrainer} | {
    name: trainer_class(name) for name in ("dice+binary_cross_entropy", "focal_tversky", "hausdorff_dt")
}


def step(cls: type[nnUNetTrainer], task: Task, rank: int | None) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Value, gradient of the network, and the weights of the scales; of four items, two a rank, or all."""
    trainer = make_trainer(cls, task)
    trainer.device = torch.device("cpu")  # a data-parallel trainer takes it for granted that there is CUDA
    torch.manual_seed(0)
    network: Any = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, trainer.label_manager.num_segmentation_heads, True
    )
    loss = trainer._build_loss()
    batch = made_batch(task, items=4)
    image = torch.randn(4, 1, *batch.targets[0].shape[2:], generator=torch.Generator().manual_seed(1))
    if rank is not None:
        network = DistributedDataParallel(network)
        items = slice(2 * rank, 2 * rank + 2)
        image, batch = image[items], Batch([], [target[items] for target in batch.targets])
    value = loss(network(image), batch.targets)
    value.backward()
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in network.parameters()])
    return value.detach(), gradient, [float(w) for w in getattr(loss, "weights", getattr(loss, "weight_factors", []))]


def rank_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # nnU-Net makes a scaler for CUDA
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=2)
    )
    results = {(loss, task): step(LOSSES[loss], TASKS[task], rank) for loss in LOSSES for task in TASKS}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What two processes found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_results", str(folder))
        torch.multiprocessing.spawn(rank_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("task", TASKS)
def test_the_default_sum_is_nnunets_own_under_ddp(task: str, ranks: list[dict[Any, Any]]) -> None:
    for results in ranks:
        value, gradient, weights = results["dice+binary_cross_entropy", task]
        stock_value, stock_gradient, stock_weights = results["stock", task]
        close(value, stock_value)
        close(gradient, stock_gradient)
        # Here the last output has a weight, for DDP wants a gradient of every parameter.
        assert weights == pytest.approx(stock_weights)
        assert weights[-1] > 0


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "stock"])
def test_ranks_train_as_one_process_on_the_whole_batch(loss: str, task: str, ranks: list[dict[Any, Any]]) -> None:
    _, gradient, _ = step(LOSSES[loss], TASKS[task], None)
    for results in ranks:
        # The last scale's 1e-6, and in a balanced sum the means so far: close, not equal.
        torch.testing.assert_close(results[loss, task][1], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
