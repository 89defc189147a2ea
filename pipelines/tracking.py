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
from pipelines.files import read_json, write_json

_METRICS = {
    "train_loss": "train/loss", "val_dice": "val/dice", "val_sensitivity": "val/sensitivity",
    "val_specificity": "val/specificity", "val_hd95_mm": "val/hd95_mm", "epoch_s": "time/epoch_s",
    "peak_mb": "mem/peak_mb",
}  # fmt: skip
_ARTIFACTS = ("config.json", "result.json", "epochs.csv", "cases.csv")
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
        parent = self.state["parent"]
        try:
            if all(state.finished for state in states):
                for path in table:
                    self._client.log_artifact(parent, str(path))
                for name, value in metrics.items():
                    self._client.log_metric(parent, name, value)
                failed = any(state.state == "failed" for state in states)
                self._client.set_terminated(parent, "FAILED" if failed else "FINISHED")
            else:
                for state in states:
                    entry = self.state["runs"].get(state.run.id)
                    if not state.finished and entry is not None:
                        self._client.set_terminated(entry["id"], "KILLED")
                        entry["status"] = "KILLED"
                self._client.set_terminated(parent, "KILLED")
                self._save()
        except Exception as error:
            self.warn(f"MLflow at {self.uri} cannot be reached: {' '.join(str(error).split())[:200]}")
            return False
        return True

    def _connect(self) -> None:
        if self._client is not None:
            return
        quiet_mlflow()
        import mlflow
        from mlflow.entities import ViewType

        client = mlflow.MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(self.plan.manifest_name)
        if experiment is None:
            location = None
            if self.uri == local_uri(self.folder):
                location = (self.folder / "mlartifacts").resolve().as_uri()
            self.state["experiment"] = client.create_experiment(self.plan.manifest_name, artifact_location=location)
        else:
            self.state["experiment"] = experiment.experiment_id
        self._active_only = ViewType.ACTIVE_ONLY
        self._client = client
        if "parent" not in self.state:
            tags = {"medloss.comparison": self.plan.id, "medloss.manifest_sha256": self.plan.manifest_sha256}
            name = f"comparison of {len(self.plan.losses)} losses"
            self.state["parent"] = self._found("parent") or self._create(name, tags | {"medloss.run": "parent"})
            self._save()
        else:
            client.update_run(self.state["parent"], status="RUNNING")

    def _sync_run(self, state: RunState) -> None:
        entry = self.state["runs"].get(state.run.id)
        if state.state == "waiting" or (entry is not None and entry["status"] == _status(state)):
            return
        if entry is None:
            entry = {"id": self._child(state.run), "epoch": 0, "status": "RUNNING"}
            self.state["runs"][state.run.id] = entry
            self._save()
        elif entry["status"] != "RUNNING":
            self._client.update_run(entry["id"], status="RUNNING")
            entry["status"] = "RUNNING"
        self._log_epochs(state.run, entry)
        if state.finished:
            self._close(state, entry)

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
            if not math.isnan(row[column])
        ]
        self._client.log_batch(entry["id"], metrics=metrics)
        entry["epoch"] = int(new[-1]["epoch"])
        self._save()

    def _close(self, state: RunState, entry: dict[str, Any]) -> None:
        own = run_folder(self.folder, state.run)
        for name in _ARTIFACTS:
            if (own.path / name).is_file():
                self._client.log_artifact(entry["id"], str(own.path / name))
        self._client.set_tag(entry["id"], "medloss.attempt", str(attempts(self.folder, state.run)))
        if state.error is not None:
            self._client.set_tag(entry["id"], "medloss.error", state.error)
        self._client.set_terminated(entry["id"], _status(state))
        entry["status"] = _status(state)
        self._save()

    def _child(self, run: PlannedRun) -> str:
        from mlflow.entities import Param

        found = self._found(run.id)
        if found is not None:
            return found
        config = run.config
        child = self._create(
            f"{config.loss} · fold {config.fold} · seed {config.seed}",
            {
                "mlflow.parentRunId": self.state["parent"],
                "medloss.run": run.id,
                "medloss.comparison": self.plan.id,
                "medloss.loss": config.loss,
                "medloss.fold": str(config.fold),
                "medloss.seed": str(config.seed),
                "medloss.attempt": str(max(1, attempts(self.folder, run))),
            },
        )
        content = config.model_dump(mode="json", exclude={"threads", "cache_dir"})
        params = [Param(name, str(value)[:6000]) for name, value in content.items() if value is not None]
        self._client.log_batch(child, params=params)
        return child

    def _create(self, name: str, tags: dict[str, str]) -> str:
        run_id: str = self._client.create_run(self.state["experiment"], tags=tags, run_name=name).info.run_id
        return run_id

    def _found(self, name: str) -> str | None:
        """A run that was made just before this process was killed, and never noted."""
        query = f"tags.`medloss.comparison` = '{self.plan.id}' and tags.`medloss.run` = '{name}'"
        found = self._client.search_runs([self.state["experiment"]], query, self._active_only, max_results=1)
        return found[0].info.run_id if found else None

    def _save(self) -> None:
        write_json(self.folder / "mlflow.json", self.state)


def local_uri(folder: Path) -> str:
    """The tracking URI of a comparison's own SQLite store."""
    return f"sqlite:///{(folder / 'mlflow.db').resolve()}"


def quiet_mlflow() -> None:
    """Keep MLflow's own talk off the terminal, its telemetry off, and its patience short."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _status(state: RunState) -> str:
    return {"done": "FINISHED", "failed": "FAILED"}.get(state.state, "RUNNING_OR_KILLED")
