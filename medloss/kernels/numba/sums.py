"""The kernel set for the CPU: compiled passes over blocks that stay in the cache, with no large map in between."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medloss.errors import InputError
from medloss.kernels.numba import team
from medloss.kernels.numba.blocks import KINDS
from medloss.kernels.numba.entropy import ENTROPIES, FOCAL_2, PLAIN
from medloss.kernels.numba.passes import BLOCK, GIVEN, NARROW, SIGMOID, SOFTMAX, entropy_pass
from medloss.kernels.sum_spec import LOG_FLOOR, ROWS, VoxelTerms, sum_type
from medloss.kernels.thread_pool import POOL

Array: TypeAlias = npt.NDArray[Any]

_MODES = {"softmax": SOFTMAX, "sigmoid": SIGMOID, "probabilities": GIVEN}
#: Numbers in the buffers of all classes of a block: they fit the second cache.
_BLOCK_NUMBERS = 1 << 15
_MOST = 2048
#: Numbers per task of a thread.
_CHUNK_NUMBERS = 1 << 18
#: Numbers below which waking other threads takes longer than the work.
_FEW_NUMBERS = 1 << 16


def supports(device: str, dtype: torch.dtype) -> bool:
    """Whether the set supports such logits."""
    return device == "cpu" and dtype.is_floating_point


def preferred(device: str, dtype: torch.dtype) -> bool:
    """Whether the set is selected by default: in float64 the exponential is no faster than torch's."""
    return dtype in (torch.float32, torch.bfloat16)


def voxel_sums(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None
) -> Tensor:
    """The rows of `terms`, `[ROWS, B, C]`."""
    logits = _readable(logits)
    sums = torch.empty((ROWS, *logits.shape[:2]), dtype=sum_type(logits), device="cpu")
    call, tasks = _prepared(terms, logits, target, mask, voxel_weight)
    by_chunk = np.empty(tasks * ROWS * logits.shape[1])
    call[team.ROW_NUMBERS], call[team.RESULT] = _address(by_chunk), sums.data_ptr()
    _run(team.SUMS, call, tasks, logits, target, mask, voxel_weight, by_chunk, sums)
    return sums if tasks else sums.zero_()


def voxel_sums_backward(
    terms: VoxelTerms,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    sum_gradients: Tensor,
) -> Tensor:
    """The gradient of `(sum_gradients * voxel_sums(...)).sum()`, `[B, C, N]`."""
    _check("sum_gradients", sum_gradients, (ROWS, *logits.shape[:2]), sum_type(logits))
    given, logits, sum_gradients = logits, _readable(logits), sum_gradients.contiguous()
    gradient = torch.empty_like(logits)
    call, tasks = _prepared(terms, logits, target, mask, voxel_weight)
    call[team.ROW_NUMBERS], call[team.RESULT] = sum_gradients.data_ptr(), gradient.data_ptr()
    _run(team.GRADIENT, call, tasks, logits, target, mask, voxel_weight, sum_gradients, gradient)
    return gradient.to(given.dtype)


