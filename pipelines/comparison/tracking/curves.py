"""What a run's folder says step by step, as MLflow's metrics."""

import math
from collections.abc import Iterator
from typing import Any

from pipelines.comparison.system import read_samples
from pipelines.evaluation.registry import METRICS
from pipelines.training.run_folder import RunFolder

#: As many as MLflow takes at once.
_MOST_METRICS = 1000


def send_curves(client: Any, run_id: str, own: RunFolder, sent: dict[str, Any]) -> bool:
    """Send the epochs, and the samples of the machine, that are not there yet; whether there were any.

    Args:
        client: MLflow's.
        run_id: the run there.
        own: the run's folder.
        sent: `epoch` and `system`: the last ones that are there; set to what is there now.
    """
    epochs = [row for row in own.epochs if row["epoch"] > sent["epoch"]]
    samples = [(step, row) for step, row in read_samples(own.path) if step > sent.get("system", 0)]
    metrics = [*_of_epochs(epochs), *_of_samples(samples)]
    for start in range(0, len(metrics), _MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])
    if epochs:
        sent["epoch"] = int(epochs[-1]["epoch"])
    if samples:
        sent["system"] = samples[-1][0]
    return bool(metrics)


def _keys() -> dict[str, str]:
    """Column of `epochs.csv` -> MLflow's key."""
    return {
        "train_loss": "train/loss",
        "grad_norm": "train/grad_norm",
        "update_ratio": "train/update_ratio",
        "pseudo_dice": "val/pseudo_dice",
        **{f"val_{name}": f"val/{name}" for name in METRICS},
        "epoch_s": "time/epoch_s",
        "data_share": "time/data_share",
        "peak_mb": "mem/peak_mb",
    }


def _of_epochs(rows: list[dict[str, float]]) -> Iterator[Any]:
    from mlflow.entities import Metric

    keys = _keys()
    for row in rows:
        # The epoch's own: a row that is sent twice is the same row.
        time = row.get("time", math.nan)
        for column, name in keys.items():
            if not math.isnan(row.get(column, math.nan)):  # a folder of an earlier version lacks some
                yield Metric(name, row[column], 0 if math.isnan(time) else int(1000 * time), int(row["epoch"]))


def _of_samples(rows: list[tuple[int, dict[str, float]]]) -> Iterator[Any]:
    from mlflow.entities import Metric

    for step, row in rows:
        for name, value in row.items():
            if name != "time":
                yield Metric(f"system/{name}", value, int(1000 * row["time"]), step)
