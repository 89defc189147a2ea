"""Which of a comparison's networks is the one to use."""

from pathlib import Path

from pipelines.comparison.plan import Plan, PlannedRun, run_folder
from pipelines.comparison.table import Table
from pipelines.evaluation.registry import METRICS


def best_mean(plan: Plan, table: Table) -> tuple[str, float] | None:
    """The loss with the best mean of the primary measure, and that mean; None when no run has finished.

    A loss of which a run failed has its mean over easier cases, perhaps: it is the best only where all are such.
    """
    finished = table.rows.dropna(subset=[plan.metric])
    whole = finished[~finished["loss"].isin(table.partial)]
    finished = whole if len(whole) else finished
    if not len(finished):
        return None
    row = finished.iloc[int((METRICS[plan.metric].sign * finished[plan.metric]).argmax())]
    return str(row["loss"]), float(row[plan.metric])


def best_run(folder: Path, plan: Plan, table: Table) -> PlannedRun | None:
    """The best run, by the primary measure, of the loss with the best mean; None when none has finished."""
    best = best_mean(plan, table)
    if best is None:
        return None
    scores: dict[str, float] = {}
    runs = [run for run in plan.runs if run.config.loss == best[0]]
    for run in runs:
        result = run_folder(folder, run).result
        # A measure that no case has (a distance, where all are empty) is null there.
        if result is not None and result["state"] == "done" and result["metrics"].get(plan.metric) is not None:
            scores[run.id] = METRICS[plan.metric].sign * result["metrics"][plan.metric]
    return max((run for run in runs if run.id in scores), key=lambda run: scores[run.id], default=None)
