"""The references themselves: small examples computed by hand, torch and scipy as oracles, and their derivatives."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from loss_inputs import WITHOUT_BACKGROUND
from references import REFERENCES, directional_derivative, gradient
from references.distances import boundary_distance_map, contour, edt, signed_distance_map
from references.hausdorff import ball_mean, ball_offsets, cross_mean, eroded_axes
from references.structural_similarity import standardised
from scipy.ndimage import binary_erosion, convolve, distance_transform_edt, generate_binary_structure

Array = npt.NDArray[Any]
LN2 = math.log(2)
VOXELWISE = {
    "binary_cross_entropy",
    "weighted_cross_entropy",
    "balanced_cross_entropy",
    "focal",
    "topk_cross_entropy",
    "distance_penalty",
    "structural_similarity",
    "shape_aware",
}
REGION = {
    "dice",
    "tversky",
    "focal_tversky",
    "sensitivity_specificity",
    "log_cosh_dice",
    "generalized_dice",
    "matthews_correlation",
    "generalized_wasserstein_dice",
    "lovasz",
    "cldice",
    "skeleton_recall",
}
#: One value per item, of all classes together.
JOINED = {"generalized_dice", "generalized_wasserstein_dice"}
COMPOUND = {"combo", "exponential_logarithmic", "unified_focal"}
BY_DISTANCE = {
    "distance_penalty",
    "boundary",
    "cldice",
    "skeleton_recall",
    "instance_wise",
    "hausdorff_dt",
    "log_hausdorff_dt",
    "hausdorff_er",
    "hausdorff_cv",
    "shape_aware",
}
HARD_ONLY = BY_DISTANCE | {"generalized_wasserstein_dice", "lovasz"}
#: Their values of good predictions are below 0.
NEGATIVE = {"boundary"}
NEEDS_NEIGHBOURS = BY_DISTANCE | {"structural_similarity"}
MODES = ("softmax", "sigmoid")
# In both volumes the ball of radius 3 has a voxel on either side along every axis and fits.
SIZES: dict[int, tuple[int, ...]] = {2: (9, 8), 3: (6, 7, 5)}
SPACINGS: dict[int, tuple[float, ...]] = {2: (3.0, 1.0), 3: (3.0, 1.0, 2.0)}


def example(axes: int = 3, classes: int = 3, seed: int = 0, noise: float = 1.0) -> tuple[Array, Array]:
    """Logits that see every structure displaced, and index targets with structures that have an inside."""
    rng = np.random.default_rng(seed)
    size = SIZES[axes]
    target = np.zeros((2, 1, *size), dtype=int)
    for c in range(1, classes):
        for b in range(2):
            corner = [(b + 2 * c) % 3, (c - 1) * 4, 0][:axes]
            block = tuple(slice(k, k + 4 - b) for k in corner)
            target[b, 0][block] = c
    seen = np.roll(target, 2, axis=2)
    belief = np.concatenate([seen == c for c in range(classes)], axis=1) * 9.0 - 4.5
    return belief + noise * rng.normal(size=belief.shape), target


def row(*values: float) -> Array:
    """A 2D image of one item, one channel and one row."""
    return np.array(values, dtype=float).reshape(1, 1, 1, -1)


def one_hot(target: Array, classes: int) -> Array:
    return np.concatenate([target == c for c in range(classes)], axis=1).astype(float)


HALVES = row(0.5, 0.5, 0.5, 0.5)
ONE_OF_FOUR = row(1, 0, 0, 0)
SQUARE = np.ones((1, 1, 3, 3))
HOLE = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=float)[None, None]
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], dtype=float)[None, None]
LINE = np.repeat([0.0, 0.0, 1.0, 0.0, 0.0], 5).reshape(1, 1, 5, 5)
AROUND = lambda image: np.pad(image, [(0, 0), (0, 0), (1, 1), (1, 1)])  # noqa: E731
INDEX = (1 + 0.5) / (1 + 0.5 + 0.3 * 1.5 + 0.7 * 0.5)  # Tversky's, of HALVES and ONE_OF_FOUR


def by_hand_similarity() -> float:
    """Target 0 0 1, prediction constant 1/2: windows (0, 0, 0), (0, 0, 1) and (0, 1, 1)."""
    side = math.exp(-1 / (2 * 1.5**2)) / (1 + 2 * math.exp(-1 / (2 * 1.5**2)))
    deviation = math.sqrt(side * (1 - side))
    e = [0.0, abs((0.01 - side) / (deviation + 0.01) - 1), abs((0.01 + side) / (deviation + 0.01) - 1)]
    kept = [value for value in e if value > 0.1 * max(e)]
    return sum(kept) * LN2 / len(kept)


BY_HAND: list[tuple[str, Array, Array, dict[str, Any], float]] = [
    ("binary_cross_entropy", HALVES, ONE_OF_FOUR, {}, LN2),
    ("binary_cross_entropy", row(0.0, 1.0, 1.0), row(1, 1, 0), {}, 200 / 3),
    ("weighted_cross_entropy", HALVES, row(1, 1, 0, 0), {}, 1.5 * LN2),
    ("weighted_cross_entropy", HALVES, row(1, 1, 0, 0), {"pos_weight": 4.0, "weight": 3.0}, 7.5 * LN2),
    ("balanced_cross_entropy", HALVES, ONE_OF_FOUR, {}, (0.75 + 3 * 0.25) / 4 * LN2),
    ("focal", HALVES, ONE_OF_FOUR, {}, (0.25 + 3 * 0.75) / 16 * LN2),
    ("focal", row(0.25), row(1), {"alpha": None, "gamma": 1.0}, 0.75 * 2 * LN2),
    # Outside d = 2, 1 (F = 0, 1/2), inside d = 1, 2, 3 (F = 2/3, 1/3, 0).
    ("distance_penalty", row(*[0.5] * 5), row(0, 0, 1, 1, 1), {}, (5 + 1 / 2 + 1) / 5 * LN2),
    ("distance_penalty", row(0.5, 0.5), row(1, 1), {}, LN2),
    ("structural_similarity", row(0.5, 0.5, 0.5), row(0, 0, 1), {}, by_hand_similarity()),
    ("dice", HALVES, ONE_OF_FOUR, {}, 1 - 2 / 4),
    ("dice", HALVES, ONE_OF_FOUR, {"jaccard": True}, 1 - 2 / 6),
    ("dice", HALVES, ONE_OF_FOUR, {"squared_pred": True}, 1 - 2 / 3),
    ("dice", HALVES, ONE_OF_FOUR, {"smooth_nr": 0.0, "smooth_dr": 2.0}, 1 - 1 / 5),
    ("tversky", HALVES, ONE_OF_FOUR, {}, 1 - INDEX),
    ("focal_tversky", HALVES, ONE_OF_FOUR, {}, (1 - INDEX) ** 0.75),
    ("focal_tversky", HALVES, ONE_OF_FOUR, {"inverse_gamma": False}, (1 - INDEX) ** (4 / 3)),
    ("focal_tversky", row(1, 0), row(1, 0), {}, 1e-7**0.75),
    (
        "sensitivity_specificity",
        HALVES,
        ONE_OF_FOUR,
        {},
        0.05 * 0.25 / (1 + 1e-5) + 0.95 * 0.75 / (3 + 1e-5),
    ),
    ("sensitivity_specificity", HALVES, ONE_OF_FOUR, {"squared": False, "smooth_nr": 0, "smooth_dr": 0}, 0.5),
    ("sensitivity_specificity", row(0, 0), row(0, 0), {"squared": False}, 0.0),
    ("log_cosh_dice", HALVES, ONE_OF_FOUR, {}, math.log(math.cosh(0.5))),
    ("generalized_dice", HALVES, ONE_OF_FOUR, {}, 1 - 2 / 4),
    ("generalized_dice", HALVES, row(0, 0, 0, 0), {}, 1 - 1 / 3),
    ("matthews_correlation", row(0.9, 0.8, 0.3, 0.2), row(1, 1, 0, 0), {}, 1 - 2.4 / math.sqrt(15.84 + 1e-5)),
    ("matthews_correlation", row(0.9, 0.8, 0.3, 0.2), row(0, 0, 0, 0), {}, 0.55),
    ("matthews_correlation", row(0.9, 0.8, 0.3, 0.2), row(1, 1, 1, 1), {}, 0.45),
    ("topk_cross_entropy", row(0.5, 0.9, 0.6, 0.3), row(1, 1, 1, 1), {"k": 50}, -math.log(0.3 * 0.5) / 2),
    ("topk_cross_entropy", row(0.5, 0.9, 0.6, 0.3), row(1, 1, 1, 1), {"k": 24}, -math.log(0.3)),
    ("lovasz", row(0.8, 0.4, 0.3), row(1, 1, 0), {}, 0.6 / 2 + 0.3 / 6 + 0.2 / 3),
    ("lovasz", row(0.8, 0.4, 0.3), row(0, 0, 0), {}, 0.8),
    ("lovasz", row(1, 0, 1, 0), row(1, 1, 0, 0), {}, 1 - 1 / 3),
    ("lovasz", row(0.8, 0.4, 0.3), row(0, 0, 0), {"classes": "present"}, 0.0),
    # d(y) = 1 1 1 2 and d(q) = 2 1 1 1; two voxels are wrong.
    ("hausdorff_dt", row(0, 0, 1, 0), row(0, 1, 0, 0), {}, 2 * (1 + 1) / 4),
    ("hausdorff_dt", row(0, 0, 1, 0), row(0, 1, 0, 0), {"one_sided": True}, 2 * 1 / 4),
    ("hausdorff_dt", row(0, 0, 1, 0), row(0, 1, 0, 0), {"spacing": (1.0, 2.0)}, 2 * (4 + 4) / 4),
    ("log_hausdorff_dt", row(0, 0, 1, 0), row(0, 1, 0, 0), {"spacing": (1.0, 2.0)}, np.log(1 + 2 * (4 + 4) / 4)),
    ("hausdorff_dt", row(1, 1, 1, 1), row(0, 0, 0, 0), {}, 0.0),
    # With the masked voxel as in the target d(q) = 1 1 2 3 4, and d(y) = 1 1 1 2 3.
    (
        "hausdorff_dt",
        row(0, 0, 1, 1, 1),
        row(0, 1, 0, 0, 0),
        {"mask": row(1, 0, 1, 1, 1), "alpha": 1},
        (1 + 2 + 2 + 3 + 3 + 4) / 4,
    ),
    # Step 1 leaves 1 in the centre, (4/5 - 1/2) / (1/2) = 0.6 on edges, 0.2 in corners; step 2 0.36 in the centre.
    ("hausdorff_er", SQUARE, 0 * SQUARE, {}, (1 + 4 * 0.6 + 4 * 0.2 + 4 * 0.36) / 9),
    # No error at the masked centre: (3/5 - 1/2) / (1/2) = 0.2 on edges and in corners, nothing in step 2.
    ("hausdorff_er", SQUARE, 0 * SQUARE, {"mask": HOLE}, 8 * 0.2 / 8),
    # Only the first axis is eroded in step 1: 1 in the middle row, (2/3 - 1/2) / (1/2) = 1/3 in the two others.
    ("hausdorff_er", SQUARE, 0 * SQUARE, {"spacing": (1.0, 2.0), "erosions": 1}, (3 + 6 / 3) / 9),
    # Stretched to [0, 1]: 1, 0.5 and 0.
    ("hausdorff_er", SQUARE, 0 * SQUARE, {"renormalize": True, "erosions": 1}, (1 + 4 * 0.5) / 9),
    ("hausdorff_cv", SQUARE, 0 * SQUARE, {"radii": (1,)}, 1.0 + 1.0),
    ("hausdorff_cv", SQUARE, 0 * SQUARE, {"radii": (1, 2)}, 1.0 + 1.0),
    ("hausdorff_cv", SQUARE, 0 * SQUARE, {"radii": (2,), "spacing": (2.0, 2.0)}, 4 * (1.0 + 1.0)),
    ("hausdorff_cv", SQUARE, 0 * SQUARE, {}, 0.0),
    # All 5 voxels of the ball at the centre, 3 of 5 on each arm, one of them by replicate padding: f = 1 and 0.2.
    ("hausdorff_cv", CROSS, 0 * CROSS, {"radii": (1,)}, (5 + 1 + 4 * 0.2) / 9),
    ("hausdorff_cv", 0 * CROSS, CROSS, {"radii": (1,)}, (5 + 1 + 4 * 0.2) / 9),
    ("hausdorff_cv", np.ones((1, 1, 2, 2)), np.zeros((1, 1, 2, 2)), {"radii": (1,)}, 0.0),
    # Contours: voxels 1, 2 and 2, 3; voxels 1 and 3 are wrong; E = (0 + 2 mm) / 2.
    (
        "shape_aware",
        row(0.1, 0.1, 0.9, 0.9, 0.1),
        row(0, 1, 1, 0, 0),
        {"spacing": (1.0, 2.0)},
        (-3 * math.log(0.9) - 2 * math.log(0.1) * (1 + 1)) / 5,
    ),
    # The masked voxel 1 is predicted as in the target; of the predicted contour 1, 4 voxel 4 alone counts: E = 2.
    (
        "shape_aware",
        row(0.1, 0.1, 0.1, 0.1, 0.9),
        row(0, 1, 1, 0, 0),
        {"mask": row(1, 0, 1, 1, 1)},
        (-2 * math.log(0.9) - 2 * math.log(0.1) * (1 + 2)) / 4,
    ),
    ("shape_aware", row(0.9, 0.9), row(0, 0), {}, -math.log(0.1)),
    # phi = 1 -1 -1 1 2.
    ("boundary", row(0.2, 0.9, 0.6, 0.1, 0.4), row(0, 1, 1, 0, 0), {}, (0.2 - 0.9 - 0.6 + 0.1 + 0.8) / 5),
    (
        "boundary",
        row(0.2, 0.9, 0.6, 0.1, 0.4),
        row(0, 1, 1, 0, 0),
        {"normalize": True, "subtract_minimum": True},
        (0.2 + 0.1 + 0.4 + 0.1 + 0.8) / 10,
    ),
    ("l1_ace", row(0.2, 0.4, 0.6, 0.9), row(0, 1, 0, 1), {"num_bins": 2}, (0.2 + 0.25) / 2),
    # Shares of the first bin: 1 0.7 0.3 0; of the second: 0 0.3 0.7 1.
    ("l1_ace", row(0.2, 0.4, 0.6, 0.9), row(0, 1, 0, 1), {"num_bins": 2, "binning": "soft"}, (0.02 + 0.16) / 4),
    ("l1_ace", row(0, 0.1, 0.1), row(0, 0, 0), {"num_bins": 1, "ignore_empty_classes": True}, 0.0),
    ("cldice", LINE * row(0.9, 0.9, 0.2, 0.9, 0.9), LINE, {}, 1 - 2 * 0.8 / 1.8),
    ("cldice", 0 * LINE, LINE, {"smooth": 0.0}, 1.0),
    # K of the square of 3 x 3 is its centre, and so is the cross's.
    (
        "cldice",
        np.pad(CROSS, [(0, 0), (0, 0), (1, 1), (1, 1)]),
        np.pad(SQUARE, [(0, 0), (0, 0), (1, 1), (1, 1)]),
        {},
        0.0,
    ),
    (
        "skeleton_recall",
        row(0.9, 0.5, 0.7, 0.2),
        row(1, 1, 1, 1),
        {"skeleton_map": row(1, 1, 1, 0), "smooth": 1.0},
        1 - 3.1 / 4,
    ),
    # The middle is voxel 3, and voxel 1 is too far from it.
    ("skeleton_recall", row(1, 0.5, 0.7, 0.1, 0, 0), row(1, 1, 1, 1, 1, 1), {"smooth": 6.0}, 1 - (2.3 + 6) / 12),
    (
        "instance_wise",
        row(0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.2),
        row(1, 1, 1, 0, 0, 0, 0, 1),
        {"loss": "dice", "terms": {"dice": {"smooth_nr": 0, "smooth_dr": 0}}},
        (2 - 5.4 / 5.9 - 0.4 / 1.4) / 2,
    ),
    (
        "instance_wise",
        row(0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.2),
        row(1, 1, 1, 0, 0, 0, 0, 1),
        {"loss": "dice", "cells": "blob", "terms": {"dice": {"smooth_nr": 0, "smooth_dr": 0}}},
        (2 - 5.4 / 6.1 - 0.4 / 1.6) / 2,
    ),
    # The masked instance has no area; without any there is one, all that counts.
    ("instance_wise", HALVES, row(1, 0, 0, 1), {"loss": "dice", "mask": row(1, 1, 1, 0)}, 1 - 2 / 3),
    ("instance_wise", HALVES, row(0, 0, 0, 0), {"loss": "dice"}, 1 - 1 / 3),
    ("combo", HALVES, ONE_OF_FOUR, {}, 0.5 * 0.5 * LN2 + 0.5 * 0.5),
    (
        "combo",
        HALVES,
        ONE_OF_FOUR,
        {"alpha": 0.2, "beta": 0.9},
        0.2 * (0.9 + 3 * 0.1) / 4 * LN2 + 0.8 * 0.5,
    ),
    (
        "exponential_logarithmic",
        HALVES,
        ONE_OF_FOUR,
        {},
        (0.8 + 0.2 * (0.25 * 2 + 0.75 * math.sqrt(4 / 3))) * LN2**0.3,
    ),
    (
        "unified_focal",
        row(0.8, 0.3),
        row(1, 0),
        {},
        -(0.6 * math.log(0.8) + 0.4 * math.sqrt(0.3) * math.log(0.7)) / 4
        + ((1 - 1.8 / 2.04) ** 0.5 + 1 - 1.7 / 1.96) / 4,
    ),
    ("exponential_logarithmic", row(1, 0), row(1, 0), {}, (0.8 + 0.2 * math.sqrt(2)) * 1e-7**0.3),
    (
        "exponential_logarithmic",
        HALVES,
        row(0, 0, 0, 0),
        {"gamma": 1.0},
        0.8 * math.log(3) + 0.2 * LN2,
    ),
]


@pytest.mark.parametrize(("name", "p", "y", "arguments", "expected"), BY_HAND)
def test_by_hand(name: str, p: Array, y: Array, arguments: dict[str, Any], expected: float) -> None:
    value = REFERENCES[name](p, y, mode="probabilities", **arguments)
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_every_reference_has_an_example_by_hand() -> None:
    assert {name for name, *_ in [*BY_HAND, *BY_HAND_CATEGORICAL]} == set(REFERENCES)


LN3 = math.log(3)
DICE_OF_THREE = ((2 * 2 / 3 + 1) / (2 + 4 / 3 + 1), 1 / 2, 1 / 2)
BY_HAND_CATEGORICAL: list[tuple[str, dict[str, Any], float]] = [
    ("binary_cross_entropy", {}, LN3),
    ("binary_cross_entropy", {"include_background": False}, LN3 / 2),
    ("binary_cross_entropy", {"include_background": False, "weight": (1, 3)}, LN3),
    ("weighted_cross_entropy", {}, 1.5 * LN3),
    ("weighted_cross_entropy", {"weight": (1.0, 2.0, 4.0)}, 2 * LN3),
    ("balanced_cross_entropy", {}, (2 * 0.5 + 2 * 0.75) / 4 * LN3),
    ("focal", {}, 4 / 9 * LN3),
    ("focal", {"alpha": 0.1, "gamma": 1}, 2 / 3 * (2 * 0.9 + 2 * 0.1) / 4 * LN3),
    ("focal", {"alpha": (1, 2, 3), "gamma": 0}, (2 + 2 + 3) / 4 * LN3),
    # Class 1: F = 0, 1/2, 0 (inside), 1/2; class 2: 0, 1/3, 2/3, 0 (inside).
    ("distance_penalty", {}, (4 + 1 / 2 + 2 / 3 + 1 / 2) / 4 * LN3),
    ("dice", {}, 1 - sum(DICE_OF_THREE) / 3),
    ("dice", {"include_background": False, "weight": 3}, 3 / 2),
    # Volumes 2, 1, 1: weights 1/4, 1, 1.
    ("generalized_dice", {}, 1 - (2 * (1 / 4 * 2 / 3 + 1 / 3 + 1 / 3) + 1) / (1 / 4 * 10 / 3 + 7 / 3 + 7 / 3 + 1)),
    ("generalized_dice", {"include_background": False, "weight": (1, 3)}, 1 - (2 * 4 / 3 + 1) / (4 * 7 / 3 + 1)),
    # D = 2/3 at every voxel; with GDL they weigh 1/3, 1/3, 1/2, 1/2.
    ("generalized_wasserstein_dice", {}, 1 - (2 * 2 / 3 + 1) / (2 * 2 / 3 + 4 * 2 / 3 + 1)),
    ("generalized_wasserstein_dice", {"weighting_mode": "GDL"}, 1 - (10 / 9 + 1) / (10 / 9 + 10 / 9 + 1)),
    # D = 2/3 on background, and (1 + 1/4) / 3 elsewhere.
    (
        "generalized_wasserstein_dice",
        {"dist_matrix": ((0, 4, 4), (4, 0, 1), (4, 1, 0))},
        1 - (2 * 7 / 6 + 1) / (2 * 7 / 6 + 4 / 3 + 5 / 6 + 1),
    ),
    ("topk_cross_entropy", {"weight": (1, 3, 2), "k": 50}, 2.5 * LN3),
    ("combo", {"beta": 0.8}, 0.5 * 0.5 * LN3 + 0.5 * (1 - sum(DICE_OF_THREE) / 3)),
    ("combo", {"include_background": False, "beta": 0.8}, 0.5 * 0.8 * LN3 / 2 + 0.5 * 0.5),
    (
        "exponential_logarithmic",
        {},
        0.8 * sum((-math.log(d)) ** 0.3 for d in DICE_OF_THREE) / 3 + 0.2 * (2 * math.sqrt(2) + 2 * 2) / 4 * LN3**0.3,
    ),
    (
        "exponential_logarithmic",
        {"include_background": False, "frequencies": (0.9, 0.01, 0.09), "gamma": 1},
        0.8 * LN2 + 0.2 * (10 + math.sqrt(1 / 0.09)) / 4 * LN3,
    ),
    # Class 0: errors 2/3 2/3 1/3 1/3, J 1/2, 1; others 2/3 first, which are the class.
    ("lovasz", {}, 2 / 3),
    (
        "unified_focal",
        {"gamma": 0, "delta": 0.5, "smooth_nr": 0, "smooth_dr": 0},
        LN3 / 4 + 0.5 * (3 / 5 + 2 * 5 / 7) / 3,  # 1 - T: 3/5, 5/7, 5/7
    ),
    ("shape_aware", {}, LN3),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), BY_HAND_CATEGORICAL)
def test_by_hand_categorical(name: str, arguments: dict[str, Any], expected: float) -> None:
    """Labels 0 0 1 2, every probability 1/3."""
    value = REFERENCES[name](np.zeros((1, 3, 1, 4)), row(0, 0, 1, 2).astype(int), **arguments)
    assert value == pytest.approx(expected, rel=1e-12)


def test_distance_penalty_by_hand_categorical() -> None:
    # Class 1: 1/2 3/4 0 3/4 1/2 1/4 0; class 2: 0 1/3 2/3 3/4 1/2 1/4 0; class 0 would have 4/5 at voxel 2.
    value = REFERENCES["distance_penalty"](np.zeros((1, 3, 1, 7)), row(0, 0, 1, 2, 2, 2, 2).astype(int))
    assert value == pytest.approx((7 + 1 / 2 + 3 / 4 + 2 / 3 + 3 / 4 + 1 / 2 + 1 / 4) / 7 * LN3)


@pytest.mark.parametrize("first", [0, 1])
def test_structural_similarity_takes_the_mean_over_classes(first: int) -> None:
    z, target = (array[:1] for array in example(2))
    y = one_hot(target, 3)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    standard = [[standardised(maps[0, c], 0.01, 3, 1.5) for c in range(first, 3)] for maps in (y, p)]
    e = np.abs(np.array(standard[0]) - np.array(standard[1])).mean(axis=0)
    f = e > 0.1 * e.max()
    expected = e * f * -(y * np.log(p))[0, first:].sum(axis=0)
    assert 0 < f.sum() < f.size
    arguments = {"include_background": first == 0}
    loss = REFERENCES["structural_similarity"]
    np.testing.assert_allclose(loss(z, target, reduction="none", **arguments)[0, 0], expected, rtol=1e-10)
    assert loss(z, target, **arguments) == pytest.approx(expected.sum() / f.sum(), rel=1e-12)


def test_shape_aware_by_hand_categorical() -> None:
    # Predicted 0 1 0 2: class 1 is one voxel off, class 2 right, so E = 1/2.
    p = np.full((1, 3, 1, 4), 0.1)
    for voxel, c in enumerate((0, 1, 0, 2)):
        p[0, c, 0, voxel] = 0.8
    value = REFERENCES["shape_aware"](np.log(p), row(0, 0, 1, 2).astype(int), include_background=False)
    assert value == pytest.approx((-math.log(0.8) - math.log(0.1) * (1 + 0.5)) / 4)


@pytest.mark.parametrize("axes", [2, 3])
def test_cross_entropies_are_torchs(axes: int) -> None:
    z, target = example(axes)
    y = one_hot(target, 3)
    tz, ty, index = torch.tensor(z), torch.tensor(y), torch.tensor(target[:, 0])
    functional = torch.nn.functional
    bce, weighted = REFERENCES["binary_cross_entropy"], REFERENCES["weighted_cross_entropy"]
    assert bce(z, target) == pytest.approx(functional.cross_entropy(tz, index).item(), rel=1e-12)
    assert bce(z, target, mode="sigmoid") == pytest.approx(
        functional.binary_cross_entropy_with_logits(tz, ty).item(), rel=1e-12
    )
    hard = ty.flip(0).numpy()  # probabilities of exactly 0 and 1: the clamp at -100
    assert bce(hard, y, mode="probabilities") == pytest.approx(
        functional.binary_cross_entropy(torch.tensor(hard), ty).item(), rel=1e-12
    )
    weight = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    assert weighted(z, target, weight=weight.tolist()) == pytest.approx(
        functional.cross_entropy(tz, index, weight=weight, reduction="none").mean().item(), rel=1e-12
    )
    assert weighted(z, y, mode="sigmoid", pos_weight=4.0) == pytest.approx(
        functional.binary_cross_entropy_with_logits(tz, ty, pos_weight=torch.tensor(4.0)).item(), rel=1e-12
    )
    np.testing.assert_allclose(
        bce(z, target, ignore_index=2, reduction="none")[:, 0],
        functional.cross_entropy(tz, index, ignore_index=2, reduction="none").numpy(),
        rtol=1e-12,
    )
    assert bce(z, target, ignore_index=2) == pytest.approx(
        functional.cross_entropy(tz, index, ignore_index=2).item(), rel=1e-12
    )


@pytest.mark.parametrize("name", ["binary_cross_entropy", "weighted_cross_entropy"])
def test_gradient_is_torchs(name: str) -> None:
    z, target = example(2)
    tz = torch.tensor(z, requires_grad=True)
    weight = torch.tensor([1.0, 2.0, 2.0] if name.startswith("weighted") else [1.0] * 3, dtype=torch.float64)
    torch.nn.functional.cross_entropy(tz, torch.tensor(target[:, 0]), weight=weight, reduction="none").mean().backward()
    assert tz.grad is not None
    np.testing.assert_allclose(gradient(name, z, target), tz.grad.numpy(), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 0.7, 1.1)])
def test_edt_is_scipys(spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(5)
    for share in (0.05, 0.5, 0.95):
        mask = rng.random((6, 9, 7)) < share
        inside = distance_transform_edt(mask, sampling=spacing)
        outside = distance_transform_edt(~mask, sampling=spacing)
        np.testing.assert_allclose(edt(mask, spacing), inside, rtol=1e-13)
        np.testing.assert_allclose(boundary_distance_map(mask, spacing), inside + outside, rtol=1e-13)
        np.testing.assert_allclose(signed_distance_map(mask, spacing), outside - inside, rtol=1e-13)


@pytest.mark.parametrize("full", [False, True])
def test_maps_of_empty_and_full_masks_are_zero(full: bool) -> None:
    mask = np.full((3, 4), full)
    assert not signed_distance_map(mask, (1.0, 2.0)).any()
    assert not boundary_distance_map(mask, (1.0, 2.0)).any()
    assert not contour(mask).any()


def test_contour_is_mask_minus_its_erosion() -> None:
    mask = np.random.default_rng(6).random((7, 8, 6)) < 0.8
    eroded = binary_erosion(mask, generate_binary_structure(3, 1), border_value=1)
    np.testing.assert_array_equal(contour(mask), mask & ~eroded)


def test_ball_and_erosion_follow_the_spacing() -> None:
    assert len(ball_offsets(1.0, (1.0, 1.0, 1.0))) == 7
    assert len(ball_offsets(3.0, (3.0, 1.0))) == 7 + 2
    assert len(ball_offsets(0.3, (0.1, 0.1))) == 29  # 0.3 / 0.1 falls short of 3 by a rounding
    assert [eroded_axes(k, (2.0, 1.0, 2.5)) for k in range(1, 7)] == [[1], [0, 1], [1, 2], [0, 1], [1], [0, 1, 2]]
    assert eroded_axes(1, (1.2, 0.8)) == [1]  # 1.5 rounds up


def test_means_over_neighbourhoods_are_scipys() -> None:
    x = np.random.default_rng(7).random((6, 7, 5))
    cross = generate_binary_structure(3, 1) / 7
    np.testing.assert_allclose(cross_mean(x, [0, 1, 2]), convolve(x, cross, mode="constant"), rtol=1e-12)
    flat = np.array([0, 1, 0])[:, None, None] * cross * 7 / 5  # the first axis is left alone
    np.testing.assert_allclose(cross_mean(x, [1, 2]), convolve(x, flat, mode="constant"), rtol=1e-12)

    offsets = np.array(ball_offsets(2.5, (3.0, 1.0, 1.5)))
    ball = np.zeros((1, 5, 3))
    ball[tuple((offsets + np.array([0, 2, 1])).T)] = 1 / len(offsets)
    np.testing.assert_allclose(ball_mean(x, ball_offsets(2.5, (3.0, 1.0, 1.5))), convolve(x, ball, mode="nearest"))

    bell = np.exp(-(np.arange(-1, 2) ** 2) / (2 * 1.5**2))
    window = np.einsum("i,j,k->ijk", bell, bell, bell) / bell.sum() ** 3
    mean = convolve(x, window, mode="nearest")
    deviation = np.sqrt(convolve(x**2, window, mode="nearest") - mean**2)
    expected = (x - mean + 0.01) / (deviation + 0.01)
    np.testing.assert_allclose(standardised(x, 0.01, 3, 1.5), expected, rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "exponent"),
    [
        ("distance_penalty", 0),
        ("cldice", 0),
        ("instance_wise", 0),
        ("boundary", 1),
        ("hausdorff_er", 0),
        ("hausdorff_dt", 2),
        ("hausdorff_cv", 2),
    ],
)
def test_a_larger_spacing(name: str, exponent: int, mode: str) -> None:
    z, target = example(3)
    arguments = {"mode": mode, **arguments_of(name, 3)}
    larger = {key: tuple(1.7 * x for x in arguments[key]) for key in arguments.keys() & {"spacing", "radii"}}
    value = REFERENCES[name](z, target, **arguments)
    assert REFERENCES[name](z, target, **{**arguments, **larger}) == pytest.approx(1.7**exponent * value)


def arguments_of(name: str, axes: int) -> dict[str, Any]:
    return {"spacing": SPACINGS[axes], **({"radii": (3.0, 3.5)} if name == "hausdorff_cv" else {})}


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in REFERENCES),
    ("structural_similarity", {"detach_weights": False}),
    ("hausdorff_er", {"renormalize": True, "erosions": 3}),
    ("hausdorff_dt", {"one_sided": True}),
    ("dice", {"squared_pred": True, "jaccard": True, "batch": True}),
    ("sensitivity_specificity", {"squared": False}),
    ("focal_tversky", {"inverse_gamma": False}),
    ("focal", {"gamma": 0.7, "alpha": 0.4}),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("mode", [*MODES, "probabilities"])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_complex_step_agrees_with_central_differences(
    name: str, options: dict[str, Any], mode: str, axes: int, masked: bool
) -> None:
    z, target = example(axes)
    if mode == "probabilities":
        z = 1 / (1 + np.exp(-z))
    rng = np.random.default_rng(1)
    arguments = {"mode": mode, "frozen": z, **arguments_of(name, axes), **options}
    if masked:
        arguments |= {"mask": rng.random(target.shape) < 0.8, "weight": (2.0, 3.0), "include_background": False}
    direction = rng.normal(size=z.shape) * (z * (1 - z) if mode == "probabilities" else 1)
    exact = directional_derivative(name, z, direction, target, **arguments)
    step = 1e-6
    above = REFERENCES[name](z + step * direction, target, **arguments)
    below = REFERENCES[name](z - step * direction, target, **arguments)
    assert abs(exact) > 1e-6
    assert exact == pytest.approx((above - below) / (2 * step), rel=2e-6, abs=2e-9)


def test_probabilities_of_0_and_1_have_no_gradient_beyond_the_clamp() -> None:
    wrong, direction = row(0, 1, 0.5), row(1, 1, 1)
    derivative = directional_derivative("binary_cross_entropy", wrong, direction, row(1, 0, 1), mode="probabilities")
    assert derivative == pytest.approx(-2 / 3)


@pytest.mark.parametrize("name", REFERENCES)
def test_gradient_holds_the_directional_derivatives(name: str) -> None:
    z, target = (array[:1] for array in example(2))
    arguments = arguments_of(name, 2)
    direction = np.random.default_rng(2).normal(size=z.shape)
    whole = gradient(name, z, target, **arguments)
    exact = directional_derivative(name, z, direction, target, **arguments)
    assert (whole * direction).sum() == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("include_background", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFERENCES)
def test_reductions_and_shapes(name: str, mode: str, include_background: bool) -> None:
    z, target = example(3)
    arguments = {"mode": mode, "include_background": include_background, **arguments_of(name, 3)}
    values = REFERENCES[name](z, target, reduction="none", **arguments)
    classes = 3 if include_background else 2
    if name in VOXELWISE:
        assert values.shape == (2, 1 if mode == "softmax" else classes, *target.shape[2:])
    else:
        left = 2 if mode == "softmax" and name in WITHOUT_BACKGROUND else classes
        assert values.shape == (2, 1 if name in JOINED else left, 1, 1, 1)
    assert np.isrealobj(values)
    assert REFERENCES[name](z, target, reduction="sum", **arguments) == pytest.approx(values.sum())
    mean = REFERENCES[name](z, target, reduction="mean", **arguments)
    assert mean > 0 or name in NEGATIVE
    if name not in ("structural_similarity", "topk_cross_entropy"):  # means over what is selected
        assert mean == pytest.approx(values.mean())
    assert REFERENCES[name](z, one_hot(target, 3), **arguments) == mean


@pytest.mark.parametrize("name", sorted((REGION | COMPOUND) - NEEDS_NEIGHBOURS))
def test_batch_makes_one_region_of_all_items(name: str) -> None:
    z, target = example(2)
    joined = [np.concatenate(list(array), axis=1)[None] for array in (z, target)]
    whole = REFERENCES[name](z, target, batch=True, reduction="none")
    assert whole.shape == (1, 1 if name in JOINED else 3, 1, 1)
    np.testing.assert_allclose(whole, REFERENCES[name](joined[0], joined[1], reduction="none"), rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFERENCES)
def test_what_is_masked_does_not_matter(name: str, mode: str) -> None:
    z, target = example(3)
    mask = np.random.default_rng(3).random(target.shape) < 0.7
    arguments = {"mode": mode, "mask": mask, **arguments_of(name, 3)}
    value = REFERENCES[name](z, target, **arguments)
    assert value < np.inf and value != 0
    assert REFERENCES[name](np.where(mask, z, np.nan), target, **arguments) == value
    direction = np.where(mask, 0.0, 1.0) * np.ones_like(z)
    assert directional_derivative(name, z, direction, target, **arguments) == 0
    ignored = np.where(mask, target, 255)
    if name not in NEEDS_NEIGHBOURS:
        assert REFERENCES[name](z, ignored, mode=mode, ignore_index=255) == pytest.approx(value, rel=1e-14)
        same = np.broadcast_to(mask[:1], mask.shape)  # the same voxels in both items, so that the rest is an array
        rest = [a[:, :, same[0, 0]][..., None] for a in (z, target)]
        alone = REFERENCES[name](*rest, mode=mode)
        assert REFERENCES[name](z, target, mode=mode, mask=same) == pytest.approx(alone, rel=1e-12)
    nothing = np.zeros_like(mask)
    assert REFERENCES[name](z, target, **{**arguments, "mask": nothing}) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFERENCES)
def test_axes_and_classes_may_be_permuted(name: str, mode: str) -> None:
    z, target = example(3)
    arguments = {"mode": mode, **arguments_of(name, 3)}
    value = REFERENCES[name](z, target, **arguments)
    order = (0, 1, 4, 2, 3)
    turned = [np.flip(a.transpose(order), axis=3) for a in (z, target)]
    spacing = tuple(arguments["spacing"][axis - 2] for axis in order[2:])
    assert REFERENCES[name](*turned, **{**arguments, "spacing": spacing}) == pytest.approx(value, rel=1e-12)
    swapped = np.array([0, 2, 1])
    assert REFERENCES[name](z[:, swapped], swapped[target], **arguments) == pytest.approx(value, rel=1e-12)
    if name in BY_DISTANCE and name != "instance_wise":  # of each class there is one component here
        assert REFERENCES[name](z, target, **{**arguments, "spacing": (1.0, 3.0, 2.0)}) != pytest.approx(value)
        per_item = [arguments["spacing"]] * 2
        assert REFERENCES[name](z, target, **{**arguments, "spacing": per_item}) == value


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", REFERENCES)
def test_a_perfect_prediction_costs_nothing(name: str, mode: str) -> None:
    _, target = example(3)
    perfect = 40 * one_hot(target, 3) - 20
    if name in NEGATIVE:
        assert REFERENCES[name](perfect, target, mode=mode, **arguments_of(name, 3)) < 0
    exceptions = {"subtract_minimum": True} if name in NEGATIVE else {}
    value = REFERENCES[name](perfect, target, mode=mode, **arguments_of(name, 3), **exceptions)
    assert 0 <= value < (2e-2 if name == "exponential_logarithmic" else 1e-3)


@pytest.mark.parametrize("name", ["distance_penalty", "hausdorff_dt", "boundary"])
def test_a_given_map_replaces_the_targets_own(name: str) -> None:
    z, target = example(3)
    spacing = SPACINGS[3]
    maps = np.array([[signed_distance_map(item[0] == c, spacing) for c in range(3)] for item in target])
    value = REFERENCES[name](z, target, spacing=spacing)
    assert REFERENCES[name](z, target, spacing=spacing, distance_map=maps) == pytest.approx(value, rel=1e-14)
    assert REFERENCES[name](z, target, spacing=spacing, distance_map=maps + 0.5) != pytest.approx(value)


@pytest.mark.parametrize("name", REFERENCES)
def test_soft_targets(name: str) -> None:
    z, _ = example(2)
    y = np.random.default_rng(4).dirichlet([1.0, 1.0, 1.0], size=(2, *SIZES[2])).transpose(0, 3, 1, 2)
    if name in HARD_ONLY:
        with pytest.raises(ValueError, match="soft target"):
            REFERENCES[name](z, y)
    else:
        assert REFERENCES[name](z, y) > 0
