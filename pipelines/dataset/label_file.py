"""Label maps in files: what counts as a label value, whatever type the values were saved in."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.nifti import Volume, read_file

#: Up to so far off a whole number, a value is that number. Labels saved again from floats get a scale, and read as
#: 3.00000006 where they were 3; nobody means anything by a thousandth of a label.
WHOLE = 1e-3


def read_labels(path: Path, dimensions: Iterable[int] = (2, 3)) -> Volume:
    """Read a label map as `read_file` does, its values as `whole_labels` has them.

    Args:
        path: the file.
        dimensions: numbers of axes that it may have.

    Raises:
        BadFileError: as `read_file`.
    """
    volume = read_file(path, dimensions)
    return replace(volume, data=whole_labels(volume.data))


def whole_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels of which those within `WHOLE` of a whole number are that number; all others as they are."""
    if labels.dtype.kind != "f":
        return labels
    nearest = np.rint(labels)
    with np.errstate(invalid="ignore"):  # of Inf, which stays
        return np.where(np.abs(labels - nearest) <= WHOLE, nearest, labels)


def digits(value: Any) -> str:
    """A label value with all the digits that its type has: `3`, `2.9989999`."""
    return str(value).removesuffix(".0")
