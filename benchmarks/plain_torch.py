"""Losses in plain torch, as one would write them for `torch.compile`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """One minus Dice with smoothing terms of 1, averaged over items and classes."""
    tp, prediction, label = _overlap(logits, target)
    return (1 - (2 * tp + 1) / (prediction + label + 1)).mean()


def tversky(logits: Tensor, target: Tensor) -> Tensor:
    """The same of Tversky's index with weights 0.3 and 0.7 of false positives and false negatives."""
    tp, prediction, label = _overlap(logits, target)
    return (1 - (tp + 1) / (tp + 0.3 * (prediction - tp) + 0.7 * (label - tp) + 1)).mean()


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss with an exponent of 2."""
    log = torch.log_softmax(logits, 1).gather(1, target.long())
    return (-((1 - log.exp()) ** 2) * log).mean()


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Torch's."""
    return F.cross_entropy(logits, target[:, 0].long())


#: By our names. Each takes logits `[B, C, *spatial]` and an index map `[B, 1, *spatial]`.
PLAIN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice": dice,
    "tversky": tversky,
    "focal": focal,
    "binary_cross_entropy": cross_entropy,
}


def _overlap(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p = torch.softmax(logits, 1)
    y = F.one_hot(target[:, 0].long(), logits.shape[1]).movedim(-1, 1).to(p.dtype)
    axes = tuple(range(2, logits.ndim))
    return (p * y).sum(axes), p.sum(axes), y.sum(axes)
