"""The formulas of `sum_spec.py`, each a loop over one block's buffers.

A loop writes one or two buffers and reads a few, because LLVM must be able to check that they do not overlap.
"""

from typing import Any

import numba

from medloss.kernels.numba.blocks import keep_only
from medloss.kernels.numba.compilation import OPTIONS
from medloss.kernels.numba.elementary import bounded_log, exp, log, log1p_unit, log_complement
from medloss.kernels.sum_spec import LOG_FLOOR


@numba.njit(**OPTIONS)
def fill(out: Any, n: Any, value: Any) -> None:
    """One value everywhere."""
    number = out.dtype.type(value)
    for i in range(n):
        out[i] = number


@numba.njit(**OPTIONS)
def softmax_block(
    classes: Any,
    n: Any,
    keep: Any,
    logarithm: Any,
    z: Any,
    e: Any,
    top: Any,
    inverse: Any,
    partition: Any,
) -> None:
    """For logits `z`: `exp(z - top)` to `e`, and the reciprocal of its sum, 0 where a voxel does not count.

    The sum's logarithm goes to `partition` if requested.
    """
    for c in range(classes):
        keep_only(keep, z[c])
        _raise_top(z[c], n, c == 0, top)
    fill(inverse, n, 0)
    for c in range(classes):
        _add_exponential(z[c], top, n, e[c], inverse)
    if logarithm:
        for i in range(n):
            partition[i] = log(inverse[i])
    one = inverse.dtype.type(1)
    for i in range(n):
        inverse[i] = one / inverse[i]
    keep_only(keep, inverse)


@numba.njit(**OPTIONS)
def _raise_top(z: Any, n: Any, first: Any, top: Any) -> None:
    if first:
        for i in range(n):
            top[i] = z[i]
    else:
        # A NaN in `z` does not enter `top`, and comes back with the exponential.
        for i in range(n):
            top[i] = z[i] if z[i] > top[i] else top[i]


@numba.njit(**OPTIONS)
def _add_exponential(z: Any, top: Any, n: Any, e: Any, total: Any) -> None:
    for i in range(n):
        value = exp(z[i] - top[i])
        e[i] = value
        total[i] += value


@numba.njit(**OPTIONS)
def multiply(left: Any, right: Any, n: Any, out: Any) -> None:
    """A product."""
    for i in range(n):
        out[i] = left[i] * right[i]


@numba.njit(**OPTIONS)
def scale(values: Any, n: Any, out: Any) -> None:
    """Multiply `out`; `multiply` into one of its factors runs number by number, since the arrays overlap."""
    for i in range(n):
        out[i] *= values[i]


@numba.njit(**OPTIONS)
def subtract_product(left: Any, right: Any, n: Any, out: Any) -> None:
    """Subtract a product."""
    for i in range(n):
        out[i] -= left[i] * right[i]


@numba.njit(**OPTIONS)
def sigmoid_class(z: Any, n: Any, logarithms: Any, p: Any, u: Any, logs: Any, other_logs: Any) -> None:
    """`p`, `1 - p`, and their logarithms if requested."""
    one, zero = p.dtype.type(1), p.dtype.type(0)
    for i in range(n):
        other_logs[i] = exp(-abs(z[i]))
    for i in range(n):
        tail = other_logs[i]
        large = one / (one + tail)
        small = tail * large
        p[i] = large if z[i] > zero else small
        u[i] = small if z[i] > zero else large
    if logarithms:
        for i in range(n):
            value = z[i]
            shared = log1p_unit(other_logs[i])
            # Compared in this order, a NaN goes through.
            logs[i] = bounded_log((zero if value > zero else value) - shared)
            other_logs[i] = bounded_log((zero if value < zero else -value) - shared)


@numba.njit(**OPTIONS)
def given_class(z: Any, n: Any, logarithms: Any, p: Any, u: Any, logs: Any, other_logs: Any) -> None:
    """The same for a given probability."""
    one, floor = p.dtype.type(1), p.dtype.type(LOG_FLOOR)
    for i in range(n):
        p[i] = z[i]
        u[i] = one - z[i]
    if logarithms:
        for i in range(n):
            value = log(z[i])
            logs[i] = floor if value < floor else value
        for i in range(n):
            value = log_complement(z[i])
            other_logs[i] = floor if value < floor else value


@numba.njit(**OPTIONS)
def total(y: Any, n: Any) -> Any:
    """A sum."""
    result = y.dtype.type(0)
    for i in range(n):
        result += y[i]
    return result


