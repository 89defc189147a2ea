"""Which voxels lie in balls of several radii; in voxels these are ellipsoids where the spacing is anisotropic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

# A voxel belongs to a ball when its centre lies within the radius, give or take rounding.
_SLACK = 1 + 1e-6


def reach(radius: float, spacing: Sequence[float]) -> list[int]:
    """The ball's reach in voxels, per axis."""
    return [math.floor(radius * _SLACK / s) for s in spacing]


def fitting(radii: Sequence[float], spacing: Sequence[float], size: Sequence[int]) -> list[float]:
    """The radii whose balls fit into an image on every axis."""
    return [r for r in radii if all(2 * h + 1 <= n for h, n in zip(reach(r, spacing), size, strict=True))]


def ball(radius: float, offsets: Sequence[Tensor], spacing: Sequence[float]) -> Tensor:
    """Whether voxels at a grid of offsets from a centre, one float64 vector per axis, lie in a ball."""
    squares = torch.zeros((1,) * len(offsets), dtype=torch.float64, device="cpu")
    for axis, (offset, s) in enumerate(zip(offsets, spacing, strict=True)):
        squares = squares + ((offset * s) ** 2).view(-1, *(1,) * (len(offsets) - 1 - axis))
    return squares.sqrt() <= radius * _SLACK


@dataclass(frozen=True)
class Discs:
    """Balls as piles of discs: across the last axis, all balls are made of the same few discs, one within the next.

    Attributes:
        reach: the largest ball's, along three axes.
        points: `[P, 2]` offsets >= 0 in the first two axes, which stand for the flipped ones, too. A disc is the first
            `ends` of them.
        ends: `[D]`, how many points each disc has, ascending.
        taps: `[T, 2]`, a radius' number and an offset >= 0 in the last axis where it has a disc.
        tap_ends: `[D]`, up to which tap a disc's go.
        sizes: voxels in the ball, per radius.
    """

    reach: tuple[int, int, int]
    points: Tensor
    ends: Tensor
    taps: Tensor
    tap_ends: Tensor
    sizes: Tensor


@lru_cache(maxsize=32)
def discs(radii: tuple[float, ...], spacing: tuple[float, float, float]) -> Discs:
    """Cut balls into discs."""
    far = reach(max(radii), spacing)
    across = [torch.arange(n + 1, dtype=torch.float64, device="cpu") for n in far]
    squares = sum(((o * s) ** 2).view(shape) for o, s, shape in zip(across, spacing, [(-1, 1), (1, -1)], strict=False))
    assert isinstance(squares, Tensor)
    order = squares.flatten().argsort(stable=True)
    points = torch.stack([order // (far[1] + 1), order % (far[1] + 1)], 1)
    weights = (1 + (points > 0).long()).prod(1)
    by_size: dict[int, list[tuple[int, int]]] = {}
    sizes = []
    for number, radius in enumerate(radii):
        held = ball(radius, across, spacing).flatten(0, 1)[order].long()
        for height, count in enumerate(held.sum(0).tolist()):
            if count:
                by_size.setdefault(count, []).append((number, height))
        sizes.append(int(((held * weights[:, None]).sum(0) * torch.tensor([1] + [2] * far[2], device="cpu")).sum()))
    ends = sorted(by_size)
    taps = [tap for end in ends for tap in by_size[end]]
    return Discs(
        (far[0], far[1], far[2]),
        points[: ends[-1]].contiguous(),
        torch.tensor(ends, device="cpu"),
        torch.tensor(taps, device="cpu"),
        torch.tensor([len(by_size[end]) for end in ends], device="cpu").cumsum(0),
        torch.tensor(sizes, device="cpu"),
    )
