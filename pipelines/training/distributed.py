"""Several processes that train one network together, as `torchrun` starts them."""

import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.utils import TrainingError, UserError

#: Seconds before a process that has lost its peers reports an error: `torchrun` usually ends it earlier.
_PATIENCE_S = 5.0
#: The others wait at most this long for a process that checks data or validates larger cases; a process that has ended
#: is noticed at once.
_TIMEOUT = timedelta(hours=6)


@contextmanager
def joined_ranks(device: str = "auto") -> Iterator[None]:
    """Join the other processes, if `torchrun` started this one among several; leave them at the end.

    The device `cpu` joins by gloo; `cuda`, or `auto` where there are GPUs, by nccl.

    Raises:
        UserError: there are fewer GPUs than processes.
        TrainingError: the others have ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    on_gpus = device != "cpu" and torch.cuda.is_available()
    if on_gpus and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > torch.cuda.device_count():
        raise UserError(
            f"device: {os.environ['LOCAL_WORLD_SIZE']} processes and {torch.cuda.device_count()} GPUs; expected a GPU "
            "for each: start fewer (--nproc-per-node), or pass --device cpu"
        )
    idist.initialize("nccl" if on_gpus else "gloo", timeout=_TIMEOUT)
    with warnings.catch_warnings():
        # Raised for kernels of one voxel, whose strides have no meaning.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        if rank() > 0:
            warnings.simplefilter("ignore")  # those of the first process are enough
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            time.sleep(_PATIENCE_S)
            message = "another process of this run has ended, and this one cannot continue without it"
            raise TrainingError(message) from None
    # Not after an error: the process is about to end, and `finalize` might wait for the others.
    idist.finalize()


def rank() -> int:
    """This process's number; 0 writes the files."""
    return int(idist.get_rank())


def ranks() -> int:
    """How many processes train together."""
    return int(idist.get_world_size())


def wait_for_all() -> None:
    """Continue once all processes have arrived."""
    idist.barrier()


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its gradients averaged over all processes; unchanged in a single process."""
    devices = [device.index] if device.type == "cuda" else None
    return network if ranks() == 1 else DistributedDataParallel(network, device_ids=devices)


def broadcast_buffers(network: nn.Module) -> None:
    """Give all processes the buffers of the first one, which saves them: statistics of batch norm differ."""
    if ranks() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of all processes' values, float64."""
    total: Tensor = idist.all_reduce(value.double(), "SUM")
    return total / ranks()


def max_over_ranks(value: float) -> float:
    """The largest of all processes' values."""
    largest = torch.tensor(value, dtype=torch.float64, device=idist.device())
    return float(idist.all_reduce(largest, "MAX"))


def texts_over_ranks(texts: list[str]) -> list[str]:
    """The texts of all processes, in their order."""
    return [text for encoded in idist.all_gather(json.dumps(texts)) for text in json.loads(encoded)]


def gather_metrics(rows: dict[int, list[dict[str, Any]]], metrics: tuple[Any, ...], count: int) -> dict[int, Any]:
    """The values `[classes][metrics]` of all cases by number, from all processes, in every process.

    Args:
        rows: of this process: the case's number to its rows, one per class, each with all metrics.
        metrics: their names, and the keys of other numbers in the rows.
        count: number of cases, over all processes.
    """
    classes = int(max_over_ranks(max((len(r) for r in rows.values()), default=0)))
    values = torch.zeros(count, classes, len(metrics), dtype=torch.float64)
    for number, case_rows in rows.items():
        values[number] = torch.tensor([[row[metric] for metric in metrics] for row in case_rows], dtype=torch.float64)
    # Each case is evaluated by one process, and the others add zeros: nothing is rounded, and NaN stays NaN.
    values = idist.all_reduce(values.to(idist.device()), "SUM").cpu()
    return {number: values[number].tolist() for number in range(count)}
