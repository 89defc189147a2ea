"""The cross entropies of `sum_spec.py`, each a loop over one block's buffers.

What is common, the plain one and the focal one with gamma = 2, has separate loops without intermediate buffers.
"""

from typing import Any

import numba
import numpy as np

from medloss.kernels.numba.compilation import EXACT, OPTIONS
from medloss.kernels.numba.elementary import bounded_log, complement, exp, log
from medloss.kernels.numba.terms import fill, multiply, scale
from medloss.kernels.sum_spec import POWER_FLOOR

#: `VoxelTerms.entropy` as numbers; `FOCAL_2` is the focal one with gamma = 2.
ENTROPIES = {"": 0, "plain": 1, "focal": 2, "power": 3, "focal_background": 5}
PLAIN, FOCAL, POWER, FOCAL_2, FOCAL_BACKGROUND = 1, 2, 3, 4, 5

_TINY = np.float32(1.17549435e-38)


@numba.njit(**OPTIONS)
def kind_of(kind: Any, background: Any) -> Any:
    """The entropy of what is background, or not, where they differ."""
    return (FOCAL if background else PLAIN) if kind == FOCAL_BACKGROUND else kind


@numba.njit(**EXACT)
def _log_probability(z: Any, top: Any, partition: Any) -> Any:
    # Regrouped, the logarithm of a probability near 1 would lose its digits to a large logit.
    return bounded_log((z - top) - partition)


@numba.njit(**OPTIONS)
def counted(w: Any, h: Any, zero: Any) -> Any:
    """A weight of 0 leaves out even an infinity, and no NaN."""
    return w * h if (w != zero) | (h != h) else zero


@numba.njit(**OPTIONS)
def softmax_entropy_sum(
    kind: Any, gamma: Any, z: Any, top: Any, partition: Any, e: Any, inverse: Any, y: Any, v: Any, n: Any, buffers: Any
) -> Any:
    """The sum of `v y h` of a class of a softmax."""
    zero = y.dtype.type(0)
    result = zero
    if kind == PLAIN:
        for i in range(n):
            result -= counted(v[i] * y[i], _log_probability(z[i], top[i], partition[i]), zero)
    elif kind == FOCAL_2:
        for i in range(n):
            value = _log_probability(z[i], top[i], partition[i])
            u = complement(value, e[i] * inverse[i])
            result -= counted(v[i] * y[i], value * (u * u), zero)
    else:
        p, logs, u, h = buffers
        multiply(e, inverse, n, p)
        softmax_class(z, top, partition, p, n, logs, u)
        entropy_values(kind, gamma, logs, u, n, h)
        result = entropy_sum(y, v, h, n, False)
    return result


@numba.njit(**OPTIONS)
def softmax_entropy_gradients(
    kind: Any,
    gamma: Any,
    z: Any,
    top: Any,
    partition: Any,
    e: Any,
    inverse: Any,
    y: Any,
    v: Any,
    n: Any,
    gradient: Any,
    buffers: Any,
    out: Any,
) -> None:
    """`gradient` times the derivative of `v y h` by l."""
    zero, two = y.dtype.type(0), y.dtype.type(2)
    if kind == PLAIN:
        for i in range(n):
            out[i] = -gradient * v[i] * y[i]
    elif kind == FOCAL_2:
        for i in range(n):
            p = e[i] * inverse[i]
            value = _log_probability(z[i], top[i], partition[i])
            u = complement(value, p)
            out[i] = gradient * counted(v[i] * y[i], u * (two * value * p - u), zero)
    else:
        p, logs, u, h = buffers
        multiply(e, inverse, n, p)
        softmax_class(z, top, partition, p, n, logs, u)
        entropy_gradients(kind, gamma, logs, p, u, n, h)
        fill(out, n, 0)
        add_entropy(gradient, y, v, h, n, False, out)


@numba.njit(**OPTIONS)
def softmax_plain_gradients(y: Any, v: Any, n: Any, gradient: Any, out: Any, shared: Any) -> None:
    """`softmax_entropy_gradients` of the plain entropy if no other row is requested, and its sum over the classes."""
    for i in range(n):
        value = -gradient * v[i] * y[i]
        out[i] = value
        shared[i] += value


