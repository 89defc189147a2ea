"""Distances between two surfaces, in mm: computed once for all metrics that use them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Relative amount by which a distance may exceed a tolerance, since float32 headers round.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class SurfaceDistances:
    r"""The directed distances between a prediction's surface P and a reference's surface R.

    For every voxel $p \in P$ the distance to the nearest voxel of R, $d(p, R) = \min_{r \in R} \lVert p - r \rVert$,
    between voxel centres, in mm: `of_prediction`, `[|P|]`, in any order; and likewise $d(r, P)$ for every $r \in R$:
    `of_reference`, `[|R|]`. Neither set is empty.
    """

    of_prediction: NDArray[np.float64]
    of_reference: NDArray[np.float64]

    def hausdorff(self, percentile: float) -> float:
        """The larger of the two directed percentiles (0 to 100), mm; the Hausdorff distance at 100.

        Percentiles are interpolated between two distances, as in MONAI's `HausdorffDistanceMetric`. (Others take the
        percentile of both sets together, which is lower if one of the two has large distances.)
        """
        directed = [np.percentile(distances, percentile) for distances in (self.of_prediction, self.of_reference)]
        return float(max(directed))

    def average(self) -> float:
        r"""The average symmetric surface distance (ASSD), mm.

        $$\frac{\sum_{p \in P} d(p, R) + \sum_{r \in R} d(r, P)}{|P| + |R|}$$

        As in MONAI's `SurfaceDistanceMetric(symmetric=True)` and Heimann et al. 2009. (Others take the mean of the two
        directed means, which differs if |P| and |R| do.)
        """
        total = self.of_prediction.sum() + self.of_reference.sum()
        return float(total / (self.of_prediction.size + self.of_reference.size))

    def within(self, tolerance: float) -> float:
        r"""The normalised surface Dice (NSD) of Nikolov et al. 2018, arXiv 1809.04430, at tau mm, by counts of voxels.

        $$\frac{|\{p \in P: d(p, R) \le \tau\}| + |\{r \in R: d(r, P) \le \tau\}|}{|P| + |R|}$$

        As in MONAI's `SurfaceDiceMetric` with its default `use_subvoxels=False`. (Nikolov's code weights each voxel by
        the area of the surface in it, and places the surface between voxels.)
        """
        limit = tolerance * (1 + _ROUNDING)
        near = (self.of_prediction <= limit).sum() + (self.of_reference <= limit).sum()
        return float(near / (self.of_prediction.size + self.of_reference.size))


def surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The voxels of a mask that share a face with a voxel outside it or with the array's border: `[*spatial]`.

    Equal to `mask & ~scipy.ndimage.binary_erosion(mask)`, as in MONAI's `get_mask_edges`, in a tenth of the time.
    """
    inside = mask.copy()
    for axis in range(mask.ndim):
        kept, whole = np.moveaxis(inside, axis, 0), np.moveaxis(mask, axis, 0)
        kept[1:] &= whole[:-1]
        kept[:-1] &= whole[1:]
        kept[0] = kept[-1] = False
    return mask & ~inside


def surface_distances(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing: tuple[float, ...],
    ignored: NDArray[np.bool_] | None = None,
) -> SurfaceDistances:
    """The exact distances (mm) between the surfaces of two masks `[*spatial]`; they may be cropped to a box of both.

    `ignored` voxels are of unknown class and in neither mask: a voxel next to them is on the surface only if it has
    another neighbour outside the mask, or if a mask has no other surface.

    Raises:
        ValueError: a mask is empty, or shapes and spacing do not match.
    """
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        raise ValueError(f"shapes {prediction.shape} and {reference.shape} with {len(spacing)} numbers as spacing")
    if not prediction.any() or not reference.any():
        raise ValueError("one of the two masks is empty: it has no surface")
    one, other = _counted_surface(prediction, ignored), _counted_surface(reference, ignored)
    # A voxel in both surfaces has distance 0, so it needs no search.
    shared = np.zeros(np.count_nonzero(one & other))
    return SurfaceDistances(
        np.concatenate([shared, _to_nearest(_points(one & ~other, spacing), _points(other, spacing))]),
        np.concatenate([shared, _to_nearest(_points(other & ~one, spacing), _points(one, spacing))]),
    )


def _counted_surface(mask: NDArray[np.bool_], ignored: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """The surface of a mask, without the border that it shares with ignored voxels, unless it has no other."""
    if ignored is None:
        return surface(mask)
    counted = surface(mask | ignored) & mask
    return counted if counted.any() else surface(mask)


def _points(mask: NDArray[np.bool_], spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Positions of a mask's voxels, mm: `[number, axes]`.

    Equal to `np.argwhere(mask) * spacing`, in a fraction of the time, since flat indices are found faster.
    """
    points = np.stack(np.unravel_index(np.flatnonzero(mask), mask.shape), -1).astype(np.float64)
    points *= spacing
    return points


def _to_nearest(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance from each point to the nearest of the others.

    A tree of a surface's voxels takes a fifth of the time of a distance transform of the volume. It is not balanced,
    which is faster for a single query.
    """
    if not len(points):
        return np.zeros(0)
    from scipy.spatial import KDTree  # imported late, since it takes time and not all commands need it

    tree = KDTree(others, leafsize=32, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0], np.float64)
