"""MLflow's store: its address, its client and the page of a comparison in it."""

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
from pipelines.utils import UserError

_NAME = "mlflow.db"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")


def local_uri(folder: Path) -> str:
    """The tracking URI of the SQLite store in a comparison's folder."""
    return f"sqlite:///{(folder / _NAME).resolve()}"


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
        open_client(local_uri(temporary))._tracking_client.store.engine.dispose()
        (temporary / _NAME).rename(folder / _NAME)
    finally:
        remove()
        atexit.unregister(remove)


def page_address(server: str, experiment: str, plan: Plan) -> str:
    """The address of the charts of a comparison's runs, without their parent, the best first."""
    query = {
        "searchFilter": f"tags.`medloss.comparison` = '{plan.id}' and params.loss != ''",
        "orderByKey": f"metrics.`val/{plan.metric}`",
        "orderByAsc": "false" if METRICS[plan.metric].higher_is_better else "true",
        "compareRunsMode": "CHART",
    }
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{urlencode(query, quote_via=quote)}"


# The list of runs: by default MLflow shows source, models and data set, and neither scores nor tags; so a view is saved
# as a tag of the experiment, as MLflow keeps the views of users.

_VIEW = "mlflow.sharedViewState."
#: MLflow's page allows 40: some are left to users.
_MOST_VIEWS = 30


def save_view(client: Any, experiment: str, plan: Plan, name: str) -> bool:
    """Save the list of a comparison's runs, with score, verdict and cost as columns.

    Returns:
        Whether there is one; an experiment with too many views gets no more.
    """
    tags = client.get_experiment(experiment).tags
    key = f"{_VIEW}medloss-{plan.id}"
    if key in tags or sum(other.startswith(_VIEW) for other in tags) >= _MOST_VIEWS:
        return key in tags
    metrics = dict.fromkeys((f"val/{plan.metric}", "val/dice", "time/epoch_s", "mem/peak_mb"))
    state = {
        "searchFilter": f"tags.`medloss.comparison` = '{plan.id}'",
        "orderByKey": f"metrics.`val/{plan.metric}`",
        "orderByAsc": not METRICS[plan.metric].higher_is_better,
        "selectedColumns": [*(f"metrics.`{metric}`" for metric in metrics), "tags.`medloss.verdict`"],
        "runsHiddenMode": "SHOW_ALL",
    }
    begun = int(1000 * plan.created)
    view = {"name": name, "createdAt": begun, "updatedAt": begun, "state": json.dumps(state)}
    client.set_experiment_tag(experiment, key, json.dumps(view))
    return True


def runs_address(server: str, experiment: str, plan: Plan) -> str:
    """The address of the list of a comparison's runs, in the view that `save_view` saved."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?viewStateShareKey=medloss-{plan.id}"


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


_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "PGCONNECT_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else a model includes files of the current folder
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


def quiet_mlflow() -> None:
    """Silence MLflow on the terminal, switch off its telemetry, and shorten its timeouts."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # For an MLflow that is imported already.
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
    """Find or create an experiment; `location` is of a new one's artifacts, None: the server's. Returns its number."""
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
