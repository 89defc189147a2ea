"""The mirror at work beside the trainings: a slow server delays neither their display nor a worker's restart."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

from pipelines.comparison.state import RunState, run_states
from pipelines.comparison.tracking.findings import Findings
from pipelines.comparison.tracking.mirror import Mirror

#: Seconds between two looks at what MLflow lacks: an epoch at a time would cost it several times as much.
_EVERY_S = 10.0
#: Seconds until it is looked whether there is anything to bring, at the start.
_FIRST_S = 0.25
#: What is mirrored gives way to what is trained on the same cores.
_NICE = 10
#: Seconds for which a comparison that is interrupted waits for MLflow.
_PATIENCE_S = 5.0


@contextlib.contextmanager
def mirroring(mirror: Mirror) -> Iterator[Callable[[list[RunState]], None]]:
    """Bring MLflow up to date, in a thread, while the block runs.

    At the block's end what is being sent is waited for (as long as the server may take for one run); `Mirror.finish`
    sends the rest. Of a block that is interrupted MLflow gets to know only what it takes within seconds.

    Args:
        mirror: of the comparison.

    Yields:
        What takes the states of all runs as they are now; it returns at once.
    """
    newest: list[list[RunState]] = []
    over = threading.Event()

    def work() -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while not over.is_set():
            pause = _EVERY_S if newest else _FIRST_S
            if newest:
                mirror.sync(newest.pop())
            over.wait(pause)

    def hand_over(states: list[RunState]) -> None:
        newest[:] = [states]

    thread = threading.Thread(target=work, name="MLflow", daemon=True)
    thread.start()
    patience = None
    try:
        yield hand_over
    except KeyboardInterrupt:
        patience = _PATIENCE_S
        raise
    finally:
        over.set()
        mirror.pause.set()
        if patience is None:
            thread.join()
            mirror.pause.clear()
        elif mirror.known:
            _close(mirror, thread, patience)


def _close(mirror: Mirror, thread: threading.Thread, patience: float) -> None:
    """Tell MLflow that runs were interrupted, once a thread is done with it; whether it answers in time or not."""

    def work() -> None:
        thread.join()
        mirror.pause.clear()
        mirror.finish(run_states(mirror.folder, mirror.plan), Findings())

    closing = threading.Thread(target=work, name="MLflow, closing", daemon=True)
    closing.start()
    closing.join(patience)
