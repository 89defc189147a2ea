"""The data set of a comparison, as MLflow's inputs of its runs."""

import json
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from pipelines.comparison.plan import Plan
from pipelines.dataset.manifest import Case, Manifest, load_manifest
from pipelines.errors import UserError

#: Characters of the manifest's SHA-256: MLflow shows all that it is given, and keeps 36.
_DIGEST = 12


class DataInputs:
    """The data set, as `MlflowClient.log_inputs` takes it; the digest is the start of the manifest's SHA-256.

    What the manifest says of the data stands in `profile`, as long as it is still the one that was planned with.

    Args:
        plan: whose data.
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

    @cached_property
    def _manifest(self) -> Manifest | None:
        try:
            loaded = load_manifest(self.plan.runs[0].config.manifest)
        except UserError:
            return None  # the comparison goes by its folder; its manifest may have been removed since
        return loaded if loaded.sha256 == self.plan.manifest_sha256 else None

    def _input(self, name: str, context: str, cases: Sequence[Case] | None) -> Any:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        manifest = self._manifest
        kind, source = _source(manifest) if manifest else ("local", {"uri": self.plan.runs[0].config.manifest})
        dataset = Dataset(
            name=name,
            digest=self.plan.manifest_sha256[:_DIGEST],
            source_type=kind,
            source=json.dumps(source),
            schema=json.dumps(_schema(manifest)) if manifest else None,
            profile=json.dumps(_profile(manifest, cases or ())) if manifest else None,
        )
        return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])


def send_inputs(client: Any, run_id: str, inputs: list[Any]) -> None:
    """Log data sets as a run's inputs.

    Args:
        client: MLflow's.
        run_id: the run.
        inputs: as `DataInputs` makes them.
    """
    from mlflow.exceptions import MlflowException

    for left in reversed(range(5)):
        try:
            client.log_inputs(run_id, inputs)
            return
        except MlflowException as error:
            # Another comparison on the same data told of them in the same moment: the server holds it against one.
            if not left or error.error_code != "BAD_REQUEST":
                raise
        time.sleep(0.1)


def _source(manifest: Manifest) -> tuple[str, dict[str, str]]:
    address = next((word for word in manifest.source.split() if word.startswith(("http://", "https://"))), None)
    return ("local", {"uri": manifest.source}) if address is None else ("http", {"url": address.rstrip(".,;)")})


def _schema(manifest: Manifest) -> dict[str, Any]:
    """As MLflow writes the schema of arrays; -1 is any length."""

    def array(name: str, dtype: str) -> str:
        shape = [-1] * manifest.dimensions
        return json.dumps([{"type": "tensor", "name": name, "tensor-spec": {"dtype": dtype, "shape": shape}}])

    return {"mlflow_tensorspec": {"features": array("image", "float32"), "targets": array("label", "uint8")}}


def _profile(manifest: Manifest, cases: Sequence[Case]) -> dict[str, Any]:
    return {
        "num_rows": len(cases),
        "patients": len({case.patient for case in cases}),
        "classes": {str(value): manifest.classes[value] for value in manifest.label_values},
        "spacing_mm": list(manifest.spacing),
        "modality": manifest.modality,
        "task": manifest.task,
        "license": manifest.license,
        "manifest_sha256": manifest.sha256,
    }
