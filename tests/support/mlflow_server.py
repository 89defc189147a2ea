"""MLflow's servers, for tests: `mlflow server` and `mlflow ui`, on a free port, ended by SIGKILL."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int, *options: object, command: str = "server") -> Iterator[str]:
    """A server that answers; gives its address, and kills it with the block.

    Args:
        folder: for its log.
        port: where it listens.
        options: of the command.
        command: `server` or `ui`.
    """
    arguments = [sys.executable, "-m", "mlflow", command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log_file = folder / "server.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [*arguments, *map(str, options)], stdout=log, stderr=log, start_new_session=True, env=environment
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log_file.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            time.sleep(0.2)
        yield address
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
