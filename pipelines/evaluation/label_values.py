"""Label maps as numbers of classes; values that belong to no class are refused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.dataset.label_file import digits
from pipelines.dataset.nifti import BadFileError


def label_channels(data: NDArray[Any], values: Sequence[int]) -> NDArray[np.integer]:
    """Labels 0..C-1, `[*spatial]`: where each voxel's value stands in `values`.

    Args:
        data: the labels, as `read_labels` gives them.
        values: the classes' values.

    Raises:
        BadFileError: there are other values.
    """
    channels: NDArray[np.integer] = np.zeros(data.shape, np.uint8 if len(values) <= 256 else np.int32)
    known = 0
    for channel, value in enumerate(values):
        mask = data == value
        known += int(np.count_nonzero(mask))
        np.putmask(channels, mask, channel)
    if known < data.size:
        found, counts = np.unique(data[~np.isin(data, values)], return_counts=True)
        told = [f"{digits(value)} ({count} voxels)" for value, count in zip(found, counts, strict=True)]
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        classes = ", ".join(map(str, values[:20])) + (f" and {len(values) - 20} more" if len(values) > 20 else "")
        raise BadFileError(f"label values without a class: {', '.join(told[:5])}{more}; the classes are {classes}")
    return channels
