"""A comparison's runs in MLflow: their tags and parameters, curves and data sets."""

import contextlib
import getpass
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from pipelines.data.manifest import Case, Manifest, load_manifest
from pipelines.evaluation.metrics import METRICS
from pipelines.runs.plan import Plan, PlannedRun
from pipelines.runs.summary import rung_title
from pipelines.training.run_folder import RunFolder
from pipelines.utils import UserError
from pipelines.utils.usage import read_samples

# The runs: a parent for the comparison, and a child for each of its runs

#: A colour per loss, as distinct for most people as twenty colours can be.
_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#332288", "#aa4499", "#999933",
    "#661100", "#44aa99", "#000000", "#b2df8a", "#fb9a99", "#8c6d31", "#c5b0d5", "#17becf", "#843c39", "#bdbd22",
)  # fmt: skip


def comparison_name(plan: Plan) -> str:
    """The name of a comparison, or of a rung of its screening, among others on the same data."""
    losses = f"{len(plan.losses)} losses" if len(plan.losses) > 1 else "one loss"
    what = "" if plan.rung is None else f"{rung_title(plan)}: "
    return f"{what}{losses} · {datetime.fromtimestamp(plan.created):%Y-%m-%d %H:%M}"


#: Characters of a loss's name in that of its run: MLflow's list cuts longer names, and fold and seed with them.
_FITS = 30


def child_name(plan: Plan, run: PlannedRun) -> str:
    """The name of a run in MLflow's list: the loss, and fold and seed if the comparison has several.

    The loss in full is the tag `medloss.loss`.
    """
    loss, half = run.config.loss, (_FITS - 1) // 2
    parts = [loss if len(loss) <= _FITS else f"{loss[:half]}…{loss[-half:]}"]
    if len({other.config.fold for other in plan.runs}) > 1:
        parts.append(f"fold {run.config.fold}")
    if len({other.config.seed for other in plan.runs}) > 1:
        parts.append(f"seed {run.config.seed}")
    return " · ".join(parts)


def parent_run(client: Any, experiment: str, plan: Plan, data: Mapping[str, str]) -> str:
    """Find or create the comparison's run, with the tags of its data set."""
    tags = dict(data) | {"medloss.manifest_sha256": plan.manifest_sha256, "medloss.metric": plan.metric}
    if plan.reference is not None:
        tags["medloss.reference"] = plan.reference
    return _run(client, experiment, plan, "parent", comparison_name(plan), plan.created, tags)


def child_run(
    client: Any, experiment: str, plan: Plan, run: PlannedRun, run_dir: RunFolder, parent: str, data: Mapping[str, str]
) -> str:
    """Find or create the MLflow run of one of the comparison's runs, below that of the comparison, `parent`.

    `data` are the tags of the data set.
    """
    from mlflow.entities import Param

    config = run.config
    epochs = run_dir.epochs
    tags = {
        **data,
        "mlflow.parentRunId": parent,
        # MLflow's page folds the children of other runs; of this type it shows them, and their curves.
        "mlflow.runType": "evaluation",
        "mlflow.runColor": _COLOURS[plan.losses.index(config.loss) % len(_COLOURS)],
        "medloss.loss": config.loss,
        "medloss.trained_as": config.trained_as,
        "medloss.fold": str(config.fold),
        "medloss.seed": str(config.seed),
        "medloss.attempt": "1",
    }
    began = epochs[0]["time"] - epochs[0]["epoch_s"] if epochs else float("nan")
    child = _run(client, experiment, plan, run.id, child_name(plan, run), began, tags)
    client.set_tag(child, "mlflow.parentRunId", parent)  # a run that was found may have another
    params = [Param(name, str(value)[:6000]) for name, value in config.settings().items()]
    client.log_batch(child, params=params)
    send_planned(client, child, run, run_dir)
    return child


def send_planned(client: Any, run_id: str, run: PlannedRun, run_dir: RunFolder) -> None:
    """Send as params what the plan left open and the run has filled in, such as learning rate, patch and spacing."""
    from mlflow.entities import Param

    try:
        begun = run_dir.config
    except (UserError, ValueError):
        return  # written by another version
    if begun is None:
        return
    known = run.config.settings()
    params = [Param(name, str(value)[:6000]) for name, value in begun.settings().items() if name not in known]
    client.log_batch(run_id, params=params)


