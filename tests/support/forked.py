"""Real processes, forked from the test's: they may be killed, fail or train together, and import nothing again."""

import io
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch.distributed as dist

#: Seconds after which a process counts as hanging: a busy machine is never so slow.
LIMIT_S = 600
#: Seconds from the signal that asks a process to end to the one that ends it, as `torchrun` has them.
_GRACE_S = 30

Ended = subprocess.CompletedProcess[str]


class Forked:
    """A process that calls a function; what it prints is kept.

    It ends as the interpreter would: with the code of `sys.exit`, or 1 and the exception through `sys.excepthook`.

    Args:
        function: what is called.
        arguments: of the function.
        cwd: the working directory, also the first folder to import from.
        environment: variables to set; the folders of `PYTHONPATH` are imported from.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, cwd: Path | None = None, **environment: str):
        self._files = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115
        self._printed = ["", ""]
        self._function, self._arguments = function, arguments
        self._cwd, self._environment = cwd, environment
        self.process = multiprocessing.get_context("fork").Process(target=self._run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python >= 3.12, of any fork beside threads
            self.process.start()

    def _run(self) -> None:
        for number, file in enumerate(self._files, 1):
            os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        _log_to(sys.stdout)
        _warn_as_usual()
        os.environ.update(self._environment)
        if self._cwd is not None:
            os.chdir(self._cwd)
            sys.path.insert(0, str(self._cwd))
        if "PYTHONPATH" in self._environment:
            sys.path[:0] = self._environment["PYTHONPATH"].split(os.pathsep)
        code: object = 0
        try:
            self._function(*self._arguments)
        except SystemExit as end:
            code = end.code
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # At once: what was forked from a process with threads may wait for them for ever when it tidies up.
        os._exit(code if isinstance(code, int) else int(code is not None))

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._content(0)

    @property
    def stderr(self) -> str:
        """What it has printed to standard error so far."""
        return self._content(1)

    def join(self) -> int:
        """Wait for its end; returns its exit code, below 0 the signal that ended it."""
        self.process.join(LIMIT_S)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise TimeoutError(f"a process hangs; it printed {self.stdout!r} and {self.stderr!r}")
        for number, file in enumerate(self._files):
            self._printed[number] = self._content(number)
            file.close()
        return code

    def _content(self, number: int) -> str:
        file = self._files[number]
        return self._printed[number] if file.closed else os.pread(file.fileno(), 2**24, 0).decode()


def _log_to(stream: Any) -> None:
    """Lead what libraries log to the output that they took when they were imported: it is the test's."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for handler in {handler for logger in loggers for handler in getattr(logger, "handlers", [])}:
        if type(handler) is logging.StreamHandler and isinstance(handler.stream, io.TextIOWrapper):
            handler.setStream(stream)


def _warn_as_usual() -> None:
    """Print warnings as the interpreter does outside pytest, which collects them and makes errors of them."""
    warnings.resetwarnings()
    warnings.filterwarnings("ignore", "'.*' found in sys.modules after import", RuntimeWarning)  # of `runpy`
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)

    def show(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    warnings.showwarning = show


def _module(name: str, arguments: tuple[str, ...]) -> None:
    sys.argv = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def run_module(name: str, *arguments: object, cwd: Path | None = None, **environment: str) -> Ended:
    """`python -m name arguments`, without the start-up."""
    process = Forked(_module, name, tuple(map(str, arguments)), cwd=cwd, **environment)
    code = process.join()
    return subprocess.CompletedProcess([name, *map(str, arguments)], code, process.stdout, process.stderr)


class Ranks:
    """Two processes that find each other as if `torchrun` had started them.

    Args:
        function: what both call.
        arguments: of the function.
        environment: variables to set.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, **environment: str):
        # Their meeting point is this process, as it is `torchrun`'s, on a port that the system chooses.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = environment | {
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self._store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        }  # fmt: skip
        self.processes = [
            Forked(function, *arguments, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)
        ]

    @classmethod
    def of_module(cls, name: str, *arguments: object, **environment: str) -> "Ranks":
        """Both run `python -m name arguments`."""
        return cls(_module, name, tuple(map(str, arguments)), **environment)

    def kill(self) -> None:
        """End both, as the system does that needs memory."""
        for own in self.processes:
            own.process.kill()
        for own in self.processes:
            own.join()

    def join(self) -> Ended:
        """Wait for the end; like `torchrun`, end the others when one fails, and report a signal that ended one."""
        running = {own.process.sentinel: own for own in self.processes}
        failed: list[int] = []
        while running:
            ended = wait(list(running), _GRACE_S if failed else LIMIT_S)
            if not ended and failed:
                for own in running.values():
                    own.process.kill()
                continue
            if not ended:
                self.kill()
                raise TimeoutError(f"processes hang; they printed {[own.stderr for own in self.processes]}")
            codes = [running.pop(sentinel).join() for sentinel in ended]  # type: ignore[call-overload]
            if any(codes) and not failed:
                failed = [code for code in codes if code]
                for own in running.values():
                    own.process.terminate()
        signals = [f"Signal {-code} ({signal.Signals(-code).name})\n" for code in failed if code < 0]
        out, err = ("".join(getattr(own, name) for own in self.processes) for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess([], int(bool(failed)), out, err + "".join(signals))
