"""Elementary functions that LLVM turns into vector code for float32; the plain ones for float64.

`numpy.exp` in compiled code is a call a number. Here the float32 versions are polynomials without branches, so that
a loop over them runs in vector registers. They keep NaN, and infinities where they mean something.
"""

import math
from typing import Any

import numba
import numpy as np
import torch
from numba.extending import intrinsic, overload

from medloss.kernels.sum_spec import LOWEST_LOG

#: `contract` joins a product and a sum; nothing here may be regrouped, the rounding by a large number least of all.
_OPTIONS = {"error_model": "numpy", "fastmath": {"contract"}, "no_cpython_wrapper": True, "nogil": True}
_OVERLOAD = {"error_model": "numpy", "fastmath": {"contract"}}

_LOG2_E = np.float32(1.44269504088896341)
#: 1.5 * 2^23: what is added to it is rounded to a whole number, which then stands in the lowest bits.
_ROUNDER = np.float32(12582912.0)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_LOWEST = np.float32(-87.33654)
_HIGHEST = np.float32(89.0)
_TINY = np.float32(1.17549435e-38)
_INF = np.float32(np.inf)
_NAN = np.float32(np.nan)
_ZERO, _HALF, _ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
_SQRT2_LESS_ONE = np.float32(0.41421356)
_LN2 = np.float32(0.69314718)
_TWO_23 = np.float32(8388608.0)
_NEAR_ONE = np.float32(-0.3466)
_LOWEST_LOG32, _LOWEST_LOG64 = np.float32(LOWEST_LOG[torch.float32]), np.float64(LOWEST_LOG[torch.float64])

_E2, _E3, _E4 = np.float32(0.5000000014), np.float32(0.1666657604), np.float32(0.04166646281)
_E5, _E6 = np.float32(0.0083633356), np.float32(0.001393388348)

_L0, _L1, _L2 = np.float32(7.0376836292e-2), np.float32(-1.1514610310e-1), np.float32(1.1676998740e-1)
_L3, _L4, _L5 = np.float32(-1.2420140846e-1), np.float32(1.4249322787e-1), np.float32(-1.6668057665e-1)
_L6, _L7, _L8 = np.float32(2.0000714765e-1), np.float32(-2.4999993993e-1), np.float32(3.3333331174e-1)

_C0, _C1, _C2 = np.float32(0.9999999999), np.float32(0.4999999692), np.float32(0.1666656253)
_C3, _C4, _C5 = np.float32(0.04165377426), np.float32(0.008260784112), np.float32(0.001198111754)


@intrinsic
def float_bits(context: Any, x: Any) -> Any:
    """The bits of a float32 as an int32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(numba.int32))

    return numba.int32(numba.float32), generate


@intrinsic
def bits_float(context: Any, bits: Any) -> Any:
    """The float32 of an int32's bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(numba.float32))

    return numba.float32(numba.int32), generate


@numba.njit(**_OPTIONS)
def _exp32(x: Any) -> Any:
    """Within 2 units in the last place; 0 below the smallest normal number."""
    t = _LOWEST if x < _LOWEST else x
    t = _HIGHEST if t > _HIGHEST else t
    shifted = t * _LOG2_E + _ROUNDER
    whole = shifted - _ROUNDER
    r = t - whole * _LN2_HIGH
    r = r - whole * _LN2_LOW
    tail = _E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))
    value = _ONE + (r + r * r * tail)
    scale = bits_float(np.int32((float_bits(shifted) << 23) + 0x3F800000))
    return _ZERO if x < _LOWEST else value * scale


@numba.njit(**_OPTIONS)
def _log_near_one32(f: Any) -> Any:
    """ln(1 + f) for 1 + f from sqrt(1/2) to sqrt(2), less f: Cephes' polynomial."""
    tail = _L0 * f + _L1
    tail = tail * f + _L2
    tail = tail * f + _L3
    tail = tail * f + _L4
    tail = tail * f + _L5
    tail = tail * f + _L6
    tail = tail * f + _L7
    tail = tail * f + _L8
    square = f * f
    return f * square * tail - _HALF * square


