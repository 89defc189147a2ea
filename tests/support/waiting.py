"""Waiting for events, with a limit that a machine five times slower than usual does not reach."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

#: Seconds for a process to end: as generous.
PROCESS_S = 600.0


def wait_for(
    condition: Callable[[], Any],
    process: "subprocess.Popen[Any] | None" = None,
    what: str = "",
    limit: float = 300,
    pause: float = 0.02,
) -> Any:
    """Wait until a condition holds; returns its value.

    Args:
        condition: called again and again, until it is true.
        process: fails the test at once if it ends before.
        what: is waited for, for the message.
        limit: seconds until the test fails.
        pause: seconds between two calls.
    """
    deadline = time.monotonic() + limit
    while not (value := condition()):
        if process is not None and process.poll() is not None and not (value := condition()):
            shown, told = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before {what or 'it'}: {shown!r} {told!r}")
        if value:
            break
        assert time.monotonic() < deadline, f"not in {limit:g} s: {what or 'what was waited for'}"
        time.sleep(pause)
    return value
