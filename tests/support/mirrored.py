"""A comparison's folder without any training, brought to MLflow, and what MLflow's own client finds there."""

from pathlib import Path
from typing import Any

from pipelines.runs.comparison_folder import run_folder, run_states
from pipelines.runs.plan import Plan, make_plan
from pipelines.tracking.findings import Findings
from pipelines.tracking.mlflow_mirror import Mirror
from pipelines.tracking.mlflow_store import quiet_mlflow
from pipelines.training.run_config import RunConfig
from pipelines.utils.files import write_json


def client_of(uri: str) -> Any:
    quiet_mlflow()
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri)


def small_plan(losses: tuple[str, ...] = ("dice", "focal", "tversky"), epochs: int = 3) -> Plan:
    configs = [RunConfig(manifest="phantom", loss=loss, epochs=epochs, learning_rate=0.01) for loss in losses]
    return make_plan(configs, [1], [5], "phantom", "a" * 64)


def leave_run(folder: Path, plan: Plan, index: int, epochs: int, end: str | None = None, attempts: int = 1) -> None:
    """What a worker leaves after some epochs; validated in every second and in the last one."""
    run = plan.runs[index]
    own = run_folder(folder, run)
    own.write_config(run.config)
    write_json(own.path / "attempts.json", {"attempts": attempts})
    rows: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        row: dict[str, Any] = {"epoch": epoch, "train_loss": 1 / epoch, "epoch_s": 2.5, "peak_mb": 300.0}
        row |= {"grad_norm": 0.5 / epoch, "update_ratio": 0.01}
        row |= {"time": 1_700_000_000.0 + 60 * epoch, "data_share": 0.125}
        if epoch % 2 == 0 or epoch == run.config.epochs:
            row |= {"val_dice": 0.1 * epoch, "val_iou": 0.05 * epoch, "val_sensitivity": 0.5, "val_specificity": 0.9}
            row |= {"val_hd95_mm": 12.0, "val_assd_mm": 4.0, "val_nsd": 0.75}
        rows.append(row)
    own.write_epochs(rows)
    own.write_progress(epochs, run.config.epochs, 1.0, None)
    if end == "done":
        own.write_cases([{"case": "a", "patient": "p", "class": "organ", "dice": 0.3}])
        own.write_result({"state": "done", "error": None, "metrics": {"dice": 0.3}, "epoch_s": 2.5})
    elif end is not None:
        own.write_result({"state": "failed", "error": end})


def mirror_of(folder: Path, plan: Plan, uri: str | None = None) -> tuple[Mirror, list[str]]:
    warnings: list[str] = []
    return Mirror(folder, plan, uri, warnings.append), warnings


def synced(folder: Path, plan: Plan, uri: str | None = None) -> None:
    mirror, warnings = mirror_of(folder, plan, uri)
    assert mirror.sync(run_states(folder, plan)), warnings
    assert warnings == []


def finished(folder: Path, plan: Plan, uri: str | None = None, dice: float = 0.3) -> None:
    mirror, warnings = mirror_of(folder, plan, uri)
    table = folder / "table.csv"
    table.write_text("loss,dice\n")
    assert mirror.finish(run_states(folder, plan), Findings([table], {"best/dice": dice})), warnings
    assert warnings == []


def stored(uri: str, name: str = "phantom") -> dict[str, Any]:
    """Every run of an experiment, by its tag `medloss.run`; each must be there once."""
    client = client_of(uri)
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    by_name = {run.data.tags["medloss.run"]: run for run in runs}
    assert len(by_name) == len(runs)
    return by_name


def history_of(uri: str, run: Any) -> dict[str, list[tuple[int, float]]]:
    client = client_of(uri)
    names = run.data.metrics
    return {name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)] for name in names}


def artifacts_of(uri: str, run: Any) -> set[str]:
    return {item.path for item in client_of(uri).list_artifacts(run.info.run_id)}
