"""The definitions' examples: rows of a few voxels, worked out by hand to six digits."""

from typing import Any

import pytest
import torch
from torch import Tensor

import medloss
from medloss.region.soft_skeleton import soft_skeleton
from medloss.spacing import step_intervals


def row(*values: float) -> Tensor:
    """An image of one item, one channel and one row."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, 1, 1, -1)


def channels(*rows: Tensor) -> Tensor:
    return torch.cat(rows, 1)


#: Name, arguments, probabilities, target, arguments of the call, value; probabilities go in as logits of a sigmoid.
BY_SIGMOID: list[tuple[str, dict[str, Any], Tensor, Tensor, dict[str, Any], float]] = []
#: Likewise by softmax: one row of voxels' probabilities per class, and labels.
BY_SOFTMAX: list[tuple[str, dict[str, Any], Tensor, Tensor, dict[str, Any], float]] = []

_TWO = channels(row(1, 1, 0, 0), row(1, 0, 0, 0))
_ONE_EMPTY = channels(row(1, 1, 0, 0), row(0, 0, 0, 0))
_HALVES = torch.full_like(_TWO, 0.5)
_UNSMOOTHED = {"smooth_nr": 0.0, "smooth_dr": 0.0}
BY_SIGMOID += [
    ("generalized_dice", _UNSMOOTHED, _HALVES, _TWO, {}, 0.625),
    ("generalized_dice", _UNSMOOTHED | {"w_type": "simple"}, _HALVES, _TWO, {}, 0.6),
    ("generalized_dice", _UNSMOOTHED | {"w_type": "uniform"}, _HALVES, _TWO, {}, 0.571429),
    # The wrong weights: an absent class' is that of the rarest, and a patch of background teaches something.
    ("generalized_dice", _UNSMOOTHED, _HALVES, _ONE_EMPTY, {}, 0.666667),
    ("generalized_dice", {}, _HALVES, 0 * _TWO, {}, 0.8),
    ("matthews_correlation", {}, row(0.9, 0.8, 0.3, 0.2), row(1, 1, 0, 0), {}, 0.396978),
    ("matthews_correlation", {}, row(0.9, 0.8, 0.3, 0.2), row(0, 0, 0, 0), {}, 0.55),
]
BY_SIGMOID += [
    (
        "topk_cross_entropy",
        {"k": 50, "ignore_index": 9},
        row(0.9, 0.8, 0.6, 0.3, 0.5, 0.5),
        row(1, 1, 1, 1, 9, 9),
        {},
        0.857399,
    ),
]
BY_SIGMOID += [
    ("lovasz", {}, row(0.8, 0.4, 0.3), row(1, 1, 0), {}, 0.416667),
    ("lovasz", {}, row(0.8, 0.4, 0.3), row(0, 0, 0), {}, 0.8),
    ("lovasz", {"hinge": True}, row(2, -1, 0.5).sigmoid(), row(1, 1, 0), {}, 1.25),
    ("unified_focal", {}, row(0.8, 0.3), row(1, 0), {}, 0.171920),
    ("unified_focal", {"asymmetric": False}, row(0.8, 0.3), row(1, 0), {}, 0.211308),
]
_P, _Y, _SPACED = row(0.2, 0.9, 0.6, 0.1, 0.4), row(0, 1, 1, 0, 0), {"spacing": 0.7}
BY_SIGMOID += [
    ("boundary", {}, _P, _Y, _SPACED, -0.056),
    ("boundary", {"normalize": True}, _P, _Y, _SPACED, -0.04),
    ("boundary", {"subtract_minimum": True}, _P, _Y, _SPACED, 0.224),
    ("boundary", {}, _Y, _Y, _SPACED, -0.28),
    ("boundary", {"subtract_minimum": True}, _Y, _Y, _SPACED, 0.0),
]
_P, _Y = row(0.2, 0.4, 0.6, 0.9), row(0, 1, 0, 1)
BY_SIGMOID += [
    ("l1_ace", {"num_bins": 2}, _P, _Y, {}, 0.225),
    ("l1_ace", {"num_bins": 2, "binning": "soft"}, _P, _Y, {}, 0.045),
    ("l1_ace", {"num_bins": 1}, _P, _Y, {}, 0.025),
    ("l1_ace", {"num_bins": 1, "binning": "soft"}, _P, _Y, {}, 0.025),
]
_LINE = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
_LINE[..., 2, :] = 1
BY_SIGMOID += [("cldice", {}, _LINE * row(0.9, 0.9, 0.2, 0.9, 0.9), _LINE, {}, 0.111111)]
BY_SIGMOID += [
    (
        "skeleton_recall",
        {},
        row(0.9, 0.5, 0.7, 0.2),
        row(1, 1, 1, 1),
        {"skeleton_map": row(1, 1, 1, 0).byte()},
        0.299999,
    )
]
_P, _Y = row(0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.2), row(1, 1, 1, 0, 0, 0, 0, 1)
_INNER: dict[str, Any] = {"loss": "dice", "terms": {"dice": _UNSMOOTHED}}
BY_SIGMOID += [
    ("instance_wise", _INNER, _P, _Y, {}, 0.399516),
    ("instance_wise", _INNER | {"cells": "blob"}, _P, _Y, {}, 0.432377),
]

_OF_THREE = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.7, 0.2], [0.2, 0.3, 0.5]], dtype=torch.float64).T[None, :, None]
_MATRIX = ((0, 1, 1), (1, 0, 0.5), (1, 0.5, 0))
BY_SOFTMAX += [
    ("generalized_wasserstein_dice", {"dist_matrix": _MATRIX}, _OF_THREE, row(0, 1, 2), {}, 0.195876),
    ("generalized_wasserstein_dice", {}, _OF_THREE, row(0, 1, 2), {}, 0.260870),
    (
        "generalized_wasserstein_dice",
        {"dist_matrix": _MATRIX, "weighting_mode": "GDL"},
        _OF_THREE,
        row(0, 1, 2),
        {},
        0.134752,
    ),
]


def _ids(rows: list[Any]) -> list[str]:
    return [f"{name}-{'-'.join(map(str, arguments))}" for name, arguments, *_ in rows]


@pytest.mark.parametrize(("name", "arguments", "p", "y", "call", "value"), BY_SIGMOID, ids=_ids(BY_SIGMOID))
def test_by_sigmoid(
    name: str, arguments: dict[str, Any], p: Tensor, y: Tensor, call: dict[str, Any], value: float
) -> None:
    loss = medloss.create_loss(name, sigmoid=True, **arguments)
    assert loss(p.logit(), y, **call).item() == pytest.approx(value, abs=5.1e-7)


@pytest.mark.parametrize(("name", "arguments", "p", "y", "call", "value"), BY_SOFTMAX, ids=_ids(BY_SOFTMAX))
def test_by_softmax(
    name: str, arguments: dict[str, Any], p: Tensor, y: Tensor, call: dict[str, Any], value: float
) -> None:
    loss = medloss.create_loss(name, softmax=True, **arguments)
    assert loss(p.log(), y, **call).item() == pytest.approx(value, abs=5.1e-7)


def test_the_soft_skeleton_of_a_block() -> None:
    block = torch.zeros(5, 7, 7)
    block[1:4, 1:6, 1:6] = 1
    for x in (block, block.bool()):
        even = soft_skeleton(x, [[0, 1, 2]] * 4)
        assert even.nonzero().tolist() == [[2, i, j] for i in (2, 3, 4) for j in (2, 3, 4)]
    axes = [[axis for axis, n in enumerate(step_intervals((3.0, 1.0, 1.0))) if step % n == 0] for step in range(1, 5)]
    assert soft_skeleton(block, axes).nonzero().tolist() == [[i, 3, 3] for i in (1, 2, 3)]
