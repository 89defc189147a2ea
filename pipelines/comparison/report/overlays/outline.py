"""Outlines of a label map, along the edges of its voxels: each edge once, joined to lines."""

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]


def outlines(labels: NDArray[Any], spacing: tuple[float, float]) -> list[NDArray[np.float64]]:
    """The lines between a slice's classes, background included.

    Where two classes touch there is one line, not two: dashes of two would fill each other's gaps.

    Args:
        labels: `[rows, columns]`.
        spacing: mm of rows and columns.

    Returns:
        Lines `[points, 2]`, x (columns) and y (rows) in mm from the corner of the first voxel; closed ones end where
        they begin.
    """
    padded = np.pad(labels, 1)
    neighbours: dict[Point, list[Point]] = defaultdict(list)
    # Between a voxel and the next in its column: an edge along the row; corners are counted from the pad's.
    for row, column in np.argwhere(padded[:-1, :] != padded[1:, :]).tolist():
        _join(neighbours, (row, column - 1), (row, column))
    for row, column in np.argwhere(padded[:, :-1] != padded[:, 1:]).tolist():
        _join(neighbours, (row - 1, column), (row, column))
    scale = np.array([spacing[1], spacing[0]])
    return [np.array(line, np.float64)[:, ::-1] * scale for line in _lines(neighbours)]


def _join(neighbours: dict[Point, list[Point]], one: Point, other: Point) -> None:
    neighbours[one].append(other)
    neighbours[other].append(one)


def _lines(neighbours: dict[Point, list[Point]]) -> list[list[Point]]:
    """Walk every edge once; lines begin where three meet, then anywhere: what is left is closed."""
    lines = []
    for start in [*(point for point, others in neighbours.items() if len(others) % 2), *list(neighbours)]:
        while neighbours[start]:
            line = [start]
            while neighbours[line[-1]]:
                line.append(_next(line, neighbours[line[-1]]))
                neighbours[line[-2]].remove(line[-1])
                neighbours[line[-1]].remove(line[-2])
                if line[-1] == start:
                    break
            lines.append(_corners(line))
    return lines


def _next(line: list[Point], others: list[Point]) -> Point:
    """Round a corner that two voxels share by a point: turn, so that two lines touch there, and do not cross."""
    if len(line) < 2 or len(others) < 3:
        return others[0]
    row, column = (2 * now - before for now, before in zip(line[-1], line[-2], strict=True))
    return next(point for point in others if point != (row, column))


def _corners(line: list[Point]) -> list[Point]:
    """Without the points in the middle of straight pieces."""
    inner = [
        now
        for before, now, after in zip(line, line[1:], line[2:], strict=False)
        if (now[0] - before[0], now[1] - before[1]) != (after[0] - now[0], after[1] - now[1])
    ]
    return [line[0], *inner, line[-1]]
