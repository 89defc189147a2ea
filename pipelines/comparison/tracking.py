"""MLflow: one process mirrors the runs' folders into it, as often as it can, and never stops a training."""

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.comparison.plan import Plan, PlannedRun, run_folder
from pipelines.comparison.state import RunState
from pipelines.comparison.worker import attempts
from pipelines.errors import UserError
from pipelines.evaluation.metrics import METRICS
from pipelines.files import read_json, write_json

_METRICS = {
    "train_loss": "train/loss",
    **{f"val_{name}": f"val/{name}" for name in METRICS},
    "epoch_s": "time/epoch_s",
    "data_share": "time/data_share",
    "peak_mb": "mem/peak_mb",
}
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_STATUS = {"running": "RUNNING", "interrupted": "KILLED", "done": "FINISHED", "failed": "FAILED"}
_ARTIFACTS = ("config.json", "result.json", "epochs.csv", "cases.csv")
#: As many as MLflow takes at once.
_MOST_METRICS = 1000
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
        warn: gets one line when MLflow cannot be reached.
    """

    def __init__(self, folder: Path, plan: Plan, tracking_uri: str | None, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self.plan = plan
        self.warn = warn
        self.uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or local_uri(folder)
        self.state: dict[str, Any] = read_json(folder / "mlflow.json") or {}
        if self.state.get("uri") != self.uri:
            self.state = {"uri": self.uri, "runs": {}}
        self._client: Any = None
        self._failed_at: float | None = None
        self._warned = False

    def sync(self, states: list[RunState], *, final: bool = False) -> bool:
        """Bring MLflow up to what the folders say; whether that worked.

        Args:
            states: of all runs.
            final: ask the server even if it did not answer a moment ago.
        """
        recently = self._failed_at is not None and time.monotonic() - self._failed_at < _RETRY_S
        if recently and not final:
            return False
        try:
            self._connect()
            if not all(state.finished for state in states):
                self._set_parent("RUNNING")
            for state in states:
                self._sync_run(state)
        except Exception as error:
            self._failed_at = time.monotonic()
            if not self._warned:
                self._warned = True
                reason = " ".join(str(error).split())[:200]
                self.warn(f"MLflow at {self.uri} cannot be reached ({reason}); training goes on, and is mirrored later")
            return False
        self._failed_at = None
        return True

    def finish(self, states: list[RunState], table: list[Path], metrics: dict[str, float]) -> bool:
        """Bring everything up to date, and close the parent: with the table, once all runs are finished."""
        if not self.sync(states, final=True):
            return False
        try:
            if all(state.finished for state in states):
                self._log_table(table, metrics)
                failed = any(state.state == "failed" for state in states)
                self._set_parent("FAILED" if failed else "FINISHED")
            else:
                for state in states:
                    entry = self.state["runs"].get(state.run.id)
                    if not state.finished and entry is not None:
                        self._set_status(entry, "KILLED")
                self._set_parent("KILLED")
        except Exception as error:
            self.warn(f"MLflow at {self.uri} cannot be reached: {' '.join(str(error).split())[:200]}")
            return False
        return True

    def _connect(self) -> None:
        if self._client is not None:
            return
        quiet_mlflow()
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(self.plan.manifest_name)
        if experiment is None:
            location = None
            if self.uri == local_uri(self.folder):
                location = (self.folder / "mlartifacts").resolve().as_uri()
            self.state["experiment"] = client.create_experiment(self.plan.manifest_name, artifact_location=location)
        else:
            self.state["experiment"] = experiment.experiment_id
        # What someone removed, be it a run or the whole store, is written anew.
        if self.state.get("parent") and not _is_active(client, self.state["parent"]["id"]):
            self.state["parent"] = None
        self.state["runs"] = {
            name: entry for name, entry in self.state["runs"].items() if _is_active(client, entry["id"])
        }
        if not self.state.get("parent"):
            tags = {"medloss.comparison": self.plan.id, "medloss.manifest_sha256": self.plan.manifest_sha256}
            name = f"comparison of {len(self.plan.losses)} losses"
            parent = self._found(client, "parent") or self._create(client, name, tags | {"medloss.run": "parent"})
            self.state["parent"] = {"id": parent, "status": None}
            for entry in self.state["runs"].values():
                client.set_tag(entry["id"], "mlflow.parentRunId", parent)
            self._save()
        self._client = client

    def _set_parent(self, status: str) -> None:
        self._set_status(self.state["parent"], status)

    def _set_status(self, entry: dict[str, Any], status: str) -> None:
        if entry["status"] == status:
            return
        if status == "RUNNING":
            self._client.update_run(entry["id"], status=status)
        else:
            self._client.set_terminated(entry["id"], status)
        entry["status"] = status
        self._save()

    def _sync_run(self, state: RunState) -> None:
        entry = self.state["runs"].get(state.run.id)
        if state.state == "waiting":
            return
        status = _STATUS[state.state]
        if state.finished and entry is not None and entry["status"] == status:
            return
        if entry is None:
            entry = {"id": self._child(state.run), "epoch": 0, "status": None}
            self.state["runs"][state.run.id] = entry
            self._save()
        self._log_epochs(state.run, entry)
        if state.finished:
            self._log_end(state, entry)
        self._set_status(entry, status)

    def _log_epochs(self, run: PlannedRun, entry: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        new = [row for row in run_folder(self.folder, run).epochs if row["epoch"] > entry["epoch"]]
        if not new:
            return
        # The time is the epoch's own: a row that is sent twice is the same row.
        metrics = [
            Metric(name, row[column], int(1000 * row["time"]), int(row["epoch"]))
            for row in new
            for column, name in _METRICS.items()
            if not math.isnan(row.get(column, math.nan))  # a folder of an earlier version lacks some
        ]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(entry["id"], metrics=metrics[start : start + _MOST_METRICS])
        entry["epoch"] = int(new[-1]["epoch"])
        self._save()

    def _log_end(self, state: RunState, entry: dict[str, Any]) -> None:
        own = run_folder(self.folder, state.run)
        for name in _ARTIFACTS:
            if (own.path / name).is_file():
                self._client.log_artifact(entry["id"], str(own.path / name))
        self._client.set_tag(entry["id"], "medloss.attempt", str(attempts(self.folder, state.run)))
        if state.error is not None:
            self._client.set_tag(entry["id"], "medloss.error", state.error)
        elif "medloss.error" in self._client.get_run(entry["id"]).data.tags:
            self._client.delete_tag(entry["id"], "medloss.error")  # it failed once, and was tried again

    def _log_table(self, table: list[Path], metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric

        parent = self.state["parent"]["id"]
        for path in table:
            self._client.log_artifact(parent, str(path))
        results = (run_folder(self.folder, run).result for run in self.plan.runs)
        ended = max(result["finished"] for result in results if result is not None)
        # The time is the last run's end: sent again, they are the same.
        values = [Metric(name, value, int(1000 * ended), 0) for name, value in metrics.items()]
        self._client.log_batch(parent, metrics=values)

    def _child(self, run: PlannedRun) -> str:
        from mlflow.entities import Param

        config = run.config
        child = self._found(self._client, run.id) or self._create(
            self._client,
            f"{config.loss} · fold {config.fold} · seed {config.seed}",
            {
                "mlflow.parentRunId": self.state["parent"]["id"],
                "medloss.run": run.id,
                "medloss.comparison": self.plan.id,
                "medloss.loss": config.loss,
                "medloss.fold": str(config.fold),
                "medloss.seed": str(config.seed),
                "medloss.attempt": str(max(1, attempts(self.folder, run))),
            },
        )
        self._client.set_tag(child, "mlflow.parentRunId", self.state["parent"]["id"])  # found, it may have another
        content = config.model_dump(mode="json", exclude={"threads", "cache_dir"})
        params = [Param(name, str(value)[:6000]) for name, value in content.items() if value is not None]
        self._client.log_batch(child, params=params)
        return child

    def _create(self, client: Any, name: str, tags: dict[str, str]) -> str:
        run_id: str = client.create_run(self.state["experiment"], tags=tags, run_name=name).info.run_id
        return run_id

    def _found(self, client: Any, name: str) -> str | None:
        """A run that was made just before this process was killed, and never noted."""
        query = f"tags.`medloss.comparison` = '{self.plan.id}' and tags.`medloss.run` = '{name}'"
        found = client.search_runs([self.state["experiment"]], query, max_results=1)
        return found[0].info.run_id if found else None

    def _save(self) -> None:
        write_json(self.folder / "mlflow.json", self.state)


def local_uri(folder: Path) -> str:
    """The tracking URI of a comparison's own SQLite store."""
    return f"sqlite:///{(folder / 'mlflow.db').resolve()}"


def checked_tracking_uri(named: str | None, folder: Path) -> str | None:
    """The tracking URI that was given, or that `MLFLOW_TRACKING_URI` holds; None for the folder's own store.

    Raises:
        UserError: MLflow can use no such URI, or no such folder.
    """
    flag, uri = ("--tracking-uri", named) if named else ("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI"))
    if not uri:
        # In a database's URI one begins the options, the other an escape.
        if any(mark in str(folder.resolve()) for mark in "?%"):
            raise UserError(
                f"--out: {folder.resolve()} has a ? or % in it, which MLflow's store cannot; name another folder"
            )
        return None
    known = uri.partition(":")[0].partition("+")[0] in _SCHEMES
    if not known or ("://" not in uri and uri != "databricks"):
        raise UserError(
            f"{flag}: got '{uri}'; expected a server, as http://localhost:5000, "
            "or a database, as sqlite:////path/mlflow.db"
        )
    return uri


def quiet_mlflow() -> None:
    """Keep MLflow's own talk off the terminal, its telemetry off, and its patience short."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # read when MLflow is imported, later than here or before
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _is_active(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
