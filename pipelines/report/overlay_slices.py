"""Reads the slices that are drawn, and finds the outlines of their label maps."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from numpy.typing import NDArray

from pipelines.data.checks import label_problem
from pipelines.data.grids import Orientation, Volume, grid_problem
from pipelines.data.nifti import BadFileError, read_file, read_labels
from pipelines.report.collect import PredictedCase
from pipelines.report.overlay_selection import Choice, Plane, largest_section, planes, select_slice, window

# Outlines of a label map: the edges between voxels of different classes, each once, joined to lines.

Point = tuple[int, int]


def outlines(labels: NDArray[Any], spacing: tuple[float, float]) -> list[NDArray[np.float64]]:
    """The lines between the classes of a slice, background included.

    There is a single line between two classes that touch: the dashes of two lines would fill each other's gaps.

    Args:
        labels: `[rows, columns]`.
        spacing: mm of rows and columns.

    Returns:
        Lines `[points, 2]`, x (columns) and y (rows) in mm from the corner of the first voxel; closed lines end where
        they start.
    """
    padded = np.pad(labels, 1)
    neighbours: dict[Point, list[Point]] = defaultdict(list)
    edges: list[tuple[Point, Point]] = []
    # Two voxels that differ within a column have an edge along the row; corners are counted from the padding.
    for row, column in np.argwhere(padded[:-1, :] != padded[1:, :]).tolist():
        edges.append(((row, column - 1), (row, column)))
    for row, column in np.argwhere(padded[:, :-1] != padded[:, 1:]).tolist():
        edges.append(((row - 1, column), (row, column)))
    for one, other in edges:
        neighbours[one].append(other)
        neighbours[other].append(one)
    scale = np.array([spacing[1], spacing[0]])
    return [np.array(line, np.float64)[:, ::-1] * scale for line in _lines(neighbours)]


def _lines(neighbours: dict[Point, list[Point]]) -> list[list[Point]]:
    """Join all edges to lines, first from corners with an odd number of edges; the remaining lines are closed."""
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
    """The next point; where two voxels share only a corner, turn, so that the two lines touch and do not cross."""
    if len(line) < 2 or len(others) < 3:
        return others[0]
    row, column = (2 * now - before for now, before in zip(line[-1], line[-2], strict=True))
    return next(point for point in others if point != (row, column))


def _corners(line: list[Point]) -> list[Point]:
    """The line without the inner points of straight segments."""
    inner = [now for before, now, after in zip(line, line[1:], line[2:], strict=False)
             if (now[0] - before[0], now[1] - before[1]) != (after[0] - now[0], after[1] - now[1])]  # fmt: skip
    return [line[0], *inner, line[-1]]


# Reading the slices: each file once, with only a few volumes in memory.

Labels = NDArray[Any]
#: What predictions that are read together share: label, image, evaluated label values, and the value to ignore.
_Case = tuple[Path, Path | None, tuple[int, ...] | None, int | None]
#: Predictions of a case that are drawn on the same slice.
_Group = tuple[PredictedCase, ...]


@dataclass(frozen=True)
class Shown:
    """The section of a slice that is drawn; arrays are `[rows, columns]`, with rows drawn upwards.

    Attributes:
        plane: plane of the slice.
        axis: array axis of the label's file that the plane cuts; `None` for a 2D image.
        index: index of the slice along that axis, as viewers show it; 0 for a 2D image.
        slices: number of slices along that axis.
        reference: labels of the reference.
        predictions: labels of each prediction.
        image: intensities; `None`: there is no image.
        no_image: the reason, if an image was expected.
    """

    plane: Plane
    axis: int | None
    index: int
    slices: int
    reference: Labels
    predictions: dict[PredictedCase, Labels]
    image: NDArray[np.float32] | None
    no_image: str | None

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in mm."""
        (rows, columns), (down, across) = self.reference.shape, self.plane.spacing
        return columns * across, rows * down


@dataclass(frozen=True)
class Panel:
    """A selected case with its section, or the reason why it cannot be drawn."""

    choice: Choice
    shown: Shown | None
    problem: str | None = None


