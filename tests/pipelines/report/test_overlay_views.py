"""Planes, slices, sections and outlines, for voxels with three different sides."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.report.overlay_selection import Plane, largest_section, planes, select_slice, window
from pipelines.report.overlay_slices import outlines

SPACING = (3.0, 1.0, 2.0)


def _affine(spacing: tuple[float, ...], worlds: tuple[int, ...], signs: tuple[int, ...]) -> NDArray[np.float64]:
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for axis, (world, sign) in enumerate(zip(worlds, signs, strict=True)):
        affine[world, axis] = sign * spacing[axis]
    return affine


def _plane(labels: NDArray[Any], spacing: tuple[float, ...] = SPACING, across: int | None = None) -> Plane:
    found = planes(labels.shape, spacing, np.diag([*spacing, *[1.0] * (4 - len(spacing))]))
    return found[0] if across is None else next(plane for plane in found if plane.across == across)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
@pytest.mark.parametrize("worlds", list(permutations(range(3))))
def test_the_plane_of_acquisition_in_radiological_orientation(worlds: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """For any orientation of the file: the patient's right, or front, at the left; front, or head, at the top."""
    affine = _affine(SPACING, worlds, signs)
    (plane,) = planes((4, 5, 6), SPACING, affine)
    assert plane.across == 0  # 3 mm
    assert plane.name == ("sagittal", "coronal", "axial")[worlds[0]]
    volume = np.zeros((4, 5, 6), int)
    # The voxel that lies furthest to the right, front and head.
    corner = tuple(0 if sign < 0 else n - 1 for sign, n in zip(signs, volume.shape, strict=True))
    volume[corner] = 1
    shown = plane.cut(volume, corner[0])
    assert shown[-1, 0] == 1 and shown.sum() == 1  # rows are drawn upwards
    axes = [(0, 1, 2)[axis] for axis in range(3) if axis != worlds[0]]
    assert plane.letters == (("R", "L"), ("A", "P"))[axes[0]] + ((), ("P", "A"), ("I", "S"))[axes[1]]
    rows = next(axis for axis in range(3) if worlds[axis] == axes[1])
    columns = next(axis for axis in range(3) if worlds[axis] == axes[0])
    assert plane.spacing == (SPACING[rows], SPACING[columns])
    assert shown.shape == (volume.shape[rows], volume.shape[columns])


@pytest.mark.parametrize(
    ("spacing", "across"),
    [((3.0, 1.0, 2.0), [0]), ((0.5, 2.1, 0.7), [1]), ((1.0, 1.0, 1.2), [2]), ((1.0, 1.0, 1.0), [0, 1, 2]),
     ((1.0, 2.0, 1.95), [1, 2])],
)  # fmt: skip
def test_axes_that_may_be_cut(spacing: tuple[float, ...], across: list[int]) -> None:
    found = planes((9, 9, 9), spacing, np.diag([*spacing, 1.0]))
    assert [plane.across for plane in found] == across


def test_a_single_slice_and_a_2d_image() -> None:
    (plane,) = planes((20, 30, 1), (3.0, 1.0, 0.1), np.diag([3.0, 1.0, 0.1, 1.0]))
    assert (plane.across, plane.spacing) == (2, (1.0, 3.0))
    (plane,) = planes((20, 30), (1.5, 0.8), np.diag([1.5, 0.8, 1.0, 1.0]))
    assert (plane.across, plane.spacing, plane.letters, plane.name) == (None, (0.8, 1.5), (), "")
    image = np.arange(600).reshape(20, 30)
    # Columns run from right to left, as in an axial slice: the first axis points to the right.
    assert np.array_equal(plane.cut(image, 0), image.T[:, ::-1])
    assert select_slice(image, [image], plane) == 0


def test_the_largest_section_is_in_mm2() -> None:
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[1:6, 2:4, 3:7] = 2  # 15 x 2 x 8 mm
    assert [largest_section(labels, _plane(labels, SPACING))] == [2 * 8.0]
    areas = {p.across: largest_section(labels, p) for p in planes(labels.shape, (1.0,) * 3, np.eye(4))}
    assert areas == {0: 8.0, 1: 20.0, 2: 10.0}
    assert largest_section(np.zeros_like(labels), _plane(labels)) == 0


def test_the_slice_on_which_they_differ_most() -> None:
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[1:6, 2:6, 3:7] = 1
    labels[4, 1:7, 2:8] = 2  # the largest section
    plane = _plane(labels)
    wrong, elsewhere = labels.copy(), labels.copy()
    wrong[2, 2:4, 3:7] = 0
    elsewhere[6, 0:3, 0:2] = 1
    assert select_slice(labels, [wrong], plane) == 2
    assert select_slice(labels, [elsewhere], plane) == 6
    assert select_slice(labels, [wrong, elsewhere, elsewhere], plane) == 6  # 12 voxels against 8
    swapped = labels.copy()
    swapped[5][labels[5] == 1] = 3  # the same outline, another class
    assert select_slice(labels, [swapped], plane) == 5
    assert select_slice(labels, [labels], plane) == 4
    empty = np.zeros_like(labels)
    assert select_slice(labels, [empty], plane) == 4
    assert select_slice(empty, [empty], plane) == 4  # the middle one
    assert select_slice(empty, [wrong], plane) == 4


