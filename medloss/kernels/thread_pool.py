"""Threads that share work which releases the interpreter's lock."""

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Pool:
    """Helper threads of the calling thread; they start when first needed, and again in a forked process."""

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            # Threads do not survive in a child process, and the lock may have been held by one of them.
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._helpers: ThreadPoolExecutor | None = None
        self._size = 0

    def run(self, worker: Callable[[Any], None], tasks: int, threads: int) -> None:
        """Call `worker(numbers)` in up to `threads` threads; it processes all `numbers` that it draws.

        Together the workers draw each of `0..tasks - 1` once. The caller works too, so that it never waits for a
        helper that has not begun. An exception in any of them is raised after all have stopped.
        """
        threads = min(threads, tasks)
        if threads <= 1:
            worker(range(tasks))
            return
        numbers = _Numbers(tasks)
        helpers = self._start(worker, numbers, threads - 1)
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
