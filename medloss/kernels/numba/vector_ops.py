"""Sums of rows anywhere in flat arrays, and the distribution of work on planes over threads.

Offsets are unsigned: a signed index might count from the end, and a loop that has to check for that is not vectorised.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from medloss.kernels.numba.compilation import EXACT, OPTIONS
from medloss.kernels.thread_pool import POOL


def share_out(count: int, size: int, work: Callable[[int, int], None]) -> None:
    """Call `work(begin, end)` for all of `0..count`, `size` at a time, in torch's number of threads."""

    def worker(numbers: Any) -> None:
        for number in numbers:
            work(number * size, min((number + 1) * size, count))

    POOL.run(worker, -(-count // size), torch.get_num_threads())


@numba.njit(**OPTIONS)
def at(index: Any) -> Any:
    """An offset."""
    return np.uint64(index)


@numba.njit(**EXACT)
def fill(out: Any, o: Any, value: Any, n: Any) -> None:
    """One value everywhere."""
    for k in range(n):
        out[o + k] = value


@numba.njit(**EXACT)
def put(out: Any, o: Any, x: Any, a: Any, n: Any) -> None:
    """out = x[a]."""
    for k in range(n):
        out[o + k] = x[a + k]


@numba.njit(**EXACT)
def put_pair(out: Any, o: Any, x: Any, a: Any, b: Any, n: Any) -> None:
    """out = x[a] + x[b]."""
    for k in range(n):
        out[o + k] = x[a + k] + x[b + k]


@numba.njit(**EXACT)
def add(out: Any, o: Any, x: Any, a: Any, n: Any) -> None:
    """out += x[a]."""
    for k in range(n):
        out[o + k] += x[a + k]


@numba.njit(**EXACT)
def add_pair(out: Any, o: Any, x: Any, a: Any, b: Any, n: Any) -> None:
    """out += x[a] + x[b]."""
    for k in range(n):
        out[o + k] += x[a + k] + x[b + k]


@numba.njit(**OPTIONS)
def row_sum(x: Any, o: Any, n: Any) -> Any:
    """The sum of a row."""
    total = x.dtype.type(0)
    for k in range(n):
        total += x[o + k]
    return total
