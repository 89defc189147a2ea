"""The slices that are drawn, read from their files, and the outlines of their label maps."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.data.checks import label_problem
from pipelines.data.nifti import BadFileError, Volume, grid_problem, read_file, read_labels
from pipelines.report.collect import PredictedCase
from pipelines.report.overlay_selection import Choice, Plane, largest_section, planes, telling_slice, window

# Outlines of a label map, along the edges of its voxels: each edge once, joined to lines.

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


# The slices that are drawn, read from their files: each file once, and no more than a few volumes in memory.

Labels = NDArray[Any]
#: What predictions that are read together share: label, image, values that count, and the value that does not.
_Case = tuple[Path, Path | None, tuple[int, ...] | None, int | None]


@dataclass(frozen=True)
class Shown:
    """What is drawn of a case: a section of one slice, `[rows, columns]`, rows drawn upwards.

    Attributes:
        plane: of the slice.
        index: of the slice, along the axis that the plane cuts; 0 of a 2D image.
        slices: how many there are.
        reference: labels.
        predictions: labels, a prediction.
        image: intensities; None: there are none.
        no_image: why, if it should be there.
    """

    plane: Plane
    index: int
    slices: int
    reference: Labels
    predictions: dict[PredictedCase, Labels]
    image: NDArray[np.float32] | None
    no_image: str | None


@dataclass(frozen=True)
class Panel:
    """A choice with what is drawn of it, or why nothing is."""

    choice: Choice
    shown: Shown | None
    problem: str | None = None


@dataclass(frozen=True)
class _Read:
    """Of one case: for each of the planes in which it may be shown, its pictures; and predictions with a problem."""

    pictures: dict[str, list[Shown]]
    sections: dict[str, float]
    problems: dict[PredictedCase, str]


def read_panels(choices: Sequence[Choice], same: Sequence[Choice]) -> tuple[list[Panel], list[Panel]]:
    """Read what is drawn.

    Where voxels are as long along several axes, all cases are shown in the plane in which their objects are largest,
    over all of them.

    Args:
        choices: each with a slice of its own.
        same: of one case, all on one slice.

    Returns:
        A panel a choice, of both.
    """
    wanted: dict[_Case, list[tuple[PredictedCase, ...]]] = {}
    for group in [*((choice.predicted,) for choice in choices), tuple(choice.predicted for choice in same)]:
        if group:
            groups = wanted.setdefault(_case(group), [])
            if group not in groups:
                groups.append(group)
    # nibabel logs each oddity of a header that it mends by itself.
    with LoggingOutputSuppressor(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = dict(zip(wanted, pool.map(_read_case, wanted, wanted.values()), strict=True))
    sections: dict[str, float] = {}
    for read in found.values():
        if len(read.sections) > 1:
            for plane, area in read.sections.items():
                sections[plane] = sections.get(plane, 0.0) + area

    def panel(choice: Choice, group: tuple[PredictedCase, ...]) -> Panel:
        read = found[_case(group)]
        if choice.predicted in read.problems:
            return Panel(choice, None, read.problems[choice.predicted])
        plane = max(read.pictures, key=lambda name: sections.get(name, 0.0))
        return Panel(choice, read.pictures[plane][wanted[_case(group)].index(group)])

    together = tuple(choice.predicted for choice in same)
    return [panel(choice, (choice.predicted,)) for choice in choices], [panel(choice, together) for choice in same]


def _case(group: Sequence[PredictedCase]) -> _Case:
    return group[0].reference, group[0].image, group[0].values, group[0].ignore


def _read_case(case: _Case, groups: list[tuple[PredictedCase, ...]]) -> _Read:
    """One case's slices: of each group of predictions one, in each plane in which it may be shown."""
    label, image_file, values, ignore = case
    everyone = list(dict.fromkeys(one for group in groups for one in group))
    try:
        reference = _labels(label, "the label")
    except BadFileError as error:
        return _Read({}, {}, dict.fromkeys(everyone, str(error)))
    uncounted = None if ignore is None else reference.data == ignore
    truth = _counted(reference.data, values, uncounted)
    predictions: dict[PredictedCase, Labels] = {}
    problems: dict[PredictedCase, str] = {}
    for one in everyone:
        try:
            predictions[one] = _counted(_labels(one.prediction, "the prediction", reference).data, values, uncounted)
        except BadFileError as error:
            problems[one] = str(error)
    image, no_image = None, None
    if image_file is not None and predictions:
        try:
            image = _volume(image_file, "the image", reference).data
        except BadFileError as error:
            no_image = str(error)
    found = _Read({}, {}, problems)
    for plane in planes(truth.shape, reference.spacing, reference.affine):
        found.pictures[plane.name] = [
            _picture(plane, truth, {one: predictions[one] for one in group if one in predictions}, image, no_image)
            for group in groups
        ]
        found.sections[plane.name] = largest_section(truth, plane)
    return found


def _counted(labels: Labels, values: tuple[int, ...] | None, uncounted: NDArray[np.bool_] | None) -> Labels:
    """Labels without those that were not measured."""
    if values is not None:
        labels = np.where(np.isin(labels, values), labels, 0)
    return labels if uncounted is None else np.where(uncounted, 0, labels)


def _picture(
    plane: Plane,
    reference: Labels,
    predictions: dict[PredictedCase, Labels],
    image: NDArray[Any] | None,
    no_image: str | None,
) -> Shown:
    index = telling_slice(reference, predictions.values(), plane)
    flat = plane.cut(reference, index)
    cut = {one: plane.cut(labels, index) for one, labels in predictions.items()}
    mask = flat != 0
    for labels in cut.values():
        mask = mask | (labels != 0)
    at = window(mask, plane.spacing)
    return Shown(
        plane=plane,
        index=index,
        slices=1 if plane.across is None else reference.shape[plane.across],
        # Copies: a view would keep the whole volume.
        reference=flat[at].copy(),
        predictions={one: labels[at].copy() for one, labels in cut.items()},
        image=None if image is None else plane.cut(image, index)[at].astype(np.float32),
        no_image=no_image,
    )


def _labels(path: Path, what: str, on: Volume | None = None) -> Volume:
    volume = _volume(path, what, on, read_labels)
    if (problem := label_problem(volume.data)) is not None:
        raise BadFileError(f"{what} {path}: {problem}")
    return volume if volume.data.dtype.kind != "f" else replace(volume, data=volume.data.astype(np.int32))


def _volume(path: Path, what: str, on: Volume | None, read: Callable[[Path], Volume] = read_file) -> Volume:
    try:
        volume = read(path)
    except BadFileError as error:
        raise BadFileError(f"{what} {path}: {error}") from None
    problem = None if on is None else grid_problem(volume, on, "label")
    if problem is not None:
        raise BadFileError(f"{what} {path}: {problem}")
    return volume
