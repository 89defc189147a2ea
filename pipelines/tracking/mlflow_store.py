"""MLflow's store: its address and client, and the saved view of a comparison.

The view shows the curves of all losses side by side, the best first; by default MLflow's page draws the first ten runs,
with headings in alphabetical order. It is saved as a tag of the experiment, as MLflow keeps the views of users.
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

# The view

_TAG = "mlflow.sharedViewState."
#: MLflow's page allows 40: some are left to users.
_MOST_VIEWS = 30
_COLUMNS = ("val/dice", "val/nsd", "val/hd95_mm", "time/epoch_s", "mem/peak_mb")
_SECTIONS = ("val", "train", "time", "mem", "Model metrics", "System metrics")
_LARGE = {"columns": 2, "cardHeight": 520}
#: A line chart in the form that the page saves.
_LINE = {
    "type": "LINE", "lineSmoothness": 0, "xAxisScaleType": "linear", "scaleType": "linear", "range": {},
    "xAxisKey": "step", "selectedXAxisMetricKey": "", "yAxisKey": "metric", "yAxisExpressions": [],
    "ignoreOutliers": False, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True,
}  # fmt: skip


def save_view(client: Any, experiment: str, plan: Plan) -> bool:
    """Save the view, unless the experiment has it, and return whether it has; a screening needs none."""
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
    """The address of the comparison's charts.

    Args:
        server: its address.
        experiment: its number.
        plan: the comparison's.
        saved: whether its view is saved.
    """
    query = {"viewStateShareKey": _key(plan)} if saved else {"searchFilter": _runs(plan)}
    query["compareRunsMode"] = "CHART"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{urlencode(query, quote_via=quote)}"


def _key(plan: Plan) -> str:
    return f"medloss-{plan.id}"


def _runs(plan: Plan) -> str:
    """A filter for the comparison's runs, without their parent."""
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
        # One line per loss: the mean over its folds and seeds.
        by_loss = [{"mode": "param", "groupByData": "loss"}]
        state["groupBy"] = {"aggregateFunction": "average", "groupByKeys": by_loss}
    return state


def _section(name: str) -> dict[str, Any]:
    section = {"uuid": f"medloss-{name}", "name": name, "display": True, "isReordered": True, "isGenerated": True}
    return section | (_LARGE if name == _SECTIONS[0] else {})


def _chart(metric: str, settings: dict[str, Any]) -> dict[str, Any]:
    chart = {"uuid": f"medloss-{settings['type']}", "metricKey": metric, "metricSectionId": f"medloss-{_SECTIONS[0]}"}
    return chart | {"runsCountToCompare": 20, "isGenerated": False, "deleted": False} | settings


# The store and its client

_NAME = "mlflow.db"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def local_uri(folder: Path) -> str:
    """The tracking URI of the SQLite store in a comparison's folder."""
    return _uri(folder / _NAME)


def make_local_store(folder: Path) -> None:
    """Create the store in a comparison's folder, unless it exists; in one step.

    MLflow creates its tables one by one, and refuses a store that a killed process has left incomplete.
    """
    if (folder / _NAME).exists():
        return
    for leftover in folder.glob(f".{_NAME}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{_NAME}.", dir=folder))
    remove = partial(shutil.rmtree, temporary, ignore_errors=True)
    atexit.register(remove)  # an interrupted comparison does not wait for this thread
    try:
        open_client(_uri(temporary / _NAME))._tracking_client.store.engine.dispose()
        (temporary / _NAME).rename(folder / _NAME)
    finally:
        remove()
        atexit.unregister(remove)


def _uri(file: Path) -> str:
    return f"sqlite:///{file.resolve()}"


def without_password(text: str) -> str:
    """A URI, or a text that contains some, with its passwords hidden."""
    text = re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1:***@", text)
    # A database's password may contain a slash, and may be one of the options.
    text = re.sub(r"((?:postgresql|mysql|mssql)[+\w]*://[^/\s:@]*):[^\s@]*@", r"\1:***@", text)
    return re.sub(r"([?&](?:password|passwd|pwd|sslpassword)=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


def checked_tracking_uri(named: str | None, folder: Path) -> str | None:
    """The tracking URI from `--tracking-uri` or `MLFLOW_TRACKING_URI`; None for the store in the folder.

    Raises:
        UserError: MLflow cannot use the URI, or the folder.
    """
    flag, uri = ("--tracking-uri", named) if named else ("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI"))
    if not uri:
        # In a database's URI they begin the options and an escape.
        if any(mark in str(folder.resolve()) for mark in "?%"):
            raise UserError(
                f"--out: {folder.resolve()} has a ? or % in it, which MLflow's store cannot have; name another folder"
            )
        return None
    known = uri.partition(":")[0].partition("+")[0] in _SCHEMES
    if not known or ("://" not in uri and uri != "databricks"):
        raise UserError(
            f"{flag}: got '{without_password(uri)}'; expected a server, such as http://localhost:5000, "
            "or a database, such as sqlite:////path/mlflow.db"
        )
    return uri


def checked_model_name(name: str | None) -> str | None:
    """The name, if MLflow's registry of models accepts it; MLflow itself would refuse it hours later.

    Raises:
        UserError: it does not.
    """
    if name is None:
        return None
    if not name.strip() or name == "." or name.startswith("..") or any(mark in name for mark in "/:'"):
        raise UserError(f"--register-model: got '{name}'; expected a name without / : and ', and no dots before it")
    return name


def quiet_mlflow() -> None:
    """Silence MLflow on the terminal, switch off its telemetry, and shorten its timeouts."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # else a model includes files of the current folder
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault(
        "MLFLOW_LOGGING_LEVEL", "ERROR"
    )  # for an MLflow that is imported later; the next lines for one that is already
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)


def open_client(uri: str) -> Any:
    """MLflow's client of a store; connects at once only if the store is a database."""
    quiet_mlflow()
    import mlflow

    if not uri.startswith(("http://", "https://")):
        import mlflow.store.db.utils

        mlflow.store.db.utils.MAX_RETRY_COUNT = 1  # MLflow would retry for minutes; the mirror has its own retries
    return mlflow.MlflowClient(tracking_uri=uri)


def experiment_of(client: Any, name: str, location: str | None) -> str:
    """Find or create an experiment.

    Args:
        client: MLflow's.
        name: the experiment's.
        location: of a new one's artifacts; None: the server's default.

    Returns:
        Its number.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Else the page asks every visitor whether the experiment is about language models.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(name, artifact_location=location, tags=kind))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)  # created by another comparison at the same time
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)  # its name cannot be used again
    return str(experiment.experiment_id)


def is_active(client: Any, run_id: str) -> bool:
    """Whether a run exists and is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
