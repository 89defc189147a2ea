"""Runs tasks in several processes and caches their results for later calls."""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from nibabel.imageglobals import LoggingOutputSuppressor

from pipelines.data.checks import Offence
from pipelines.utils import UserError
from pipelines.utils.files import write_text
from pipelines.utils.machine import end_with_parent, kill_pool

#: Numbers of tasks and of bytes that take less time than starting processes.
_FEW, _SMALL = 8, 8 * 2**20

#: A task's result, the problems of its files, and a message about the cache.
_Outcome = tuple[Any, list[Offence], str | None]


class Task(Protocol):
    """A computation on files, in any process."""

    @property
    def key(self) -> list[Any]:
        """Everything that the result depends on."""

    @property
    def size(self) -> int:
        """Size of its files in bytes."""

    def run(self, check_only: bool) -> tuple[Any, list[Offence]]:
        """The result, and the problems of the files; with `check_only`, only the problems."""


@dataclass(frozen=True)
class Done:
    """Results in the order of the tasks (None if any file is bad), problems of files, and how many were cached."""

    results: list[Any]
    offences: list[Offence]
    kept: int


def work(
    tasks: Sequence[Task],
    cache: "ResultCache",
    *,
    jobs: int,
    check_only: bool = False,
    progress: Callable[[int], object] = lambda number: None,
    notify: Callable[[str], None] = lambda line: None,
) -> Done:
    """Run all tasks whose results are not cached; once a file is bad, there is no report, so the rest are only checked.

    Args:
        tasks: the tasks.
        cache: the cache of results.
        jobs: number of processes.
        check_only: whether to only check the files from the start.
        progress: called with the number of tasks done since the last call.
        notify: called with messages about the cache.

    Raises:
        UserError: a process died.
    """
    results = [cache.read(task.key, notify) for task in tasks]
    remaining = [number for number, result in enumerate(results) if result is None]
    progress(len(tasks) - len(remaining))
    offences: dict[int, list[Offence]] = {}
    few = len(remaining) <= _FEW and sum(tasks[number].size for number in remaining) < _SMALL
    jobs = 1 if few else min(jobs, len(remaining))
    waiting = iter(remaining)
    running: dict[Future[_Outcome], int] = {}
    # Not forked: a forked copy of a process with threads can deadlock.
    spawn = multiprocessing.get_context("spawn")
    pool = ThreadPoolExecutor(1) if jobs == 1 else ProcessPoolExecutor(jobs, spawn, initializer=end_with_parent)
    try:
        while True:
            for number in waiting:  # a few ahead
                future = pool.submit(_run_task, tasks[number], cache, check_only or bool(offences))
                running[future] = number
                if len(running) >= 3 * jobs:
                    break
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                results[number], bad, message = future.result()
                if bad:
                    offences[number] = bad
                if message is not None:
                    notify(message)
                progress(1)
    except BrokenProcessPool:
        # A process that `submit` started while Python ended the others is not ended, and would be waited for.
        kill_pool(cast(ProcessPoolExecutor, pool))
        raise UserError(
            "a process was killed during the evaluation, often because memory ran out; run the command again to "
            "resume; --jobs 1 needs the least memory"
        ) from None
    except KeyboardInterrupt:
        if isinstance(pool, ProcessPoolExecutor):
            kill_pool(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    problems = [offence for number in sorted(offences) for offence in offences[number]]
    return Done(results, problems, len(tasks) - len(remaining))


def _run_task(task: Task, cache: "ResultCache", check_only: bool) -> _Outcome:
    with LoggingOutputSuppressor():  # nibabel logs every oddity of a header that it repairs
        result, offences = task.run(check_only)
    return result, offences, None if result is None else cache.write(task.key, result)


@dataclass(frozen=True)
class ResultCache:
    """Results by key, one small file each, which begins with the SHA-256 of its content.

    Files are written atomically, so any number of processes can share the folder, which is created if needed. Keys
    hold everything that a result depends on, as plain values.
    """

    folder: Path

    def read(self, key: list[Any], notify: Callable[[str], None]) -> Any:
        """The result of a key; None if there is none, or if it cannot be read or is damaged, after a message."""
        path = self._path(key)
        try:
            digest, _, content = path.read_bytes().partition(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            notify(f"cache: {self.folder} cannot be read ({error.strerror}); its results are computed again")
            return None
        if digest.decode(errors="replace") == hashlib.sha256(content).hexdigest():
            return json.loads(content)
        notify(f"cache: {path} is damaged; its result is computed again")
        return None

    def write(self, key: list[Any], result: Any) -> str | None:
        """Write a result; return a message if that fails, which only costs time later."""
        content = json.dumps(result)
        try:
            write_text(self._path(key), f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}")
        except OSError as error:
            return f"cache: {self.folder} cannot be written ({error.strerror}); the next call computes again"
        return None

    def _path(self, key: list[Any]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"
