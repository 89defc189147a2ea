"""The mirror: what the folders hold, copied to MLflow in the background, and nothing twice."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.runs.comparison_folder import RunState, attempts, run_folder, run_states
from pipelines.runs.plan import Plan
from pipelines.tracking import findings as found
from pipelines.tracking.findings import Findings
from pipelines.tracking.mlflow_runs import DataInputs, child_run, parent_run, send_curves, send_inputs
from pipelines.tracking.store import (
    experiment_of,
    is_active,
    local_uri,
    make_local_store,
    open_client,
    page_address,
    save_view,
    without_password,
)
from pipelines.utils.files import read_json, write_json

# The mirror: what the folders say, brought to MLflow; what is there is remembered, and nothing is written twice.

_STATUS = {"running": "RUNNING", "interrupted": "KILLED", "done": "FINISHED", "failed": "FAILED"}
_NAME = "mlflow.json"
#: Of a finished run's folder; the checkpoint and the weights stay there.
_FILES = ("config.json", "result.json", "epochs.csv", "cases.csv")
#: What failed: the numbers, or the files alone.
_UNREACHED, _NO_FILES = "cannot be reached", "takes no files"
#: Seconds until a server that did not answer is asked again.
_RETRY_S = 20.0


class Mirror:
    """The folders of a comparison, in MLflow: a parent run, and a flat child for each run.

    What is there is remembered in `mlflow.json`, so that a comparison that goes on later goes on in the same runs, and
    nothing is written twice.

    Args:
        folder: the comparison's folder.
        plan: its plan.
        tracking_uri: a server; None: `MLFLOW_TRACKING_URI`, else SQLite in the folder.
        warn: gets one line when MLflow cannot be reached, and one when it takes no files.
        store: the folder whose SQLite store is meant; None: the comparison's.

    Attributes:
        uri: where the store is.
        pause: set while `sync` is to end early: after the run that it is at.
        registered: `NAME version N` of the network that `finish` registered, or None.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        tracking_uri: str | None,
        warn: Callable[[str], None],
        store: Path | None = None,
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.warn = warn
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local_uri(store or folder)
        self._store = store or folder
        self.pause = threading.Event()
        self.registered: str | None = None
        self.state: dict[str, Any] = {}
        with suppress(ValueError):  # what was noted is found again in the store
            self.state = read_json(folder / _NAME) or {}
        if without_password(self.state.get("uri", "")) != without_password(self.uri):
            self.state = {"runs": {}}
        self.state["uri"] = without_password(self.uri)
        self._data = DataInputs(plan)
        self._client: Any = None
        self._failed_at: float | None = None
        self._warned: set[str] = set()

    def sync(self, states: list[RunState], *, final: bool = False) -> bool:
        """Bring MLflow up to what the folders say; whether that worked.

        Args:
            states: of all runs.
            final: ask the server even if it did not answer a moment ago.
        """
        recently = self._failed_at is not None and time.monotonic() - self._failed_at < _RETRY_S
        if recently and not final:
            return False
        return self._numbers(states, final) and self._files(states)

    def finish(self, states: list[RunState], findings: Findings) -> bool:
        """Bring everything up to date, and close the parent: with what was found, once all runs are finished."""
        if not self._numbers(states, final=True):
            return False
        ended = all(state.finished for state in states)
        # Numbers first: a store whose disk for files is full has them all the same.
        closed = self._try(_UNREACHED, lambda: self._close(states, findings if ended else None))
        if not closed or not self._files(states):
            return False
        return not ended or self._try(_NO_FILES, lambda: self._send_findings(findings))

    def page(self, server: str | None = None) -> str | None:
        """Where a browser finds the charts; None when that is not known.

        Args:
            server: the address of a server on this store; None: the store is one.
        """
        server = server or (self.uri if self.uri.startswith(("http://", "https://")) else None)
        if server is None or "experiment" not in self.state:
            return None
        return page_address(
            without_password(server), self.state["experiment"], self.plan, self.state.get("view", False)
        )

    @property
    def known(self) -> bool:
        """Whether MLflow has the comparison already, as far as is noted here."""
        return bool(self.state.get("parent"))

    def _numbers(self, states: list[RunState], final: bool) -> bool:
        return self._try(_UNREACHED, lambda: self._send_numbers(states, final))

    def _files(self, states: list[RunState]) -> bool:
        return self._try(_NO_FILES, lambda: self._send_files(states))

    def _try(self, what: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:
            self._failed_at = time.monotonic()
            if what == _UNREACHED:
                self._client = None  # what somebody removed meanwhile is looked for again
            if what not in self._warned:
                self._warned.add(what)
                why = " ".join(without_password(str(error)).split())[:200] or type(error).__name__
                self.warn(f"MLflow at {self.state['uri']} {what} ({why}); training goes on, and is mirrored later")
            return False
        self._failed_at = None
        return True

    def _send_numbers(self, states: list[RunState], final: bool) -> None:
        self._connect()
        if not all(state.finished for state in states):
            self._set_status(self.state["parent"], "RUNNING")
        for state in states:
            if not self.pause.is_set() and state.state != "waiting":
                self._send_run(state, final)

    def _send_files(self, states: list[RunState]) -> None:
        for state in states:
            entry = self.state["runs"].get(state.run.id)
            if self.pause.is_set() or not state.finished or entry is None or entry.get("files"):
                continue
            own = run_folder(self.folder, state.run)
            for path in (own.path / name for name in _FILES):
                if path.is_file():
                    self._client.log_artifact(entry["id"], str(path))
            entry["files"] = True
            self._save()

    def _connect(self) -> None:
        if self._client is not None:
            return
        if own := self.uri == local_uri(self._store):
            make_local_store(self._store)
        client = open_client(self.uri)
        location = (self._store / "mlartifacts").resolve().as_uri() if own else None
        self.state["experiment"] = experiment_of(client, self.plan.manifest_name, location)
        # What someone removed, be it a run or the whole store, is written anew.
        if self.state.get("parent") and not is_active(client, self.state["parent"]["id"]):
            self.state["parent"] = None
        self.state["runs"] = {name: own for name, own in self.state["runs"].items() if is_active(client, own["id"])}
        if not self.state.get("parent"):
            parent = parent_run(client, self.state["experiment"], self.plan)
            send_inputs(client, parent, self._data.whole())
            for entry in self.state["runs"].values():
                client.set_tag(entry["id"], "mlflow.parentRunId", parent)
            self.state["parent"] = {"id": parent, "status": None}
            self._save()
        with suppress(Exception):  # the page does without; whether the server is there, the next call tells
            self.state["view"] = save_view(client, self.state["experiment"], self.plan)
        self._client = client

    def _send_run(self, state: RunState, final: bool) -> None:
        own = run_folder(self.folder, state.run)
        entry = self.state["runs"].get(state.run.id)
        status = _STATUS[state.state]
        ended = state.finished and entry is not None and entry["status"] == status
        # A run's last sample of the machine comes just after its result.
        if ended and not final:
            return
        if entry is None:
            experiment, parent = self.state["experiment"], self.state["parent"]["id"]
            child = child_run(self._client, experiment, self.plan, state.run, own, parent)
            send_inputs(self._client, child, self._data.split(state.run.config.fold))
            entry = {"id": child, "epoch": 0, "system": 0, "status": None}
            self.state["runs"][state.run.id] = entry
            self._save()
        if send_curves(self._client, entry["id"], own, entry):
            self._save()
        if ended:
            return
        result = own.result if state.finished else None
        if result is not None:
            self._tell_end(state, entry["id"])
        self._set_status(entry, status, None if result is None else result["finished"])

    def _tell_end(self, state: RunState, run_id: str) -> None:
        self._client.set_tag(run_id, "medloss.attempt", str(max(1, attempts(self.folder, state.run))))
        if state.error is not None:
            self._client.set_tag(run_id, "medloss.error", state.error)
        elif "medloss.error" in self._client.get_run(run_id).data.tags:
            self._client.delete_tag(run_id, "medloss.error")  # it failed once, and was tried again

    def _set_status(self, entry: dict[str, Any], status: str, ended: float | None = None) -> None:
        if entry["status"] == status:
            return
        if status == "RUNNING":
            self._client.update_run(entry["id"], status=status)
        else:
            self._client.set_terminated(entry["id"], status, None if ended is None else int(1000 * ended))
        # Another status, other files: a run that failed may have been tried again since.
        entry["status"], entry["files"] = status, False
        self._save()

    def _close(self, states: list[RunState], findings: Findings | None) -> None:
        """Close the parent: with what was found, or as one that was interrupted."""
        parent = self.state["parent"]
        if findings is None:
            self._set_status(parent, "KILLED")
            return
        results = (run_folder(self.folder, run).result for run in self.plan.runs)
        ended = max(result["finished"] for result in results if result is not None)
        found.send_numbers(self._client, parent["id"], findings, ended)
        failed = any(state.state == "failed" for state in states)
        self._set_status(parent, "FAILED" if failed else "FINISHED", ended)

    def _send_findings(self, findings: Findings) -> None:
        found.send_files(self._client, self.state["parent"]["id"], findings, self.folder, self.plan)
        if findings.best is None:
            return
        run_id, experiment = self.state["runs"][findings.best.id]["id"], self.state["experiment"]
        self.registered = found.send_network(self._client, experiment, run_id, findings, self.folder, self.plan)
        if findings.register is not None and self.registered is None:
            self.warn(f"--register-model: the run {findings.best.id} has kept no network; nothing was registered")

    def _save(self) -> None:
        write_json(self.folder / _NAME, self.state)


# The mirror at work beside the trainings: a slow server delays neither their display nor a worker's restart.

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
