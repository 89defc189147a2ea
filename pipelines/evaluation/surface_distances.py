"""How far two surfaces lie apart, in mm: found once, for every measure that is made of it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: A distance counts as within a tolerance when it exceeds it by less than float32 headers round.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class SurfaceDistances:
    r"""The directed distances between a prediction's surface P and a reference's surface R.

    For every voxel $p \in P$ the distance to the nearest of R, $d(p, R) = \min_{r \in R} \lVert p - r \rVert$, between
    voxel centres, in mm; and for every $r \in R$ likewise $d(r, P)$. Neither set is empty.

    Attributes:
        of_prediction: $d(p, R)$, `[|P|]`, in no order.
        of_reference: $d(r, P)$, `[|R|]`, in no order.
    """

    of_prediction: NDArray[np.float64]
    of_reference: NDArray[np.float64]

    def hausdorff(self, percentile: float) -> float:
        """The larger of the two directed percentiles, mm; at 100 Hausdorff's distance.

        Between two distances the percentile is interpolated, as in MONAI's `HausdorffDistanceMetric`. (Others take the
        percentile of both sets in one, which is lower where one of the two is far off.)

        Args:
            percentile: 0 to 100.
        """
        directed = [np.percentile(distances, percentile) for distances in (self.of_prediction, self.of_reference)]
        return float(max(directed))

    def average(self) -> float:
        r"""The average symmetric surface distance (ASSD), mm.

        $$\frac{\sum_{p \in P} d(p, R) + \sum_{r \in R} d(r, P)}{|P| + |R|}$$

        Both sets in one, as in MONAI's `SurfaceDistanceMetric(symmetric=True)` and Heimann et al. 2009: each voxel
        counts the same. (Others take the mean of the two directed means, which differs where |P| and |R| do.)
        """
        total = self.of_prediction.sum() + self.of_reference.sum()
        return float(total / (self.of_prediction.size + self.of_reference.size))

    def within(self, tolerance: float) -> float:
        r"""The normalised surface Dice (NSD) of Nikolov et al. 2018, arXiv 1809.04430, by counts of voxels.

        $$\frac{|\{p \in P: d(p, R) \le \tau\}| + |\{r \in R: d(r, P) \le \tau\}|}{|P| + |R|}$$

        As in MONAI's `SurfaceDiceMetric` with its default `use_subvoxels=False`: every surface voxel counts once.
        (Nikolov's own code, and `use_subvoxels=True`, weigh each by the area of the surface in it, and let the surface
        run between voxels.)

        Args:
            tolerance: tau, mm.
        """
        limit = tolerance * (1 + _ROUNDING)
        near = (self.of_prediction <= limit).sum() + (self.of_reference <= limit).sum()
        return float(near / (self.of_prediction.size + self.of_reference.size))


def surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of a mask that share a face with a voxel outside it, or with the array's end: `[*spatial]`.

    `mask & ~scipy.ndimage.binary_erosion(mask)`, as MONAI's `get_mask_edges` has it, in less than a tenth of its time.
    """
    inside = mask.copy()
    for axis in range(mask.ndim):
        kept, whole = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        kept[1:] &= whole[:-1]
        kept[:-1] &= whole[1:]
        kept[0] = kept[-1] = False
    return mask & ~inside


def surface_distances(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing: tuple[float, ...]
) -> SurfaceDistances:
    """The distances between the surfaces of two masks, exact.

    Args:
        prediction: `[*spatial]`, cropped or not: the surfaces are the same, if only what is cropped away is empty.
        reference: of the same shape.
        spacing: mm, in the order of the array's axes.

    Raises:
        ValueError: a mask is empty, so that there is no distance; or shapes and spacing do not fit.
    """
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        raise ValueError(f"shapes {prediction.shape} and {reference.shape} with {len(spacing)} numbers as spacing")
    if not prediction.any() or not reference.any():
        raise ValueError("one of the two masks is empty: it has no surface")
    one, other = surface(prediction), surface(reference)
    # A voxel that both surfaces have is at distance 0: there is nothing to look for.
    shared = np.zeros(np.count_nonzero(one & other))
    return SurfaceDistances(
        np.concatenate([shared, _to_nearest(_points(one & ~other, spacing), _points(other, spacing))]),
        np.concatenate([shared, _to_nearest(_points(other & ~one, spacing), _points(one, spacing))]),
    )


def _points(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Where a mask's voxels are, mm: `[number, axes]`.

    `np.argwhere(mask) * spacing`, in a fraction of its time: NumPy finds voxels faster by their number in the array.
    """
    points = np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), -1).astype(np.float64)
    points *= spacing
    return points


def _to_nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each point the distance to the nearest of the others.

    A tree over a surface's voxels takes a fifth of the time of a distance transform over the volume, and one that is
    not balanced less than a balanced one, since it is asked but once.
    """
    if not len(points):
        return np.zeros(0)
    from scipy.spatial import KDTree  # not above: see `metrics.py`

    tree = KDTree(others, leafsize=32, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0], np.float64)