def send_class_metrics(client: Any, run_id: str, run_dir: RunFolder, ended: float) -> None:
    """Send the mean metrics per class over the validation cases, as `val/<metric>/<class>`, without undefined values.

    They belong to the last epoch, and are timed at the end of the run: sent again, they are the same.
    """
    from mlflow.entities import Metric

    values: dict[tuple[str, str], list[float]] = {}
    for row in run_dir.cases:
        for name in METRICS.keys() & row.keys():
            value = float(row[name] or "nan")
            if row.get("class") and math.isfinite(value):
                values.setdefault((name, row["class"]), []).append(value)
    step = int(run_dir.epochs[-1]["epoch"]) if run_dir.epochs else 0
    metrics = [
        Metric(f"val/{name}/{_key_part(of_class)}", sum(found) / len(found), int(1000 * ended), step)
        for (name, of_class), found in sorted(values.items())
    ]
    for start in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])


def _key_part(name: str) -> str:
    """A class's name as a part of a key: MLflow allows letters, digits, and a few marks."""
    return re.sub(r"[^\w.: -]|/", "_", name, flags=re.ASCII)


def _run(client: Any, experiment: str, plan: Plan, key: str, name: str, began: float, tags: dict[str, str]) -> str:
    """Find or create a run by its tags `medloss.comparison` and `medloss.run`."""
    # An earlier process may have been killed after it created the run, before it recorded it.
    query = f"tags.`medloss.comparison` = '{plan.id}' and tags.`medloss.run` = '{key}'"
    found = client.search_runs([experiment], query, max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = tags | {"medloss.comparison": plan.id, "medloss.run": key, "mlflow.source.name": "medloss compare"}
    with contextlib.suppress(Exception):  # the process's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    start = int(1000 * began) if began == began else None
    return str(client.create_run(experiment, start_time=start, tags=tags, run_name=name).info.run_id)


# The curves

#: Most metrics that MLflow accepts in one request.
_MOST_METRICS = 1000
#: Column of `epochs.csv` -> MLflow's key; that of `val_<metric>` is `val/<metric>`.
_KEYS = {
    "train_loss": "train/loss", "grad_norm": "train/grad_norm", "update_ratio": "train/update_ratio",
    "pseudo_dice": "val/pseudo_dice", "epoch_s": "time/epoch_s", "data_share": "time/data_share",
    "peak_mb": "mem/peak_mb",
}  # fmt: skip


def send_curves(client: Any, run_id: str, run_dir: RunFolder, sent: dict[str, Any]) -> bool:
    """Send the epochs, and the samples of the machine, that MLflow does not have yet; returns whether there were any.

    `sent` has the last `epoch` and the last sample, `system`, that MLflow has, and is updated.
    """
    from mlflow.entities import Metric

    epochs = [row for row in run_dir.epochs if row["epoch"] > sent["epoch"]]
    samples = [(step, row) for step, row in read_samples(run_dir.path) if step > sent.get("system", 0)]
    # The time is the epoch's end and not the present: a row that is sent again is the same.
    keys = _KEYS | {f"val_{name}": f"val/{name}" for name in METRICS}
    metrics = [
        Metric(keys[column], value, int(1000 * row["time"]) if row.get("time", math.nan) > 0 else 0, int(row["epoch"]))
        for row in epochs
        for column, value in row.items()
        if column in keys and not math.isnan(value)
    ]
    metrics += [
        Metric(f"system/{name}", value, int(1000 * row["time"]), step)
        for step, row in samples
        for name, value in row.items()
        if name != "time"
    ]
    for start in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])
    if epochs:
        sent["epoch"] = int(epochs[-1]["epoch"])
    if samples:
        sent["system"] = samples[-1][0]
    return bool(metrics)


# The data sets

#: Characters of the manifest's SHA-256: MLflow keeps up to 36 and shows all.
_DIGEST = 12


