"""The kernel set for the CPU: compiled passes over blocks that stay in the cache, with no large map in between."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medloss.kernels.numba.blocks import KINDS
from medloss.kernels.numba.entropy import ENTROPIES, FOCAL_2, PLAIN
from medloss.kernels.numba.passes import GIVEN, NARROW, SIGMOID, SOFTMAX, entropy_pass, gradient_pass, sums_pass
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
    work = Work.of(terms, logits, target, mask, voxel_weight)
    partial = np.zeros((work.items, work.chunks, ROWS, work.classes))

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        sums_pass(*work.inputs, item, begin, end, *buffers, partial[item, chunk])

    work.run(run)
    # Added in order, whichever thread computed them: the result does not depend on the number of threads.
    sums = partial.sum(1)
    # NumPy's conversion of few numbers takes a tenth of torch's.
    return torch.from_numpy(np.ascontiguousarray(sums.transpose(1, 0, 2), dtype=work.real))


def voxel_sums_backward(
    terms: VoxelTerms,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    voxel_weight: Tensor | None,
    sum_gradients: Tensor,
) -> Tensor:
    """The gradient of `(sum_gradients * voxel_sums(...)).sum()`, `[B, C, N]`."""
    work = Work.of(terms, logits, target, mask, voxel_weight)
    half = logits.dtype == torch.float16
    gradient = torch.empty_like(logits, dtype=torch.float32 if half else logits.dtype)
    out = flat_numbers(gradient)
    by_class = np.ascontiguousarray(sum_gradients.detach().numpy().transpose(1, 2, 0))
    floor = log_floor(work.real)

    def run(item: int, chunk: int, begin: int, end: int, buffers: tuple[Array, ...]) -> None:
        gradient_pass(*work.inputs, item, begin, end, *buffers, by_class, floor, out)

    work.run(run)
    return gradient.to(logits.dtype)


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
        real = np.float64 if logits.dtype == torch.float64 else np.float32
        block = max(256, min(_MOST, _BLOCK_NUMBERS // classes // 256 * 256))
        chunk = max(block, _CHUNK_NUMBERS // classes // block * block)
        entropy = ENTROPIES[terms.entropy]
        if terms.entropy == "focal" and terms.gamma in (0, 2):
            entropy = FOCAL_2 if terms.gamma else PLAIN
        indexed = classes > 1 and target.shape[1] == 1
        plan = np.array(
            [
                _MODES[terms.mode],
                terms.first,
                terms.overlap,
                terms.squares,
                terms.errors,
                entropy,
                indexed,
                KINDS[target.dtype],
                mask is not None,
                0 if weight is None else weight.shape[1],
                classes,
                voxels,
                block,
                not logits.is_contiguous(),
            ],
            dtype=np.int64,
        )
        inputs = (
            # Processors do not compute in float16: it takes a copy, and is not selected by default.
            flat_numbers(logits.float() if logits.dtype == torch.float16 else logits),
            _bytes(target),
            np.empty(0, np.uint8) if mask is None else _bytes(mask),
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


def _bytes(tensor: Tensor) -> Array:
    """The bytes of a contiguous tensor."""
    # Not `view(-1)`: a single number may have any stride, and then has no view as bytes.
    array: Array = tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return array


def flat_numbers(tensor: Tensor) -> Array:
    """A tensor's numbers in the order of memory, a bfloat16's as bits; `[B, C, N]` may be channels-last."""
    tensor = tensor.detach()
    numbers = (tensor if tensor.is_contiguous() else tensor.transpose(1, 2)).view(-1)
    array: Array = (numbers.view(torch.uint16) if numbers.dtype == torch.bfloat16 else numbers).numpy()
    return array
