"""MLflow's store: where it is, how it is reached, and the view of a comparison that it shows.

A view of a comparison for MLflow's page: its losses' curves side by side, the best first.

Left to itself the page draws ten runs, in the order in which they began, under headings in the order of the alphabet.
MLflow keeps views that users save as tags of the experiment; this one is such a view, and stands among theirs.
"""

import atexit
import json
import logging
import os
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from pipelines.evaluation.metrics import METRICS
from pipelines.runs.plan import Plan
from pipelines.tracking.mlflow_runs import comparison_name
from pipelines.utils import UserError

_TAG = "mlflow.sharedViewState."
#: MLflow's page lets users save no more when there are 40.
_MOST_VIEWS = 30
_COLUMNS = ("val/dice", "val/nsd", "val/hd95_mm", "time/epoch_s", "mem/peak_mb")
_SECTIONS = ("val", "train", "time", "mem", "Model metrics", "System metrics")
_LARGE = {"columns": 2, "cardHeight": 520}
#: As the page itself saves a chart of lines.
_LINE = {
    "type": "LINE", "lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {},
    "xAxisKey": "step", "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [],
    "ignoreOutliers": False, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
}  # fmt: skip


def save_view(client: Any, experiment: str, plan: Plan) -> bool:
    """Save the view, unless it is there; whether it is. A screening needs none."""
    if plan.rung is not None:
        return False
    tags = client.get_experiment(experiment).tags
    if _TAG + _key(plan) in tags:
        return True
    if sum(name.startswith(_TAG) for name in tags) >= _MOST_VIEWS:
        return False
    begun = int(1000 * plan.created)
    view = {"name": comparison_name(plan), "createdAt": begun, "updatedAt": begun, "state": json.dumps(_state(plan))}
    client.set_experiment_tag(experiment, _TAG + _key(plan), json.dumps(view))
    return True


def page_address(server: str, experiment: str, plan: Plan, saved: bool) -> str:
    """Where a browser finds the comparison's charts.

    Args:
        server: its address.
        experiment: its number.
        plan: the comparison's.
        saved: whether its view is.
    """
    query = {"viewStateShareKey": _key(plan)} if saved else {"searchFilter": _runs(plan)}
    query["compareRunsMode"] = "CHART"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{urlencode(query, quote_via=quote)}"


def _key(plan: Plan) -> str:
    return f"medloss-{plan.id}"


def _runs(plan: Plan) -> str:
    """The trainings, without the comparison's own run."""
    return f"tags.`medloss.comparison` = '{plan.id}' and params.loss != ''"


def _state(plan: Plan) -> dict[str, Any]:
    primary = f"val/{plan.metric}"
    line = _LINE | {"selectedMetricKeys": [primary]}
    state: dict[str, Any] = {
        "searchFilter": _runs(plan),
        "orderByKey": f"metrics.`{primary}`",
        "orderByAsc": not METRICS[plan.metric].higher_is_better,
        "selectedColumns": [f"metrics.`{name}`" for name in dict.fromkeys((primary, *_COLUMNS))],
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunSections": [_section(name) for name in _SECTIONS],
        "compareRunCharts": [_chart(primary, line), _chart(primary, {"type": "BAR"})],
    }
    if len(plan.runs) > len(plan.losses):
        # A line a loss: the mean over its folds and seeds.
        by_loss = [{"mode": "param", "groupByData": "loss"}]
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": by_loss}
    return state


def _section(name: str) -> dict[str, Any]:
    section = {"uuid": f"medloss-{name}", "name": name, "display": True, "isReordered": True, "isGenerated": True}
    return section | (_LARGE if name == _SECTIONS[0] else {})


def _chart(metric: str, own: dict[str, Any]) -> dict[str, Any]:
    chart = {"uuid": f"medloss-{own['type']}", "metricKey": metric, "metricSectionId": f"medloss-{_SECTIONS[0]}"}
    return chart | {"runsCountToCompare": 20, "isGenerated": False, "deleted": False} | own


# Where MLflow keeps things: which store, and how it is asked.

_NAME = "mlflow.db"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def local_uri(folder: Path) -> str:
    """The tracking URI of a comparison's own SQLite store."""
    return _uri(folder / _NAME)


def make_local_store(folder: Path) -> None:
    """Make a comparison's own store, unless it is there: whole or not at all.

    MLflow makes its tables one by one, and a store of which a killed process has made a part it takes never again.
    """
    if (folder / _NAME).exists():
        return
    for left in folder.glob(f".{_NAME}.*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{_NAME}.", dir=folder))
    remove = partial(shutil.rmtree, temporary, ignore_errors=True)
    atexit.register(remove)  # an interrupted comparison does not wait for the thread that is at this
    try:
        open_client(_uri(temporary / _NAME))._tracking_client.store.engine.dispose()
        (temporary / _NAME).rename(folder / _NAME)
    finally:
        remove()
        atexit.unregister(remove)


def _uri(file: Path) -> str:
    return f"sqlite:///{file.resolve()}"


def without_password(text: str) -> str:
    """A URI, or a text with some in it, as it may be shown and written down."""
    text = re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1:***@", text)
    # A database's may hold a slash, and may stand among the options.
    text = re.sub(r"((?:postgresql|mysql|mssql)[+\w]*://[^/\s:@]*):[^\s@]*@", r"\1:***@", text)
    return re.sub(r"([?&](?:password|passwd|pwd|sslpassword)=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


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
            f"{flag}: got '{without_password(uri)}'; expected a server, as http://localhost:5000, "
            "or a database, as sqlite:////path/mlflow.db"
        )
    return uri


def checked_model_name(name: str | None) -> str | None:
    """A name for MLflow's registry of models.

    Raises:
        UserError: MLflow would refuse it, hours later.
    """
    if name is None:
        return None
    if not name.strip() or name == "." or name.startswith("..") or any(mark in name for mark in "/:'"):
        raise UserError(f"--register-model: got '{name}'; expected a name without / : and ', and no dots before it")
    return name


def quiet_mlflow() -> None:
    """Keep MLflow's own talk off the terminal, its telemetry off, and its patience short."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # else a model takes along files of the current folder
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")  # read when MLflow is imported, later than here or before
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def open_client(uri: str) -> Any:
    """MLflow's client of a store; it makes no connection yet, unless the store is a database."""
    quiet_mlflow()
    import mlflow

    if not uri.startswith(("http://", "https://")):
        import mlflow.store.db.utils

        mlflow.store.db.utils.MAX_RETRY_COUNT = 1  # it would sleep for minutes; the mirror asks again by itself
    return mlflow.MlflowClient(tracking_uri=uri)


def experiment_of(client: Any, name: str, location: str | None) -> str:
    """The number of the experiment of this name; it is made if need be.

    Args:
        client: MLflow's.
        name: the experiment's.
        location: of a new one's artifacts; None: as the server says.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Else the page asks every reader whether this is about language models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)  # another comparison, which began in the same moment
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)  # MLflow lets nobody take its name
    return str(experiment.experiment_id)


def is_active(client: Any, run_id: str) -> bool:
    """Whether a run is there, and not removed."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
