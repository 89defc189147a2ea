"""Imports that leave out what a process does not use."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_mlflow() -> Iterator[None]:
    """Have MONAI imported, while the block runs, as where there is no MLflow.

    MONAI imports MLflow for a handler that nothing here uses: a tenth of the time that a worker takes to start. In a
    process that has imported MLflow already, nothing is left out.
    """
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # Python's way to say that there is no such module
    try:
        yield
    finally:
        del sys.modules["mlflow"]
