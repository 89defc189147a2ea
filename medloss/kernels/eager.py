"""The reference kernel set: plain torch, block by block of voxels, on any device and in any floating type.

A block's temporaries are reused, and their sum is small beside the logits: nothing of the logits' size is made but the
gradient.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from medloss.kernels.terms import LOG_FLOOR, POWER_FLOOR, ROWS, Row, VoxelTerms, sum_type

# Voxels a block on a CPU: torch's threads wait for each other at every operation, so that smaller ones cost more time
# than the cache saves, and larger ones more memory. A GPU wants so many numbers at once.
_VOXELS, _GPU_NUMBERS = 1 << 16, 1 << 24


def supports(device: str, dtype: torch.dtype) -> bool:
    """Any device and floating type."""
    return True


def preferred(device: str, dtype: torch.dtype) -> bool:
    """Taken where no other set fits."""
    return True


def voxel_sums(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None
) -> Tensor:
    """The sums `[ROWS, B, C]` of `VoxelTerms`."""
    sums = logits.new_zeros((ROWS, *logits.shape[:2]), dtype=sum_type(logits))
    for item, part in _blocks(logits):
        block = _load(terms, logits, target, mask, voxel_weight, item, part)
        sums[Row.TARGET, item] += block.all_targets.sum(1)
        block.add_sums(sums[:, item, terms.first :])
    return sums


def voxel_sums_backward(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, voxel_weight: Tensor | None, slopes: Tensor
) -> Tensor:
    """The gradient of `(slopes * voxel_sums).sum()` for the logits."""
    gradient = torch.empty_like(logits)
    for item, part in _blocks(logits):
        block = _load(terms, logits, target, mask, voxel_weight, item, part)
        gradient[item, :, part] = block.gradient(slopes[:, item, terms.first :].unsqueeze(-1))
    return gradient


def entropy_map(
    terms: VoxelTerms, logits: Tensor, target: Tensor, mask: Tensor | None, positive: Tensor, negative: Tensor
) -> Tensor:
    """The weighted cross entropy a voxel: `[B, 1, N]` for a softmax, else `[B, C - first, N]`."""
    batch, channels, voxels = logits.shape
    kept = 1 if terms.mode == "softmax" else channels - terms.first
    out = logits.new_empty((batch, kept, voxels), dtype=sum_type(logits))
    for item, part in _blocks(logits):
        block = _load(terms, logits, target, mask, None, item, part)
        yes, no = positive[item, terms.first :, None], negative[item, terms.first :, None]
        values = block.entropy(block.log_p, block.log_miss) * (yes * block.target)
        if terms.mode == "softmax":
            values = values.sum(0, keepdim=True)
        else:
            values += block.entropy(block.log_miss, block.log_p) * (no * (1 - block.target))
        out[item, :, part] = block.counted(values)
    return out


def _blocks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    batch, channels, voxels = logits.shape
    length = _VOXELS if logits.device.type == "cpu" else max(_GPU_NUMBERS // channels, 1)
    for item in range(batch):
        for start in range(0, voxels, length):
            yield item, slice(start, min(start + length, voxels))


def _load(
    terms: VoxelTerms,
    logits: Tensor,
    target: Tensor,
    mask: Tensor | None,
    weight: Tensor | None,
    item: int,
    part: slice,
) -> "_Block":
    """A block's numbers in the type of the sums."""
    z = logits[item, :, part].to(sum_type(logits))
    y = _class_maps(target[item, :, part], z)
    m = None if mask is None else mask[item, part]
    v = None if weight is None else weight[item, :, part]
    if m is not None:
        # Selected, not multiplied: what stands under a mask may be NaN.
        z, y = torch.where(m, z, 0.0), torch.where(m, y, 0.0)
        v = None if v is None else torch.where(m, v, 0.0)
    return _Block(terms, z, y, m, v)


