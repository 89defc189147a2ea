"""Functions that stay right for complex arguments whose imaginary part is an infinitesimal step.

With ``x + 1j * h * direction`` as input, ``imag(f) / h`` is the exact directional derivative of f when every step
carries (value, slope * imaginary part). Sums, products and quotients of complex numbers do so by themselves; what is
not analytic (abs, clamps, roots at 0), or would lose digits, is written here by its value and its slope.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Function = Callable[[Array], Array]


def lift(x: Array, value: Function, slope: Function) -> Array:
    """``value(x)``, with ``slope(x)`` times the imaginary part as its imaginary part."""
    x = np.asarray(x)
    if not np.iscomplexobj(x):
        return value(x)
    result = np.array(value(x.real), dtype=complex)
    with np.errstate(divide="ignore", invalid="ignore"):
        rise = slope(x.real)
        result.imag = np.where((x.imag == 0) | (rise == 0), 0.0, rise * x.imag)  # 0 * infinity is 0 here
    return result


def log_sigmoid(x: Array) -> Array:
    return lift(x, lambda t: -np.logaddexp(0, -t), lambda t: np.exp(-np.logaddexp(0, t)))


def sigmoid(x: Array) -> Array:
    return lift(
        x,
        lambda t: np.exp(-np.logaddexp(0, -t)),
        lambda t: np.exp(-np.logaddexp(0, -t) - np.logaddexp(0, t)),
    )


def log_softmax(x: Array) -> Array:
    """Over axis 1."""
    shifted = x - x.real.max(axis=1, keepdims=True)
    return shifted - log(np.exp(shifted).sum(axis=1, keepdims=True))


def log(x: Array) -> Array:
    return lift(x, np.log, lambda t: 1 / t)


def clamp_min(x: Array, least: float) -> Array:
    """``max(x, least)``; no gradient below."""
    return lift(x, lambda t: np.maximum(t, least), lambda t: (t >= least).astype(float))


def relu(x: Array) -> Array:
    return lift(x, lambda t: np.maximum(t, 0), lambda t: (t > 0).astype(float))


def absolute(x: Array) -> Array:
    return lift(x, np.abs, np.sign)


def sqrt(x: Array) -> Array:
    """The root, whose gradient at 0 is 0."""
    return lift(x, np.sqrt, lambda t: np.where(t > 0, 0.5 / np.sqrt(t), 0.0))


def power(x: Array, exponent: float) -> Array:
    """``x ** exponent`` for x >= 0."""
    if exponent == 0:
        return np.ones_like(x)
    return lift(x, lambda t: t**exponent, lambda t: exponent * t ** (exponent - 1))


def log_cosh(x: Array) -> Array:
    """``ln cosh x`` with full relative accuracy near 0: cosh x = 1 + 2 sinh^2(x/2)."""
    return lift(x, lambda t: np.log1p(2 * np.sinh(t / 2) ** 2), np.tanh)


def maximum(x: Array) -> Any:
    """The largest element; where several share it, the mean of their gradients."""
    return x[x.real == x.real.max()].mean()


def minimum(x: Array) -> Any:
    return -maximum(-x)
