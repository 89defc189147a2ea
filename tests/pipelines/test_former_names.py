"""Former names of modules: what exported bundles, models in MLflow and SLURM's queued jobs hold."""

import pickle
from importlib import import_module

import pytest

from pipelines import MOVED
from pipelines.comparison.executors.slurm import Task

#: What was imported by these names before the modules moved.
_HELD = [
    (former, name)
    for former, names in {
        "comparison.executors.task": ("Task",),
        "prediction.mlflow_model": ("_load_pyfunc",),
        "prediction.model": ("load_model",),
        "prediction.windows": ("AutocastInferer", "WindowInferer", "channels_last"),
        "resources": ("resource_folder",),
        "training.optimization": ("chosen_device",),
        "training.parts": ("Training",),
        "training.ranks": ("joined_ranks",),
    }.items()
    for name in names
]


@pytest.mark.parametrize(("former", "name"), _HELD)
def test_a_former_name_leads_to_what_it_named(former: str, name: str) -> None:
    found = getattr(import_module(f"pipelines.{former}"), name)
    assert found is getattr(import_module(MOVED[f"pipelines.{former}"]), name)
    assert found.__module__ != f"pipelines.{former}"


def test_a_job_that_waits_in_the_queue_is_unpickled() -> None:
    now, former = (b"pipelines.comparison.executors." + name for name in (b"slurm", b"task"))
    pickled = pickle.dumps(Task("folder", 3), protocol=0)
    assert now in pickled
    task = pickle.loads(pickled.replace(now, former))
    assert isinstance(task, Task) and task.index == 3
