"""Exact derivatives of a reference by the complex step."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .complexstep import Array

STEP = 1e-30


def directional_derivative_of(
    loss: Callable[..., Any], logits: Array, direction: Array, target: Array, /, **arguments: Any
) -> float:
    value = loss(logits + 1j * STEP * np.where(np.isfinite(logits), direction, 0), target, **arguments)
    if np.ndim(value):
        raise ValueError("the derivative of a scalar: reduction must be mean or sum")
    return float(np.imag(value)) / STEP


def gradient_of(loss: Callable[..., Any], logits: Array, target: Array, /, **arguments: Any) -> Array:
    result = np.zeros(logits.shape)
    for element in np.ndindex(*logits.shape):
        direction = np.zeros(logits.shape)
        direction[element] = 1.0
        result[element] = directional_derivative_of(loss, logits, direction, target, **arguments)
    return result
