"""Training, comparison and reports for segmentation losses, on NIfTI data sets."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

#: Modules by the names that exported bundles, models in MLflow and SLURM's queued jobs hold: where they are now.
MOVED = {
    "pipelines.comparison.executors.task": "pipelines.comparison.executors.slurm",
    "pipelines.prediction": "pipelines.inference",
    "pipelines.prediction.mlflow_model": "pipelines.inference.predict",
    "pipelines.prediction.model": "pipelines.training.saved_model",
    "pipelines.prediction.windows": "pipelines.training.saved_model",
    "pipelines.resources": "pipelines.utils.files",
    "pipelines.training.optimization": "pipelines.utils.machine",
    "pipelines.training.parts": "pipelines.training.components",
    "pipelines.training.ranks": "pipelines.training.distributed",
}


class _Moved(MetaPathFinder, Loader):
    """Imports a module by its former name, as one that has the same contents."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        contents = vars(import_module(MOVED[module.__name__]))
        vars(module).update({name: value for name, value in contents.items() if not name.startswith("__")})


sys.meta_path.append(_Moved())