@numba.njit(**_OPTIONS)
def _log32(x: Any) -> Any:
    small = x < _TINY
    scaled = x * _TWO_23 if small else x
    bits = float_bits(scaled)
    # The exponent, counted so that the rest lies from sqrt(1/2) to sqrt(2).
    exponent = np.int32(np.int32(bits - 0x3F3504F3) >> 23)
    f = bits_float(np.int32(bits - np.int32(exponent << 23))) - _ONE
    power = np.float32(exponent) - (np.float32(23.0) if small else _ZERO)
    value = f + (_log_near_one32(f) + power * _LN2_LOW)
    value = value + power * _LN2_HIGH
    # Nothing above holds for 0, negative numbers, infinity and NaN.
    other = -_INF if x == _ZERO else (x if x > _ZERO else _NAN)
    return value if (x > _ZERO) & (x < _INF) else other


@numba.njit(**_OPTIONS)
def _log1p_unit32(a: Any) -> Any:
    far = a > _SQRT2_LESS_ONE
    f = _HALF * (a - _ONE) if far else a
    return f + (_log_near_one32(f) + (_LN2 if far else _ZERO))


@numba.njit(**_OPTIONS)
def _log_complement32(p: Any) -> Any:
    u = _ONE - p
    # What the subtraction rounded away.
    lost = (_ONE - u) - p
    value = _log32(u)
    return value + lost / u if u > _ZERO else value


@numba.njit(**_OPTIONS)
def _complement32(log: Any, p: Any) -> Any:
    near = -log * (_C0 + log * (_C1 + log * (_C2 + log * (_C3 + log * (_C4 + log * _C5)))))
    return near if log > _NEAR_ONE else _ONE - p


def exp(x: Any) -> Any:
    """`e^x`."""
    return math.exp(x)


def log(x: Any) -> Any:
    """`ln x`."""
    return np.log(x)


def log1p_unit(a: Any) -> Any:
    """`ln(1 + a)` for a from 0 to 1."""
    return math.log1p(a)


def log_complement(p: Any) -> Any:
    """`ln(1 - p)`."""
    return np.log1p(-p)


def complement(log: Any, p: Any) -> Any:
    """`1 - p` where `p = exp(log) <= 1`, without loss when p is near 1."""
    return -math.expm1(log)


def bounded_log(value: Any) -> Any:
    """A logarithm, at or above `LOWEST_LOG`."""
    return _LOWEST_LOG64 if value < _LOWEST_LOG64 else value


# In compiled code each stands for its polynomial if it is given float32, else for itself.


@overload(exp, jit_options=_OVERLOAD)
def _exp(x: Any) -> Any:
    def short(x: Any) -> Any:
        return _exp32(x)

    return short if x == numba.float32 else exp


@overload(log, jit_options=_OVERLOAD)
def _log(x: Any) -> Any:
    def short(x: Any) -> Any:
        return _log32(x)

    return short if x == numba.float32 else log


@overload(log1p_unit, jit_options=_OVERLOAD)
def _log1p_unit(a: Any) -> Any:
    def short(a: Any) -> Any:
        return _log1p_unit32(a)

    return short if a == numba.float32 else log1p_unit


@overload(log_complement, jit_options=_OVERLOAD)
def _log_complement(p: Any) -> Any:
    def short(p: Any) -> Any:
        return _log_complement32(p)

    return short if p == numba.float32 else log_complement


@overload(bounded_log, jit_options=_OVERLOAD)
def _bounded_log(value: Any) -> Any:
    def short(value: Any) -> Any:
        return _LOWEST_LOG32 if value < _LOWEST_LOG32 else value

    return short if value == numba.float32 else bounded_log


@overload(complement, jit_options=_OVERLOAD)
def _complement(log: Any, p: Any) -> Any:
    def short(log: Any, p: Any) -> Any:
        return _complement32(log, p)

    return short if log == numba.float32 else complement
