"""A view of a comparison for MLflow's page: its losses' curves side by side, the best first.

Left to itself the page draws ten runs, in the order in which they began, under headings in the order of the alphabet.
MLflow keeps views that users save as tags of the experiment; this one is such a view, and stands among theirs.
"""

import json
from typing import Any
from urllib.parse import quote, urlencode

from pipelines.comparison.plan import Plan
from pipelines.comparison.tracking.runs import comparison_name
from pipelines.evaluation.registry import METRICS

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
