"""The probabilities of predictions in files, checked against their label maps, with the channels of each region."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.data.grids import Volume
from pipelines.data.nifti import BadFileError
from pipelines.data.probabilities import read_probabilities
from pipelines.evaluation.calibration import Probabilities

#: Share of the foreground of a label map that its probabilities have to agree with; the rest may be postprocessed.
_AGREEING = 0.95
#: Rounding of sums of probabilities in float16.
_ROUNDING = 1e-2


def case_probabilities(
    path: Path,
    prediction: Volume,
    predicted: NDArray[np.integer],
    values: Sequence[int],
    regions: Sequence[tuple[int, ...]],
) -> Probabilities:
    """Read the probabilities of a label map, and find the channels of each region.

    Without overlapping regions there is a channel per value. With them there may instead be one per region, of a
    network that predicts regions; where both numbers are the same, channels that sum to 1 are those of values.

    Args:
        path: the file.
        prediction: the label map.
        predicted: its labels as indices of `values`.
        values: the label values, with the background.
        regions: the indices in `values` that each region consists of.

    Raises:
        BadFileError: the file cannot be read, has another number of channels, or is not of that label map.
    """
    data = read_probabilities(path, prediction)
    has_regions = any(len(members) > 1 for members in regions)
    numbers = [len(values), *([len(regions)] if has_regions else [])]
    if len(data) not in numbers:
        per = f"one per label value ({', '.join(map(str, values))})" + (" or per region" if has_regions else "")
        raise BadFileError(f"{len(data)} channels; expected {' or '.join(map(str, numbers))}, {per}")
    there = predicted > 0
    inside = data[:, there].astype(np.float32)
    softmax = len(data) == len(values)
    if softmax and len(data) == numbers[-1] and has_regions:
        softmax = bool((np.abs(inside.sum(0) - 1) <= _ROUNDING).all())
    if inside.size:
        if softmax:
            of_label = np.take_along_axis(inside, predicted[there][None].astype(np.intp), 0)[0]
            agreeing = of_label >= inside.max(0) - _ROUNDING
        else:
            agreeing = inside.max(0) >= 0.5 - _ROUNDING
        if agreeing.mean() < _AGREEING:
            raise BadFileError(
                f"not the probabilities of its label map: they agree on {agreeing.mean():.0%} of its foreground voxels"
            )
    channels = list(regions) if softmax else [(number,) for number in range(len(regions))]
    return Probabilities(data, channels)