@numba.njit(**EXACT)
def softmax_logarithms(z: Any, top: Any, partition: Any, n: Any, logs: Any) -> None:
    """`l`."""
    for i in range(n):
        logs[i] = _log_probability(z[i], top[i], partition[i])


@numba.njit(**EXACT)
def softmax_class(z: Any, top: Any, partition: Any, p: Any, n: Any, logs: Any, u: Any) -> None:
    """`l` and `1 - p`."""
    softmax_logarithms(z, top, partition, n, logs)
    for i in range(n):
        u[i] = complement(logs[i], p[i])


@numba.njit(**OPTIONS)
def entropy_sums(
    kind: Any, gamma: Any, y: Any, v: Any, p: Any, u: Any, logs: Any, other_logs: Any, n: Any, h: Any
) -> Any:
    """The sums of `v y h` and `v (1 - y) h` of an independent channel's probability."""
    zero, one = y.dtype.type(0), y.dtype.type(1)
    positive = zero
    negative = zero
    if kind == PLAIN:
        for i in range(n):
            positive -= counted(v[i] * y[i], logs[i], zero)
            negative -= counted(v[i] * (one - y[i]), other_logs[i], zero)
    elif kind == FOCAL_2:
        for i in range(n):
            positive -= counted(v[i] * y[i], logs[i] * (u[i] * u[i]), zero)
            negative -= counted(v[i] * (one - y[i]), other_logs[i] * (p[i] * p[i]), zero)
    else:
        entropy_values(kind_of(kind, False), gamma, logs, u, n, h)
        positive = entropy_sum(y, v, h, n, False)
        entropy_values(kind_of(kind, True), gamma, other_logs, p, n, h)
        negative = entropy_sum(y, v, h, n, True)
    return positive, negative


@numba.njit(**OPTIONS)
def add_sigmoid_gradients(
    kind: Any,
    gamma: Any,
    inside: Any,
    outside: Any,
    y: Any,
    v: Any,
    p: Any,
    u: Any,
    logs: Any,
    other_logs: Any,
    n: Any,
    h: Any,
    out: Any,
) -> None:
    """Add the gradient for a logit; `inside` and `outside` are the gradients of the two sums."""
    zero, one, two = y.dtype.type(0), y.dtype.type(1), y.dtype.type(2)
    if kind == PLAIN:
        for i in range(n):
            out[i] += v[i] * (outside * (one - y[i]) * p[i] - inside * y[i] * u[i])
    elif kind == FOCAL_2:
        for i in range(n):
            gradient = u[i] * u[i] * (two * logs[i] * p[i] - u[i])
            other = p[i] * p[i] * (two * other_logs[i] * u[i] - p[i])
            part = inside * counted(v[i] * y[i], gradient, zero)
            out[i] += part - outside * counted(v[i] * (one - y[i]), other, zero)
    else:
        entropy_gradients(kind_of(kind, False), gamma, logs, p, u, n, h)
        scale(u, n, h)
        add_entropy(inside, y, v, h, n, False, out)
        entropy_gradients(kind_of(kind, True), gamma, other_logs, u, p, n, h)
        scale(p, n, h)
        add_entropy(-outside, y, v, h, n, True, out)


@numba.njit(**OPTIONS)
def entropy_values(kind: Any, gamma: Any, logs: Any, u: Any, n: Any, out: Any) -> None:
    """`h` of l = `logs`, where `u` is one minus the probability."""
    exponent = out.dtype.type(gamma)
    floor = out.dtype.type(POWER_FLOOR)
    if kind == PLAIN:
        for i in range(n):
            out[i] = -logs[i]
    elif (kind == FOCAL) | (kind == FOCAL_2):
        if gamma == 2:
            for i in range(n):
                out[i] = -logs[i] * (u[i] * u[i])
        elif gamma == 1:
            for i in range(n):
                out[i] = -logs[i] * u[i]
        else:
            for i in range(n):
                out[i] = -logs[i] * exp(exponent * log(u[i]))
    else:
        for i in range(n):
            base = floor if -logs[i] < floor else -logs[i]
            out[i] = exp(exponent * log(base))