@dataclass
class _Block:
    """The voxels of a slice of one item: what the formulas read."""

    terms: VoxelTerms
    logits: Tensor  # [C, n], 0 where masked
    all_targets: Tensor  # [C, n], 0 where masked
    mask: Tensor | None  # [n]
    weight: Tensor | None  # [1 or C', n], 0 where masked

    @cached_property
    def all_l(self) -> Tensor:
        """ln p of a softmax."""
        return _finite(torch.log_softmax(self.logits, 0))

    @cached_property
    def all_p(self) -> Tensor:
        if self.terms.mode == "softmax":
            return self.all_l.exp() if self.terms.entropy else torch.softmax(self.logits, 0)
        return torch.sigmoid(self.logits) if self.terms.mode == "sigmoid" else self.logits

    @property
    def p(self) -> Tensor:
        return self.all_p[self.terms.first :]

    @property
    def target(self) -> Tensor:
        return self.all_targets[self.terms.first :]

    @property
    def log_p(self) -> Tensor:
        """ln p."""
        if self.terms.mode == "softmax":
            return self.all_l[self.terms.first :]
        if self.terms.mode == "sigmoid":
            return _finite(F.logsigmoid(self.logits[self.terms.first :]))
        return _clamped_log(self.p)

    @property
    def log_miss(self) -> Tensor:
        """ln(1 - p)."""
        if self.terms.mode == "softmax":
            return self.log_p  # not read: 1 - p of a softmax comes from ln p
        if self.terms.mode == "sigmoid":
            return _finite(F.logsigmoid(-self.logits[self.terms.first :]))
        return _clamped_log(1 - self.p)

    def add_sums(self, rows: Tensor) -> None:
        """Add this block to `[ROWS, C']`."""
        terms, y, v = self.terms, self.target, self.weight
        if terms.overlap:
            rows[Row.TP] += _dot(self.p, y)
            rows[Row.PREDICTION] += self.counted(self.p).sum(1)
        if terms.squares:
            p = self.counted(self.p)
            rows[Row.SQUARED_PREDICTION] += _dot(p, p)
            rows[Row.SQUARED_TARGET] += _dot(y, y)
        if terms.errors:
            error = self.counted(y - self.p).square_()
            if v is not None:
                error.mul_(v)
            rows[Row.ERROR_INSIDE] += _dot(error, y)
            rows[Row.ERROR_OUTSIDE] += _dot(error, 1 - y)
        if terms.entropy:
            rows[Row.POSITIVE] += _dot(self.entropy(self.log_p, self.log_miss), y if v is None else y * v)
            if terms.mode != "softmax":
                no = self.counted(1 - y)
                rows[Row.NEGATIVE] += _dot(self.entropy(self.log_miss, self.log_p), no if v is None else no * v)

    def gradient(self, rows: Tensor) -> Tensor:
        """dL/dz `[C, n]`, from the slopes `[ROWS, C', 1]`."""
        first = self.terms.first
        along_p = self.slope_along_p(rows)
        if self.terms.mode == "softmax":
            slope = self.softmax_entropy_slope(rows)
            if along_p is not None:
                slope = along_p.mul_(self.p) if slope is None else slope.addcmul_(along_p, self.p)
            assert slope is not None
            result = torch.mul(self.all_p, slope.sum(0, keepdim=True).neg_())
            result[first:] += slope
        else:
            result = torch.zeros_like(self.logits)
            result[first:] = self.independent_slope(rows, along_p)
        return self.counted(result)

    def counted(self, values: Tensor) -> Tensor:
        """`values` with 0 where masked."""
        return values if self.mask is None else torch.where(self.mask, values, 0.0)

    def entropy(self, log_p: Tensor, log_miss: Tensor) -> Tensor:
        """h(log_p, log_miss), a new tensor."""
        gamma = self.terms.gamma
        if self.terms.entropy == "power":
            return log_p.neg().clamp_(min=POWER_FLOOR).pow_(gamma)
        if self.terms.entropy == "plain" or gamma == 0:
            return log_p.neg()
        return (
            (self._miss_power(log_p, gamma) if self.terms.mode == "softmax" else (gamma * log_miss).exp_())
            .mul_(log_p)
            .neg_()
        )

    def _miss_power(self, log_p: Tensor, gamma: float) -> Tensor:
        """(1 - p)^gamma from ln p, as exact near p = 1 as near p = 0."""
        miss = torch.expm1(log_p).neg_()
        if gamma < 1:
            miss.clamp_(min=torch.finfo(miss.dtype).tiny)  # an infinite slope at p = 1, times 0, is NaN
        return miss if gamma == 1 else miss.square_() if gamma == 2 else miss.pow_(gamma)

    def slope_along_p(self, rows: Tensor) -> Tensor | None:
        """dL/dp of the overlap's sums, a new tensor; None where none is asked for."""
        y, p = self.target, self.p
        slope = None
        if self.terms.overlap:
            slope = torch.addcmul(rows[Row.PREDICTION], y, rows[Row.TP])
        if self.terms.squares:
            slope = torch.mul(p, 2 * rows[Row.SQUARED_PREDICTION]).add_(0.0 if slope is None else slope)
        if self.terms.errors:
            inside, outside = rows[Row.ERROR_INSIDE], rows[Row.ERROR_OUTSIDE]
            error = torch.addcmul(outside, y, inside - outside).mul_(p - y).mul_(2.0)
            if self.weight is not None:
                error.mul_(self.weight)
            slope = error if slope is None else slope.add_(error)
        return slope

    def softmax_entropy_slope(self, rows: Tensor) -> Tensor | None:
        """dL/dl of a softmax's cross entropy, a new tensor; None where none is asked for."""
        if not self.terms.entropy:
            return None
        gamma, y, log_p = self.terms.gamma, self.target, self.log_p
        share = y * rows[Row.POSITIVE] if self.weight is None else (y * self.weight).mul_(rows[Row.POSITIVE])
        if self.terms.entropy == "power":
            return share.mul_(_power_slope(log_p, gamma))
        if self.terms.entropy == "plain" or gamma == 0:
            return share.neg_()
        slope = (gamma * log_p).mul_(self.p).mul_(1.0 if gamma == 1 else self._miss_power(log_p, gamma - 1))
        return share.mul_(slope.sub_(self._miss_power(log_p, gamma)))

    def independent_slope(self, rows: Tensor, along_p: Tensor | None) -> Tensor:
        """dL/dz, each channel its own yes/no."""
        p = self.p
        sigmoid = self.terms.mode == "sigmoid"
        slope: Tensor | float = 0.0
        if along_p is not None:
            slope = along_p.mul_(p).mul_(1 - p) if sigmoid else along_p
        if not self.terms.entropy:
            assert isinstance(slope, Tensor)
            return slope
        log_p, log_miss, y, v = self.log_p, self.log_miss, self.target, self.weight
        l_along_z = 1 - p if sigmoid else _clamped_log_slope(p)
        q_along_z = -p if sigmoid else -_clamped_log_slope(1 - p)
        yes, no = rows[Row.POSITIVE] * y, rows[Row.NEGATIVE] * (1 - y)
        if v is not None:
            yes, no = yes * v, no * v
        yes_l, yes_q = self._entropy_slopes(log_p, log_miss)
        no_q, no_l = self._entropy_slopes(log_miss, log_p)
        along_l = yes * yes_l + no * no_l
        along_q = yes * yes_q + no * no_q
        return along_l.mul_(l_along_z).addcmul_(along_q, q_along_z).add_(slope)

    def _entropy_slopes(self, log_p: Tensor, log_miss: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """dh/dl and dh/dq."""
        gamma = self.terms.gamma
        if self.terms.entropy == "power":
            return _power_slope(log_p, gamma), 0.0
        if self.terms.entropy == "plain" or gamma == 0:
            return -1.0, 0.0
        power = (gamma * log_miss).exp_()
        return -power, power * log_p * -gamma


def _class_maps(target: Tensor, like: Tensor) -> Tensor:
    """One map a class `[C, n]` in the type of `like`, from a block of either kind of target."""
    channels = like.shape[0]
    if target.shape[0] == channels:
        return target.to(like.dtype)
    if target.dtype in (torch.uint8, torch.int8, torch.bool) and channels > 128:
        target = target.short()  # the classes' numbers would not fit
    classes = torch.arange(channels, device=target.device, dtype=target.dtype).unsqueeze(1)
    return torch.eq(target, classes, out=like.new_empty(like.shape))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of a b over the voxels."""
    return torch.linalg.vecdot(a, b)


def _finite(log: Tensor) -> Tensor:
    # Minus infinity times a target of 0, or times p = 0, would be NaN.
    return log.clamp_(min=-math.sqrt(torch.finfo(log.dtype).max))


def _power_slope(log_p: Tensor, gamma: float) -> Tensor:
    base = log_p.neg()
    return torch.where(base < POWER_FLOOR, 0.0, base.clamp(min=POWER_FLOOR).pow_(gamma - 1).mul_(-gamma))


def _log_floor(p: Tensor) -> float:
    return max(math.exp(LOG_FLOOR), torch.finfo(p.dtype).tiny)


def _clamped_log(p: Tensor) -> Tensor:
    return torch.where(p < _log_floor(p), LOG_FLOOR, p.log())


def _clamped_log_slope(p: Tensor) -> Tensor:
    return torch.where(p < _log_floor(p), 0.0, p.reciprocal())
