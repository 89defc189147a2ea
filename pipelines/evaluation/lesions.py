"""Lesions, the connected components of two masks, and their one-to-one matching; computed once for all metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.surface_distances import surface_distances

Integers = NDArray[np.intp]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lesions:
    """The lesions of a prediction and of a reference, numbered from 0, and their matches.

    Attributes:
        predicted: number of voxels of each predicted lesion, `[P]`.
        present: number of voxels of each reference lesion, `[R]`.
        pairs: predicted and reference lesion of each match, `[TP, 2]`, in the order of reference lesions; no lesion is
            in two.
        shared: number of voxels in both lesions of each match, `[TP]`.
        labels: the number of the lesion of each voxel, counted from 1, in both masks; 0 outside them.
        spacing: mm, in the order of the axes.
        ignored: ignored voxels; None if there are none.
    """

    predicted: Integers
    present: Integers
    pairs: Integers
    shared: Integers
    labels: tuple[NDArray[np.integer], NDArray[np.integer]]
    spacing: tuple[float, ...]
    ignored: NDArray[np.bool_] | None = None

    @property
    def tp(self) -> int:
        """Number of matches."""
        return len(self.pairs)

    @property
    def fp(self) -> int:
        """Number of predicted lesions without a match."""
        return self.predicted.size - self.tp

    @property
    def fn(self) -> int:
        """Number of reference lesions without a match."""
        return self.present.size - self.tp

    @property
    def _sizes(self) -> Integers:
        """Number of voxels of the two lesions of each match together, those of both counted twice."""
        return self.predicted[self.pairs[:, 0]] + self.present[self.pairs[:, 1]]

    @property
    def iou(self) -> Floats:
        """IoU of each match, `[TP]`."""
        return self.shared / (self._sizes - self.shared)

    @property
    def dice(self) -> Floats:
        """Dice of each match, `[TP]`."""
        return 2 * self.shared / self._sizes

    @cached_property
    def hd95_mm(self) -> Floats:
        """HD95 of each match, mm, `[TP]`, between the surfaces of the two lesions alone."""
        from scipy.ndimage import find_objects  # imported late, since not all commands need it

        if not self.tp:  # not even a box, if both masks are empty
            return np.zeros(0)
        boxes = [find_objects(labels) for labels in self.labels]
        found = []
        for prediction, reference in self.pairs.tolist():
            both = zip(boxes[0][prediction], boxes[1][reference], strict=True)
            # With a margin: where voxels are ignored, the neighbours decide what is surface.
            box = tuple(slice(max(0, min(p.start, r.start) - 1), max(p.stop, r.stop) + 1) for p, r in both)
            masks = self.labels[0][box] == prediction + 1, self.labels[1][box] == reference + 1
            ignored = None if self.ignored is None else self.ignored[box]
            found.append(surface_distances(*masks, self.spacing, ignored).hausdorff(95))
        return np.array(found, np.float64)


def find_lesions(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: tuple[float, ...],
    *,
    steps: int,
    overlap: float,
    ignored: NDArray[np.bool_] | None = None,
) -> Lesions:
    """Find and match the lesions of two masks, `[*spatial]`, which may be cropped to a box of both.

    Of all pairs with an IoU above `overlap`, the pair of the largest IoU is matched first, then the largest of
    those whose lesions are both unmatched, and so on; equal ones in the order of reference lesions, then predicted
    ones, by their first voxel. From an overlap of 0.5 on, no lesion has two such pairs, so that any method finds these
    matches.

    Args:
        prediction: mask of the prediction.
        reference: mask of the reference.
        spacing: mm, in the order of the axes.
        steps: number of axes along which neighbours in a lesion may differ.
        overlap: the IoU above which two lesions can match.
        ignored: ignored voxels, which are in neither mask.
    """
    from scipy.ndimage import generate_binary_structure, label

    neighbours = generate_binary_structure(len(spacing), steps)
    labels = tuple(label(mask, neighbours)[0] for mask in (prediction, reference))
    predicted, present = (np.bincount(of_mask.ravel(), minlength=1)[1:].astype(np.intp) for of_mask in labels)
    both = (labels[0] > 0) & (labels[1] > 0)
    # Counted over the voxels in both masks, so that the cost does not grow with the number of lesions.
    places, shared = np.unique(
        (labels[0][both].astype(np.int64) - 1) * present.size + labels[1][both] - 1, return_counts=True
    )
    first, second = np.divmod(places, max(1, present.size))
    iou = shared / (predicted[first] + present[second] - shared)
    matched: dict[int, tuple[int, int]] = {}
    taken: set[int] = set()
    for place in np.lexsort((first, second, -iou)).tolist():
        one, other = int(first[place]), int(second[place])
        if iou[place] > overlap and one not in taken and other not in matched:
            taken.add(one)
            matched[other] = (one, int(shared[place]))
    pairs = np.array([(matched[other][0], other) for other in sorted(matched)], np.intp).reshape(-1, 2)
    counts = np.array([matched[other][1] for other in sorted(matched)], np.intp)
    return Lesions(predicted, present, pairs, counts, (labels[0], labels[1]), spacing, ignored)
