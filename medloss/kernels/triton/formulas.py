"""The formulas of the voxel sums on Triton's tiles `[classes, voxels]`; `sum_spec` defines the symbols.

They keep NaN: comparisons select the other branch, where a minimum or maximum would swallow it. Fused multiply-adds are
off where these are compiled, or index and one-hot targets would differ in the last bit.
"""

import torch
import triton
import triton.language as tl

from medloss.kernels.sum_spec import LOG_FLOOR as _LOG_FLOOR
from medloss.kernels.sum_spec import LOWEST_LOG as _LOWEST_LOG
from medloss.kernels.sum_spec import POWER_FLOOR as _POWER_FLOOR

LOG_FLOOR = tl.constexpr(_LOG_FLOOR)
POWER_FLOOR = tl.constexpr(_POWER_FLOOR)
#: Below exp(LOG_FLOOR) the logarithm has no gradient; float32 has no normal number as small as that.
TINY = tl.constexpr(1.1754943508222875e-38)
DOUBLE_FLOOR = tl.constexpr(3.720075976020836e-44)
LOWEST = tl.constexpr(_LOWEST_LOG[torch.float32])
DOUBLE_LOWEST = tl.constexpr(_LOWEST_LOG[torch.float64])


@triton.jit
def log1p(x: tl.tensor) -> tl.tensor:
    """ln(1 + x) for -0.5 <= x <= 1, with a small relative error for small x too: 2 artanh(x / (2 + x))."""
    terms: tl.constexpr = 16 if x.dtype == tl.float64 else 7
    w = x / (x + 2.0)
    square = w * w
    series = square * 0.0 + 1.0 / (2 * terms - 1)
    for k in tl.static_range(1, terms):
        series = series * square + 1.0 / (2 * (terms - k) - 1)
    return 2.0 * w * series


@triton.jit
def one_minus_exp(l: tl.tensor, p: tl.tensor) -> tl.tensor:  # noqa: E741
    """1 - p from l = ln p, as exact near p = 1 as near p = 0."""
    terms: tl.constexpr = 16 if l.dtype == tl.float64 else 9
    series = l * 0.0 + 1.0
    for k in tl.static_range(0, terms - 1):
        series = series * l * (1.0 / (terms - k)) + 1.0
    return tl.where(l > -0.5, -l * series, 1.0 - p)


@triton.jit
def softmax(z: tl.tensor, LOGARITHM: tl.constexpr) -> tl.tensor:
    """p, and l where it is requested."""
    shifted = z - tl.max(z, 0)[None, :]
    exponential = tl.exp(shifted)
    total = tl.sum(exponential, 0)
    p = exponential * (1.0 / total)[None, :]
    l = _bounded(shifted - tl.log(total)[None, :]) if LOGARITHM else p  # noqa: E741
    return p, l


@triton.jit
def independent(z: tl.tensor, MODE: tl.constexpr, LOGARITHM: tl.constexpr) -> tl.tensor:
    """p, 1 - p, l, q of independent channels."""
    if MODE == "sigmoid":
        small = tl.exp(-tl.abs(z))
        larger = 1.0 / (1.0 + small)
        p = tl.where(z < 0, small * larger, larger)
        o = tl.where(z < 0, larger, small * larger)
        rest = log1p(small) if LOGARITHM else small
        l = _bounded(tl.where(z < 0, z, 0.0) - rest)  # noqa: E741
        q = _bounded(tl.where(z < 0, 0.0, -z) - rest)
    else:
        p = z
        o = 1.0 - z
        l = _floored(p, tl.log(p))  # noqa: E741
        q = _floored(o, tl.where(p < 0.5, log1p(-p), tl.log(o)))
    return p, o, l, q


@triton.jit
def _bounded(logarithm: tl.tensor) -> tl.tensor:
    lowest: tl.constexpr = DOUBLE_LOWEST if logarithm.dtype == tl.float64 else LOWEST
    return tl.where(logarithm < lowest, lowest, logarithm)


@triton.jit
def _floored(p: tl.tensor, logarithm: tl.tensor) -> tl.tensor:
    floor: tl.constexpr = DOUBLE_FLOOR if p.dtype == tl.float64 else TINY
    return tl.where(p < floor, LOG_FLOOR, logarithm)


