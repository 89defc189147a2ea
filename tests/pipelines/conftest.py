"""Fixtures that the tests of several packages share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh SQLite store of MLflow's, to be copied: making one takes seconds."""
    from pipelines.tracking.mlflow_store import local_uri, quiet_mlflow

    quiet_mlflow()
    import mlflow

    folder = tmp_path_factory.mktemp("store")
    mlflow.MlflowClient(tracking_uri=local_uri(folder)).search_experiments()
    return folder / "mlflow.db"
