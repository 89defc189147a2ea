"""Threads that share work which releases the interpreter's lock."""

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

#: OpenMP passes an argument, which the callback has no use for.
_BODY = ctypes.CFUNCTYPE(None)
#: A compiled function and its argument.
_COMPILED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class Pool:
    """Runs work in torch's OpenMP threads, or in helper threads where torch has none or the process was forked.

    Between two of torch's operations its threads wait actively for the next one. Others would have to compete with
    them for the same cores.
    """

    def __init__(self) -> None:
        self._forked = False
        self._forget()
        if hasattr(os, "register_at_fork"):
            # Threads do not survive in a child process, and the lock may have been held by one of them.
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._forked = True
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._helpers: ThreadPoolExecutor | None = None
        self._size = 0

    def run(self, worker: Callable[[Any], None], tasks: int, threads: int) -> None:
        """Call `worker(numbers)` in up to `threads` threads; it processes all `numbers` that it draws.

        Together the workers draw each of `0..tasks - 1` once. The caller works too, so that it never waits for a
        helper that has not begun. An exception in any of them is raised after all have stopped.
        """
        if min(threads, tasks) <= 1:
            worker(range(tasks))
            return
        # The team is all of torch's threads: OpenMP would end the others, and start them again. Each enters the
        # interpreter, one after another, so that many of them without a task would cost more than they bring.
        parallel = None if self._forked or threads > 2 * tasks else _openmp_parallel()
        if parallel is None:
            self._run_in_helpers(worker, _Numbers(tasks), min(threads, tasks) - 1)
        else:
            _run_in_team(parallel, worker, _Numbers(tasks), threads)

    def call(self, address: int, data: int, memory: Any, tasks: int, threads: int) -> None:
        """Call the compiled function `void (*)(void *)` at an address in up to `threads` threads.

        Each call of the function draws some of its `tasks`, until none is left. Torch's threads do not enter the
        interpreter for it. `memory` owns what the function reads and writes, for as long as a helper may do so.
        """
        if min(threads, tasks) <= 1:
            _COMPILED(address)(data)
            return
        parallel = None if self._forked else _openmp_parallel(ctypes.c_void_p)
        if parallel is None:
            function = _COMPILED(address)

            def worker(_: Any, owner: Any = memory) -> None:
                function(data)

            self._run_in_helpers(worker, _Numbers(tasks), min(threads, tasks) - 1)
        else:
            parallel(address, data, threads, 0)

    def _run_in_helpers(self, worker: Callable[[Any], None], numbers: "_Numbers", count: int) -> None:
        helpers = self._start(worker, numbers, count)
        try:
            worker(numbers)
        finally:
            numbers.stop()
            started = [helper for helper in helpers if not helper.cancel()]
            errors = [error for helper in started if (error := helper.exception()) is not None]
        if errors:
            raise errors[0]

    def _start(self, worker: Callable[[Any], None], numbers: "_Numbers", count: int) -> "list[Future[None]]":
        helpers: list[Future[None]] = []
        try:
            with self._lock:
                if self._helpers is None or self._size < count:
                    if self._helpers is not None:
                        self._helpers.shutdown(wait=False)
                    self._helpers, self._size = ThreadPoolExecutor(count, "medloss"), count
                helpers.extend(self._helpers.submit(worker, numbers) for _ in range(count))
        except RuntimeError:
            # The interpreter is shutting down, or cannot start more threads: the caller does the rest.
            pass
        return helpers


@lru_cache
def _openmp_parallel(body: Any = _BODY) -> Any:
    """GNU OpenMP's entry to a parallel region, in the library that torch runs in; None where it is another one.

    Args:
        body: how the region's function is passed, as a type of ctypes.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_global_deps.so"
    try:
        parallel = ctypes.CDLL(str(library))["GOMP_parallel"]
    except (OSError, AttributeError):
        return None
    parallel.argtypes = (body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


def _run_in_team(parallel: Any, worker: Callable[[Any], None], numbers: "_Numbers", threads: int) -> None:
    errors: list[BaseException] = []

    def body() -> Iterator[None]:
        try:
            yield
            worker(numbers)
        except GeneratorExit:  # the team was smaller, as inside of another parallel region
            return
        except BaseException as error:
            numbers.stop()
            errors.append(error)
        yield

    # An interrupt of the caller that arrives as a function begins would be lost with the callback. These have begun.
    bodies = [body() for _ in range(threads)]
    for one in bodies:
        next(one)
    parallel(_BODY(map(next, bodies).__next__), None, threads, 0)
    if errors:
        raise errors[0]


class _Numbers:
    """An iterator over `0..count - 1` that threads share."""

    def __init__(self, count: int) -> None:
        self._next, self._count = itertools.count(), count
        self._lock = threading.Lock()

    def __iter__(self) -> "_Numbers":
        return self

    def __next__(self) -> int:
        with self._lock:
            number = next(self._next)
        if number >= self._count:
            raise StopIteration
        return number

    def stop(self) -> None:
        self._count = 0


#: Shared by all kernels.
POOL = Pool()
