"""What came of a comparison: the verdict, its evidence, and the best network, for MLflow's run of the comparison."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.comparison.plan import Plan, PlannedRun, run_folder
from pipelines.comparison.table import case_table
from pipelines.comparison.tracking.model import register, send_model
from pipelines.prediction.model import NAME as MODEL


@dataclass(frozen=True)
class Findings:
    """What came of a comparison.

    Attributes:
        table: the table's files.
        metrics: of the parent.
        verdict: the report's sentence; None without a report.
        report: the report's folder; None without a report.
        best: the best loss's best run, whose network is logged; None without a finished run.
        register: the name under which it is registered; None: it is not.
    """

    table: list[Path] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None
    report: Path | None = None
    best: PlannedRun | None = None
    register: str | None = None


def send_numbers(client: Any, run_id: str, findings: Findings, ended: float) -> None:
    """Send the verdict and the parent's metrics.

    Args:
        client: MLflow's.
        run_id: of the parent.
        findings: what came of the comparison.
        ended: when its last run did, unix time: sent again, the metrics are the same.
    """
    from mlflow.entities import Metric

    if findings.verdict is not None:
        note = f"{findings.verdict}\n\nThe evidence: artifact `report/report.html`."
        client.set_tag(run_id, "medloss.verdict", findings.verdict)
        client.set_tag(run_id, "mlflow.note.content", note)
    values = [Metric(name, value, int(1000 * ended), 0) for name, value in findings.metrics.items()]
    client.log_batch(run_id, metrics=values)


def send_files(client: Any, run_id: str, findings: Findings, folder: Path, plan: Plan) -> None:
    """Send the tables, all runs' validation cases as `cases.csv`, and the report, with its overlays, to `report/`.

    Args:
        client: MLflow's.
        run_id: of the parent.
        findings: what came of the comparison.
        folder: the comparison's.
        plan: the comparison's.
    """
    for path in findings.table:
        client.log_artifact(run_id, str(path))
    cases = case_table(folder, plan)
    if len(cases):
        with tempfile.TemporaryDirectory() as parent:
            path = Path(parent) / "cases.csv"
            cases.to_csv(path, index=False)
            client.log_artifact(run_id, str(path))
    if findings.report is not None:
        for path in sorted(findings.report.iterdir()):
            if path.is_dir():
                client.log_artifacts(run_id, str(path), f"report/{path.name}")
            elif path.suffix != ".lock":
                client.log_artifact(run_id, str(path), "report")


def send_network(client: Any, experiment: str, run_id: str, findings: Findings, folder: Path, plan: Plan) -> str | None:
    """Send the best run's network, and register it under the name that was asked for.

    Args:
        client: MLflow's.
        experiment: its number.
        run_id: of the best run.
        findings: what came of the comparison.
        folder: the comparison's.
        plan: the comparison's.

    Returns:
        `NAME version N`; None where nothing is registered.
    """
    assert findings.best is not None
    file = run_folder(folder, findings.best).path / MODEL
    if not file.is_file():
        return None
    tags = {"medloss.loss": findings.best.config.loss, "medloss.comparison": plan.id}
    model_id = send_model(client, experiment, run_id, tags, file)
    if findings.register is None:
        return None
    return f"{findings.register} version {register(client, findings.register, model_id, run_id)}"
