"""Processes of a pool that end with the one that they work for."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait


def live_with_the_parent() -> None:
    """Leave keys pressed on the terminal to the parent, and end when it ends, however that comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def end_at_once(pool: ProcessPoolExecutor) -> None:
    """End a pool with what its processes are at, which nobody waits for any more."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
