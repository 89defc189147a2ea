"""The result of a comparison in MLflow: verdict, report, and the best network as a registered model."""

import tempfile
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.runs.comparison_folder import run_folder
from pipelines.runs.plan import Plan, PlannedRun
from pipelines.runs.summary import case_table
from pipelines.training.saved_model import NAME as MODEL
from pipelines.training.saved_model import Model

#: The module with which MLflow loads the model; the package has to be installed there.
_LOADER = "pipelines.inference.predict"
_NAME = "model"
#: Voxels per axis of the example, which MLflow keeps as text.
_EXAMPLE = 16


@dataclass(frozen=True)
class Findings:
    """The result of a comparison."""

    table: list[Path] = field(default_factory=list)  #: its files
    metrics: dict[str, float] = field(default_factory=dict)  #: of the parent run
    verdict: str | None = None  #: the report's sentence
    verdicts: dict[str, str] = field(default_factory=dict)  #: loss -> what the report says of it, in a few words
    report: Path | None = None  #: its folder
    best: PlannedRun | None = None  #: the best run of the best loss, whose network is logged
    register: str | None = None  #: the name under which that network is registered


def send_numbers(client: Any, run_id: str, findings: Findings, ended: float) -> None:
    """Send the verdict and the parent's metrics, timed at the end of its last run: sent again, they are the same."""
    from mlflow.entities import Metric

    if findings.verdict is not None:
        note = f"{findings.verdict}\n\nThe evidence: artifact `report/report.html`."
        client.set_tag(run_id, "medloss.verdict", findings.verdict)
        client.set_tag(run_id, "mlflow.note.content", note)
    values = [Metric(name, value, int(1000 * ended), 0) for name, value in findings.metrics.items()]
    client.log_batch(run_id, metrics=values)


def send_files(client: Any, run_id: str, findings: Findings, folder: Path, plan: Plan) -> None:
    """Send the tables, the validation cases of all runs as `cases.csv`, and the report to `report/`."""
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
    """Send the best run's network, and register it if a name is given: returns `NAME version N`, else None."""
    assert findings.best is not None
    file = run_folder(folder, findings.best).path / MODEL
    if not file.is_file():
        return None
    tags = {"medloss.loss": findings.best.config.loss, "medloss.comparison": plan.id}
    model_id = send_model(client, experiment, run_id, tags, file)
    if findings.register is None:
        return None
    return f"{findings.register} version {register(client, findings.register, model_id, run_id)}"


# The network: logged with a signature and an example, and registered


def send_model(client: Any, experiment: str, run_id: str, tags: dict[str, str], file: Path) -> str:
    """Log a run's `model.pt`, unless it is logged already; returns the logged model's number.

    The upload is that file and MLflow's description of it: no pickled code.
    """
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{_NAME}'")
    # One that is not ready was begun by a process that was killed.
    found.sort(key=lambda model: str(model.status) != "READY")
    logged = (
        found[0] if found else client.create_logged_model(experiment, _NAME, run_id, tags, model_type="segmentation")
    )
    if str(logged.status) != "READY":
        _upload(client, run_id, logged, file)
    return str(logged.model_id)


def _upload(client: Any, run_id: str, logged: Any, file: Path) -> None:
    import torch

    from pipelines.training.saved_model import load_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about types inside MLflow
        import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model as Description

    model, number = load_model(file, torch.device("cpu"), "float32"), logged.model_id
    described = Description(logged.artifact_location, run_id, model_uuid=number, model_id=number)
    with tempfile.TemporaryDirectory() as parent:
        folder = str(Path(parent) / "model")
        mlflow.pyfunc.save_model(
            folder, loader_module=_LOADER, data_path=str(file), signature=_signature(model),
            input_example=_example(model), metadata=_metadata(model),
            pip_requirements=[f"medloss[pipelines]=={version('medloss')}"], mlflow_model=described,
        )  # fmt: skip
        client.log_model_artifacts(number, folder)
    outputs = client.get_run(run_id).outputs
    if all(output.model_id != number for output in (outputs.model_outputs if outputs else [])):
        client.log_outputs(run_id, [LoggedModelOutput(number, step=0)])
    client.finalize_logged_model(number, "READY")


def register(client: Any, name: str, model_id: str, run_id: str) -> str:
    """Register a logged model under a name, unless it is registered already; returns its version."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not models:/..., which MLflow resolves in the store of the process and not of the client.
    source = client.get_logged_model(model_id).artifact_location
    for found in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if found.source == source:
            return str(found.version)
    return str(client.create_model_version(name, source, run_id, model_id=model_id).version)


def _signature(model: Model) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from pipelines.inference.predict import label_type

    grid = (-1,) * model.preprocessing.dimensions
    channels = (model.in_channels,) if model.in_channels > 1 else ()
    # Empty: that of the network's grid, whichever way the array's axes run; MLflow fills in defaults one by one.
    spacing = ParamSpec("spacing", "double", [], (-1,))
    axes = ParamSpec("axes", "string", _axes(model))
    return ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), (*channels, *grid))]),
        Schema([TensorSpec(label_type(model), grid)]),
        ParamSchema([spacing, axes, ParamSpec("flips", "boolean", False)]),
    )


def _metadata(model: Model) -> dict[str, Any] | None:
    """What the signature does not say: the names of several channels, and the regions; None if there are none."""
    several = {"channels": list(model.channels)} if model.in_channels > 1 else {}
    regions = {name: list(values) for name, values in model.scheme.regions.items()}
    return several | ({"regions": regions} if regions else {}) or None


def _example(model: Model) -> Any:
    """A synthetic image, which shows the format: a patient's image would be copied along with the model."""
    import numpy as np

    ramp = np.indices((_EXAMPLE,) * model.preprocessing.dimensions, np.float32).sum(0)
    image = np.stack([ramp] * model.in_channels) if model.in_channels > 1 else ramp
    return image, {"spacing": _spacing(model), "axes": _axes(model), "flips": False}


def _spacing(model: Model) -> list[float]:
    return list(model.preprocessing.spacing or (1.0,) * model.preprocessing.dimensions)


def _axes(model: Model) -> str:
    return "RAS"[: model.preprocessing.dimensions]
