"""Tables of results, made for the tests of the statistics."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipelines.evaluation.metrics import METRICS
from pipelines.statistics.scores import Scores


def long_table(values: dict[str, Any], metric: str = "dice", **columns: object) -> pd.DataFrame:
    """A row a loss and case, from loss -> values a case."""
    return pd.DataFrame(
        [
            {"case": f"c{number:03d}", "loss": loss, metric: value, **columns}
            for loss, own in values.items()
            for number, value in enumerate(own)
        ]
    )


def made_scores(values: NDArray[np.float64], metric: str = "dice", folds: NDArray[np.intp] | None = None) -> Scores:
    """Scores of losses `a`, `b`, ... from `[L, n]` or `[L, n, S]`."""
    values = values[..., None] if values.ndim == 2 else values
    losses = tuple("abcdefghijklmnopqrstuvwxyz"[: len(values)])
    patients = tuple(f"p{number:03d}" for number in range(values.shape[1]))
    return Scores(
        METRICS[metric],
        losses,
        patients,
        values,
        True,
        {},
        {},
        (),
        np.zeros(values.shape[1], np.intp) if folds is None else folds,
    )
