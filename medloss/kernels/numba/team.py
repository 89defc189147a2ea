"""The passes over sums as functions that threads call without the interpreter, each drawing chunks until none is left.

A thread that enters the interpreter waits for the one that is in it, and OpenMP's threads get a new state of the
interpreter at every entry: inside a training step that takes longer than a small pass.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import carray, types
from numba.extending import intrinsic

from medloss.kernels.numba.blocks import SIZES
from medloss.kernels.numba.compilation import OPTIONS, compiled_for_c
from medloss.kernels.numba.passes import (
    BLOCK,
    CLASSES,
    INDEXED,
    KIND,
    MASKED,
    NARROW,
    PLAN_SIZE,
    VOXELS,
    WEIGHTS,
    gradient_pass,
    sums_pass,
)
from medloss.kernels.sum_spec import ROWS

#: What a call holds, in this order, as int64: two counters, sizes, addresses, the bits of two float64, and the plan.
#: ROW_NUMBERS is where each chunk's sums are collected, or where the gradients of the sums are.
DRAWN, DONE, ITEMS, CHUNKS, CHUNK, LOGITS, TARGET, MASK, WEIGHT, ROW_NUMBERS, RESULT, GAMMA, FLOOR, PLAN = range(14)
CALL_SIZE = PLAN + PLAN_SIZE


@intrinsic
def _next(typing: Any, call: Any, place: Any) -> Any:
    """call[place], which becomes one more, whichever thread asks."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        counter = builder.gep(arguments[0], [arguments[1]])
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(call, types.int64), generate


@intrinsic
def _at(typing: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@numba.njit(**OPTIONS)
def _inputs(call: Any, logit_type: Any, real: Any) -> Any:
    """The first arguments of a pass: logits are of the type `logit_type`, and weights of the type `real`."""
    plan = call[PLAN:]
    items, classes, voxels = call[ITEMS], plan[CLASSES], plan[VOXELS]
    maps = 1 if plan[INDEXED] else classes
    logits = carray(_at(call[LOGITS]), items * classes * voxels, logit_type)
    target = carray(_at(call[TARGET]), items * maps * voxels * SIZES[plan[KIND]], np.uint8)
    mask = carray(_at(call[MASK]), items * voxels if plan[MASKED] else 0, np.uint8)
    weight = carray(_at(call[WEIGHT]), items * plan[WEIGHTS] * voxels, real)
    return logits, target, mask, weight, plan, call.view(np.float64)[GAMMA]


@numba.njit(**OPTIONS)
def _buffers(plan: Any, real: Any) -> Any:
    wide, narrow = np.empty((2 * plan[CLASSES], plan[BLOCK]), real), np.empty((NARROW, plan[BLOCK]), real)
    return wide, narrow, np.empty(plan[BLOCK], np.int32)


@numba.njit(**OPTIONS)
def _range(call: Any, task: Any) -> Any:
    """The item of a task, and the voxels where it begins and ends."""
    voxels, size = call[PLAN + VOXELS], call[CHUNK]
    item, chunk = task // call[CHUNKS], task % call[CHUNKS]
    return item, chunk * size, min((chunk + 1) * size, voxels)


@numba.njit(**OPTIONS)
def _add_sums(pointer: Any, logit_type: Any, real: Any) -> None:
    call = carray(pointer, CALL_SIZE)
    logits, target, mask, weight, plan, gamma = _inputs(call, logit_type, real)
    wide, narrow, labels = _buffers(plan, real)
    tasks = call[ITEMS] * call[CHUNKS]
    sums = carray(_at(call[ROW_NUMBERS]), (tasks, ROWS, plan[CLASSES]), np.float64)
    task = _next(pointer, DRAWN)
    while task < tasks:
        item, begin, end = _range(call, task)
        sums[task] = 0
        sums_pass(logits, target, mask, weight, plan, gamma, item, begin, end, wide, narrow, labels, sums[task])
        if _next(pointer, DONE) == tasks - 1:
            _add_chunks(call, sums, carray(_at(call[RESULT]), (ROWS, call[ITEMS], plan[CLASSES]), real))
        task = _next(pointer, DRAWN)


@numba.njit(**OPTIONS)
def _add_chunks(call: Any, sums: Any, result: Any) -> None:
    """Add the chunks in their order, whichever thread computed them: the number of threads does not matter."""
    chunks = call[CHUNKS]
    for row in range(result.shape[0]):
        for item in range(result.shape[1]):
            for c in range(result.shape[2]):
                total = 0.0
                for chunk in range(chunks):
                    total += sums[item * chunks + chunk, row, c]
                result[row, item, c] = total


@numba.njit(**OPTIONS)
def _write_gradient(pointer: Any, logit_type: Any, real: Any) -> None:
    call = carray(pointer, CALL_SIZE)
    logits, target, mask, weight, plan, gamma = _inputs(call, logit_type, real)
    wide, narrow, labels = _buffers(plan, real)
    gradient = carray(_at(call[RESULT]), logits.size, logit_type)
    by_row = carray(_at(call[ROW_NUMBERS]), (ROWS, call[ITEMS], plan[CLASSES]), real).transpose(1, 2, 0)
    floor = call.view(np.float64)[FLOOR]
    task = _next(pointer, DRAWN)
    while task < call[ITEMS] * call[CHUNKS]:
        item, begin, end = _range(call, task)
        gradient_pass(
            logits, target, mask, weight, plan, gamma, item, begin, end, wide, narrow, labels, by_row, floor, gradient
        )
        _next(pointer, DONE)
        task = _next(pointer, DRAWN)


def _sums_32(call: Any) -> None:
    _add_sums(call, np.float32, np.float32)


def _sums_16(call: Any) -> None:
    _add_sums(call, np.uint16, np.float32)


def _sums_64(call: Any) -> None:
    _add_sums(call, np.float64, np.float64)


def _gradient_32(call: Any) -> None:
    _write_gradient(call, np.float32, np.float32)


def _gradient_16(call: Any) -> None:
    _write_gradient(call, np.uint16, np.float32)


def _gradient_64(call: Any) -> None:
    _write_gradient(call, np.float64, np.float64)


Functions: TypeAlias = dict[int, Callable[[Any], None]]
#: By the bits of the logits' numbers, those of 16 being bfloat16.
SUMS: Functions = {16: _sums_16, 32: _sums_32, 64: _sums_64}
GRADIENT: Functions = {16: _gradient_16, 32: _gradient_32, 64: _gradient_64}


@lru_cache
def callback(function: Callable[[Any], None]) -> Any:
    """One of these functions, compiled when it is first used."""
    return compiled_for_c(types.void(types.CPointer(types.int64)), function)