@triton.jit
def log_derivative(p: tl.tensor) -> tl.tensor:
    """The derivative of the floored logarithm."""
    floor: tl.constexpr = DOUBLE_FLOOR if p.dtype == tl.float64 else TINY
    return tl.where(p < floor, 0.0, 1.0 / p)


@triton.jit
def miss_power(o: tl.tensor, q: tl.tensor, MODE: tl.constexpr, EXPONENT: tl.constexpr) -> tl.tensor:
    """(1 - p)^exponent; the q of a softmax is not read."""
    if EXPONENT == 0.0:
        power = o * 0.0 + 1.0
    elif EXPONENT == 1.0:
        power = o
    elif EXPONENT == 2.0:
        power = o * o
    elif MODE == "softmax":
        # An infinite derivative at p = 1, times 0, would be NaN.
        power = tl.exp(EXPONENT * tl.log(tl.where(o < TINY, TINY, o)))
    else:
        power = tl.exp(EXPONENT * q)
    return power


@triton.jit
def _base_power(l: tl.tensor, EXPONENT: tl.constexpr) -> tl.tensor:  # noqa: E741
    base = tl.where(-l < POWER_FLOOR, POWER_FLOOR, -l)
    return tl.exp(EXPONENT * tl.log(base))


@triton.jit
def entropy(
    l: tl.tensor,  # noqa: E741
    q: tl.tensor,
    o: tl.tensor,
    MODE: tl.constexpr,
    KIND: tl.constexpr,
    GAMMA: tl.constexpr,
    NO: tl.constexpr,
) -> tl.tensor:
    """h(l, q); o = exp q; NO: of 1 - y."""
    if KIND == "power":
        h = _base_power(l, GAMMA)
    elif KIND == "focal" or (KIND == "focal_background" and NO):
        h = -l * miss_power(o, q, MODE, GAMMA)
    elif KIND == "focal_background" and MODE == "softmax":
        background = (tl.arange(0, l.shape[0]) == 0)[:, None]
        h = -l * tl.where(background, miss_power(o, q, MODE, GAMMA), 1.0)
    else:
        h = -l
    return h


@triton.jit
def softmax_derivative(l: tl.tensor, p: tl.tensor, KIND: tl.constexpr, GAMMA: tl.constexpr) -> tl.tensor:  # noqa: E741
    """dh/dl along a softmax's l, through q too; -1 where the entropy is plain."""
    if KIND == "power":
        derivative = _power_derivative(l, GAMMA)
    else:
        o = one_minus_exp(l, p)
        derivative = GAMMA * l * p * miss_power(o, o, "softmax", GAMMA - 1.0) - miss_power(o, o, "softmax", GAMMA)
        if KIND == "focal_background":
            derivative = tl.where((tl.arange(0, l.shape[0]) == 0)[:, None], derivative, -1.0)
    return derivative


@triton.jit
def independent_derivative(
    l: tl.tensor,  # noqa: E741
    q: tl.tensor,
    o: tl.tensor,
    l_derivative: tl.tensor,
    q_derivative: tl.tensor,
    MODE: tl.constexpr,
    KIND: tl.constexpr,
    GAMMA: tl.constexpr,
    NO: tl.constexpr,
) -> tl.tensor:
    """dh/dl l_derivative + dh/dq q_derivative."""
    if KIND == "power":
        derivative = _power_derivative(l, GAMMA) * l_derivative
    elif KIND == "focal" or (KIND == "focal_background" and NO):
        derivative = -miss_power(o, q, MODE, GAMMA) * (l_derivative + GAMMA * l * q_derivative)
    else:
        derivative = -l_derivative
    return derivative


@triton.jit
def _power_derivative(l: tl.tensor, GAMMA: tl.constexpr) -> tl.tensor:  # noqa: E741
    return tl.where(-l < POWER_FLOOR, 0.0, -GAMMA * _base_power(l, GAMMA - 1.0))


@triton.jit
def selected_product(y: tl.tensor, h: tl.tensor, p: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """Y h, and nothing where y is 0, however large a power is there; p carries NaN."""
    return tl.where(y == 0, p * 0.0, y * h) if KIND == "power" else y * h