@numba.njit(**OPTIONS)
def entropy_sum(y: Any, v: Any, h: Any, n: Any, negative: Any) -> Any:
    """The sum of `v y h`, or of `v (1 - y) h`; a weight of 0 leaves out even an infinity, and no NaN."""
    one, zero = y.dtype.type(1), y.dtype.type(0)
    result = y.dtype.type(0)
    if negative:
        for i in range(n):
            result += counted(v[i] * (one - y[i]), h[i], zero)
    else:
        for i in range(n):
            result += counted(v[i] * y[i], h[i], zero)
    return result


@numba.njit(**OPTIONS)
def add_entropy(factor: Any, y: Any, v: Any, h: Any, n: Any, negative: Any, out: Any) -> None:
    """Add `factor v y h`, or `factor v (1 - y) h`; a weight of 0 leaves out even an infinity."""
    one, zero = y.dtype.type(1), y.dtype.type(0)
    if negative:
        for i in range(n):
            w = v[i] * (one - y[i])
            out[i] += factor * w * h[i] if w != zero else zero
    else:
        for i in range(n):
            w = v[i] * y[i]
            out[i] += factor * w * h[i] if w != zero else zero


@numba.njit(**OPTIONS)
def entropy_gradients(kind: Any, gamma: Any, logs: Any, p: Any, u: Any, n: Any, out: Any) -> None:
    """dh/dl in all, for q = ln(1 - e^l): -1, or `u^(g - 1) (g l p - u)`, or `-g (-l)^(g - 1)` above the floor."""
    exponent = out.dtype.type(gamma)
    below = out.dtype.type(gamma - 1)
    floor = out.dtype.type(POWER_FLOOR)
    zero = out.dtype.type(0)
    # An infinite derivative times 0 would be NaN.
    tiny = out.dtype.type(_TINY)
    if kind == PLAIN:
        fill(out, n, -1)
    elif (kind == FOCAL) | (kind == FOCAL_2):
        if gamma == 2:
            for i in range(n):
                out[i] = u[i] * (exponent * logs[i] * p[i] - u[i])
        elif gamma == 1:
            for i in range(n):
                out[i] = logs[i] * p[i] - u[i]
        else:
            for i in range(n):
                rest = tiny if u[i] < tiny else u[i]
                out[i] = exp(below * log(rest)) * (exponent * logs[i] * p[i] - rest)
    else:
        for i in range(n):
            base = floor if -logs[i] < floor else -logs[i]
            derivative = -exponent * exp(below * log(base))
            out[i] = zero if -logs[i] < floor else derivative


@numba.njit(**OPTIONS)
def given_gradients(
    kind: Any, gamma: Any, logs: Any, other_logs: Any, p: Any, u: Any, floor: Any, n: Any, out: Any
) -> None:
    """dh/dp of a probability that is given; no gradient through a logarithm at its floor."""
    one, zero = out.dtype.type(1), out.dtype.type(0)
    exponent = out.dtype.type(gamma)
    below = out.dtype.type(gamma - 1)
    least = out.dtype.type(floor)
    power_floor = out.dtype.type(POWER_FLOOR)
    if kind == PLAIN:
        for i in range(n):
            out[i] = zero if p[i] < least else -one / p[i]
    elif (kind == FOCAL) | (kind == FOCAL_2):
        for i in range(n):
            out[i] = exp(exponent * other_logs[i])
        for i in range(n):
            outer = zero if p[i] < least else one / p[i]
            inner = zero if u[i] < least else one / u[i]
            out[i] = out[i] * (exponent * logs[i] * inner - outer)
    else:
        for i in range(n):
            base = power_floor if -logs[i] < power_floor else -logs[i]
            derivative = -exponent * exp(below * log(base)) / p[i]
            out[i] = zero if (-logs[i] < power_floor) | (p[i] < least) else derivative
