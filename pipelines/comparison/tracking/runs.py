"""The runs that a comparison has in MLflow: one for itself, and below it, on one level, one for each training."""

import contextlib
import getpass
from datetime import datetime
from typing import Any

from pipelines.comparison.plan import Plan, PlannedRun
from pipelines.comparison.planning.rungs import rung_title
from pipelines.training.run_folder import RunFolder

#: Told apart by most eyes as far as twenty colours can be; a loss has one in all its runs.
_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#332288", "#aa4499", "#999933",
    "#661100", "#44aa99", "#000000", "#b2df8a", "#fb9a99", "#8c6d31", "#c5b0d5", "#17becf", "#843c39", "#bdbd22",
)  # fmt: skip


def comparison_name(plan: Plan) -> str:
    """How a comparison, or a rung of its screening, is called among others on the same data."""
    losses = f"{len(plan.losses)} losses" if len(plan.losses) > 1 else "one loss"
    what = "comparison of" if plan.rung is None else f"{rung_title(plan)}:"
    return f"{what} {losses} · {datetime.fromtimestamp(plan.created):%Y-%m-%d %H:%M}"


def parent_run(client: Any, experiment: str, plan: Plan) -> str:
    """The comparison's own run; it is made if need be."""
    tags = {"medloss.manifest_sha256": plan.manifest_sha256, "medloss.metric": plan.metric}
    if plan.reference is not None:
        tags["medloss.reference"] = plan.reference
    return _run(client, experiment, plan, "parent", comparison_name(plan), plan.created, tags)


def child_run(client: Any, experiment: str, plan: Plan, run: PlannedRun, own: RunFolder, parent: str) -> str:
    """The run of one training; it is made if need be.

    Args:
        client: MLflow's.
        experiment: its number.
        plan: the comparison's.
        run: the training.
        own: its folder.
        parent: the comparison's run.
    """
    from mlflow.entities import Param

    config = run.config
    epochs = own.epochs
    tags = {
        "mlflow.parentRunId": parent,
        # MLflow's page shows runs below another closed; the first visitor finds such ones open, and so their curves.
        "mlflow.runType": "evaluation",
        "mlflow.runColor": _COLOURS[plan.losses.index(config.loss) % len(_COLOURS)],
        "medloss.loss": config.loss,
        "medloss.trained_as": config.trained_as,
        "medloss.fold": str(config.fold),
        "medloss.seed": str(config.seed),
        "medloss.attempt": "1",
    }
    name = f"{config.loss} · fold {config.fold} · seed {config.seed}"
    began = epochs[0]["time"] - epochs[0]["epoch_s"] if epochs else float("nan")
    child = _run(client, experiment, plan, run.id, name, began, tags)
    client.set_tag(child, "mlflow.parentRunId", parent)  # found, it may have another
    params = [Param(name, str(value)[:6000]) for name, value in config.settings().items()]
    client.log_batch(child, params=params)
    return child


def _run(client: Any, experiment: str, plan: Plan, key: str, name: str, began: float, tags: dict[str, str]) -> str:
    """A run by its tags `medloss.comparison` and `medloss.run`: found, or made."""
    # Made just before this process was killed, and never noted.
    query = f"tags.`medloss.comparison` = '{plan.id}' and tags.`medloss.run` = '{key}'"
    found = client.search_runs([experiment], query, max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = tags | {"medloss.comparison": plan.id, "medloss.run": key, "mlflow.source.name": "medloss compare"}
    with contextlib.suppress(Exception):  # a process may run as a user that has no name
        tags["mlflow.user"] = getpass.getuser()
    start = int(1000 * began) if began == began else None
    return str(client.create_run(experiment, start_time=start, tags=tags, run_name=name).info.run_id)
