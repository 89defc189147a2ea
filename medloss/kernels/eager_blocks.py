"""A block of voxels in plain torch: the sums' formulas, and their gradients."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from medloss.kernels.sum_spec import LOG_FLOOR, LOWEST_LOG, POWER_FLOOR, Row, VoxelTerms


@dataclass
class Block:
    """The voxels of a slice of one item, in K pieces of m: what the formulas read."""

    terms: VoxelTerms
    logits: Tensor  # [K, C, m], 0 where masked
    all_targets: Tensor  # [K, C, m], 0 where masked
    mask: Tensor | None  # [K, 1, m]
    weight: Tensor | None  # [K, 1 or C', m], 0 where masked
    segment: Tensor | None = None  # [m], where sums are of segments, of one piece
    segments: int = 0  # S

    @cached_property
    def all_l(self) -> Tensor:
        """ln p of a softmax."""
        return _finite(torch.log_softmax(self.logits, 1))

    @cached_property
    def all_p(self) -> Tensor:
        """p of all classes."""
        if self.terms.mode == "softmax":
            # A plain entropy's derivative is that of ln p, which needs no ln p.
            return self.all_l.exp() if self.terms.entropy not in ("", "plain") else torch.softmax(self.logits, 1)
        return torch.sigmoid(self.logits) if self.terms.mode == "sigmoid" else self.logits

    @property
    def p(self) -> Tensor:
        """p of the classes that count."""
        return self.all_p[:, self.terms.first :]

    @property
    def target(self) -> Tensor:
        """y of the classes that count."""
        return self.all_targets[:, self.terms.first :]

    @property
    def log_p(self) -> Tensor:
        """ln p."""
        if self.terms.mode == "softmax":
            return self.all_l[:, self.terms.first :]
        if self.terms.mode == "sigmoid":
            return _finite(F.logsigmoid(self.logits[:, self.terms.first :]))
        return _clamped_log(self.p)

    @property
    def log_miss(self) -> Tensor:
        """ln(1 - p)."""
        if self.terms.mode == "softmax":
            return self.log_p  # not read: 1 - p of a softmax comes from ln p
        if self.terms.mode == "sigmoid":
            return _finite(F.logsigmoid(-self.logits[:, self.terms.first :]))
        return _clamped_log(1 - self.p)

    def add_sums(self, rows: Tensor) -> None:
        """Add this block to `[ROWS, C']`, or to `[ROWS, C', S]` by segment."""
        terms, y, v = self.terms, self.target, self.weight
        if terms.overlap:
            p = self.weighted(self.p)
            if terms.soft_overlap:
                rows[Row.TP] += self.sum(self.weighted(torch.minimum(self.p, y)))
            else:
                rows[Row.TP] += self.sum(p, y)
            rows[Row.PREDICTION] += self.sum(self.counted(p))
            if v is not None:
                rows[Row.WEIGHTED_TARGET] += self.sum(y, v)
        if terms.squares:
            p = self.counted(self.p)
            rows[Row.SQUARED_PREDICTION] += self.sum(p, self.weighted(p))
            rows[Row.SQUARED_TARGET] += self.sum(y, self.weighted(y))
        if terms.errors:
            error = self.counted(y - self.p).square_()
            if v is not None:
                error.mul_(v)
            rows[Row.ERROR_INSIDE] += self.sum(error, y)
            rows[Row.ERROR_OUTSIDE] += self.sum(error, 1 - y)
        if terms.entropy:
            self._add_entropy(rows[Row.POSITIVE], self.weighted(y), no=False)
            if terms.mode != "softmax":
                self._add_entropy(rows[Row.NEGATIVE], self.weighted(self.counted(1 - y)), no=True)

    def _add_entropy(self, row: Tensor, share: Tensor, *, no: bool) -> None:
        if self.terms.entropy == "plain":  # whose sign can wait for the sum
            row -= self.sum(self.log_miss if no else self.log_p, share)
        else:
            logs = (self.log_miss, self.log_p) if no else (self.log_p, self.log_miss)
            row += self.sum(self.entropy(*logs, no=no), share)

    def sum(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """The sum of a (times b) over the voxels, or over those of each segment."""
        if self.segment is None:
            return (a.sum(2) if b is None else torch.linalg.vecdot(a, b)).sum(0)
        values = (a if b is None else a * b)[0]
        return values.new_zeros(len(values), self.segments).index_add_(1, self.segment, values)

    def gradient(self, rows: Tensor) -> Tensor:
        """dL/dz `[K, C, m]`, from the sums' gradients `[ROWS, C', 1]`, or `[ROWS, C', m]` of segments."""
        first = self.terms.first
        along_p = self.gradient_along_p(rows)
        if self.terms.mode == "softmax":
            gradient = self.softmax_entropy_gradient(rows)
            if along_p is not None:
                gradient = along_p.mul_(self.p) if gradient is None else gradient.addcmul_(along_p, self.p)
            assert gradient is not None
            result = F.pad(gradient, (0, 0, first, 0)) if first else gradient
            result.addcmul_(self.all_p, gradient.sum(1, keepdim=True), value=-1)
        else:
            result = torch.zeros_like(self.logits)
            result[:, first:] = self.independent_gradient(rows, along_p)
        return self.counted(result)

    def counted(self, values: Tensor) -> Tensor:
        """`values` with 0 where masked."""
        return values if self.mask is None else torch.where(self.mask, values, 0.0)

    def weighted(self, values: Tensor) -> Tensor:
        """`values` times v."""
        return values if self.weight is None else values * self.weight

    def entropy(self, log_p: Tensor, log_miss: Tensor, *, no: bool = False) -> Tensor:
        """h(log_p, log_miss), a new tensor; of 1 - y with `no`."""
        gamma = self.terms.gamma
        if self.terms.entropy == "power":
            return log_p.neg().clamp_(min=POWER_FLOOR).pow_(gamma)
        h = log_p.neg()
        focal = self._focal(no)
        if focal is not None:
            softmax = self.terms.mode == "softmax"
            h[:, focal] *= self._miss_power(log_p[:, focal], gamma) if softmax else (gamma * log_miss[:, focal]).exp_()
        return h

    def _focal(self, no: bool) -> slice | None:
        """The classes whose entropy is focal; of 1 - y with `no`."""
        kind, background = self.terms.entropy, no or (self.terms.mode == "softmax" and self.terms.first == 0)
        if self.terms.gamma == 0 or not (kind == "focal" or (kind == "focal_background" and background)):
            return None
        return slice(None, 1) if kind == "focal_background" and not no else slice(None)

    def _miss_power(self, log_p: Tensor, gamma: float) -> Tensor:
        """(1 - p)^gamma from ln p, exact near p = 1 and near p = 0."""
        miss = torch.expm1(log_p).neg_()
        if gamma < 1:
            miss.clamp_(min=torch.finfo(miss.dtype).tiny)  # an infinite derivative at p = 1, times 0, is NaN
        return miss if gamma == 1 else miss.square_() if gamma == 2 else miss.pow_(gamma)

    def gradient_along_p(self, rows: Tensor) -> Tensor | None:
        """dL/dp of the overlap's sums, a new tensor; None if none is requested."""
        y, p = self.target, self.p
        gradient = None
        if self.terms.overlap:
            slope = (p - y).sign_().sub_(1).mul_(-0.5) if self.terms.soft_overlap else y
            gradient = (slope * rows[Row.TP]).add_(rows[Row.PREDICTION])  # with two broadcast, `addcmul` is slow
        if self.terms.squares:
            gradient = torch.mul(p, 2 * rows[Row.SQUARED_PREDICTION]).add_(0.0 if gradient is None else gradient)
        if gradient is not None and self.weight is not None:
            gradient.mul_(self.weight)
        if self.terms.errors:
            inside, outside = rows[Row.ERROR_INSIDE], rows[Row.ERROR_OUTSIDE]
            error = torch.addcmul(outside, y, inside - outside).mul_(p - y).mul_(2.0)
            if self.weight is not None:
                error.mul_(self.weight)
            gradient = error if gradient is None else gradient.add_(error)
        return gradient

    def softmax_entropy_gradient(self, rows: Tensor) -> Tensor | None:
        """dL/dl of a softmax's cross entropy, a new tensor; None if none is requested."""
        if not self.terms.entropy:
            return None
        gamma, power = self.terms.gamma, self.terms.entropy == "power"
        row = rows[Row.POSITIVE] if power else -rows[Row.POSITIVE]
        share = self.target * row if self.weight is None else (self.target * self.weight).mul_(row)
        if power:
            return share.mul_(_power_derivative(self.log_p, gamma))
        focal = self._focal(no=False)
        if focal is not None:
            log_p = self.log_p[:, focal]
            gradient = (
                (-gamma * log_p).mul_(self.p[:, focal]).mul_(1.0 if gamma == 1 else self._miss_power(log_p, gamma - 1))
            )
            share[:, focal] *= gradient.add_(self._miss_power(log_p, gamma))
        return share

    def independent_gradient(self, rows: Tensor, along_p: Tensor | None) -> Tensor:
        """dL/dz of independent channels."""
        p = self.p
        sigmoid = self.terms.mode == "sigmoid"
        gradient: Tensor | float = 0.0
        if along_p is not None:
            gradient = along_p.mul_(p).mul_(1 - p) if sigmoid else along_p
        if not self.terms.entropy:
            assert isinstance(gradient, Tensor)
            return gradient
        y, v = self.target, self.weight
        yes, no = rows[Row.POSITIVE] * y, rows[Row.NEGATIVE] * (1 - y)
        if v is not None:
            yes, no = yes * v, no * v
        if sigmoid and self.terms.entropy == "plain":  # -yes dl/dz - no dq/dz, with dl/dz = 1 - p, dq/dz = -p
            return no.add_(yes).mul_(p).sub_(yes).add_(gradient)
        log_p, log_miss = self.log_p, self.log_miss
        l_along_z = 1 - p if sigmoid else _clamped_log_derivative(p)
        q_along_z = -p if sigmoid else -_clamped_log_derivative(1 - p)
        yes_l, yes_q = self._entropy_derivatives(log_p, log_miss, no=False)
        no_q, no_l = self._entropy_derivatives(log_miss, log_p, no=True)
        along_l = yes * yes_l + no * no_l
        along_q = yes * yes_q + no * no_q
        return along_l.mul_(l_along_z).addcmul_(along_q, q_along_z).add_(gradient)

    def _entropy_derivatives(
        self, log_p: Tensor, log_miss: Tensor, *, no: bool
    ) -> tuple[Tensor | float, Tensor | float]:
        """dh/dl and dh/dq."""
        gamma = self.terms.gamma
        if self.terms.entropy == "power":
            return _power_derivative(log_p, gamma), 0.0
        if self._focal(no) is None:
            return -1.0, 0.0
        power = (gamma * log_miss).exp_()
        return -power, power * log_p * -gamma


def _finite(log: Tensor) -> Tensor:
    return log.clamp_(min=LOWEST_LOG[log.dtype])


def _power_derivative(log_p: Tensor, gamma: float) -> Tensor:
    base = log_p.neg()
    return torch.where(base < POWER_FLOOR, 0.0, base.clamp(min=POWER_FLOOR).pow_(gamma - 1).mul_(-gamma))


def _log_floor(p: Tensor) -> float:
    return max(math.exp(LOG_FLOOR), torch.finfo(p.dtype).tiny)


def _clamped_log(p: Tensor) -> Tensor:
    return torch.where(p < _log_floor(p), LOG_FLOOR, p.log())


def _clamped_log_derivative(p: Tensor) -> Tensor:
    return torch.where(p < _log_floor(p), 0.0, p.reciprocal())
