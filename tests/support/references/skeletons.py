"""Connected components, and tubes around centre lines, whatever finds the lines."""

import itertools

import numpy as np

from .complexstep import Array
from .distances import Spacing, edt


def components(mask: Array, faces_only: bool = False) -> list[Array]:
    """The connected components of a mask, as masks, each grown from one voxel."""
    offsets = [o for o in itertools.product((-1, 0, 1), repeat=mask.ndim) if sum(map(abs, o)) == 1 or not faces_only]
    left, found = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}, []
    while left:
        front = [min(left)]
        left.remove(front[0])
        component = np.zeros(mask.shape, dtype=bool)
        while front:
            voxel = front.pop()
            component[voxel] = True
            near = {tuple(v + o for v, o in zip(voxel, offset, strict=True)) for offset in offsets} & left
            left -= near
            front += near
        found.append(component)
    return found


def middle(mask: Array) -> Array:
    """A stand-in for thinning that follows flips: the voxels deepest inside, where beyond the image is outside."""
    inner = (slice(1, -1),) * mask.ndim
    depth = edt(np.pad(mask, 1), (1.0,) * mask.ndim)[inner]
    return np.asarray(mask & (depth == depth.max()))


def tubes(mask: Array, spacing: Spacing, radius: float | None = None) -> Array:
    """The mask's voxels within the radius, 2 smallest spacings, of the lines; a component without one is its own."""
    lines = middle(mask)
    for component in components(mask):
        if not (component & lines).any():
            lines = lines | component
    radius = 2 * min(spacing) if radius is None else radius
    return mask & (edt(~lines, spacing) <= radius * (1 + 1e-6)) if lines.any() else lines
