"""What is known of finished predictions, once they are measured or their tables read."""

from dataclasses import dataclass

import pandas as pd

from pipelines.comparison.report.collect import Collected

#: The page speaks of losses.
WHAT_DIFFERS = (
    "What is called a loss here is a name given to finished predictions: whatever else differed between the trainings "
    "(data, network, epochs, settings) is in the differences, too."
)


@dataclass(frozen=True)
class Finished:
    """Finished predictions, measured.

    Attributes:
        collected: for the report.
        rows: the table of results, a row a case, method and class; a later report can be made of it alone.
        reference: the method to compare with, where nnU-Net's own trainer is among them; else None.
        told: what a person should read before the verdict, a line each.
    """

    collected: Collected
    rows: pd.DataFrame
    reference: str | None
    told: tuple[str, ...]
