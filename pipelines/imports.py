"""Imports that leave out what a process does not use, and pass over what other packages warn of meanwhile."""

import sys
import warnings
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


#: What other packages warn of while they are imported, or by what they call themselves; nothing that a user can change.
_FOREIGN_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Ignite and MONAI import a part of torch that scripts its functions.
    (r"`torch\.jit\.[a-z_]*` is deprecated", DeprecationWarning),
    (r"The ``noload`` loader strategy is deprecated", DeprecationWarning),  # MLflow, of SQLAlchemy 2.1
)


def ignore_foreign_warnings() -> None:
    """Ignore, each by name, the warnings of other packages that even `python -W error` must not make errors of."""
    for message, category in _FOREIGN_WARNINGS:
        warnings.filterwarnings("ignore", message, category)