@numba.njit(**OPTIONS)
def overlap_sums(y: Any, p: Any, n: Any) -> Any:
    """The sums of y p, p and y."""
    tp = y.dtype.type(0)
    prediction = y.dtype.type(0)
    target = y.dtype.type(0)
    for i in range(n):
        tp += y[i] * p[i]
        prediction += p[i]
        target += y[i]
    return tp, prediction, target


@numba.njit(**OPTIONS)
def weighted_overlap_sums(y: Any, p: Any, v: Any, n: Any) -> Any:
    """The sums of v y p, v p, y and v y."""
    tp = y.dtype.type(0)
    prediction = y.dtype.type(0)
    target = y.dtype.type(0)
    weighted_target = y.dtype.type(0)
    for i in range(n):
        tp += v[i] * y[i] * p[i]
        prediction += v[i] * p[i]
        target += y[i]
        weighted_target += v[i] * y[i]
    return tp, prediction, target, weighted_target


@numba.njit(**OPTIONS)
def softmax_overlap_sums(y: Any, e: Any, inverse: Any, n: Any) -> Any:
    """The sums of y p, p and y, for p that is not stored."""
    tp = y.dtype.type(0)
    prediction = y.dtype.type(0)
    target = y.dtype.type(0)
    for i in range(n):
        p = e[i] * inverse[i]
        tp += y[i] * p
        prediction += p
        target += y[i]
    return tp, prediction, target


@numba.njit(**OPTIONS)
def square_sums(y: Any, p: Any, v: Any, n: Any) -> Any:
    """The sums of v p^2 and v y^2."""
    prediction = y.dtype.type(0)
    target = y.dtype.type(0)
    for i in range(n):
        prediction += v[i] * p[i] * p[i]
        target += v[i] * y[i] * y[i]
    return prediction, target


@numba.njit(**OPTIONS)
def error_sums(y: Any, p: Any, v: Any, n: Any) -> Any:
    """The sums of the squared errors, over y and over 1 - y."""
    one = y.dtype.type(1)
    inside = y.dtype.type(0)
    outside = y.dtype.type(0)
    for i in range(n):
        error = y[i] - p[i]
        square = v[i] * error * error
        inside += square * y[i]
        outside += square * (one - y[i])
    return inside, outside


@numba.njit(**OPTIONS)
def softmax_overlap_gradients(
    e: Any, inverse: Any, y: Any, n: Any, on_tp: Any, on_prediction: Any, out: Any, shared: Any
) -> None:
    """`p G` if only TP and PREDICTION are requested, and its sum over the classes."""
    for i in range(n):
        value = e[i] * inverse[i] * (on_tp * y[i] + on_prediction)
        out[i] = value
        shared[i] += value


@numba.njit(**OPTIONS)
def probability_gradients(
    overlap: Any, squares: Any, errors: Any, weights: Any, s: Any, y: Any, p: Any, v: Any, n: Any, out: Any
) -> None:
    """`G`: the gradient of the rows that are no entropy; `s` holds a class's sum gradients, row by row."""
    one, two = out.dtype.type(1), out.dtype.type(2)
    if overlap:
        on_tp, on_prediction = s[0], s[1]
        for i in range(n):
            out[i] = on_tp * y[i] + on_prediction
    else:
        fill(out, n, 0)
    if squares:
        on_square = two * s[3]
        for i in range(n):
            out[i] += on_square * p[i]
    if weights and (overlap or squares):
        scale(v, n, out)
    if errors:
        on_inside, on_outside = two * s[5], two * s[6]
        for i in range(n):
            share = on_inside * y[i] + on_outside * (one - y[i])
            out[i] -= (y[i] - p[i]) * v[i] * share


@numba.njit(**OPTIONS)
def copy_and_add(x: Any, n: Any, out: Any, total: Any) -> None:
    """out = x; total += x."""
    for i in range(n):
        out[i] = x[i]
        total[i] += x[i]


@numba.njit(**OPTIONS)
def add(values: Any, n: Any, out: Any) -> None:
    """Add."""
    for i in range(n):
        out[i] += values[i]


@numba.njit(**OPTIONS)
def softmax_overlap_add(e: Any, inverse: Any, y: Any, h: Any, n: Any, on_tp: Any, on_prediction: Any, out: Any) -> None:
    """`p G` if TP and PREDICTION are the only rows apart from an entropy, whose part is `h`."""
    for i in range(n):
        out[i] = e[i] * inverse[i] * (on_tp * y[i] + on_prediction) + h[i]