def _prepared(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, weight: Tensor | None
) -> tuple[Array, int]:
    """What the team reads, without the places of its results, and the number of tasks."""
    items, classes, voxels = logits.shape
    # An address has no type, size or device.
    channels = target.shape[1] if target.shape[1] in (1, classes) else classes
    _check("target", target, (items, channels, voxels), target.dtype)
    if mask is not None:
        _check("mask", mask, (items, voxels), torch.bool)
    if weight is not None:
        maps = weight.shape[1] if weight.shape[1] in (1, classes - terms.first) else 1
        _check("voxel_weight", weight, (items, maps, voxels), sum_type(logits))
    plan, chunk = _plan_of(terms, logits, target, mask, weight)
    chunks = -(-voxels // chunk)
    call = np.zeros(team.CALL_SIZE, np.int64)
    call[team.ITEMS], call[team.CHUNKS], call[team.CHUNK] = items, chunks, chunk
    call[team.LOGITS], call[team.TARGET] = logits.data_ptr(), target.data_ptr()
    call[team.MASK] = 0 if mask is None else mask.data_ptr()
    call[team.WEIGHT] = 0 if weight is None else weight.data_ptr()
    call.view(np.float64)[team.GAMMA : team.FLOOR + 1] = terms.gamma, log_floor(_real(logits))
    call[team.PLAN :] = plan
    return call, items * chunks


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.device.type != "cpu" or tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise InputError(
            f"{name}: got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}; expected {dtype} of shape "
            f"{shape} on the CPU, where the logits are"
        )


def _run(functions: team.Functions, call: Array, tasks: int, logits: Tensor, *others: Any) -> None:
    few = logits.numel() < _FEW_NUMBERS
    function = team.callback(functions[8 * logits.element_size()])
    memory = (call, logits, *others)
    POOL.call(function.address, _address(call), memory, tasks, 1 if few else torch.get_num_threads())
    if call[team.DONE] != tasks:
        raise MemoryError("a thread of the compiled kernels found no memory for its buffers")


def _readable(logits: Tensor) -> Tensor:
    """Processors do not compute in float16: it takes a copy, and is not selected by default."""
    return logits.float() if logits.dtype == torch.float16 else logits


def _real(logits: Tensor) -> Any:
    """NumPy's `sum_type`."""
    return np.float64 if logits.dtype == torch.float64 else np.float32


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


@lru_cache
def log_floor(real: Any) -> float:
    """The probability at and below which a logarithm has no gradient, in a type of the sums."""
    return max(math.exp(LOG_FLOOR), float(np.finfo(real).tiny))


def entropy_map(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, positive: Tensor, negative: Tensor
) -> Tensor:
    """The cross entropy per voxel: `[B, 1, N]` of a softmax, else `[B, C - first, N]`."""
    work = Work.of(terms, logits, target, mask, None)
    maps = 1 if terms.mode == "softmax" else work.classes - terms.first
    result = torch.empty(work.items, maps, work.voxels, dtype=sum_type(logits), device="cpu")
    out = flat_numbers(result)
    factors = [np.ascontiguousarray(factor.detach().numpy()) for factor in (positive, negative)]

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        entropy_pass(*work.inputs, item, begin, end, *buffers, *factors, out)

    work.run(run)
    return result


@dataclass
class Work:
    """A call's tensors as arrays, cut into chunks that do not depend on the number of threads."""

    inputs: tuple[Any, ...]
    real: Any
    items: int
    classes: int
    voxels: int
    block: int
    chunk: int

    @classmethod
    def of(
        cls, terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, weight: Tensor | None
    ) -> "Work":
        """A call's work; `weight` is that of the voxels, or None for 1."""
        items, classes, voxels = logits.shape
        real = _real(logits)
        plan, chunk = _plan_of(terms, logits, target, mask, weight)
        block = int(plan[BLOCK])
        inputs = (
            flat_numbers(_readable(logits)),
            flat_bytes(target),
            np.empty(0, np.uint8) if mask is None else flat_bytes(mask),
            np.empty(0, real) if weight is None else flat_numbers(weight),
            plan,
            float(terms.gamma),
        )
        return cls(inputs, real, items, classes, voxels, block, chunk)

    @property
    def chunks(self) -> int:
        """How many chunks an item has."""
        return -(-self.voxels // self.chunk)

    def run(self, function: Any) -> None:
        """Call `function(item, chunk, begin, end, buffers)` for every chunk, in several threads."""

        def worker(numbers: Any) -> None:
            buffers = (
                np.empty((2 * self.classes, self.block), self.real),
                np.empty((NARROW, self.block), self.real),
                np.empty(self.block, np.int32),
            )
            for number in numbers:
                item, chunk = divmod(number, self.chunks)
                begin = chunk * self.chunk
                function(item, chunk, begin, min(begin + self.chunk, self.voxels), buffers)

        few = self.items * self.classes * self.voxels < _FEW_NUMBERS
        POOL.run(worker, self.items * self.chunks, 1 if few else torch.get_num_threads())


def _plan_of(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, weight: Tensor | None
) -> tuple[Array, int]:
    """What the passes read as their plan, and the number of voxels of a chunk."""
    classes, voxels = logits.shape[1:]
    indexed = classes > 1 and target.shape[1] == 1
    weights = 0 if weight is None else weight.shape[1]
    kinds = indexed, KINDS[target.dtype], mask is not None, weights
    plan = _plan(terms, *kinds, classes, voxels, not logits.is_contiguous())
    block = int(plan[BLOCK])
    return plan, max(block, _CHUNK_NUMBERS // classes // block * block)


@lru_cache(maxsize=1024)
def _plan(
    terms: VoxelTerms,
    indexed: bool,
    kind: int,
    masked: bool,
    weights: int,
    classes: int,
    voxels: int,
    interleaved: bool,
) -> Array:
    block = max(256, min(_MOST, _BLOCK_NUMBERS // classes // 256 * 256))
    entropy = ENTROPIES[terms.entropy]
    if terms.entropy == "focal" and terms.gamma in (0, 2):
        entropy = FOCAL_2 if terms.gamma else PLAIN
    sums = _MODES[terms.mode], terms.first, terms.overlap, terms.squares, terms.errors, entropy
    return np.array([*sums, indexed, kind, masked, weights, classes, voxels, block, interleaved], dtype=np.int64)


def flat_bytes(tensor: Tensor) -> Array:
    """The bytes of a contiguous tensor."""
    # Views of NumPy take a fraction of the time of torch's.
    tensor = tensor.detach().resolve_neg()
    array: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array.reshape(-1).view(np.uint8)


def flat_numbers(tensor: Tensor) -> Array:
    """A tensor's numbers in the order of memory, a bfloat16's as bits; `[B, C, N]` may be channels-last."""
    tensor = tensor.detach()
    array: Array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    array = array if array.flags.c_contiguous else array.transpose(0, 2, 1)
    assert array.flags.c_contiguous  # or what is written to the numbers would be lost
    return array.reshape(-1)
