"""The mirror: copies a comparison's folders to MLflow in the background."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.runs.comparison_folder import RunState, attempts, run_folder, run_states
from pipelines.runs.plan import Plan
from pipelines.tracking import findings as found
from pipelines.tracking.findings import Findings
from pipelines.tracking.mlflow_runs import (
    DataInputs,
    child_run,
    comparison_name,
    parent_run,
    send_class_metrics,
    send_curves,
    send_inputs,
    send_planned,
)
from pipelines.tracking.mlflow_store import (
    experiment_of,
    is_active,
    local_uri,
    make_local_store,
    open_client,
    page_address,
    runs_address,
    save_view,
    without_password,
)
from pipelines.utils.files import read_json, write_json

_STATUS = {"running": "RUNNING", "interrupted": "KILLED", "done": "FINISHED", "failed": "FAILED"}
_NAME = "mlflow.json"
#: Files of a finished run that are sent; checkpoint and weights are not.
_FILES = ("config.json", "result.json", "epochs.csv", "cases.csv")
#: What failed: everything, or only the files.
_UNREACHED, _NO_FILES = "cannot be reached", "accepts no files"
#: Seconds between attempts to reach a server that did not answer.
_RETRY_S = 20.0


class Mirror:
    """The copy of a comparison in MLflow: a parent run, and a child for each run of the comparison.

    `mlflow.json` records what has been sent, so that a comparison that is resumed uses the same MLflow runs and sends
    nothing again.

    Args:
        folder: the comparison's folder.
        plan: its plan.
        tracking_uri: a server; None: `MLFLOW_TRACKING_URI`, else SQLite in the folder.
        warn: called with one line when MLflow cannot be reached, and one when it accepts no files.
        store: folder of the SQLite store; None: the comparison's.

    Attributes:
        uri: of the store.
        pause: while it is set, `sync` ends after the current run.
        registered: `NAME version N` of the network that `finish` registered, or None.
    """

    def __init__(
        self, folder: Path, plan: Plan, tracking_uri: str | None, warn: Callable[[str], None], store: Path | None = None
    ) -> None:
        self.folder = folder
        self.plan = plan
        self.warn = warn
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local_uri(store or folder)
        self._store = store or folder
        self.pause = threading.Event()
        self.registered: str | None = None
        self.state: dict[str, Any] = {}
        with contextlib.suppress(ValueError):  # damaged; the store has the runs, which are found by their tags
            self.state = read_json(folder / _NAME) or {}
        if without_password(self.state.get("uri", "")) != without_password(self.uri):
            self.state = {"runs": {}}
        self.state["uri"] = without_password(self.uri)
        self._data = DataInputs(plan)
        self._client: Any = None
        self._failed_at: float | None = None
        self._warned: set[str] = set()
        self._has_view = False

    def sync(self, states: list[RunState]) -> bool:
        """Bring MLflow up to date with the folders, unless it failed a moment ago; returns whether that worked."""
        if self._failed_at is not None and time.monotonic() - self._failed_at < _RETRY_S:
            return False
        return self._try(_UNREACHED, self._send_numbers, states) and self._try(_NO_FILES, self._send_files, states)

    def finish(self, states: list[RunState], findings: Findings) -> bool:
        """Bring MLflow up to date and close the parent run, with the findings if all runs are finished.

        Returns:
            Whether that worked.
        """
        if not self._try(_UNREACHED, self._send_numbers, states, True):
            return False
        ended = all(state.finished for state in states)
        # Numbers first: they do not depend on the store for files, whose disk may be full.
        closed = self._try(_UNREACHED, self._close, states, findings if ended else None)
        if not closed or not self._try(_NO_FILES, self._send_files, states):
            return False
        return not ended or self._try(_NO_FILES, self._send_findings, findings)

    def page(self, server: str | None = None) -> str | None:
        """The address of the charts on `server`, or on the store if that is a server; None if it is not known."""
        server = server or self._server
        if server is None or "experiment" not in self.state:
            return None
        return page_address(without_password(server), self.state["experiment"], self.plan)

    def runs_page(self, server: str | None = None) -> str | None:
        """The address of the list of runs, with score and verdict as columns; arguments and None as of `page`."""
        server = server or self._server
        if server is None or not self._has_view:
            return None
        return runs_address(without_password(server), self.state["experiment"], self.plan)

    @property
    def _server(self) -> str | None:
        return self.uri if self.uri.startswith(("http://", "https://")) else None

    def _try(self, what: str, work: Callable[..., None], *given: Any) -> bool:
        try:
            work(*given)
        except Exception as error:
            self._failed_at = time.monotonic()
            if what == _UNREACHED:
                self._client = None  # runs may have been deleted meanwhile: look for them again
            if what not in self._warned:
                self._warned.add(what)
                why = " ".join(without_password(str(error)).split())[:200] or type(error).__name__
                self.warn(
                    f"MLflow at {self.state['uri']} {what} ({why}); training continues, and the results are sent later"
                )
            return False
        self._failed_at = None
        return True

    def _send_numbers(self, states: list[RunState], final: bool = False) -> None:
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
            for name in _FILES:
                if (path := run_folder(self.folder, state.run).path / name).is_file():
                    self._client.log_artifact(entry["id"], str(path))
            entry["files"] = True
            self._save()

    def _connect(self) -> None:
        if self._client is not None:
            return
        if is_local := self.uri == local_uri(self._store):
            make_local_store(self._store)
        client = open_client(self.uri)
        location = (self._store / "mlartifacts").resolve().as_uri() if is_local else None
        self.state["experiment"] = experiment_of(client, self.plan.manifest_name, location)
        # Runs that somebody deleted, or lost with the store, are created again.
        if self.state.get("parent") and not is_active(client, self.state["parent"]["id"]):
            self.state["parent"] = None
        runs = self.state["runs"].items()
        self.state["runs"] = {name: entry for name, entry in runs if is_active(client, entry["id"])}
        if not self.state.get("parent"):
            parent = parent_run(client, self.state["experiment"], self.plan, self._data.tags)
            send_inputs(client, parent, self._data.whole())
            for entry in self.state["runs"].values():
                client.set_tag(entry["id"], "mlflow.parentRunId", parent)
            self.state["parent"] = {"id": parent, "status": None}
            self._save()
        if self.plan.rung is None:
            self._has_view = save_view(client, self.state["experiment"], self.plan, comparison_name(self.plan))
        self._client = client

    def _send_run(self, state: RunState, final: bool) -> None:
        run_dir = run_folder(self.folder, state.run)
        entry = self.state["runs"].get(state.run.id)
        status = _STATUS[state.state]
        ended = state.finished and entry is not None and entry["status"] == status
        # The last sample of the machine is written just after the run's result.
        if ended and not final:
            return
        if entry is None:
            experiment, parent = self.state["experiment"], self.state["parent"]["id"]
            child = child_run(self._client, experiment, self.plan, state.run, run_dir, parent, self._data.tags)
            send_inputs(self._client, child, self._data.split(state.run.config.fold))
            entry = {"id": child, "epoch": 0, "system": 0, "status": None}
            self.state["runs"][state.run.id] = entry
            self._save()
        if send_curves(self._client, entry["id"], run_dir, entry):
            self._save()
        if ended:
            return
        result = run_dir.result if state.finished else None
        if result is not None:
            send_planned(self._client, entry["id"], state.run, run_dir)
            send_class_metrics(self._client, entry["id"], run_dir, result["finished"])
            self._client.set_tag(entry["id"], "medloss.attempt", str(max(1, attempts(self.folder, state.run))))
            if state.error is not None:
                self._client.set_tag(entry["id"], "medloss.error", state.error)
            elif "medloss.error" in self._client.get_run(entry["id"]).data.tags:
                self._client.delete_tag(entry["id"], "medloss.error")  # of an earlier attempt
        self._set_status(entry, status, None if result is None else result["finished"])

    def _set_status(self, entry: dict[str, Any], status: str, ended: float | None = None) -> None:
        if entry["status"] == status:
            return
        if status == "RUNNING":
            self._client.update_run(entry["id"], status=status)
        else:
            self._client.set_terminated(entry["id"], status, None if ended is None else int(1000 * ended))
        # Its files have changed, too: a failed run may have been trained again.
        entry["status"], entry["files"] = status, False
        self._save()

    def _close(self, states: list[RunState], findings: Findings | None) -> None:
        """Close the parent run, with the findings or as interrupted."""
        parent = self.state["parent"]
        if findings is None:
            self._set_status(parent, "KILLED")
            return
        results = (run_folder(self.folder, run).result for run in self.plan.runs)
        ended = max(result["finished"] for result in results if result is not None)
        found.send_numbers(self._client, parent["id"], findings, ended)
        for run in self.plan.runs:
            if run.config.loss in findings.verdicts and run.id in self.state["runs"]:
                text = findings.verdicts[run.config.loss]
                self._client.set_tag(self.state["runs"][run.id]["id"], "medloss.verdict", text)
        failed = any(state.state == "failed" for state in states)
        self._set_status(parent, "FAILED" if failed else "FINISHED", ended)

    def _send_findings(self, findings: Findings) -> None:
        found.send_files(self._client, self.state["parent"]["id"], findings, self.folder, self.plan)
        if findings.best is None:
            return
        run_id, experiment = self.state["runs"][findings.best.id]["id"], self.state["experiment"]
        self.registered = found.send_network(self._client, experiment, run_id, findings, self.folder, self.plan)
        if findings.register is not None and self.registered is None:
            self.warn(f"--register-model: the run {findings.best.id} kept no network; nothing was registered")

    def _save(self) -> None:
        write_json(self.folder / _NAME, self.state)


# The thread: a slow server delays neither the progress display nor the restart of a worker

#: Seconds between updates: one per epoch would cost MLflow several times as much.
_EVERY_S = 10.0
#: Seconds between checks for a first state.
_FIRST_S = 0.25
#: Priority of the thread, below that of the runs on the same cores.
_NICE = 10
#: Seconds that an interrupted comparison waits for MLflow.
_PATIENCE_S = 5.0


@contextlib.contextmanager
def mirroring(mirror: Mirror) -> Iterator[Callable[[list[RunState]], None]]:
    """Bring MLflow up to date in a thread while the block runs.

    The end of the block waits for the run that is being sent; `Mirror.finish` sends the rest. An interrupted block
    waits for MLflow for a few seconds only.

    Yields:
        A function that takes the current states of all runs, and returns at once.
    """
    newest: list[list[RunState]] = []
    over = threading.Event()

    def work() -> None:
        if sys.platform == "linux":  # where threads have priorities
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
    interrupted = False
    try:
        yield hand_over
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        over.set()
        mirror.pause.set()

        def close() -> None:
            thread.join()
            mirror.pause.clear()
            if interrupted:
                mirror.finish(run_states(mirror.folder, mirror.plan), Findings())

        if not interrupted:
            close()
        elif mirror.state.get("parent"):  # else MLflow has not got the comparison
            closing = threading.Thread(target=close, name="MLflow, closing", daemon=True)
            closing.start()
            closing.join(_PATIENCE_S)
