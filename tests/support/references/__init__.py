"""References for the losses: NumPy, float64, loops over the formula, written apart from the package.

``REFERENCES[name](logits, target, *, mode, include_background, reduction, batch, weight, mask, ignore_index, spacing,
distance_map, labelled_classes, voxel_weight, frozen, **hyperparameters)``: ``logits`` [B, C, *spatial], ``target`` an
index map [B, 1, *spatial] or one map per class [B, C, *spatial], ``mode`` "softmax", "sigmoid" or "probabilities",
``mask`` [B, 1, *spatial] (True counts), ``spacing`` in mm (one tuple, or one for each item), ``labelled_classes``
[B, C] bool, ``voxel_weight`` [B, 1, *spatial], ``frozen`` the logits from which is taken what carries no gradient
(default: ``logits``). Complex logits give exact derivatives, see `complexstep`.
"""

from collections.abc import Callable
from typing import Any

from .boundary import boundary
from .calibration import l1_ace
from .cldice import cldice
from .complexstep import Array
from .compound import combo, exponential_logarithmic, unified_focal
from .cross_entropy import (
    balanced_cross_entropy,
    binary_cross_entropy,
    focal,
    topk_cross_entropy,
    weighted_cross_entropy,
)
from .derivatives import directional_derivative_of, gradient_of
from .distance_penalty import distance_penalty
from .hausdorff import hausdorff_cv, hausdorff_dt, hausdorff_er, log_hausdorff_dt
from .instance_wise import instance_wise
from .region import (
    dice,
    focal_tversky,
    generalized_dice,
    generalized_wasserstein_dice,
    log_cosh_dice,
    lovasz,
    matthews_correlation,
    sensitivity_specificity,
    skeleton_recall,
    tversky,
)
from .shape_aware import shape_aware
from .structural_similarity import structural_similarity

REFERENCES: dict[str, Callable[..., Any]] = {
    "binary_cross_entropy": binary_cross_entropy,
    "weighted_cross_entropy": weighted_cross_entropy,
    "balanced_cross_entropy": balanced_cross_entropy,
    "focal": focal,
    "topk_cross_entropy": topk_cross_entropy,
    "l1_ace": l1_ace,
    "distance_penalty": distance_penalty,
    "structural_similarity": structural_similarity,
    "dice": dice,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "sensitivity_specificity": sensitivity_specificity,
    "log_cosh_dice": log_cosh_dice,
    "generalized_dice": generalized_dice,
    "matthews_correlation": matthews_correlation,
    "generalized_wasserstein_dice": generalized_wasserstein_dice,
    "lovasz": lovasz,
    "cldice": cldice,
    "skeleton_recall": skeleton_recall,
    "hausdorff_dt": hausdorff_dt,
    "log_hausdorff_dt": log_hausdorff_dt,
    "hausdorff_er": hausdorff_er,
    "hausdorff_cv": hausdorff_cv,
    "shape_aware": shape_aware,
    "boundary": boundary,
    "combo": combo,
    "exponential_logarithmic": exponential_logarithmic,
    "unified_focal": unified_focal,
    "instance_wise": instance_wise,
}


def directional_derivative(name: str, logits: Array, direction: Array, target: Array, **arguments: Any) -> float:
    """The derivative of a reference's scalar value along ``direction``, exact to rounding."""
    return directional_derivative_of(REFERENCES[name], logits, direction, target, **arguments)


def gradient(name: str, logits: Array, target: Array, **arguments: Any) -> Array:
    """The gradient of a reference's scalar value: one call for each element of the logits."""
    return gradient_of(REFERENCES[name], logits, target, **arguments)


__all__ = ["REFERENCES", "directional_derivative", "gradient"]