# The section.


@pytest.mark.parametrize("spacing", [(3.0, 1.0), (1.0, 2.5), (0.7, 0.7)])
def test_the_section_has_a_margin_in_mm_and_is_square(spacing: tuple[float, float]) -> None:
    mask = np.zeros((100, 200), bool)
    mask[45:55, 85:115] = True
    sides = 10 * spacing[0], 30 * spacing[1]
    rows, columns = window(mask, spacing)
    height, width = (rows.stop - rows.start) * spacing[0], (columns.stop - columns.start) * spacing[1]
    margin = 0.3 * max(sides) + 0.1 * max(100 * spacing[0], 200 * spacing[1])
    expected = max(sides) + 2 * margin
    assert height == pytest.approx(min(expected, 100 * spacing[0]), abs=spacing[0])
    assert width == pytest.approx(min(expected, 200 * spacing[1]), abs=spacing[1])
    # The object is in the middle.
    assert (rows.start + rows.stop) / 2 == pytest.approx(50, abs=1)
    assert (columns.start + columns.stop) / 2 == pytest.approx(100, abs=1)


def test_the_section_at_the_edge_of_a_speck_and_of_nothing() -> None:
    mask = np.zeros((60, 80), bool)
    mask[0:3, 78:80] = True
    rows, columns = window(mask, (1.0, 1.0))
    assert (rows.start, columns.stop) == (0, 80) and mask[rows, columns].sum() == 6
    assert rows.stop - rows.start == columns.stop - columns.start >= 16  # a fifth of the slice around a speck
    assert window(np.zeros((60, 80), bool), (1.0, 2.0)) == (slice(0, 60), slice(0, 80))
    assert window(np.ones((60, 80), bool), (1.0, 2.0)) == (slice(0, 60), slice(0, 80))
    tiny = np.zeros((5, 40), bool)
    tiny[2, 20] = True
    rows, columns = window(tiny, (2.0, 1.0))
    assert rows == slice(0, 5) and columns.stop - columns.start >= 9


# Outlines.


def _area(lines: list[NDArray[np.float64]]) -> float:
    """By Gauss's formula, per line, since holes may have either direction."""
    return sum(abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2 for x, y in (line.T for line in lines))


def _length(lines: list[NDArray[np.float64]]) -> float:
    return sum(float(np.abs(np.diff(line, axis=0)).sum()) for line in lines)


@pytest.mark.parametrize("spacing", [(3.0, 1.0), (0.5, 2.0), (1.0, 1.0)])
def test_an_outline_follows_the_voxels(spacing: tuple[float, float]) -> None:
    labels = np.zeros((6, 7), int)
    labels[1:3, 2:6] = 4
    (line,) = outlines(labels, spacing)
    assert np.array_equal(line[0], line[-1])
    assert _area([line]) == pytest.approx(8 * spacing[0] * spacing[1])
    assert set(line[:, 0]) == {2 * spacing[1], 6 * spacing[1]} and set(line[:, 1]) == {1 * spacing[0], 3 * spacing[0]}
    labels[4, 0] = 4
    assert len(outlines(labels, spacing)) == 2
    assert _area(outlines(labels, spacing)) == pytest.approx(9 * spacing[0] * spacing[1])
    assert outlines(np.zeros((6, 7), int), spacing) == []
    assert _area(outlines(np.ones((6, 7), int), spacing)) == pytest.approx(42 * spacing[0] * spacing[1])


def test_every_edge_is_drawn_once() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (12, 15))
    padded = np.pad(labels, 1)
    expected = 2.0 * (padded[:, :-1] != padded[:, 1:]).sum() + 0.5 * (padded[:-1] != padded[1:]).sum()
    lines = outlines(labels, (2.0, 0.5))
    assert _length(lines) == pytest.approx(expected)
    for line in lines:  # only along the axes
        assert (np.abs(np.diff(line, axis=0)) > 0).sum(1).max() == 1


def test_two_classes_side_by_side_have_one_line_between_them() -> None:
    labels = np.zeros((4, 6), int)
    labels[1:3, 1:3], labels[1:3, 3:5] = 1, 2
    assert _length(outlines(labels, (1.0, 1.0))) == pytest.approx(12 + 2)
    corners = np.zeros((4, 4), int)
    corners[0:2, 0:2] = corners[2:4, 2:4] = 1
    assert sorted(_area([line]) for line in outlines(corners, (1.0, 1.0))) == [4.0, 4.0]  # they touch, and do not cross
