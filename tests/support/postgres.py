"""A PostgreSQL of Debian's, for tests: a fresh cluster on a free port of the loopback address."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import free_port

_PATIENCE_S = 300.0


def _programs() -> Path:
    """The folder of `initdb` and `postgres`, which Debian keeps off the PATH."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    for place in reversed(places):
        if (place / "initdb").is_file() and (place / "postgres").is_file():
            return place
    pytest.skip("no PostgreSQL: install Debian's package postgresql")


def _account() -> dict[str, Any]:
    """As whom it runs: it refuses root."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL refuses to run as root, and there is no account postgres")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A server that answers; gives the URI of its database, and ends it with the block."""
    psycopg2 = pytest.importorskip("psycopg2", reason="psycopg2-binary is missing: pip install medloss[test]")
    programs, account = _programs(), _account()
    # Not in the test's own folder, which another account cannot enter.
    home = Path(tempfile.mkdtemp(prefix="medloss-postgres-"))
    port = free_port()
    # SQLAlchemy takes another driver where none is named.
    uri = f"postgresql+psycopg2://medloss@127.0.0.1:{port}/postgres"
    try:
        if account:
            os.chown(home, account["user"], account["group"])
        made = subprocess.run(
            [programs / "initdb", "-D", home / "data", "-U", "medloss", "-A", "trust", "-E", "UTF8",
             "--locale=C", "--no-sync"],
            cwd=home, capture_output=True, text=True, check=False, **account,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        command = [programs / "postgres", "-D", home / "data", "-h", "127.0.0.1", "-p", str(port)]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "-c", "unix_socket_directories=", "-c", "fsync=off"],
                cwd=home,
                stdout=log,
                stderr=log,
                **account,
            )
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while True:
                assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
                with contextlib.suppress(psycopg2.OperationalError):
                    psycopg2.connect(uri.replace("+psycopg2", "")).close()
                    break
                time.sleep(0.1)
            yield uri
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=120)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(home, ignore_errors=True)
