"""Tasks shared between processes; each result is kept, and read again by a later call."""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nibabel.imageglobals import LoggingOutputSuppressor

from pipelines.data.checks import Offence
from pipelines.utils import UserError
from pipelines.utils.files import write_text
from pipelines.utils.machine import end_at_once, live_with_the_parent

# What was measured, kept by the content of the files: a later call, or one that goes on after a crash, reads it.


class ResultCache:
    """Results by key, a small file each, which begins with the SHA-256 of what follows.

    Files are written whole or not at all, so any number of processes may use one folder.

    Args:
        folder: is made when there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: list[Any], tell: Callable[[str], None]) -> Any:
        """The result of a key; None where there is none, or a damaged one, which is told.

        Args:
            key: everything that the result depends on; plain values.
            tell: gets a line for a person.
        """
        path = self._path(key)
        try:
            digest, _, content = path.read_bytes().partition(b"\n")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            tell(f"cache: {self.folder} cannot be read ({error.strerror}); what is in it is measured anew")
            return None
        if digest.decode(errors="replace") == hashlib.sha256(content).hexdigest():
            return json.loads(content)
        tell(f"cache: {path} is damaged; it is measured anew")
        return None

    def write(self, key: list[Any], result: Any) -> str | None:
        """Keep a result; returns why it could not be kept, which costs time alone."""
        content = json.dumps(result)
        try:
            write_text(self._path(key), f"{hashlib.sha256(content.encode()).hexdigest()}\n{content}")
        except OSError as error:
            return f"cache: {self.folder} cannot be written ({error.strerror}); the next call measures again"
        return None

    def _path(self, key: list[Any]) -> Path:
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"


# Tasks done by several processes; each result is kept as soon as it is there, and read where it is kept already.

#: So few tasks, of so few bytes, are done before other processes would have started.
_FEW, _SMALL = 8, 8 * 2**20


class Task(Protocol):
    """Something to be done with files, in whatever process."""

    @property
    def key(self) -> list[Any]:
        """All that the result depends on."""

    @property
    def size(self) -> int:
        """Bytes of its files."""

    def run(self, only_look: bool) -> tuple[Any, list[Offence]]:
        """The result, or what is wrong with the files; where `only_look`, no more than the latter is wanted."""


@dataclass(frozen=True)
class Done:
    """What came of the tasks.

    Attributes:
        results: in the order of the tasks; None where its files are bad, or others' are.
        offences: what is wrong with files, in the order of the tasks.
        kept: how many results were read and not worked out.
    """

    results: list[Any]
    offences: list[Offence]
    kept: int


def work(
    tasks: Sequence[Task],
    cache: ResultCache,
    *,
    jobs: int,
    spoiled: bool = False,
    progress: Callable[[int], object] = lambda number: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Done:
    """Do all tasks, but those whose results are kept.

    Once a file is bad the files of the others are but looked at for more that are bad: there will be no report.

    Args:
        tasks: what to do.
        cache: where results are kept.
        jobs: processes.
        spoiled: whether something is wrong already.
        progress: is told how many more tasks are done.
        tell: gets lines for a person: what is wrong with the cache.

    Raises:
        UserError: a process died.
    """
    results = [cache.read(task.key, tell) for task in tasks]
    left = [number for number, result in enumerate(results) if result is None]
    progress(len(tasks) - len(left))
    offences: dict[int, list[Offence]] = {}

    def end(number: int, ended: tuple[Any, list[Offence], str | None]) -> None:
        results[number], bad, trouble = ended
        if bad:
            offences[number] = bad
        if trouble is not None:
            tell(trouble)
        progress(1)

    if jobs == 1 or (len(left) <= _FEW and sum(tasks[number].size for number in left) < _SMALL):
        for number in left:
            end(number, _one(tasks[number], cache, spoiled or bool(offences)))
    else:
        _spread(tasks, left, cache, min(jobs, len(left)), lambda: spoiled or bool(offences), end)
    return Done(results, [one for number in sorted(offences) for one in offences[number]], len(tasks) - len(left))


def _spread(
    tasks: Sequence[Task],
    left: list[int],
    cache: ResultCache,
    jobs: int,
    spoiled: Callable[[], bool],
    end: Callable[[int, tuple[Any, list[Offence], str | None]], None],
) -> None:
    """Deal tasks out to processes, a few ahead of what they have done."""
    waiting = iter(left)
    running: dict[Future[tuple[Any, list[Offence], str | None]], int] = {}
    # Not by fork: a copy of a process with threads may wait for a lock for ever.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=live_with_the_parent)
    try:
        while True:
            for number in waiting:
                running[pool.submit(_one, tasks[number], cache, spoiled())] = number
                if len(running) >= 3 * jobs:
                    break
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                end(running.pop(future), future.result())
    except BrokenProcessPool:
        raise UserError(
            "a process that measured was ended from outside, often for lack of memory; run the command again: it goes "
            "on where it was; --jobs 1 needs the least memory"
        ) from None
    except KeyboardInterrupt:
        end_at_once(pool)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _one(task: Task, cache: ResultCache, only_look: bool) -> tuple[Any, list[Offence], str | None]:
    with LoggingOutputSuppressor():  # nibabel tells each oddity of a header that it mends by itself
        result, offences = task.run(only_look)
    return result, offences, None if result is None else cache.write(task.key, result)
