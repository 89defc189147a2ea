"""A run's trained network in MLflow: logged with its signature and an example, and registered under a name."""

import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.prediction.model import Model

#: The module that makes MLflow's model of the file again; the package has to be installed where it is used.
_LOADER = "pipelines.prediction.mlflow_model"
_NAME = "model"
#: Voxels an axis: MLflow keeps examples as text.
_EXAMPLE = 16


def send_model(client: Any, experiment: str, run_id: str, tags: dict[str, str], file: Path) -> str:
    """Log a run's `model.pt`, unless it is logged; returns the logged model's number.

    What is uploaded is that file, as it is, beside MLflow's description of it: no pickled code.

    Args:
        client: MLflow's.
        experiment: its number.
        run_id: the run that trained it.
        tags: of the logged model.
        file: the weights.
    """
    query = f"source_run_id = '{run_id}' AND name = '{_NAME}'"
    found = client.search_logged_models([experiment], query)
    for model in found:
        if str(model.status) == "READY":
            return str(model.model_id)
    # One that is not ready was begun before this process was killed.
    begun = (
        found[0] if found else client.create_logged_model(experiment, _NAME, run_id, tags, model_type="segmentation")
    )
    _upload(client, run_id, begun, file)
    return str(begun.model_id)


def _upload(client: Any, run_id: str, logged: Any, file: Path) -> None:
    import torch

    from pipelines.prediction.model import load_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow's own types, to nobody's use
        import mlflow.pyfunc
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model as Description

    model = load_model(file, torch.device("cpu"), "float32")
    described = Description(
        artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
    )
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=_LOADER,
            data_path=str(file),
            signature=_signature(model),
            input_example=_example(model),
            pip_requirements=[f"medloss=={version('medloss')}"],
            mlflow_model=described,
        )
        client.log_model_artifacts(logged.model_id, str(folder))
    outputs = client.get_run(run_id).outputs
    if all(output.model_id != logged.model_id for output in (outputs.model_outputs if outputs else [])):
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    client.finalize_logged_model(logged.model_id, "READY")


def register(client: Any, name: str, model_id: str, run_id: str) -> str:
    """Register a logged model under a name; returns its version, the one that it has already where it is there."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # Not as models:/..., which MLflow looks for in the store of the process, not of the client.
    source = client.get_logged_model(model_id).artifact_location
    for there in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if there.source == source:
            return str(there.version)
    return str(client.create_model_version(name, source, run_id, model_id=model_id).version)


def _signature(model: Model) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from pipelines.prediction.mlflow_model import label_type

    grid = (-1,) * model.preprocessing.dimensions
    spacing = ParamSpec("spacing", "double", _spacing(model), (-1,))
    return ModelSignature(
        Schema([TensorSpec(np.dtype(np.float32), grid)]),
        Schema([TensorSpec(label_type(model), grid)]),
        ParamSchema([spacing, ParamSpec("flips", "boolean", False)]),
    )


def _example(model: Model) -> Any:
    """A made image, for its form alone: a patient's would go wherever the model goes."""
    import numpy as np

    axes = np.indices((_EXAMPLE,) * model.preprocessing.dimensions, np.float32)
    return axes.sum(0), {"spacing": _spacing(model), "flips": False}


def _spacing(model: Model) -> list[float]:
    return list(model.preprocessing.spacing or (1.0,) * model.preprocessing.dimensions)