class DataInputs:
    """The data set in the form of `MlflowClient.log_inputs`; its digest is the start of the manifest's SHA-256.

    `profile` describes the data by the manifest, as long as that has not changed since the comparison was planned.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def whole(self) -> list[Any]:
        """All cases: those that train in one fold validate in another."""
        cases = self._manifest.cases if self._manifest else None
        return [self._input(self.plan.manifest_name, "training and validation", cases)]

    def split(self, fold: int) -> list[Any]:
        """The cases that train and those that validate when a fold is held out."""
        training, validation = self._manifest.split(fold) if self._manifest else (None, None)
        name = self.plan.manifest_name
        return [
            self._input(f"{name} without fold {fold}", "training", training),
            self._input(f"{name} fold {fold}", "validation", validation),
        ]

    @property
    def tags(self) -> dict[str, str]:
        """Channels, regions and the ignored label, of a data set that has several, or has them."""
        return {f"medloss.{name}": text for name, text in _about(self._manifest).items()} if self._manifest else {}

    @cached_property
    def _manifest(self) -> Manifest | None:
        try:
            loaded = load_manifest(self.plan.runs[0].config.manifest)
        except UserError:
            return None  # the manifest may have been removed since the comparison was planned
        return loaded if loaded.sha256 == self.plan.manifest_sha256 else None

    def _input(self, name: str, context: str, cases: Sequence[Case] | None) -> Any:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        manifest = self._manifest
        kind, source = _source(manifest) if manifest else ("local", {"uri": self.plan.runs[0].config.manifest})
        about = (_schema(manifest), _profile(manifest, cases or ())) if manifest else ()
        digest = self.plan.manifest_sha256[:_DIGEST]
        dataset = Dataset(name, digest, kind, json.dumps(source), *map(json.dumps, about))
        return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def send_inputs(client: Any, run_id: str, inputs: list[Any]) -> None:
    """Log data sets, as `DataInputs` makes them, as a run's inputs."""
    from mlflow.exceptions import MlflowException

    for tries_left in reversed(range(5)):
        try:
            client.log_inputs(run_id, inputs)
            return
        except MlflowException as error:
            # Another comparison logged the same data at the same time: the server then refuses one of the two.
            if not tries_left or error.error_code != "BAD_REQUEST":
                raise
        time.sleep(0.1)


def _source(manifest: Manifest) -> tuple[str, dict[str, str]]:
    address = next((word for word in manifest.source.split() if word.startswith(("http://", "https://"))), None)
    return ("http", {"url": address.rstrip(".,;)")}) if address else ("local", {"uri": manifest.source})


def _schema(manifest: Manifest) -> dict[str, Any]:
    """MLflow's schema of arrays; -1 is any length."""

    def array(name: str, dtype: str, leading: list[int]) -> str:
        shape = [*leading, *([-1] * manifest.dimensions)]
        return json.dumps([{"type": "tensor", "name": name, "tensor-spec": {"dtype": dtype, "shape": shape}}])

    channels = [len(manifest.channels)] if len(manifest.channels) > 1 else []
    features, targets = array("image", "float32", channels), array("label", "uint8", [])
    return {"mlflow_tensorspec": {"features": features, "targets": targets}}


def _about(manifest: Manifest) -> dict[str, str]:
    """Channels, regions and the ignored label, as text; without what the manifest does not have."""
    names = {
        "channels": [channel.name for channel in manifest.channels] if len(manifest.channels) > 1 else [],
        "regions": list(manifest.regions),
        "ignore": [] if manifest.ignore is None else [str(manifest.ignore)],
    }
    return {name: ", ".join(values) for name, values in names.items() if values}


def _profile(manifest: Manifest, cases: Sequence[Case]) -> dict[str, Any]:
    return {
        "num_rows": len(cases),
        "patients": len({case.patient for case in cases}),
        "classes": {str(value): manifest.classes[value] for value in manifest.label_values},
        "spacing_mm": list(manifest.spacing),
        **_about(manifest),
        "modality": manifest.modality,
        "task": manifest.task,
        "license": manifest.license,
        "manifest_sha256": manifest.sha256,
    }
