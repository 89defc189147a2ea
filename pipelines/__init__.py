"""Training, comparison and reports for segmentation losses, on NIfTI data sets."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
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

#: The modules that the extra `pipelines` brings: whoever installs `medloss` for its losses does not have them.
EXTRA = (
    "PIL", "click", "ignite", "jinja2", "matplotlib", "mlflow", "networkx", "nibabel", "pandas", "psutil", "pydantic",
    "pynvml", "rich", "tqdm", "yaml",
)  # fmt: skip


def main() -> None:
    """The command `medloss`: `pipelines.cli`, or one line that names the packages it needs, and exit code 2."""
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        print(
            f"error: the command medloss needs packages that are not installed ({', '.join(missing)}); expected those "
            "of the extra: pip install 'medloss[pipelines]', or in a checkout pip install '.[pipelines]'",
            file=sys.stderr,
        )
        sys.exit(2)
    import_module("pipelines.cli").main()


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