def read_panels(choices: Sequence[Choice], same: Sequence[Choice]) -> tuple[list[Panel], list[Panel]]:
    """Read the sections of all selected cases.

    If voxels have the same length along several axes, all cases are shown in the plane in which their objects have the
    largest total area.

    Args:
        choices: cases that each have a separate slice.
        same: predictions of one case, all on the same slice.

    Returns:
        A panel for each of `choices` and for each of `same`.
    """
    wanted: dict[_Case, dict[_Group, None]] = {}
    together = tuple(choice.predicted for choice in same)
    for group in [*((choice.predicted,) for choice in choices), *([together] if same else [])]:
        wanted.setdefault(_case(group), {})[group] = None
    # nibabel logs every header that it corrects.
    with LoggingOutputSuppressor(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        found = dict(zip(wanted, pool.map(_read_case, wanted, wanted.values()), strict=True))
    areas: dict[str, float] = defaultdict(float)
    for _, sections, _ in found.values():
        if len(sections) > 1:
            for plane, area in sections.items():
                areas[plane] += area

    def panel(choice: Choice, group: _Group) -> Panel:
        pictures, _, problems = found[_case(group)]
        if choice.predicted in problems:
            return Panel(choice, None, problems[choice.predicted])
        return Panel(choice, pictures[max(pictures, key=lambda plane: areas[plane])][group])

    return [panel(choice, (choice.predicted,)) for choice in choices], [panel(choice, together) for choice in same]


def _case(group: _Group) -> _Case:
    return group[0].reference, group[0].image, group[0].values, group[0].ignore


def _read_case(
    case: _Case, groups: Iterable[_Group]
) -> tuple[dict[str, dict[_Group, Shown]], dict[str, float], dict[PredictedCase, str]]:
    """Read one case.

    Returns:
        Plane -> group of predictions -> its slice; plane -> area of the largest section; and the predictions that
        cannot be drawn, with the reasons.
    """
    label, image_file, values, ignore = case
    predicted = dict.fromkeys(one for group in groups for one in group)
    predictions: dict[PredictedCase, Labels] = {}
    problems: dict[PredictedCase, str] = {}
    try:
        reference = _read(label, "the label")
    except BadFileError as error:
        return {}, {}, dict.fromkeys(predicted, str(error))

    def evaluated(labels: Labels) -> Labels:
        if labels.dtype.kind == "f":
            labels = labels.astype(np.int32)
        if values is not None:
            labels = np.where(np.isin(labels, values), labels, 0)
        return labels if ignore is None else np.where(reference.data == ignore, 0, labels)

    truth = evaluated(reference.data)
    for one in predicted:
        try:
            predictions[one] = evaluated(_read(one.prediction, "the prediction", reference).data)
        except BadFileError as error:
            problems[one] = str(error)
    image, no_image = None, None
    if image_file is not None and predictions:
        try:
            image = _read(image_file, "the image", reference, labels=False).data
        except BadFileError as error:
            no_image = str(error)
    found = planes(truth.shape, reference.spacing, reference.affine)
    pictures = {
        plane.name: {
            group: _picture(
                plane,
                reference.orientation,
                truth,
                {o: predictions[o] for o in group if o in predictions},
                image,
                no_image,
            )
            for group in groups
        }
        for plane in found
    }
    return pictures, {plane.name: largest_section(truth, plane) for plane in found}, problems


def _picture(
    plane: Plane,
    stored: Orientation,
    reference: Labels,
    predictions: dict[PredictedCase, Labels],
    image: NDArray[Any] | None,
    no_image: str | None,
) -> Shown:
    index = select_slice(reference, predictions.values(), plane)
    flat = plane.cut(reference, index)
    cut = {one: plane.cut(labels, index) for one, labels in predictions.items()}
    slices = 1 if plane.across is None else reference.shape[plane.across]
    section = window(np.any([labels != 0 for labels in (flat, *cut.values())], axis=0), plane.spacing)
    return Shown(
        plane=plane,
        axis=None if plane.across is None else stored.order[plane.across],
        index=slices - 1 - index if plane.across is not None and stored.flipped[plane.across] else index,
        slices=slices,
        # Copies: a view would keep the whole volume.
        reference=flat[section].copy(),
        predictions={one: labels[section].copy() for one, labels in cut.items()},
        image=None if image is None else plane.cut(image, index)[section].astype(np.float32),
        no_image=no_image,
    )


def _read(path: Path, what: str, on: Volume | None = None, labels: bool = True) -> Volume:
    try:
        # An image has the label's number of axes, and perhaps one for channels: of 2D images that is the third.
        axes = {2, 3} if on is None else {len(on.spacing)}
        volume = read_labels(path) if labels else read_file(path, axes, channels=None)
        if volume.data.ndim > len(volume.spacing):  # of several channels, the first is drawn
            volume = replace(volume, data=volume.data[0])
    except BadFileError as error:
        raise BadFileError(f"{what} {path}: {error}") from None
    problem = None if on is None else grid_problem(volume, on, "label")
    if problem is None and labels:
        problem = label_problem(volume.data)
    if problem is not None:
        raise BadFileError(f"{what} {path}: {problem}")
    return volume
